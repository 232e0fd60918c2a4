"""Drawn garments: needs no data, minutes on a laptop's CPU.

python main.py --config configs/synthetic.py
"""

import ml_collections

from configs import common, variants


def get_config(variant: str = 'asen_v2') -> ml_collections.ConfigDict:
    """A narrow ASEN v2 from scratch on drawings of 96 pixels, shown at 112 for a finer map of attention."""
    config = common.get_config()
    variants.set_network(config, variant)
    config.name = 'synthetic' if variant == 'asen_v2' else f'synthetic_{variant}'
    config.data.name = 'synthetic'
    config.data.image_size = 112
    config.data.jitter = 0.1
    config.data.num_triplets = 3200
    config.data.num_workers = 0
    config.model.trunk = 'resnet18'
    config.model.trunk_width = 16
    config.model.bn_per_role = False
    config.init.trunk = 'none'
    config.train.loss = 'contrastive'
    config.mesh.cpu_devices = 2
    config.optim.learning_rate = 2e-3
    config.optim.decay_rate = 0.8
    config.train.batch_size = 32
    config.train.num_epochs = 4
    config.eval.cross_attribute = True
    return config
