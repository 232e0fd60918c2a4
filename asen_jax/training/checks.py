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
from asen_jax.weights.trunks import read_trunk

Trunk = tuple[dict, dict]  # parameters and batch statistics under the key `trunk`; empty if a run starts without one


def check_config(config: ConfigDict, workdir: Path) -> Trunk:
    """Raise InputError for everything in `config` that can be seen to be wrong without the data.

    Returns the pretrained trunk from which a new run starts, so that it is read only once; nothing if it comes from
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
        if check_start(config, checkpoints, params) or checkpoints.kind_to_resume():
            return {}, {}
    return read_trunk(config, params, batch_stats)


def check_photos(config: ConfigDict, frozen_trunk: bool) -> None:
    """Raise InputError if photos cannot be cached, or their features computed once, as `config` asks."""
    data, precompute = config.data, config.train.precompute_features
    if precompute and not (frozen_trunk and config.model.trunk_bn == 'running'):
        raise InputError(
            'config.train.precompute_features needs a network whose only trunk is frozen, with its batch norm; set '
            'config.optim.groups=trunk:0 and config.model.trunk_bn=running, or config.train.precompute_features=False.'
        )
    if data.jitter and (precompute or data.cache != 'none'):
        field, off = ('train.precompute_features', 'False') if precompute else ('data.cache', 'none')
        raise InputError(
            f'config.{field} keeps what photos look like, so they cannot be cropped at random; set config.data.jitter=0 or '
            f'config.{field}={off}.'
        )
    if precompute and data.cache == 'device':
        raise InputError('config.train.precompute_features reads no photos in a step; set config.data.cache=disk.')
