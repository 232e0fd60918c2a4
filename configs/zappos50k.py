"""Zappos50k (UT-Zappos50K) with the triplet lists of Conditional Similarity Networks (CSN, Veit et al., CVPR 2017).

python main.py --config configs/zappos50k.py                 # ASEN; or :asen_v2 :csn :triplet :no_spatial :no_channel
python main.py --config configs/zappos50k.py:csn_original    # CSN as its own authors train it
python main.py --config configs/zappos50k.py --config.data.resample_triplets=True    # where the lists cannot be had

The figure is triplet accuracy. ASEN's paper says that it takes CSN's lists; batch, learning rate and epochs of its
networks are not published for this data set, so they are those of its others.
"""

import ml_collections

from asen_jax.errors import InputError
from configs import variants

CSN_ORIGINAL = 'csn_original'


def get_config(variant: str = 'asen') -> ml_collections.ConfigDict:
    """The recipe of `variant`."""
    if variant not in (*variants.VARIANTS, CSN_ORIGINAL):
        known = ', '.join((*variants.VARIANTS, CSN_ORIGINAL))
        raise InputError(f'No variant {variant!r}: write one of {known} after the colon of --config.')
    config = variants.for_dataset('zappos50k', 'csn' if variant == CSN_ORIGINAL else variant)
    config.data.image_size = 112
    config.data.triplets = 'fixed'
    config.data.num_triplets = 200_000
    if variant == CSN_ORIGINAL:
        config.name = f'zappos50k_{CSN_ORIGINAL}'
        _set_csn_original(config)
    return config


def _set_csn_original(config: ml_collections.ConfigDict) -> None:
    """The defaults of github.com/andreasveit/conditional-similarity-networks."""
    config.model.trunk = 'resnet18'
    config.model.embed_dim = 64
    config.model.masks = 'fixed'
    config.model.normalize = False
    config.train.distance = 'euclidean'
    config.train.embedding_norm = 5e-3
    config.train.mask_norm = 5e-4
    config.train.batch_size = 256
    config.train.num_epochs = 200
    config.optim.decay_rate = 0.985
    config.optim.learning_rate = 4.925e-5  # 5e-5 * 0.985: CSN counts epochs from 1
