"""Convert between PyTorch state dicts of the original networks and our parameters.

Every tensor must be used or listed as unused, and every parameter filled. The names are those of the authors' checkpoints:
everything is below `embeddingnet.`, the only part of their triplet network. What differs between networks and trunks is in their
own modules (`TorchLayout` and `TrunkKind` of models/interfaces.py).
"""

import contextlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.models.interfaces import TorchLayout
from asen_jax.models.registry import NETWORKS, network_kind, trunk_kind

ROOT = 'embeddingnet.'
UNUSED = r'(^|\.)_?fc\.(weight|bias)$|num_batches_tracked$'  # the trunk's own classifier, and counters
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'rows': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
BLOCKS_OF_LAYER3 = {('conv3', 6): 'resnet50', ('conv2', 6): 'resnet34', ('conv2', 2): 'resnet18'}
Names = dict[str, str]  # our path of an array, such as 'trunk.conv1.kernel' -> the name of PyTorch's tensor


def flatten(tree: dict) -> dict[str, Any]:
    """A nested dict of arrays, or of their shapes, as {'trunk.layer1.0.conv1.kernel': array}."""
    return {'.'.join(map(str, path)): leaf for path, leaf in flatten_dict(tree).items()}


def unflatten(like: dict, values: Mapping[str, Any]) -> dict:
    """A tree like `like` whose leaves are those in `values`, under the names that `flatten` gives."""
    return unflatten_dict({path: values['.'.join(map(str, path))] for path in flatten_dict(like)})


def torch_layout(model: ConfigDict) -> TorchLayout | None:
    """How the PyTorch original of the network names its tensors; None if there is no original with this network and trunk."""
    return network_kind(model.name).torch if trunk_kind(model.trunk).in_original else None


def network_names(model: ConfigDict, paths: Mapping[str, Any]) -> Names:
    """The original's names for the arrays at `paths`; without those that the original lacks."""
    layout = torch_layout(model)
    names, found = layout.names(model) if layout else {}, {}
    for path in paths:
        module, _, leaf = path.rpartition('.')
        if path.startswith('trunk.') and 'trunk' in names:
            found[path] = f'{ROOT}{names["trunk"]}.{_trunk_name(model.trunk, path.removeprefix("trunk."))}'
        elif module in names:
            found[path] = f'{ROOT}{names[module]}.{LEAVES.get(leaf, leaf)}'
    return found


def _trunk_name(trunk: str, path: str) -> str:
    *modules, leaf = path.split('.')
    theirs = trunk_kind(trunk).torch_names
    return '.'.join([*(theirs.get(module, module) for module in modules), LEAVES.get(leaf, leaf)])


def _transpose(array: np.ndarray, path: str, is_linear_table: bool, back: bool = False) -> np.ndarray:
    """From PyTorch's layout to that of our array at `path`, or `back`: OIHW to HWIO, [out, in] to [in, out]."""
    if path.endswith('.kernel') and array.ndim == 4:
        return array.transpose(3, 2, 0, 1) if back else array.transpose(2, 3, 1, 0)
    return array.T if is_linear_table or (path.endswith('.kernel') and array.ndim == 2) else array


