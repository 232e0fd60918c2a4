"""A PyTorch checkpoint of the original networks becomes a checkpoint of ours, from which all modes go on."""

import hashlib
import json
from pathlib import Path

import jax

from asen_jax import files
from asen_jax.checkpoint import KINDS, Checkpoints
from asen_jax.errors import InputError
from asen_jax.models import build_shapes
from asen_jax.weights.tensor_files import read_tensors
from asen_jax.weights.torch_names import canonical_names, fill_from_torch, recognize


def import_checkpoint(config, workdir: Path, file: Path) -> dict:
    """Write the network in `file` to the fresh `workdir`, as best and latest checkpoint of step 0; what it says of itself.

    The network, its sizes and its number of attributes are read from the file; `config` gives the rest. Names of attributes
    are `config.data.attributes`, in the checkpoint's order, where their number agrees, else `attribute_0`, ...
    """
    tensors = canonical_names(read_tensors(file), str(file))
    fields, num_attributes = recognize(tensors, str(file))
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    names = list(config.data.attributes)
    if len(set(names)) < len(names):
        raise InputError(f'config.data.attributes has a name twice: {", ".join(names)}; give each attribute its own.')
    if len(names) != num_attributes:
        names = [f'attribute_{number}' for number in range(num_attributes)]
    _, *shapes = build_shapes(config, num_attributes)
    try:
        params, batch_stats = fill_from_torch(config.model.name, *shapes, tensors)
    except InputError as error:
        raise InputError(f'{file}: {error}') from error
    with file.open('rb') as opened:
        digest = hashlib.file_digest(opened, 'sha256').hexdigest()
    meta = {
        'step': 0, 'score': None, 'config': json.loads(config.to_json()), 'dataset': config.data.name, 'attributes': names,
        'values': [[] for _ in names], 'fingerprint': None, 'imported': {'file': file.name, 'sha256': digest},
    }  # fmt: skip
    _write(config, Path(workdir), params, batch_stats, meta)
    return meta


def _write(config, workdir: Path, params: dict, batch_stats: dict, meta: dict) -> None:
    arrays = jax.tree.map(jax.numpy.asarray, {'params': params, 'batch_stats': batch_stats})
    with Checkpoints(workdir) as checkpoints:
        if checkpoints.steps():
            raise InputError(f'{workdir} holds a run already; name another --workdir.')
        for kind in KINDS:
            # any score of a training that goes on is better: valid scores are not below 0
            checkpoints.save(kind, 0, arrays, meta, score=0.0 if kind == 'best' else None)
        checkpoints.wait()
    files.write_text(workdir / 'config.json', config.to_json(indent=2) + '\n')


def summary(meta: dict, workdir: Path) -> str:
    """What was imported, for a person."""
    model = meta['config']['model']
    named = ', '.join(meta['attributes'])
    lines = [
        f'imported {meta["imported"]["file"]}: {model["name"]} on {model["trunk"]}, {len(meta["attributes"])} attributes ({named})'
    ]
    if meta['attributes'][0] == 'attribute_0':
        lines.append(
            'their names are not known: --config.data.attributes=NAME,NAME,... gives them, in the order of the checkpoint'
        )
    return '\n'.join([*lines, f'wrote {workdir}; --mode eval, embed, export and training go on from there'])
