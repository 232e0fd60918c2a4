"""Every config field, with its published value (ASEN, AAAI 2020) as the default; a dataset's file in configs/ changes a few.

`python main.py --help` prints this table. No value is derived from another one, so that --config.FIELD=VALUE never leaves a
stale value behind.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.models.registry import NETWORKS, TRUNKS


class Fixed(IntEnum):
    """How far a field is fixed; each level includes those before it."""

    NEVER = 0  # may change at any time
    RUN = 1  # may not change when a run resumes
    VECTORS = 2  # evaluating and embedding use the checkpoint's value, whatever the config says
    WEIGHTS = 3  # training that starts from imported weights needs their value


class Field(NamedTuple):
    """A field of the config. It may be empty only if its default is."""

    name: str
    default: Any
    fixed: Fixed
    meaning: str
    allowed: tuple[float, float] | list | None = None  # the lowest and highest number, or the choices


NEVER, RUN, VECTORS, WEIGHTS = Fixed
KINDS = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    tuple: 'text separated by commas',
}
DATASETS = ['fashionai', 'darn', 'deepfashion', 'zappos50k', 'catalog', 'synthetic']
TABLE = (
    Field('name', 'asen', NEVER, 'name of the run; the default workdir is runs/<name>'),
    # JAX would drop higher bits
    Field('seed', 0, RUN, 'determines initial weights, triplets and augmentation', (0, 2**32 - 1)),
    Field('precision', 'float32', NEVER, 'arithmetic; weights stay float32', ['float32', 'tensorfloat32', 'bfloat16']),
    Field('data.name', 'fashionai', RUN, 'the dataset', DATASETS),
    Field('data.manual_dir', 'data', NEVER, 'folder of the raw files; for a catalog, the one that contains labels.csv'),
    Field('data.dir', 'data/records', NEVER, 'folder for the prepared records'),
    Field('data.image_size', 224, VECTORS, 'side of the input, in pixels; 0: chosen from the photos', (0, 4096)),
    Field('data.fit', 'crop', VECTORS, 'how a photo is made square; the papers crop', ['crop', 'pad', 'stretch']),
    Field('data.attributes', (), RUN, 'attributes to use, as a,b,c; empty: all (a catalog: columns with 2-100 values)'),
    Field('data.crop_to_bbox', False, VECTORS, 'first crop each photo to its garment box, if it has one'),
    # all triplets of an epoch are drawn at once
    Field('data.num_triplets', 100_000, RUN, 'triplets per epoch', (1, 10_000_000)),
    Field('data.triplets', 'fresh', RUN, "draw new ones each epoch, or use the dataset's own list", ['fresh', 'fixed']),
    Field('data.strict_negatives', False, RUN, "never use a negative that also has the anchor's value"),
    Field('data.flip', True, RUN, 'randomly mirror each training photo'),
    Field('data.jitter', 0.0, RUN, 'largest part of a side that random crops in training remove', (0, 0.99)),
    Field('data.missing', 'error', NEVER, 'what to do about a listed photo that does not exist', ['error', 'skip']),
    Field('data.broken', 'error', NEVER, 'what to do about a photo that cannot be decoded', ['error', 'skip']),
    Field('data.num_workers', 4, NEVER, 'processes that load photos; 0: threads of the main process', (0, 256)),
    Field('data.cache', 'none', NEVER, 'keep decoded photos on disk, or also on the GPUs', ['none', 'disk', 'device']),
    Field('data.zappos50k.resample_triplets', False, RUN, 'sample triplet lists from meta-data-bin.csv'),
    # 100 photos give valid and test two queries each
    Field('data.synthetic.num_photos', 4000, RUN, 'photos to draw', (100, 1_000_000)),
    # in smaller photos, collars cannot be told apart
    Field('data.synthetic.photo_size', 96, RUN, 'side of a drawn photo, in pixels', (32, 4096)),
    Field('model.name', 'asen', WEIGHTS, 'the network', list(NETWORKS)),
    Field('model.trunk', 'resnet50', WEIGHTS, 'the trunk; ResNets end at layer3', list(TRUNKS)),
    Field('model.feature_bn', False, WEIGHTS, "batch norm of the trunk's features before the head"),
    Field('model.dropout', 0.0, RUN, "share of a photo's feature channels that training sets to zero", (0, 0.99)),
    Field('model.embed_dim', 1024, WEIGHTS, 'dimensions of an embedding; in asen_v2 only with projection', (1, 65_536)),
    Field('model.normalize', True, WEIGHTS, 'scale embeddings to unit length'),
    Field('model.bn_per_role', True, RUN, 'batch statistics per role (anchor, positive, negative), as in the original'),
    Field('model.trunk_bn', 'batch', RUN, "statistics of the trunk's batch norm in training", ['batch', 'running']),
    Field('model.resnet.width', 64, WEIGHTS, 'channels of the first layer; ImageNet weights have 64', (1, 4096)),
    Field('model.efficientnet.stride', 16, WEIGHTS, 'pixels between the features', [16, 32]),
    Field('model.efficientnet.all_stages', False, WEIGHTS, 'also use the features of every earlier stage'),
    Field('model.asen.spatial_attention', True, WEIGHTS, 'False: ablation with average pooling, also in asen_v2'),
    Field('model.asen.channel_attention', True, WEIGHTS, 'False: ablation without a channel mask, also in asen_v2'),
    Field('model.asen_v2.projection', 0, WEIGHTS, 'hidden units before a layer per attribute; 0: none', (0, 65_536)),
    Field('model.csn.masks', 'learned', WEIGHTS, 'where the masks come from', ['learned', 'sections', 'fixed']),
    Field('init.trunk', 'imagenet', RUN, "imagenet, none, FILE or hf://OWNER/NAME: the trunk's initial weights"),
    Field('init.workdir', '', RUN, 'a run or an import whose weights to start from, in place of init.trunk'),
    Field('init.checkpoint', 'best', RUN, 'best, latest or STEP: which checkpoint of init.workdir'),
    Field('optim.learning_rate', 1e-4, NEVER, "Adam's learning rate in the first epoch", (1e-12, 1000)),
    Field('optim.groups', (), RUN, 'REGEX:FACTOR,...: scale the learning rate of parameters by path; 0 freezes'),
    Field('optim.decay_rate', 0.985, NEVER, 'factor on the learning rate, applied every decay_every_epochs', (1e-6, 1)),
    Field('optim.decay_every_epochs', 1, NEVER, 'epochs between decays of the learning rate', (1, 1_000_000)),
    Field('train.batch_size', 16, RUN, 'triplets per step, over all devices', (1, 65_536)),
    Field('train.num_epochs', 200, NEVER, 'epochs to train', (1, 1_000_000)),
    # also embedding_norm and mask_norm, for csn
    Field('train.loss', 'triplet', RUN, 'triplet, contrastive, or several with weights: triplet:1,mask_norm:0.01'),
    Field('train.margin', 0.2, NEVER, 'margin of the triplet loss', (0, 1000)),
    Field('train.temperature', 0.1, NEVER, 'temperature of the contrastive loss', (1e-4, 1000)),
    Field('train.distance', 'cosine', VECTORS, 'in the triplet loss and in rankings', ['cosine', 'euclidean']),
    Field('train.precompute_features', False, NEVER, 'compute the features of a frozen trunk only once'),
    Field('train.accumulate_steps', 1, NEVER, 'parts of a batch, each with its own batch statistics', (1, 65_536)),
    Field('train.remat', False, NEVER, "keep only inputs of the trunk's blocks, compute the rest twice; same result"),
    Field('train.log_every_steps', 50, NEVER, 'steps between lines in metrics.jsonl', (1, 10**9)),
    Field('train.save_every_minutes', 10.0, NEVER, 'minutes between latest checkpoints within an epoch', (1e-6, 10**6)),
    Field('train.save_every_steps', 0, NEVER, 'steps between additional latest checkpoints; 0: none', (0, 10**9)),
    Field('train.profile_steps', 0, NEVER, "steps for JAX's profiler, after the first few; 0: none", (0, 1000)),
    Field('eval.batch_size', 64, NEVER, 'photos per batch; does not change the results', (1, 16_384)),
    Field('eval.every_epochs', 1, NEVER, 'epochs between evaluations on valid', (1, 1_000_000)),
    Field('eval.cross_attribute', False, NEVER, 'also rank each attribute by the vectors of the other attributes'),
    Field('mesh.cpu_devices', 1, NEVER, 'without a GPU: parts of the CPU; 2 speed up narrow networks', (1, 256)),
    Field('mesh.model', 1, NEVER, "devices that share one copy of the parameters and Adam's state", (1, 1024)),
)


def default_config() -> ConfigDict:
    """All fields with their defaults."""
    tree: dict[str, Any] = {}
    for field in TABLE:
        *groups, name = field.name.split('.')
        group = tree
        for each in groups:
            group = group.setdefault(each, {})
        group[name] = field.default
    return ConfigDict(tree)


def check_fields(config: ConfigDict) -> None:
    """Raise InputError for the first field that has the wrong type, is out of its range, not among its choices, or empty."""
    for name, default, _, _, allowed in TABLE:
        value, kind = config[name], type(default)
        if type(value) is not kind or (kind is tuple and not all(isinstance(each, str) for each in value)):
            raise InputError(f'config.{name} is {value!r}; it must be {KINDS[kind]}.')
        if isinstance(allowed, list) and value not in allowed:
            raise InputError(f'config.{name} is {value!r}; it must be one of {", ".join(map(str, allowed))}.')
        if isinstance(allowed, tuple) and not allowed[0] <= value <= allowed[1]:  # also refuses nan
            raise InputError(f'config.{name} is {value}; it must be between {allowed[0]:,} and {allowed[1]:,}.')
        if value == '' and default:
            raise InputError(f'config.{name} is empty; give it a value, or leave out the flag.')


def differences(before: Mapping[str, Any], now: ConfigDict, fixed: Fixed) -> dict[str, tuple[Any, Any]]:
    """Which fields that are at least as `fixed` differ from `before`, the config of a checkpoint: {name: (before, now)}."""
    old, new = flatten(before), flatten(json.loads(now.to_json()))
    names = [field.name for field in TABLE if field.fixed >= fixed and field.name in old]
    return {name: (old[name], new[name]) for name in names if old[name] != new[name]}


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested groups as {'data.name': value}; Flax has this too, but importing it loads JAX, even for --help."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat
