"""The mesh of devices, and how arrays are placed on it: batches over all devices, the train state over those of 'model'."""

import os
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from asen_jax.errors import InputError

MIN_SHARDED_SIZE = 2**14  # elements; smaller arrays are not worth gathering


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
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def batch_sharding_for(mesh: jax.sharding.Mesh, batch_size: int) -> NamedSharding:
    """`batch_sharding` if the devices divide `batch_size` evenly, else the whole batch on each."""
    return replicated(mesh) if batch_size % mesh.size else batch_sharding(mesh)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(tree, mesh: jax.sharding.Mesh):
    """A sharding for every array of a train state: over 'model' along the longest axis that divides evenly.

    Arrays that are small or have no such axis are replicated.
    """
    model = mesh.shape['model']

    def place(leaf):
        axes = [axis for axis, length in enumerate(leaf.shape) if length % model == 0]
        if model == 1 or leaf.size < MIN_SHARDED_SIZE or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, 'model'))

    return jax.tree.map(place, tree)


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Raise InputError if a batch does not split evenly over the devices."""
    if batch_size % mesh.size:
        raise InputError(
            f'config.train.batch_size is {batch_size}, which {mesh.size} devices cannot share evenly; '
            f'use a multiple of {mesh.size}.'
        )


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> slice:
    """The rows of a batch that the devices of this process hold."""
    places = batch_sharding_for(mesh, batch_size).addressable_devices_indices_map((batch_size,))
    ranges = [rows[0].indices(batch_size) for rows in places.values() if rows]
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def put_batch(mesh: jax.sharding.Mesh, batch, batch_size: int):
    """A batch on the devices of all processes, each of which passes its `local_rows`."""
    place = batch_sharding_for(mesh, batch_size)

    def put(rows):
        return jax.make_array_from_process_local_data(place, rows, (batch_size, *rows.shape[1:]))

    return jax.tree.map(put, batch)
