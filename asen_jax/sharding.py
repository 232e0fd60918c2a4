"""The mesh of devices, and how arrays are placed on it: batches along 'data', wide matrices along 'model'."""

import os
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from asen_jax.errors import InputError

MIN_SHARDED_DIM = 512  # narrower outputs are not worth sharding over 'model'


def split_cpu(count: int) -> None:
    """Split this machine's CPU into `count` devices, before JAX is first used; GPUs are not affected.

    XLA runs narrow convolutions on one core; with two devices, each takes half of the batch and both cores work.
    """
    if count > 1 and 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
        jax.config.update('jax_num_cpu_devices', count)


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """All devices (or just `devices`) as ('data', 'model'), `model` of them along the second axis."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if model < 1 or count % model:
        raise InputError(f'config.mesh.model is {model}, but there are {count} devices; it must divide them.')
    return jax.make_mesh((count // model, model), ('data', 'model'), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The first axis over 'data'."""
    return NamedSharding(mesh, PartitionSpec('data'))


def batch_sharding_for(mesh: jax.sharding.Mesh, batch_size: int) -> NamedSharding:
    """`batch_sharding` if the devices divide `batch_size` evenly, else the whole batch on each."""
    return replicated(mesh) if batch_size % mesh.shape['data'] else batch_sharding(mesh)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(tree, mesh: jax.sharding.Mesh):
    """A sharding for every array of a train state: the outputs of wide matrices over 'model', everything else replicated."""
    model = mesh.shape['model']

    def place(leaf):
        shape = leaf.shape
        if model > 1 and len(shape) == 2 and shape[1] >= MIN_SHARDED_DIM and shape[1] % model == 0:
            return NamedSharding(mesh, PartitionSpec(None, 'model'))
        return replicated(mesh)

    return jax.tree.map(place, tree)


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Raise InputError if a batch does not split evenly over the devices of 'data'."""
    devices = mesh.shape['data']
    if batch_size % devices:
        raise InputError(
            f'config.train.batch_size is {batch_size}, which {devices} devices cannot share evenly; use a multiple of {devices}.'
        )
