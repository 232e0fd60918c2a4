"""Every config field, with its published value (ASEN, AAAI 2020) and a comment; a dataset's file changes a few.

`python main.py --help` prints the lines of this file that set a field. A comment that begins with `a | b` lists the only
values that its field may have; RANGES bounds the numbers. No value is derived from another one, so that
--config.FIELD=VALUE never leaves a stale value behind.
"""

import re
from pathlib import Path

from ml_collections import ConfigDict

from asen_jax.errors import InputError

FIELD_LINE = re.compile(r'^    config\.(\S+) = (.+?)  # (.+)$', re.MULTILINE)
CHOICES = re.compile(r'[a-z0-9_]+(?: \| [a-z0-9_]+)+(?=: |; |$)')  # at the start of a comment
MAY_BE_EMPTY = ('data.attributes', 'init.workdir', 'optim.groups')
RANGES = {  # lowest and highest value of every field that is a number without fixed choices
    'seed': (0, 2**32 - 1),  # JAX would drop higher bits
    'data.image_size': (0, 4096),
    'data.num_triplets': (1, 10_000_000),  # an epoch's are drawn at once
    'data.jitter': (0, 0.99),
    'data.num_workers': (0, 256),
    'data.synthetic.num_photos': (100, 1_000_000),  # 100 give valid and test two queries each
    'data.synthetic.photo_size': (32, 4096),  # below, collars cannot be told apart
    'model.resnet.width': (1, 4096),
    'model.dropout': (0, 0.99),
    'model.embed_dim': (1, 65_536),
    'model.asen_v2.projection': (0, 65_536),
    'optim.learning_rate': (1e-12, 1000),
    'optim.decay_rate': (1e-6, 1),
    'optim.decay_every_epochs': (1, 1_000_000),
    'train.batch_size': (1, 65_536),
    'train.accumulate_steps': (1, 65_536),
    'train.num_epochs': (1, 1_000_000),
    'train.margin': (0, 1000),
    'train.temperature': (1e-4, 1000),
    'train.log_every_steps': (1, 10**9),
    'train.save_every_minutes': (1e-6, 10**6),
    'train.save_every_steps': (0, 10**9),
    'train.profile_steps': (0, 1000),
    'eval.batch_size': (1, 16_384),
    'eval.every_epochs': (1, 1_000_000),
    'mesh.cpu_devices': (1, 256),
    'mesh.model': (1, 1024),
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
    config.data.num_workers = 4  # processes that load photos; 0: threads of the main process
    config.data.cache = 'none'  # none | disk | device: keep decoded photos beside the records, or also on the GPUs
    config.data.zappos50k = ConfigDict()
    config.data.zappos50k.resample_triplets = False  # sample triplet lists from meta-data-bin.csv
    config.data.synthetic = ConfigDict()
    config.data.synthetic.num_photos = 4000  # photos to draw
    config.data.synthetic.photo_size = 96  # side of a drawn photo, in pixels


def add_model(config: ConfigDict) -> None:
    """The network and its initial weights."""
    config.model = ConfigDict()
    config.model.name = 'asen'  # asen | asen_v2 | csn | triplet
    config.model.trunk = 'resnet50'  # resnet18 | resnet34 | resnet50 | efficientnet_lite0; a ResNet up to layer3
    config.model.feature_bn = False  # batch norm of the trunk's features before the head
    config.model.dropout = 0.0  # share of the features' channels that training sets to zero, drawn for each photo
    config.model.embed_dim = 1024  # dimensions of an embedding; asen_v2 without projection has the trunk's channels
    config.model.normalize = True  # scale embeddings to unit length
    config.model.bn_per_role = True  # batch statistics per role (anchor, positive, negative), as in the original
    config.model.trunk_bn = 'batch'  # batch | running: statistics of the trunk's batch norm during training
    config.model.resnet = ConfigDict()
    config.model.resnet.width = 64  # channels of the first layer; other than 64: not with ImageNet weights
    config.model.efficientnet = ConfigDict()
    config.model.efficientnet.stride = 16  # 16 | 32: pixels between the features
    config.model.efficientnet.all_stages = False  # also use the features of every earlier stage
    config.model.asen = ConfigDict()
    config.model.asen.spatial_attention = True  # False is the ablation with average pooling, also in asen_v2
    config.model.asen.channel_attention = True  # False is the ablation without a channel mask, also in asen_v2
    config.model.asen_v2 = ConfigDict()
    config.model.asen_v2.projection = 0  # hidden units before a last layer per attribute; 0: no layers, as published
    config.model.csn = ConfigDict()
    config.model.csn.masks = 'learned'  # learned | sections | fixed: where the masks come from

    config.init = ConfigDict()
    config.init.trunk = 'imagenet'  # imagenet | none | FILE | hf://OWNER/NAME: the trunk's initial weights
    config.init.workdir = ''  # workdir of a run or an import whose weights to start from, in place of init.trunk
    config.init.checkpoint = 'best'  # best | latest | STEP: which checkpoint of init.workdir


def add_training(config: ConfigDict) -> None:
    """Optimizer, loss, logging and saving."""
    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-4  # Adam's learning rate in the first epoch
    config.optim.groups = ()  # REGEX:FACTOR,...: multiply the learning rate of parameters whose path matches; 0 freezes them
    config.optim.decay_rate = 0.985  # factor on the learning rate, applied every decay_every_epochs
    config.optim.decay_every_epochs = 1  # epochs between decays of the learning rate

    config.train = ConfigDict()
    config.train.batch_size = 16  # triplets per step, over all devices
    config.train.num_epochs = 200  # epochs to train
    config.train.loss = (
        'triplet'  # triplet, contrastive, embedding_norm, mask_norm, or several with weights: triplet:1,mask_norm:0.01
    )
    config.train.margin = 0.2  # margin of the triplet loss
    config.train.temperature = 0.1  # temperature of the contrastive loss
    config.train.distance = 'cosine'  # cosine | euclidean: the distance in the triplet loss and in rankings
    config.train.precompute_features = False  # compute the features of a frozen trunk once, before the first step
    config.train.accumulate_steps = 1  # parts of a batch, one after the other; each has its own batch statistics
    config.train.remat = False  # keep only the inputs of the trunk's blocks and compute the rest twice; same result
    config.train.log_every_steps = 50  # steps between lines in metrics.jsonl
    config.train.save_every_minutes = 10.0  # minutes between latest checkpoints; each epoch also ends with one
    config.train.save_every_steps = 0  # steps between additional latest checkpoints; 0: none
    config.train.profile_steps = 0  # steps to record with JAX's profiler, after the first few of a command; 0: none


def add_evaluation(config: ConfigDict) -> None:
    """Evaluation and devices."""
    config.eval = ConfigDict()
    config.eval.batch_size = 64  # photos per batch; does not change the results
    config.eval.every_epochs = 1  # epochs between evaluations on valid
    config.eval.cross_attribute = False  # also rank each attribute by the vectors of the other attributes

    config.mesh = ConfigDict()
    config.mesh.cpu_devices = 1  # without a GPU: devices to split the CPU into; 2 speeds up narrow networks
    config.mesh.model = 1  # devices that share one copy of the parameters and Adam's state; 1: each device has its own


def describe_fields() -> list[tuple[str, str, str]]:
    """Name, value and comment of every field, as written above: ('seed', '0', 'determines ...')."""
    return FIELD_LINE.findall(Path(__file__).read_text())


def check_fields(config: ConfigDict) -> None:
    """Raise InputError for the first field that is out of its range, not among its choices, or empty."""
    for field, _, comment in describe_fields():
        value, choices = config[field], CHOICES.match(comment)
        if field in RANGES:
            lowest, highest = RANGES[field]
            if value is None or not lowest <= value <= highest:  # also refuses nan
                raise InputError(f'config.{field} is {value}; it must be between {lowest:,} and {highest:,}.')
        elif choices and str(value) not in choices[0].split(' | '):
            raise InputError(f'config.{field} is {value!r}; it must be one of {choices[0].replace(" |", ",")}.')
        elif value in ('', None) and field not in MAY_BE_EMPTY:
            raise InputError(f'config.{field} is empty; give it a value, or leave out the flag.')
