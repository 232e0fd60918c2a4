"""PyTorch state dicts of the original networks, by name: every source key is used or listed as unused, every target filled.

Names are those of the authors' checkpoints: `embeddingnet.` is their triplet network's only part, and ASEN's copy of CSN has
a part of that name again. CSN's own authors keep the last layer in the trunk, as `fc_embed`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from asen_jax.errors import InputError
from asen_jax.models.csn import section_masks

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
    'triplet': {'embed_fc': ('fc', _LINEAR)},
}
OWN_FC = 'embeddingnet.embeddingnet.fc_embed.'  # CSN's last layer by its own authors
EMBED_FC = 'embeddingnet.embed_fc.'  # and by ASEN's
BLOCKS_OF_LAYER3 = {('conv3', 6): 'resnet50', ('conv2', 6): 'resnet34', ('conv2', 2): 'resnet18'}


def our_path(network: str, key: str) -> tuple[str, str] | None:
    """Where the PyTorch tensor `key` belongs, as ('head.fc.kernel', kind of transform); None where it has no place."""
    key = key.replace(OWN_FC, EMBED_FC)
    prefix = _trunk_prefix(network)
    if key.startswith(prefix):
        return _trunk_path(key.removeprefix(prefix))
    module, _, leaf = key.removeprefix('embeddingnet.').rpartition('.')
    if module not in HEADS[network]:
        return None
    path, kind = HEADS[network][module]
    if path.endswith('_rows') or module == 'masks':
        place = 'head.masks' if module == 'masks' else f'head.{path}.rows'
        return (place, kind) if leaf == 'weight' else None
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


def _turn(array: np.ndarray, kind: str, back: bool = False) -> np.ndarray:
    """PyTorch's layout to ours, or back: OIHW to HWIO, [out, in] to [in, out]."""
    if kind == _CONV:
        return array.transpose(3, 2, 0, 1) if back else array.transpose(2, 3, 1, 0)
    return array.T if kind == _LINEAR else array


