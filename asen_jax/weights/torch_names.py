"""Convert between PyTorch state dicts of the original networks and our parameters.

Every tensor must be used or listed as unused, and every parameter filled. The names are those of the authors' checkpoints:
everything is below `embeddingnet.`, the only part of their triplet network, and ASEN's copy of CSN repeats that name inside.
CSN's own authors keep the last layer in the trunk, as `fc_embed`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from asen_jax.errors import InputError
from asen_jax.models.csn import section_masks

UNUSED = re.compile(r'(^|\.)_?fc\.(weight|bias)$|num_batches_tracked$')  # the trunk's own classifier, and counters
ASEN_TRUNK, CSN_TRUNK = 'embeddingnet.backbonenet.', 'embeddingnet.embeddingnet.'
SHORTCUT = {'downsample.0': 'shortcut.conv', 'downsample.1': 'shortcut.bn'}
EFFICIENTNET = {'_conv_stem': 'stem', '_bn0': 'stem_bn', '_conv_head': 'top', '_bn1': 'top_bn'}
MBCONV = {'_expand_conv': 'expand', '_bn0': 'expand_bn', '_depthwise_conv': 'depthwise', '_bn1': 'depthwise_bn'}
MBCONV |= {'_project_conv': 'project', '_bn2': 'project_bn'}
BEYOND_STRIDE_16 = ('layer4.', *(f'_blocks.{number}.' for number in range(11, 16)), '_conv_head.', '_bn1.')
LEAVES = ('weight', 'bias', 'running_mean', 'running_var')

# the original's head names -> (our path, layout of the tensor)
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
OWN_FC = 'embeddingnet.embeddingnet.fc_embed.'  # the last layer of CSN in its authors' checkpoints
EMBED_FC = 'embeddingnet.embed_fc.'  # the same layer in ASEN's copy
BLOCKS_OF_LAYER3 = {('conv3', 6): 'resnet50', ('conv2', 6): 'resnet34', ('conv2', 2): 'resnet18'}


def our_path(network: str, key: str) -> tuple[str, str] | None:
    """Our path for the PyTorch tensor `key`, and its layout, such as ('head.fc.kernel', 'linear'); None if there is none."""
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
    """Our path and the layout for a tensor of a ResNet as in torchvision, or of an EfficientNet as in its PyTorch package."""
    module, _, leaf = key.rpartition('.')
    for theirs, ours in SHORTCUT.items():
        module = module.replace(theirs, ours)
    *block, name = module.split('.')
    is_norm = name.removeprefix('_').startswith('bn')
    if module.startswith('_'):
        name = (MBCONV if block else EFFICIENTNET).get(name, name)
        block = [part.removeprefix('_') for part in block]
    path = '.'.join(['trunk', *block, name, _leaf(leaf, is_norm)])
    return path, _TABLE if is_norm else _CONV


def _leaf(leaf: str, is_norm: bool) -> str:
    if leaf == 'weight':
        return 'scale' if is_norm else 'kernel'
    return {'running_mean': 'mean', 'running_var': 'var'}.get(leaf, leaf)


def _turn(array: np.ndarray, kind: str, back: bool = False) -> np.ndarray:
    """From PyTorch's layout to ours, or `back`: OIHW to HWIO, [out, in] to [in, out]."""
    if kind == _CONV:
        return array.transpose(3, 2, 0, 1) if back else array.transpose(2, 3, 1, 0)
    return array.T if kind == _LINEAR else array