def canonical_names(tensors: Mapping[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """The same tensors under the authors' names, even if the prefix `module.` was added or `embeddingnet.` removed.

    Raises InputError, naming `file`, if two tensors get the same name.
    """
    names = {name: name.removeprefix('module.') for name in tensors}
    if not all(name.startswith((ROOT, 'choices.')) for name in names.values()):
        names = {name: f'{ROOT}{rest}' for name, rest in names.items()}
    named = {names[name]: array for name, array in tensors.items()}
    if len(named) < len(tensors):
        raise InputError(f'{file} has a tensor twice, with and without a prefix; keep one of the two.')
    return named


def recognize(tensors: Mapping[str, np.ndarray], file: str) -> tuple[dict[str, Any], int]:
    """The config fields that the names and shapes of a checkpoint's tensors determine, and its number of attributes.

    `tensors` have canonical names. Raises InputError, naming `file`, if they belong to none of the networks.
    """
    inside = {name.removeprefix(ROOT): array for name, array in tensors.items() if array.size}
    if any(name.startswith('choices.') for name in inside):
        raise InputError(f'{file} is a checkpoint of ASEN++, which is not implemented yet; import another network.')
    for name in NETWORKS:
        layout, found = network_kind(name).torch, None
        with contextlib.suppress(IndexError, ValueError):  # a tensor with such a name, but of another number of axes
            found = layout.recognize(inside) if layout else None
        if found:
            fields, num_attributes = found
            return {'model.name': name, **_recognize_trunk(inside, file), **fields}, num_attributes
    raise InputError(f'{file} is not a checkpoint of ASEN, ASEN v2 or CSN: it has no table of their attributes.')


def _recognize_trunk(tensors: Mapping[str, np.ndarray], file: str) -> dict[str, Any]:
    parts = [(name.split('.', 1), array) for name, array in tensors.items()]
    names = {rest[0]: array.shape for (part, *rest), array in parts if part in ('backbonenet', 'embeddingnet')}
    blocks = {name.split('.')[1] for name in names if name.startswith('layer3.')}
    last = 'conv3' if 'layer3.0.conv3.weight' in names else 'conv2'
    trunk, stem = BLOCKS_OF_LAYER3.get((last, len(blocks))), names.get('conv1.weight', ())
    if trunk is None or len(stem) != 4:
        raise InputError(f'{file} has no ResNet-18, 34 or 50 among its tensors; import a checkpoint with its trunk.')
    return {'model.trunk': trunk, 'model.resnet.width': stem[0]}


def fill_from_torch(
    model: ConfigDict, params: dict, batch_stats: dict, state_dict: Mapping[str, np.ndarray], num_attributes: int
) -> tuple[dict, dict]:
    """`params` and `batch_stats` (arrays or shapes) with every value taken from the original's `state_dict`.

    Raises InputError naming the first tensor that has no place or does not fit it, or the first parameter that is missing.
    """
    layout = torch_layout(model)
    assert layout, model.name
    constants = [re.escape(ROOT + name) for name in layout.constants(model, num_attributes)]
    names = network_names(model, flatten(params) | flatten(batch_stats))
    unused = '|'.join([UNUSED, *constants])
    return _fill(params, batch_stats, state_dict, names, f'the {model.name} network', unused, layout.linear_tables)


def fill_trunk(params: dict, batch_stats: dict, tensors: Mapping[str, np.ndarray], trunk: str) -> tuple[dict, dict]:
    """A trunk's parameters and batch statistics from `tensors` with the names of their PyTorch implementation.

    The classifier and the layers beyond the trunk's last features are not used. Raises InputError as `fill_from_torch` does.
    """
    names = {path: _trunk_name(trunk, path) for path in flatten(params) | flatten(batch_stats)}
    return _fill(
        params, batch_stats, tensors, names, f'the {trunk} trunk', f'{UNUSED}|^({trunk_kind(trunk).torch_unused})'
    )


def _fill(
    params: dict,
    batch_stats: dict,
    tensors: Mapping[str, np.ndarray],
    names: Names,
    what: str,
    unused: str,
    linear_tables: Collection[str] = (),
) -> tuple[dict, dict]:
    """Copies of both trees with each tensor in its place; `what` names the network in errors."""
    targets, filled = flatten(params) | flatten(batch_stats), {}
    if extra := [key for key in tensors.keys() - names.values() if not re.search(unused, key)]:
        raise InputError(f'The tensor {min(extra)!r} has no place in {what}; choose the network it was saved from.')
    if missing := [path for path in targets if names.get(path) not in tensors]:
        raise InputError(f'The checkpoint has no tensor for {min(missing)!r} of {what}; choose the network it is from.')
    for path, target in targets.items():
        array, is_table = np.asarray(tensors[names[path]]), path in linear_tables
        with np.errstate(over='ignore'):
            filled[path] = _transpose(array, path, is_table).astype(np.float32)
        is_real = np.issubdtype(array.dtype, np.floating) and np.isfinite(filled[path]).all()
        if filled[path].shape != target.shape or not is_real:
            wanted = _transpose(np.empty(target.shape, bool), path, is_table, back=True).shape
            given = f'{array.shape} of {array.dtype}'
            raise InputError(f'The tensor {names[path]!r} is {given}; {what} has {wanted} finite floats there.')
    return unflatten(params, filled), unflatten(batch_stats, filled)


def to_torch(model: ConfigDict, params: dict, batch_stats: dict, num_attributes: int) -> dict[str, np.ndarray]:
    """The original's state dict for our network, with every name that loading it strictly requires.

    The tensors that are unused, the trunk's classifier `fc` and each `num_batches_tracked`, are zeros; CSN's own authors have no
    such classifier. Raises InputError if the original lacks a part of the network.
    """
    arrays, layout = flatten(params) | flatten(batch_stats), torch_layout(model)
    if layout is None:
        raise InputError(f'{model.name} on {model.trunk} has no PyTorch original; export it with --format=jax.')
    names = network_names(model, arrays)
    if lacking := [path for path in arrays if path not in names]:
        raise InputError(f'The PyTorch original of {model.name} lacks {lacking[0]}; export it with --format=jax.')
    state = {ROOT + name: array for name, array in layout.constants(model, num_attributes).items()}
    for path, array in arrays.items():
        key, is_table = names[path], path in layout.linear_tables
        state[key] = np.ascontiguousarray(_transpose(np.asarray(array), path, is_table, back=True))
        if key.endswith('.running_var'):
            state[key.replace('running_var', 'num_batches_tracked')] = np.zeros((), np.int64)
    if any('.fc_embed.' in key for key in state):
        return state
    prefix = f'{ROOT}{layout.names(model)["trunk"]}.'
    expansion = 4 if f'{prefix}layer1.0.conv3.weight' in state else 1
    # the number of channels that layer4, which the original cuts off, would return
    in_dim = 8 * state[f'{prefix}conv1.weight'].shape[0] * expansion
    return state | {
        f'{prefix}fc.weight': np.zeros((1000, in_dim), np.float32),
        f'{prefix}fc.bias': np.zeros(1000, np.float32),
    }
