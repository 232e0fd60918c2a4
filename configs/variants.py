"""The networks that a dataset's file offers after a colon, each with its published recipe."""

import ml_collections

from asen_jax.errors import InputError
from configs import common

VARIANTS = ('asen', 'asen_v2', 'csn', 'triplet', 'no_spatial', 'no_channel')


def get_config(variant: str) -> ml_collections.ConfigDict:
    """The common fields with the network and schedule of `variant`."""
    config = common.get_config()
    set_network(config, variant)
    if variant == 'asen_v2':
        config.optim.decay_rate, config.optim.decay_every_epochs = 0.9, 3
        config.train.num_epochs = 50
    return config


def for_dataset(name: str, variant: str) -> ml_collections.ConfigDict:
    """The recipe of `variant` on the data set `name`; the run is called after both, or after the data set alone for ASEN."""
    config = get_config(variant)
    config.name = name if variant == 'asen' else f'{name}_{variant}'
    config.data.name = name
    return config


def set_network(config: ml_collections.ConfigDict, variant: str) -> None:
    """Only the network of `variant`."""
    if variant not in VARIANTS:
        raise InputError(f'No variant {variant!r}: write one of {", ".join(VARIANTS)} after the colon of --config.')
    config.model.name = variant if variant in ('asen_v2', 'csn', 'triplet') else 'asen'
    config.model.spatial_attention = variant != 'no_spatial'
    config.model.channel_attention = variant != 'no_channel'
