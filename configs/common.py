"""Every field of a config, once, with its unit and meaning; nothing derived. A dataset's file changes a few.

The values here are the published recipe of ASEN (AAAI 2020). `python main.py --help` prints these comments.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The fields that all configs share."""
    config = ml_collections.ConfigDict()
    config.name = 'asen'  # names the run; the default workdir is runs/<name>
    config.seed = 0  # decides initial weights, triplets and augmentation
    config.precision = 'float32'  # float32 | tensorfloat32 | bfloat16: of the arithmetic; weights stay float32
    _add_data(config)
    _add_model(config)
    _add_training(config)
    _add_running(config)
    return config


def _add_data(config: ml_collections.ConfigDict) -> None:
    """Photos, lists and triplets."""
    config.data = data = ml_collections.ConfigDict()
    data.name = 'fashionai'  # fashionai | darn | deepfashion | zappos50k | catalog | synthetic: which builder
    data.manual_dir = 'data'  # folder of the raw files; a catalog's own folder
    data.dir = 'data/records'  # folder of the prepared records
    data.image_size = 224  # pixels, side of the network's square input
    data.fit = 'crop'  # crop | pad | stretch: how a photo becomes a square; the papers crop
    data.attributes = ()  # names of the attributes to use; () is all of them (a catalog: columns with 2-100 values)
    data.crop_to_bbox = False  # crop photos to their garment's box first, where there is one
    data.num_triplets = 100_000  # triplets an epoch
    data.triplets = 'fresh'  # fresh | fixed: drawn anew each epoch, or the builder's list
    data.strict_negatives = False  # forbid a negative that also holds the anchor's value
    data.flip = True  # mirror training photos at random, each on its own
    data.jitter = 0.0  # fraction of a side that a random crop of a training photo may cut away
    data.missing = 'error'  # error | skip: a listed photo that is not there
    data.broken = 'error'  # error | skip: a photo that cannot be decoded
    data.resample_triplets = False  # zappos50k only: draw the triplet lists anew, from meta-data-bin.csv
    data.num_workers = 4  # processes that load photos; 0 loads in threads of this one
    data.num_photos = 4000  # synthetic only: photos to draw
    data.synthetic_size = 96  # synthetic only: pixels, side of a drawn photo


def _add_model(config: ml_collections.ConfigDict) -> None:
    """The network, and what it starts from."""
    config.model = model = ml_collections.ConfigDict()
    model.name = 'asen'  # asen | asen_v2 | csn | triplet
    model.trunk = 'resnet50'  # resnet18 | resnet34 | resnet50, each up to layer3
    model.trunk_width = 64  # channels of the stem; 64 is the published width, others need init.trunk=none
    model.embed_dim = 1024  # size of an embedding; asen_v2 has no last layer: its size is the trunk's
    model.normalize = True  # embeddings of unit length
    model.bn_per_role = True  # batch statistics per anchor, positive, negative, as the original computes them
    model.spatial_attention = True  # asen, asen_v2: off is the paper's ablation, an average pool
    model.channel_attention = True  # asen, asen_v2: off is the paper's ablation, no mask
    model.masks = 'learned'  # csn: learned | sections | fixed

    config.init = init = ml_collections.ConfigDict()
    init.trunk = 'imagenet'  # imagenet | none | a file | hf://OWNER/NAME: the trunk's first weights


def _add_training(config: ml_collections.ConfigDict) -> None:
    """Optimizer, loss, and when to save."""
    config.optim = optim = ml_collections.ConfigDict()
    optim.learning_rate = 1e-4  # Adam's, in the first epoch
    optim.decay_rate = 0.985  # the learning rate is multiplied by this ...
    optim.decay_every_epochs = 1  # ... every so many epochs

    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 16  # triplets a step, over all devices
    train.num_epochs = 200  # epochs
    train.loss = 'triplet'  # triplet | contrastive: the papers', or each photo against all of its batch
    train.margin = 0.2  # of the triplet loss
    train.temperature = 0.1  # of the contrastive loss
    train.distance = 'cosine'  # cosine | euclidean: what the triplet loss and the rankings compare
    train.embedding_norm = 0.0  # csn: weight of the size of vectors before their mask
    train.mask_norm = 0.0  # csn: weight of the masks' size
    train.log_every_steps = 50  # steps between lines of metrics.jsonl
    train.save_every_minutes = 10.0  # minutes between saves of the latest checkpoint, besides each epoch's
    train.save_every_steps = 0  # steps between such saves; 0 leaves it to the minutes


def _add_running(config: ml_collections.ConfigDict) -> None:
    """Evaluation and devices."""
    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 64  # photos a batch; changes no figure
    evaluation.every_epochs = 1  # epochs between evaluations on valid
    evaluation.cross_attribute = False  # also rank each attribute by the others' vectors

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.cpu_devices = 1  # without a GPU: devices to make of the CPU; 2 is faster for narrow networks
    mesh.model = 1  # devices along the 'model' axis; the others share the batch
