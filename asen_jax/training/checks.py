"""What can be seen to be wrong with a config before any photo is read."""

from pathlib import Path

from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.checkpoint import Checkpoints
from asen_jax.data.batches import check_triplets
from asen_jax.errors import InputError
from asen_jax.models.build import build_shapes
from asen_jax.models.registry import network_kind
from asen_jax.training.losses import check_losses
from asen_jax.training.optimizer import Groups
from asen_jax.weights.starting import check_start
from asen_jax.weights.trunks import read_trunks

Trunks = tuple[dict, dict]  # parameters and batch statistics of pretrained trunks, by the network's module


def check_config(config: ConfigDict, workdir: Path) -> Trunks:
    """Raise InputError for everything in `config` that can be seen to be wrong without the data.

    Returns the pretrained trunks from which a new run starts, so that they are read only once; not those that come from
    `config.init.workdir`.
    """
    check_losses(config.train, config.model.name, network_kind(config.model.name).extras)
    check_triplets(config)
    mesh = sharding.make_mesh(config.mesh.model)
    sharding.check_batch_size(config.train.batch_size, mesh, config.train.accumulate_steps)
    _, params, batch_stats = build_shapes(config, num_attributes=2)
    groups = Groups(config.optim.groups, params)
    check_photos(config, 'trunk' in params and not groups.trains('trunk'))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        started = check_start(config, checkpoints, params)
        if checkpoints.kind_to_resume():
            return {}, {}
    return read_trunks(config, params, batch_stats, started)


def check_photos(config: ConfigDict, frozen_trunk: bool) -> None:
    """Raise InputError if photos cannot be cached, or their features computed once, as `config` asks."""
    data, precompute = config.data, config.train.precompute_features
    if precompute and not (frozen_trunk and config.model.trunk_bn == 'running'):
        raise InputError(
            'config.train.precompute_features needs a network with a single trunk that is frozen, including its batch norm; set '
            'it to False, or, if the network has a single trunk, config.optim.groups=trunk:0 and config.model.trunk_bn=running.'
        )
    if data.jitter and (precompute or data.cache != 'none'):
        field, off = ('train.precompute_features', 'False') if precompute else ('data.cache', 'none')
        raise InputError(
            f'config.{field} stores each photo as it is, so random crops are impossible; set config.data.jitter=0 or '
            f'config.{field}={off}.'
        )
    if precompute and data.cache == 'device':
        raise InputError(
            'config.train.precompute_features reads no photos in a step; set config.data.cache=none or disk.'
        )