def flatten(tree: dict) -> dict[str, Any]:
    """A nested dict of arrays, or of their shapes, as {'trunk.layer1.0.conv1.kernel': array}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {'.'.join(str(step.key) for step in path): leaf for path, leaf in leaves}


def canonical_names(tensors: Mapping[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """The same tensors under the names of the table above, also where `module.` or `embeddingnet.` was added or left away.

    Raises InputError, naming `file`, where that leaves two tensors one name.
    """
    names = {name: name.removeprefix('module.') for name in tensors}
    if not all(name.startswith(('embeddingnet.', 'choices.')) for name in names.values()):
        names = {name: f'embeddingnet.{rest}' for name, rest in names.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise InputError(f'{file} has the tensor {twice[0]!r} twice, with and without a prefix; keep one of the two.')
    return {names[name]: array for name, array in tensors.items()}


def recognize(tensors: Mapping[str, np.ndarray], file: str) -> tuple[dict[str, Any], int]:
    """The fields of config.model (and train.distance) that a checkpoint's names and shapes tell, and its number of attributes.

    `tensors` have canonical names; raises InputError, naming `file`, where it is none of the networks.
    """
    shapes = {name.removeprefix('embeddingnet.'): np.shape(array) for name, array in tensors.items()}
    if any(name.startswith('choices.') for name in shapes):
        raise InputError(f'{file} is a checkpoint of ASEN++, a network that is not built here yet; import another.')
    own = any(name.startswith(OWN_FC) for name in tensors)
    marks = {'mask_fc1.weight': ('asen', 1), 'attr_embedding.weight': ('asen_v2', 0), 'masks.weight': ('csn', 0)}
    marks['mask_fc2.weight'] = 'asen', 1  # where spatial attention is ablated
    found = [(name, *mark) for name, mark in marks.items() if len(shapes.get(name, ())) == 2]
    if not found:
        known = ', '.join(marks)
        raise InputError(f'{file} is no checkpoint of ASEN, ASEN v2 or CSN: it has none of {known}.')
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise InputError(f'{file} has a tensor {empty[0]!r} of no size, {shapes[empty[0]]}; import a whole checkpoint.')
    name, network, axis = found[0]
    fields = {'model.name': network, **_recognize_trunk(shapes, file), 'model.normalize': not own}
    fields['train.distance'] = 'euclidean' if own else 'cosine'
    last = {'asen': 'feature_fc.weight', 'csn': 'embeddingnet.fc_embed.weight' if own else 'embed_fc.weight'}.get(
        network
    )
    if len(shapes.get(last, ())) == 2:
        fields['model.embed_dim'] = shapes[last][0]
    if network == 'csn':
        masks = np.asarray(tensors['embeddingnet.masks.weight'])
        fixed = masks.shape[1] >= len(masks) and np.array_equal(masks, section_masks(*masks.shape, outside=0.0))
        fields['model.masks'] = 'fixed' if fixed else 'learned'
    else:
        fields['model.spatial_attention'] = 'conv1.weight' in shapes
        fields['model.channel_attention'] = 'fc1.weight' in shapes
    return fields, shapes[name][axis]


def _recognize_trunk(shapes: Mapping[str, tuple], file: str) -> dict[str, Any]:
    inside = [(name.split('.', 1), shape) for name, shape in shapes.items()]
    names = {rest[0]: shape for (part, *rest), shape in inside if part in ('backbonenet', 'embeddingnet')}
    blocks = {name.split('.')[1] for name in names if name.startswith('layer3.')}
    last = 'conv3' if 'layer3.0.conv3.weight' in names else 'conv2'
    trunk, stem = BLOCKS_OF_LAYER3.get((last, len(blocks))), names.get('conv1.weight', ())
    if trunk is None or len(stem) != 4:
        raise InputError(f'{file} has no ResNet-18, 34 or 50 among its tensors; import a checkpoint with its trunk.')
    return {'model.trunk': trunk, 'model.trunk_width': stem[0]}


def fill_from_torch(network: str, params: dict, batch_stats: dict, state_dict: Mapping[str, np.ndarray]):
    """`params` and `batch_stats` (arrays, or only their shapes) with the values of the original's `state_dict`, all of them.

    Raises InputError with the first key that has no place, the first shape that differs, or the first place not filled.
    """
    fixed = (
        network == 'csn' and 'masks' not in params['head']
    )  # then they are no parameter, but a constant of the network
    places = {key: our_path(network, key) for key in state_dict if not UNUSED.search(key)}
    if fixed:
        places.pop('embeddingnet.masks.weight', None)
    return _fill(params, batch_stats, state_dict, places, f'a network {network}')


def fill_trunk(params: dict, batch_stats: dict, tensors: Mapping[str, np.ndarray], trunk: str):
    """`params` and `batch_stats` with a trunk of torchvision's names (timm's are the same); layer4 and fc are not used."""
    places = {name: _trunk_path(name) for name in tensors if not UNUSED.search(name) and not name.startswith('layer4.')}
    parts = {'trunk': params['trunk']}, {'trunk': batch_stats['trunk']}
    filled = _fill(*parts, tensors, places, f'a trunk {trunk}')
    return tuple({**whole, **part} for whole, part in zip((params, batch_stats), filled, strict=True))


def _fill(params: dict, batch_stats: dict, tensors: Mapping, places: Mapping[str, tuple[str, str] | None], what: str):
    """Put each tensor into its place; all of both must match."""
    targets, filled = {**flatten(params), **flatten(batch_stats)}, {}
    for key, place in places.items():
        if place is None or place[0] not in targets:
            raise InputError(
                f"The checkpoint's tensor {key!r} has no place in {what}; choose the network it was made for."
            )
        path, kind = place
        array = np.asarray(tensors[key])
        turned = _turn(array, kind) if array.ndim == len(targets[path].shape) else array
        if turned.shape != targets[path].shape:
            wanted = _turn(np.empty(targets[path].shape, bool), kind, back=True).shape
            raise InputError(f"The checkpoint's tensor {key!r} is {array.shape}, but {what} has {wanted} there.")
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(
                f"The checkpoint's tensor {key!r} has the type {array.dtype}, but {what} has numbers there."
            )
        if path in filled:
            raise InputError(f"The checkpoint's tensor {key!r} has the place of another; keep one of the two.")
        with np.errstate(over='ignore'):
            filled[path] = turned.astype(np.float32)
        if not np.isfinite(filled[path]).all():
            raise InputError(f"The checkpoint's tensor {key!r} has numbers that are not finite; take an earlier one.")
    missing = sorted(targets.keys() - filled.keys())
    if missing:
        others = f', and {len(missing) - 1} others' if len(missing) > 1 else ''
        raise InputError(
            f'The checkpoint lacks what {what} has as {missing[0]!r}{others}; choose the network it was made for.'
        )
    return unflatten(params, filled), unflatten(batch_stats, filled)


def to_torch(
    network: str, params: dict, batch_stats: dict, num_attributes: int, own_csn: bool = False
) -> dict[str, np.ndarray]:
    """The original's state dict of a network of ours: every name that its strict load asks for, the unused ones as zeros.

    Unused are the trunk's classifier `fc` and the batch norms' `num_batches_tracked`. With `own_csn` it is CSN's by its own
    authors, whose trunk has `fc_embed` in the place of `fc`.
    """
    state = {}
    for path, array in {**flatten(params), **flatten(batch_stats)}.items():
        module, leaf, kind = _torch_place(network, path)
        array = np.asarray(array)
        state[f'{module}.{leaf}'] = np.ascontiguousarray(_turn(array, kind, back=True) if array.ndim > 1 else array)
        if leaf == 'running_var':
            state[f'{module}.num_batches_tracked'] = np.zeros((), np.int64)
    if network == 'csn' and 'masks' not in params['head']:
        dim = params['head']['fc']['bias'].size
        state['embeddingnet.masks.weight'] = np.asarray(section_masks(num_attributes, dim, outside=0.0))
    if own_csn:
        return {name.replace(EMBED_FC, OWN_FC): array for name, array in state.items()}
    prefix = _trunk_prefix(network)
    expansion = 4 if f'{prefix}layer1.0.conv3.weight' in state else 1
    in_dim = (
        8 * state[f'{prefix}conv1.weight'].shape[0] * expansion
    )  # what layer4, which the original cuts off, would give
    return state | {
        f'{prefix}fc.weight': np.zeros((1000, in_dim), np.float32),
        f'{prefix}fc.bias': np.zeros(1000, np.float32),
    }


def _torch_place(network: str, path: str) -> tuple[str, str, str]:
    """(module, leaf, kind of transform) of our path: the way back of `our_path`."""
    part, _, rest = path.partition('.')
    module, _, leaf = rest.rpartition('.')
    names = {'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}
    leaf = names.get(leaf, 'weight')
    if part == 'trunk':
        module = module.replace('shortcut.conv', 'downsample.0').replace('shortcut.bn', 'downsample.1')
        return _trunk_prefix(network) + module, leaf, _CONV
    for name, (place, kind) in HEADS[network].items():
        if place == module:
            return f'embeddingnet.{name}', leaf, kind
    raise KeyError(path)


def _trunk_prefix(network: str) -> str:
    return TRUNKS[1] if network in ('csn', 'triplet') else TRUNKS[0]


def unflatten(like: dict, values: Mapping[str, Any]) -> dict:
    """The tree `like` with the leaves that `flatten` names in `values`."""

    def pick(path, _):
        return values['.'.join(str(step.key) for step in path)]

    return jax.tree_util.tree_map_with_path(pick, like)