def flatten(tree: dict) -> dict[str, Any]:
    """A nested dict of arrays, or of their shapes, as {'trunk.layer1.0.conv1.kernel': array}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {'.'.join(str(step.key) for step in path): leaf for path, leaf in leaves}


def canonical_names(tensors: Mapping[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """The same tensors under the authors' names, even if the prefix `module.` was added or `embeddingnet.` removed.

    Raises InputError, naming `file`, if two tensors get the same name.
    """
    names = {name: name.removeprefix('module.') for name in tensors}
    if not all(name.startswith(('embeddingnet.', 'choices.')) for name in names.values()):
        names = {name: f'embeddingnet.{rest}' for name, rest in names.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise InputError(f'{file} has the tensor {twice[0]!r} twice, with and without a prefix; keep one of the two.')
    return {names[name]: array for name, array in tensors.items()}


def recognize(tensors: Mapping[str, np.ndarray], file: str) -> tuple[dict[str, Any], int]:
    """The config fields that the names and shapes of a checkpoint's tensors determine, and its number of attributes.

    `tensors` have canonical names. Raises InputError, naming `file`, if they belong to none of the networks.
    """
    shapes = {name.removeprefix('embeddingnet.'): np.shape(array) for name, array in tensors.items()}
    if any(name.startswith('choices.') for name in shapes):
        raise InputError(
            f'{file} is a checkpoint of ASEN++, which is not implemented yet; import a checkpoint of another network.'
        )
    own = any(name.startswith(OWN_FC) for name in tensors)
    marks = {'mask_fc1.weight': ('asen', 1), 'attr_embedding.weight': ('asen_v2', 0), 'masks.weight': ('csn', 0)}
    marks['mask_fc2.weight'] = 'asen', 1  # without spatial attention
    found = [(name, *mark) for name, mark in marks.items() if len(shapes.get(name, ())) == 2]
    if not found:
        known = ', '.join(marks)
        raise InputError(f'{file} is not a checkpoint of ASEN, ASEN v2 or CSN: it has none of {known}.')
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise InputError(
            f'{file} has an empty tensor {empty[0]!r} with shape {shapes[empty[0]]}; import a complete checkpoint.'
        )
    name, network, axis = found[0]
    fields = {'model.name': network, **_recognize_trunk(shapes, file), 'model.normalize': not own}
    fields['train.distance'] = 'euclidean' if own else 'cosine'
    last = {'asen': 'feature_fc.weight', 'csn': 'embeddingnet.fc_embed.weight' if own else 'embed_fc.weight'}
    last_shape = shapes.get(last.get(network, ''), ())
    if len(last_shape) == 2:
        fields['model.embed_dim'] = last_shape[0]
    if network == 'csn':
        masks = np.asarray(tensors['embeddingnet.masks.weight'])
        fixed = masks.shape[1] >= len(masks) and np.array_equal(masks, section_masks(*masks.shape, outside=0.0))
        fields['model.csn.masks'] = 'fixed' if fixed else 'learned'
    else:
        fields['model.asen.spatial_attention'] = 'conv1.weight' in shapes
        fields['model.asen.channel_attention'] = 'fc1.weight' in shapes
    return fields, shapes[name][axis]


def _recognize_trunk(shapes: Mapping[str, tuple], file: str) -> dict[str, Any]:
    inside = [(name.split('.', 1), shape) for name, shape in shapes.items()]
    names = {rest[0]: shape for (part, *rest), shape in inside if part in ('backbonenet', 'embeddingnet')}
    blocks = {name.split('.')[1] for name in names if name.startswith('layer3.')}
    last = 'conv3' if 'layer3.0.conv3.weight' in names else 'conv2'
    trunk, stem = BLOCKS_OF_LAYER3.get((last, len(blocks))), names.get('conv1.weight', ())
    if trunk is None or len(stem) != 4:
        raise InputError(f'{file} has no ResNet-18, 34 or 50 among its tensors; import a checkpoint with its trunk.')
    return {'model.trunk': trunk, 'model.resnet.width': stem[0]}


def fill_from_torch(
    network: str, params: dict, batch_stats: dict, state_dict: Mapping[str, np.ndarray]
) -> tuple[dict, dict]:
    """`params` and `batch_stats` (arrays or shapes) with every value taken from the original's `state_dict`.

    Raises InputError naming the first tensor that has no place or the wrong shape, or the first parameter that is missing.
    """
    places = {key: our_path(network, key) for key in state_dict if not UNUSED.search(key)}
    if _has_fixed_masks(network, params):
        places.pop('embeddingnet.masks.weight', None)
    return _fill(params, batch_stats, state_dict, places, f'the {network} network')


def fill_trunk(params: dict, batch_stats: dict, tensors: Mapping[str, np.ndarray], trunk: str) -> tuple[dict, dict]:
    """({'trunk': parameters}, {'trunk': batch statistics}) from `tensors` with the names of their PyTorch implementation.

    The classifier and the layers beyond the trunk's last features are not used. Raises InputError as `fill_from_torch` does.
    """
    parts = {'trunk': params['trunk']}, {'trunk': batch_stats['trunk']}
    beyond = () if 'top' in params['trunk'] else BEYOND_STRIDE_16
    places = {name: _trunk_path(name) for name in tensors if not UNUSED.search(name) and not name.startswith(beyond)}
    return _fill(*parts, tensors, places, f'the {trunk} trunk')


def _fill(
    params: dict,
    batch_stats: dict,
    tensors: Mapping[str, np.ndarray],
    places: Mapping[str, tuple[str, str] | None],
    what: str,
) -> tuple[dict, dict]:
    """Copies of both trees with each tensor in its place; `what` names the network in errors."""
    targets, filled = {**flatten(params), **flatten(batch_stats)}, {}
    for key, place in places.items():
        if place is None or place[0] not in targets:
            raise InputError(
                f"The checkpoint's tensor {key!r} has no place in {what}; choose the network it was saved from."
            )
        path, kind = place
        array = np.asarray(tensors[key])
        turned = _turn(array, kind) if array.ndim == len(targets[path].shape) else array
        if turned.shape != targets[path].shape:
            wanted = _turn(np.empty(targets[path].shape, bool), kind, back=True).shape
            raise InputError(f"The checkpoint's tensor {key!r} is {array.shape}, but {what} has {wanted} there.")
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"The checkpoint's tensor {key!r} has dtype {array.dtype}, but {what} has floats there.")
        if path in filled:
            raise InputError(
                f"The checkpoint's tensor {key!r} has the same place as another tensor; keep one of the two."
            )
        with np.errstate(over='ignore'):
            filled[path] = turned.astype(np.float32)
        if not np.isfinite(filled[path]).all():
            raise InputError(
                f"The checkpoint's tensor {key!r} has values that are not finite; use an earlier checkpoint."
            )
    missing = sorted(targets.keys() - filled.keys())
    if missing:
        others = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
        raise InputError(
            f'The checkpoint has no tensor for {missing[0]!r}{others} of {what}; choose the network it was saved from.'
        )
    return unflatten(params, filled), unflatten(batch_stats, filled)


def to_torch(
    network: str, params: dict, batch_stats: dict, num_attributes: int, own_csn: bool = False
) -> dict[str, np.ndarray]:
    """The original's state dict for our network, with every name that loading it strictly requires.

    The tensors that are unused, the trunk's classifier `fc` and each `num_batches_tracked`, are zeros. With `own_csn`, the
    names are those of CSN's own authors, whose trunk has `fc_embed` in place of `fc`.
    """
    arrays = {**flatten(params), **flatten(batch_stats)}
    keys, state = _torch_keys(network, arrays), {}
    for path, array in arrays.items():
        key, kind = keys[path]
        state[key] = np.ascontiguousarray(_turn(np.asarray(array), kind, back=True))
        if key.endswith('.running_var'):
            state[key.replace('running_var', 'num_batches_tracked')] = np.zeros((), np.int64)
    if _has_fixed_masks(network, params):
        dim = params['head']['fc']['bias'].size
        state['embeddingnet.masks.weight'] = np.asarray(section_masks(num_attributes, dim, outside=0.0))
    if own_csn:
        return {name.replace(EMBED_FC, OWN_FC): array for name, array in state.items()}
    prefix = _trunk_prefix(network)
    expansion = 4 if f'{prefix}layer1.0.conv3.weight' in state else 1
    # the number of channels that layer4, which the original cuts off, would return
    in_dim = 8 * state[f'{prefix}conv1.weight'].shape[0] * expansion
    return state | {
        f'{prefix}fc.weight': np.zeros((1000, in_dim), np.float32),
        f'{prefix}fc.bias': np.zeros(1000, np.float32),
    }


def _torch_keys(network: str, paths: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The inverse of `our_path` for `paths`: the PyTorch name and the layout of each."""
    modules = {f'embeddingnet.{name}' for name in HEADS[network]}
    for module in {path.rpartition('.')[0] for path in paths if path.startswith('trunk.')}:
        module = module.removeprefix('trunk.')
        for theirs, ours in SHORTCUT.items():
            module = module.replace(ours, theirs)
        modules.add(_trunk_prefix(network) + module)
    places = {f'{module}.{leaf}': our_path(network, f'{module}.{leaf}') for module in modules for leaf in LEAVES}
    return {place[0]: (key, place[1]) for key, place in places.items() if place is not None}


def _has_fixed_masks(network: str, params: dict) -> bool:
    """Whether the masks are a constant of the network instead of parameters."""
    return network == 'csn' and 'masks' not in params['head']


def _trunk_prefix(network: str) -> str:
    return CSN_TRUNK if network in ('csn', 'triplet') else ASEN_TRUNK


def unflatten(like: dict, values: Mapping[str, Any]) -> dict:
    """A tree like `like` whose leaves are those in `values`, under the names that `flatten` gives."""

    def pick(path, _):
        return values['.'.join(str(step.key) for step in path)]

    return jax.tree_util.tree_map_with_path(pick, like)
