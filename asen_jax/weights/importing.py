"""Import a PyTorch checkpoint of the original networks as a checkpoint of ours, which every mode can use."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from asen_jax import files
from asen_jax.checkpoint import KINDS, Checkpoints
from asen_jax.errors import InputError
from asen_jax.matching import unnamed_attributes
from asen_jax.models.build import build_shapes
from asen_jax.weights.tensor_files import read_tensors
from asen_jax.weights.torch_names import canonical_names, fill_from_torch, recognize


def import_checkpoint(config: ConfigDict, workdir: Path, file: Path) -> dict:
    """The metadata of the checkpoint that the network in `file` becomes: best and latest, at step 0 of the new `workdir`.

    The network, its sizes and its number of attributes are inferred from the file; the rest comes from `config`. The
    attributes are called as in `config.data.attributes`, in that order, or else `attribute_0`, ...
    """
    tensors = canonical_names(read_tensors(file), str(file))
    fields, num_attributes = recognize(tensors, str(file))
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    if not config.data.image_size:
        raise InputError('config.data.image_size is 0; name the size that it was trained with, such as 224.')
    names = list(config.data.attributes)
    if names and not len(names) == len(set(names)) == num_attributes:
        raise InputError(
            f'config.data.attributes is {",".join(names)}, but {file} has {num_attributes} attributes; '
            'give each its own name, in the order of the checkpoint, or name none.'
        )
    names = names or unnamed_attributes(num_attributes)
    _, params, batch_stats = build_shapes(config, num_attributes)
    try:
        params, batch_stats = fill_from_torch(config.model, params, batch_stats, tensors, num_attributes)
    except InputError as error:
        raise InputError(f'{file}: {error}') from error
    meta = {
        'step': 0,
        'score': None,
        'config': json.loads(config.to_json()),
        'dataset': config.data.name,
        'attributes': names,
        'values': [[] for _ in names],
        'fingerprint': None,
        'imported': {'file': file.name, 'sha256': files.sha256(file)},
    }
    arrays = jax.tree.map(jax.numpy.asarray, {'params': params, 'batch_stats': batch_stats})
    with files.lock_workdir(workdir), Checkpoints(workdir) as checkpoints:
        if checkpoints.steps():
            raise InputError(f'{workdir} already has a run; name another --workdir.')
        for kind in KINDS:
            checkpoints.save(kind, arrays, meta)
        checkpoints.wait()
    files.write_text(workdir / 'config.json', config.to_json(indent=2) + '\n')
    return meta


def summary(meta: dict, workdir: Path) -> str:
    """What was imported, as text for the user."""
    model, attributes = meta['config']['model'], meta['attributes']
    network = f'{model["name"]} on {model["trunk"]}, {len(attributes)} attributes ({", ".join(attributes)})'
    lines = [f'imported {meta["imported"]["file"]}: {network}']
    if attributes == unnamed_attributes(len(attributes)):
        lines.append(
            'their names are unknown: import again, into another --workdir, with --config.data.attributes=NAME,NAME,... '
            'in the order of the checkpoint'
        )
    return '\n'.join([*lines, f'wrote {workdir}, which --mode eval, embed, export and train can use'])
