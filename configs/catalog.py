"""Your own photos: a small ASEN v2 for a laptop's CPU, trained from scratch.

Source: our own recipe. FOLDER contains the photos and a labels.csv; data_builders/catalog/README.md describes it.

Command:

    python main.py --config configs/catalog.py --config.data.manual_dir=FOLDER

Result: depends on the photos. On 4,317 catalog photos of 60x80 pixels with six attributes: test MAP 68.75 %, where
chance is 37.52 %.

Time: 14 minutes for those photos, on 2 shared CPU cores.
"""

from ml_collections import ConfigDict

from configs import common, variants


def get_config(variant: str = 'asen_v2') -> ConfigDict:
    """The recipe, with the network of `variant`; whole photos, cropped to the garment's box if labels.csv has one."""
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
