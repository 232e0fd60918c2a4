"""Your own photos: a folder with a labels.csv (see data_builders/catalog/README.md).

    python main.py --config configs/catalog.py --config.data.manual_dir=FOLDER

Starts from nothing and fits a laptop's CPU.
"""

import ml_collections

from configs import common, variants


def get_config(variant: str = 'asen_v2') -> ml_collections.ConfigDict:
    """A small network from scratch, on whole photos cropped to the garment's box where there is one."""
    config = common.get_config()
    variants.set_network(config, variant)
    config.name = 'catalog' if variant == 'asen_v2' else f'catalog_{variant}'
    config.data.name = 'catalog'
    config.data.manual_dir = 'data/catalog'
    config.data.crop_to_bbox = True
    config.data.fit = 'pad'
    config.data.image_size = 64
    config.data.jitter = 0.2
    config.data.num_triplets = 3200
    config.data.num_workers = 0
    config.model.trunk = 'resnet18'
    config.model.trunk_width = 32
    config.model.embed_dim = 128
    config.model.bn_per_role = False
    config.init.trunk = 'none'
    config.train.loss = 'contrastive'
    config.mesh.cpu_devices = 2
    config.optim.learning_rate = 2e-3
    config.optim.decay_rate = 0.85
    config.train.batch_size = 32
    config.train.num_epochs = 18
    return config
