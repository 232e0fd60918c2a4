"""Your own photos: ASEN v2 on the features of a trunk pretrained on ImageNet, trained on a laptop's CPU.

Source: our own recipe. FOLDER contains the photos and a labels.csv; data_builders/catalog/README.md describes it.

Command:

    python main.py --config configs/catalog.py --config.data.manual_dir=FOLDER

Result: depends on the photos. On 4,317 catalog photos of 60x80 pixels with six attributes: test MAP 73.78 %
(73.67 to 73.90, three seeds), where chance is 37.52 %; on 3,300 photos of DeepFashion with garment boxes: 74.77 %
(74.67 to 74.85), chance 45.58 %.

Time: 3.6 minutes for the former on 2 CPU cores, 9.4 to 9.9 minutes for the latter.

`configs/catalog.py:scratch` is a small network that starts from random weights; in 6.0 to 6.6 minutes it reaches 69.43 %
and 61.16 %.
"""

from ml_collections import ConfigDict

from configs import common, variants


def get_config(variant: str = 'asen_v2') -> ConfigDict:
    """The recipe, with the network of `variant`; whole photos, cropped to the garment's box if labels.csv has one."""
    config = common.get_config()
    variants.set_network(config, 'asen_v2' if variant == 'scratch' else variant)
    config.name = 'catalog' if variant == 'asen_v2' else f'catalog_{variant}'
    config.data.name = 'catalog'
    config.data.manual_dir = 'data/catalog'
    config.data.crop_to_bbox = True
    config.data.fit = 'pad'
    config.data.num_workers = 0
    config.model.embed_dim = 128
    config.model.bn_per_role = False
    config.train.loss = 'contrastive'
    config.mesh.cpu_devices = 2
    if variant == 'scratch':
        set_scratch(config)
    else:
        set_pretrained(config)
    return config


def set_pretrained(config: ConfigDict) -> None:
    """Train a head on the features of a frozen EfficientNet-Lite0.

    With a few thousand photos, that is better than fine-tuning for the same time (docs/results.md): large photos and large
    batches cost little once the features are known.
    """
    config.data.image_size = 0
    config.data.num_triplets = 4800
    config.model.trunk = 'efficientnet_lite0'
    config.model.efficientnet.stride = 32
    config.model.efficientnet.all_stages = True
    config.model.trunk_bn = 'running'
    config.model.feature_bn = True
    config.model.dropout = 0.4
    if config.model.name == 'asen_v2':
        config.model.asen.channel_attention = False
        config.model.asen_v2.projection = 512
    config.optim.learning_rate = 1e-3
    config.optim.groups = ('trunk:0',)
    config.train.precompute_features = True
    config.optim.decay_rate = 0.7
    config.train.temperature = 0.25
    config.train.batch_size = 96
    config.train.num_epochs = 8


def set_scratch(config: ConfigDict) -> None:
    """Train a narrow ResNet-18 from random weights."""
    config.data.image_size = 64
    config.data.jitter = 0.2
    config.data.num_triplets = 3200
    config.model.trunk = 'resnet18'
    config.model.resnet.width = 32
    config.init.trunk = 'none'
    config.optim.learning_rate = 2e-3
    config.optim.decay_rate = 0.8
    config.train.batch_size = 32
    config.train.num_epochs = 16
