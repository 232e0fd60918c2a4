"""Every config field, with its published value (ASEN, AAAI 2020) and a comment; a dataset's file changes a few.

`python main.py --help` prints the lines of this file that set a field. No value is derived from another one, so that
--config.FIELD=VALUE never leaves a stale value behind.
"""

import re
from pathlib import Path

from ml_collections import ConfigDict

from asen_jax.errors import InputError

FIELD_LINE = re.compile(r'^    config\.(\S+) = (.+?)  # (.+)$', re.MULTILINE)
MAY_BE_ZERO = {'seed', 'data.image_size', 'data.num_workers', 'data.jitter', 'optim.trunk_factor'}
MAY_BE_ZERO |= {
    'model.dropout',
    'model.projection',
    'train.save_every_steps',
    'train.margin',
    'train.embedding_norm',
    'train.mask_norm',
}


def get_config() -> ConfigDict:
    """All fields, with the values of the published ASEN recipe for FashionAI."""
    config = ConfigDict()
    config.name = 'asen'  # name of the run; the default workdir is runs/<name>
    config.seed = 0  # determines initial weights, triplets and augmentation
    config.precision = 'float32'  # float32 | tensorfloat32 | bfloat16: of the arithmetic; weights stay float32
    add_data(config)
    add_model(config)
    add_training(config)
    add_evaluation(config)
    return config


def add_data(config: ConfigDict) -> None:
    """Photos, labels and triplets."""
    config.data = ConfigDict()
    config.data.name = 'fashionai'  # fashionai | darn | deepfashion | zappos50k | catalog | synthetic: the dataset
    config.data.manual_dir = 'data'  # folder of the raw files; for a catalog, the folder that contains labels.csv
    config.data.dir = 'data/records'  # folder for the prepared records
    config.data.image_size = 224  # side of the square network input, in pixels; 0: chosen from the photos
    config.data.fit = 'crop'  # crop | pad | stretch: how a photo is made square; the papers crop
    config.data.attributes = ()  # attributes to use, as a,b,c; empty: all of them (a catalog: columns with 2-100 values)
    config.data.crop_to_bbox = False  # first crop each photo to its garment box, if it has one
    config.data.num_triplets = 100_000  # triplets per epoch
    config.data.triplets = 'fresh'  # fresh | fixed: sample new triplets each epoch, or use the dataset's own list
    config.data.strict_negatives = False  # never use a negative that also has the anchor's value
    config.data.flip = True  # randomly mirror each training photo
    config.data.jitter = 0.0  # largest fraction of a side that random crops of training photos may remove
    config.data.missing = 'error'  # error | skip: what to do about a listed photo that does not exist
    config.data.broken = 'error'  # error | skip: what to do about a photo that cannot be decoded
    config.data.resample_triplets = False  # zappos50k only: sample triplet lists from meta-data-bin.csv
    config.data.num_workers = 4  # processes that load photos; 0: threads of the main process
    config.data.num_photos = 4000  # synthetic only: number of photos to draw
    config.data.synthetic_size = 96  # synthetic only: side of a drawn photo, in pixels


