"""Start a new run from the weights of another network, that of `config.init`, as far as they match."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError
from asen_jax.matching import attribute_names
from asen_jax.models.build import build_shapes
from asen_jax.models.registry import network_kind
from asen_jax.network import load_network
from asen_jax.weights.model_card import known_dataset
from asen_jax.weights.torch_names import flatten, unflatten

# how the path of a parameter with one row per attribute ends: those of Table and AttributeConditions
PER_ATTRIBUTE = '.rows'


def check_start(config: ConfigDict, checkpoints: Checkpoints, params: dict) -> set[str]:
    """The modules of the network of which a new run takes parameters from `config.init.workdir`.

    `params` are the network's, or their shapes. Raises InputError if the run with these `checkpoints` cannot start from that
    workdir. Needs no data. When a run resumes, its source is not read, and may be gone.
    """
    if not config.init.workdir:
        return set()
    folder = _folder(config)
    if folder.resolve() == checkpoints.root.parent:
        raise InputError(f'config.init.workdir is {folder}, the folder of this run itself; name another --workdir.')
    if checkpoints.kind_to_resume():
        return set(params)
    with Checkpoints(folder, read_only=True) as source:
        meta = source.read_meta(config.init.checkpoint)
    theirs = flatten(build_shapes(ConfigDict(meta['config']), len(meta['attributes']))[1])
    matching = _matching(flatten(params), theirs)
    if not matching:
        raise InputError(f'config.init.workdir is {folder}, where no parameter fits config.model; name another one.')
    return {path.partition('.')[0] for path in matching}


def read_start(
    config: ConfigDict, attributes: Sequence[str], params: dict, batch_stats: dict
) -> tuple[dict, dict, dict[str, Any]]:
    """`params` and `batch_stats`, with what matches in `config.init.workdir` by path and shape, and where that comes from.

    Parameters with one row per attribute match by the attributes' names; new attributes keep their rows. Prints which attributes are
    kept, new, and dropped, and which modules are new or left out. The third value is for checkpoints' metadata; its `dataset` is None
    for an import.
    """
    folder, mesh = _folder(config), sharding.make_mesh()  # each process needs all of every array
    network = load_network(folder, config.init.checkpoint, None, mesh)
    meta = network.meta
    known = attribute_names(config, meta, attributes, folder)
    if network_kind(config.model.name).is_ordered(config.model) and list(known) != list(attributes):
        raise InputError(
            f'{folder} was trained on the attributes {", ".join(known)}, but the data has {", ".join(attributes)}; this network '
            'needs the same attributes in the same order to start from.'
        )
    kept = [name for name in attributes if name in known]
    groups = {
        'kept': kept,
        'new': [name for name in attributes if name not in known],
        'dropped': [name for name in known if name not in attributes],
    }
    listed = '; '.join(f'{group}: {", ".join(names) or "none"}' for group, names in groups.items())
    print(f'starting from {folder}, step {meta["step"]}; attributes {listed}')
    places = [(list(attributes).index(name), known.index(name)) for name in kept]
    started = [
        _merge(flatten(ours), flatten(jax.device_get(theirs)), places)
        for ours, theirs in ((params, network.params), (batch_stats, network.batch_stats))
    ]
    new, left_out = (sum(modules, Counter()) for modules in zip(*(each[1:] for each in started), strict=True))
    for title, modules in (('new, not in that checkpoint', new), ('left out of that checkpoint', left_out)):
        if modules:
            print(f'{title}:', ', '.join(f'{name} ({count} arrays)' for name, count in sorted(modules.items())))
    origin = {'workdir': str(folder), 'step': meta['step'], 'dataset': known_dataset(meta)}
    return unflatten(params, started[0][0]), unflatten(batch_stats, started[1][0]), origin


def _matching(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The paths of both whose arrays have the same shape, but for the number of attributes."""
    paths = [path for path in ours if path in theirs]
    return [path for path in paths if _shape(path, ours[path]) == _shape(path, theirs[path])]


def _shape(path: str, array: Any) -> tuple[int, ...]:
    return array.shape[1:] if path.endswith(PER_ATTRIBUTE) else array.shape


def _merge(
    ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], places: Sequence[tuple[int, int]]
) -> tuple[dict[str, Any], Counter, Counter]:
    """`ours` with the arrays of `theirs` that match, and the modules, with their numbers of arrays, that are only in one of them.

    `places` are the known attributes' rows: (row in ours, row in theirs).
    """
    merged = dict(ours)
    matching = _matching(ours, theirs)
    for path in matching:
        merged[path] = theirs[path]
        if path.endswith(PER_ATTRIBUTE):
            merged[path] = np.array(ours[path])
            for here, there in places:
                merged[path][here] = theirs[path][there]
    return merged, _modules(ours.keys() - matching), _modules(theirs.keys() - matching)


def _modules(paths: Iterable[str]) -> Counter:
    return Counter('.'.join(path.split('.')[:2]) for path in paths)


def _folder(config: ConfigDict) -> Path:
    return Path(config.init.workdir).expanduser()
