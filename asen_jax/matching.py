"""Match a checkpoint to a config and to data: the fields that it fixes, and the names of its attributes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from asen_jax.fields import Fixed, differences


def config_as_trained(meta: dict[str, Any], config: ConfigDict) -> ConfigDict:
    """`config` with the fields that a checkpoint fixes; prints each one that the caller had set differently."""
    config = config.copy_and_resolve_references()
    for name, (trained, asked) in differences(meta['config'], config, Fixed.VECTORS).items():
        if name != 'data.image_size' or asked:  # 0 asks for the size that training chose
            print(f'config.{name} is {trained!r}, as the checkpoint was trained')
        config.update_from_flattened_dict({name: trained})
    return config


def attribute_names(config: ConfigDict, meta: dict, in_data: Sequence[str], workdir: Path) -> list[str]:
    """The names of a network's attributes, in its order.

    A network that was imported without names takes those of `config.data.attributes`, which are then in the network's order.
    Failing that it is assumed to have the order of the data, and a notice says so.
    """
    known = meta['attributes']
    if meta.get('fingerprint') or known != unnamed_attributes(len(known)):
        return known
    if len(config.data.attributes) == len(known):
        return list(config.data.attributes)
    if len(in_data) == len(known):
        pairs = ', '.join(f'{ours} = {theirs}' for ours, theirs in zip(known, in_data, strict=True))
        print(
            f'{workdir} does not know the names of its attributes; assuming the order of the data: {pairs}. '
            'If the checkpoint has another order, give its names in that order: --config.data.attributes=NAME,NAME,...'
        )
        return list(in_data)
    return known


def unnamed_attributes(count: int) -> list[str]:
    """The attribute names of a network that was imported without any."""
    return [f'attribute_{number}' for number in range(count)]
