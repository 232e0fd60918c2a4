"""Start a new run from all weights of another network, that of `config.init`; attributes are matched by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError
from asen_jax.network import TRAINING_ONLY, attribute_names, load_network
from asen_jax.weights.model_card import known_dataset

PER_ATTRIBUTE = ('rows', 'masks')  # the names of parameters with one row per attribute: those of Table and of CsnHead


def check_start(config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Raise InputError if `config.init.workdir` is given and the run with these `checkpoints` cannot start from it.

    Needs no data. When a run resumes, its source is not read, and may be gone.
    """
    if not config.init.workdir:
        return
    folder = _folder(config)
    if folder.resolve() == checkpoints.root.parent:
        raise InputError(
            f'config.init.workdir is {folder}, the folder of this run itself; give the new run another --workdir.'
        )
    if checkpoints.kind_to_resume() is None:
        with Checkpoints(folder, read_only=True) as source:
            _check_source(config, source)


def read_start(config: ConfigDict, attributes: Sequence[str], params: dict) -> tuple[dict, dict, dict[str, Any]]:
    """The parameters and batch statistics of `config.init.workdir` for a network of `attributes`, and where they come from.

    Attributes that the source does not know keep their rows in `params`, which were drawn for this run. Prints which
    attributes are kept, new and dropped. The third value is for checkpoints' metadata; its `dataset` is None for an import.
    """
    folder, mesh = _folder(config), sharding.make_mesh()  # each process needs all of every array
    with Checkpoints(folder, read_only=True) as source:
        _check_source(config, source)
        network = load_network(source, config.init.checkpoint, None, mesh)
    meta = network.meta
    known = attribute_names(config, meta, attributes, folder)
    _check_fixed_masks(config, known, attributes)
    kept = [name for name in attributes if name in known]
    groups = {
        'kept': kept,
        'new': [name for name in attributes if name not in known],
        'dropped': [name for name in known if name not in attributes],
    }
    told = '; '.join(f'{group}: {", ".join(names) or "none"}' for group, names in groups.items())
    print(f'starting from {folder}, step {meta["step"]}; attributes {told}')
    places = [(list(attributes).index(name), known.index(name)) for name in kept]
    origin = {'workdir': str(folder), 'step': meta['step'], 'dataset': known_dataset(meta)}
    return _merge(params, jax.device_get(network.params), places), jax.device_get(network.batch_stats), origin


def _merge(drawn: dict, trained: dict, places: Sequence[tuple[int, int]]) -> dict:
    """`trained`, except that a table with one row per attribute is that of `drawn` with the rows of known attributes replaced.

    `places` are the known attributes' rows: (row in `drawn`, row in `trained`).
    """

    def merge(path: tuple, drawn: Any, trained: np.ndarray) -> np.ndarray:
        if path[-1].key not in PER_ATTRIBUTE:
            return trained
        table = np.array(drawn)
        for here, there in places:
            table[here] = trained[there]
        return table

    return jax.tree_util.tree_map_with_path(merge, drawn, trained)


def _folder(config: ConfigDict) -> Path:
    return Path(config.init.workdir).expanduser()


def _check_source(config: ConfigDict, source: Checkpoints) -> None:
    """Raise InputError unless `source` has the checkpoint that `config.init` names, and its network is that of `config`."""
    folder, which, steps = _folder(config), config.init.checkpoint, source.steps()
    if not steps:
        raise InputError(
            f'config.init.workdir is {folder}, which has no checkpoint; name the workdir of a run or of an import.'
        )
    if which not in (*steps, *map(str, steps.values())):
        found = ', '.join(f'{kind} (step {step})' for kind, step in steps.items())
        raise InputError(f'config.init.checkpoint is {which!r}, but {folder} has only {found}; name one of these.')
    trained, here = (
        flatten_dict(model, sep='.') for model in (source.read_meta(which)['config']['model'], config.model.to_dict())
    )
    others = [name for name in here if name in trained and trained[name] != here[name] and name not in TRAINING_ONLY]
    if others:
        differences = ', '.join(f'config.model.{name}={trained[name]!r}, not {here[name]!r}' for name in others)
        options = ' '.join(f'--config.model.{name}={trained[name]}' for name in others)
        raise InputError(f'{folder}, from which this run starts, has {differences}; add {options}.')


def _check_fixed_masks(config: ConfigDict, known: Sequence[str], attributes: Sequence[str]) -> None:
    """Raise InputError for fixed masks with other attributes: they are sections that follow from an attribute's position."""
    fixed = config.model.name == 'csn' and config.model.csn.masks == 'fixed'
    if fixed and list(known) != list(attributes):
        raise InputError(
            f'{_folder(config)} has fixed masks for the attributes {", ".join(known)}, but the data has '
            f'{", ".join(attributes)}; fixed masks need the same attributes in the same order to start from.'
        )
