"""The networks that a dataset's file offers after a colon, each with its published recipe."""

import ml_collections

from asen_jax.errors import InputError
from configs import common

VARIANTS = ('asen', 'asen_v2', 'csn', 'triplet', 'no_spatial', 'no_channel')


def get_config(variant: str) -> ml_collections.ConfigDict:
    """The common fields with the model and schedule of `variant`."""
    if variant not in VARIANTS:
        raise InputError(f'No variant {variant!r}: write one of {", ".join(VARIANTS)} after the colon of --config.')
    config = common.get_config()
    if variant == 'asen_v2':
        config.model.name = 'asen_v2'
        config.optim.decay_rate, config.optim.decay_every_epochs = 0.9, 3
        config.train.num_epochs = 50
    elif variant in ('csn', 'triplet'):
        config.model.name = variant
    elif variant == 'no_spatial':
        config.model.spatial_attention = False
    elif variant == 'no_channel':
        config.model.channel_attention = False
    return config
