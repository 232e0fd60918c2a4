"""The networks and trunks that a config can name, and the module that defines each; free of JAX, which takes a second to load."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asen_jax.models.interfaces import NetworkKind, TrunkKind

# name -> module below asen_jax.models, whose own NETWORKS or TRUNKS says everything else
NETWORKS = {'asen': 'asen', 'asen_v2': 'asen', 'csn': 'csn', 'triplet': 'csn'}
TRUNKS = {'resnet18': 'resnet', 'resnet34': 'resnet', 'resnet50': 'resnet', 'efficientnet_lite0': 'efficientnet'}


def network_kind(name: str) -> 'NetworkKind':
    """What the network `name` (config.model.name) says about itself."""
    return importlib.import_module(f'asen_jax.models.{NETWORKS[name]}').NETWORKS[name]


def trunk_kind(name: str) -> 'TrunkKind':
    """What the trunk `name` (config.model.trunk) says about itself."""
    return importlib.import_module(f'asen_jax.models.{TRUNKS[name]}').TRUNKS[name]
