"""The networks that can follow the colon in --config configs/DATASET.py:VARIANT, with their published schedules."""

from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.models.registry import NETWORKS
from configs import common

VARIANTS = (*NETWORKS, 'no_spatial', 'no_channel')


def for_dataset(name: str, variant: str) -> ConfigDict:
    """The published recipe of `variant` on a dataset; the run is named after both, or after the dataset for ASEN."""
    config = get_config(variant)
    config.name = name if variant == 'asen' else f'{name}_{variant}'
    config.data.name = name
    return config


def get_config(variant: str) -> ConfigDict:
    """The published recipe of `variant`, for no dataset in particular."""
    config = common.get_config()
    set_network(config, variant)
    if variant == 'asen_v2':
        config.optim.decay_rate = 0.9
        config.optim.decay_every_epochs = 3
        config.train.num_epochs = 50
    return config


def set_network(config: ConfigDict, variant: str) -> None:
    """Choose the network of `variant` and leave the rest of the recipe alone."""
    if variant not in VARIANTS:
        raise InputError(f'No variant {variant!r}: write one of {", ".join(VARIANTS)} after the colon of --config.')
    config.model.name = variant if variant in NETWORKS else 'asen'
    config.model.asen.spatial_attention = variant != 'no_spatial'
    config.model.asen.channel_attention = variant != 'no_channel'