def add_model(config: ConfigDict) -> None:
    """The network and its initial weights."""
    config.model = ConfigDict()
    config.model.name = 'asen'  # asen | asen_v2 | csn | triplet
    config.model.trunk = 'resnet50'  # resnet18 | resnet34 | resnet50 (up to layer3) | efficientnet_lite0
    config.model.trunk_width = 64  # channels of the trunk's first layer; other than 64: not with ImageNet weights
    config.model.trunk_stride = 16  # pixels between the trunk's features: 16; efficientnet_lite0: 16 | 32
    config.model.trunk_all_stages = False  # efficientnet_lite0: also use the features of every earlier stage
    config.model.feature_bn = False  # batch norm of the trunk's features before the head
    config.model.dropout = 0.0  # share of the features' channels that training sets to zero, drawn for each photo
    config.model.embed_dim = 1024  # dimensions of an embedding; asen_v2 without projection has the trunk's channels
    config.model.projection = 0  # asen_v2: hidden units before a last layer per attribute; 0: no layers, as published
    config.model.normalize = True  # scale embeddings to unit length
    config.model.bn_per_role = True  # batch statistics per role (anchor, positive, negative), as in the original
    config.model.trunk_bn = 'batch'  # batch | running: statistics of the trunk's batch norm during training
    config.model.spatial_attention = True  # asen, asen_v2: False is the paper's ablation with average pooling
    config.model.channel_attention = True  # asen, asen_v2: False is the paper's ablation without a channel mask
    config.model.masks = 'learned'  # csn: learned | sections | fixed

    config.init = ConfigDict()
    config.init.trunk = 'imagenet'  # imagenet | none | FILE | hf://OWNER/NAME: the trunk's initial weights
    config.init.workdir = ''  # workdir of a run or an import whose weights to start from, in place of init.trunk
    config.init.checkpoint = 'best'  # best | latest | STEP: which checkpoint of init.workdir


def add_training(config: ConfigDict) -> None:
    """Optimizer, loss, logging and saving."""
    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-4  # Adam's learning rate in the first epoch
    config.optim.trunk_factor = 1.0  # factor on the trunk's learning rate; 0: frozen, features are computed once
    config.optim.decay_rate = 0.985  # factor on the learning rate, applied every decay_every_epochs
    config.optim.decay_every_epochs = 1  # epochs between decays of the learning rate

    config.train = ConfigDict()
    config.train.batch_size = 16  # triplets per step, over all devices
    config.train.num_epochs = 200  # epochs to train
    config.train.loss = 'triplet'  # triplet (as in the papers) | contrastive (each photo against its whole batch)
    config.train.margin = 0.2  # margin of the triplet loss
    config.train.temperature = 0.1  # temperature of the contrastive loss
    config.train.distance = 'cosine'  # cosine | euclidean: the distance in the triplet loss and in rankings
    config.train.embedding_norm = 0.0  # csn: weight of the penalty on the norm of unmasked embeddings
    config.train.mask_norm = 0.0  # csn: weight of the penalty on the norm of the masks
    config.train.log_every_steps = 50  # steps between lines in metrics.jsonl
    config.train.save_every_minutes = 10.0  # minutes between latest checkpoints; each epoch also ends with one
    config.train.save_every_steps = 0  # steps between additional latest checkpoints; 0: none


def add_evaluation(config: ConfigDict) -> None:
    """Evaluation and devices."""
    config.eval = ConfigDict()
    config.eval.batch_size = 64  # photos per batch; does not change the results
    config.eval.every_epochs = 1  # epochs between evaluations on valid
    config.eval.cross_attribute = False  # also rank each attribute by the vectors of the other attributes

    config.mesh = ConfigDict()
    config.mesh.cpu_devices = 1  # without a GPU: devices to split the CPU into; 2 speeds up narrow networks
    config.mesh.model = 1  # devices along the 'model' axis; the remaining factor splits the batch


def describe_fields() -> list[tuple[str, str, str]]:
    """Name, value and comment of every field, as written above: ('seed', '0', 'determines ...')."""
    return FIELD_LINE.findall(Path(__file__).read_text())


def check_numbers(config: ConfigDict) -> None:
    """Reject numbers that are out of range: sizes, periods and rates must be above zero, except for those in MAY_BE_ZERO."""
    for field, *_ in describe_fields():
        value, zero_allowed = config[field], field in MAY_BE_ZERO
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not (value >= 0 if zero_allowed else value > 0):  # also rejects nan
            least = 'zero or more' if zero_allowed else 'above zero'
            raise InputError(f'config.{field} is {value}; it must be {least}.')
    for group, field in (('data', 'jitter'), ('model', 'dropout')):
        if config[group][field] >= 1:
            raise InputError(
                f'config.{group}.{field} is {config[group][field]}; it must be below 1, to keep something.'
            )
