"""PyTorch state dicts of the original networks, by name: every source key is used or listed as unused, every target filled."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from asen_jax.errors import InputError

UNUSED = re.compile(r'(^|\.)fc\.(weight|bias)$|num_batches_tracked$')  # the trunk's own classifier, and counters

TRUNKS = ('embeddingnet.backbonenet.', 'embeddingnet.embeddingnet.')  # ASEN's name for it, CSN's name for it

# the original's head names -> (our path, how the tensor turns)
_TABLE, _LINEAR, _CONV = 'table', 'linear', 'conv'
HEADS = {
    'asen': {
        'conv1': ('spatial.image_conv', _CONV),
        'conv2': ('spatial.score_conv', _CONV),
        'mask_fc1': ('spatial.attribute_rows', _LINEAR),
        'mask_fc2': ('channel_rows', _LINEAR),
        'fc1': ('channel.fc1', _LINEAR),
        'fc2': ('channel.fc2', _LINEAR),
        'feature_fc': ('fc', _LINEAR),
    },
    'asen_v2': {
        'attr_embedding': ('attribute_rows', _TABLE),
        'attr_transform1': ('spatial.attribute_fc', _LINEAR),
        'conv1': ('spatial.image_conv', _CONV),
        'img_bn1': ('spatial.image_bn', _TABLE),
        'attr_transform2': ('channel_fc', _LINEAR),
        'fc1': ('channel.fc1', _LINEAR),
        'fc2': ('channel.fc2', _LINEAR),
    },
    'csn': {'embed_fc': ('fc', _LINEAR), 'masks': ('', _TABLE)},
}


def our_path(network: str, key: str) -> tuple[str, str] | None:
    """Where the PyTorch tensor `key` belongs, as ('head.fc.kernel', kind of transform); None where it has no place."""
    for prefix in TRUNKS:
        if key.startswith(prefix):
            return _trunk_path(key.removeprefix(prefix))
    module, _, leaf = key.removeprefix('embeddingnet.').rpartition('.')
    if module not in HEADS[network]:
        return None
    path, kind = HEADS[network][module]
    if path.endswith('_rows'):
        return f'head.{path}.rows', kind
    if module == 'masks':
        return 'head.masks', kind
    return f'head.{path}.{_leaf(leaf, is_norm=module.endswith("bn1"))}', kind if leaf == 'weight' else _TABLE


def _trunk_path(key: str) -> tuple[str, str]:
    key = key.replace('downsample.0', 'shortcut.conv').replace('downsample.1', 'shortcut.bn')
    module, _, leaf = key.rpartition('.')
    is_norm = module.rpartition('.')[2].startswith('bn')
    return f'trunk.{module}.{_leaf(leaf, is_norm)}', _TABLE if is_norm else _CONV


def _leaf(leaf: str, is_norm: bool) -> str:
    if leaf == 'weight':
        return 'scale' if is_norm else 'kernel'
    return {'running_mean': 'mean', 'running_var': 'var'}.get(leaf, leaf)


def _turn(array: np.ndarray, kind: str) -> np.ndarray:
    """PyTorch's layout to ours: OIHW to HWIO, [out, in] to [in, out]."""
    if kind == _CONV:
        return array.transpose(2, 3, 1, 0)
    return array.T if kind == _LINEAR else array


def flatten(tree: dict) -> dict[str, jax.Array | np.ndarray]:
    """A nested dict of arrays as {'trunk.layer1.0.conv1.kernel': array}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {'.'.join(str(step.key) for step in path): leaf for path, leaf in leaves}


def fill_from_torch(network: str, params: dict, batch_stats: dict, state_dict: Mapping[str, np.ndarray]):
    """`params` and `batch_stats` with the values of the original's `state_dict` (names -> arrays), all of them.

    Raises InputError with the first key that has no place, the first shape that differs, or the first place not filled.
    """
    targets = {**flatten(params), **flatten(batch_stats)}
    filled = {}
    for key, array in state_dict.items():
        if UNUSED.search(key):
            continue
        place = our_path(network, key)
        if place is None or place[0] not in targets:
            raise InputError(
                f"The checkpoint's tensor {key!r} has no place in {network}; choose the network it was made for."
            )
        path, kind = place
        turned = _turn(np.asarray(array), kind)
        if turned.shape != targets[path].shape:
            raise InputError(
                f"The checkpoint's tensor {key!r} is {turned.shape} for us, but {network} has {targets[path].shape} there."
            )
        filled[path] = turned.astype(np.float32)
    missing = sorted(targets.keys() - filled.keys())
    if missing:
        raise InputError(f'The checkpoint lacks {missing[0]!r} of {network}, and {len(missing) - 1} others.')
    return _unflatten(params, filled), _unflatten(batch_stats, filled)


def _unflatten(like: dict, values: Mapping[str, np.ndarray]) -> dict:
    def pick(path, _):
        return values['.'.join(str(step.key) for step in path)]

    return jax.tree_util.tree_map_with_path(pick, like)
