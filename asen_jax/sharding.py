"""The mesh of devices, and how arrays are placed on it.

Batches are split over all devices, the train state over those of 'model'.
"""

import os
from collections.abc import Sequence

import jax
import jaxlib
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from asen_jax.errors import InputError

MIN_SHARDED_SIZE = 2**14  # elements; smaller arrays are not worth gathering
WITHOUT_YNNPACK = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'


def set_up_cpu(num_devices: int) -> None:
    """Prepare for computing on this machine's CPU, before JAX is first used; what a GPU computes is not affected.

    The CPU is split into `num_devices` devices: XLA runs narrow convolutions on one core; with two devices, each takes half of
    the batch and both cores work. In jaxlib 0.10, the gradients of convolutions are faster without YNNPACK.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if num_devices > 1 and 'xla_force_host_platform_device_count' not in flags:
        jax.config.update('jax_num_cpu_devices', num_devices)
    # other versions may not know the flag, and would abort
    if jaxlib.__version__.startswith('0.10.') and 'ynn_fusion_type' not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {WITHOUT_YNNPACK}'.strip()


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


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh, parts: int = 1) -> None:
    """Raise InputError if each of the `parts` of a batch does not split evenly over the devices."""
    if batch_size % (mesh.size * parts):
        share = f' in {parts} parts (config.train.accumulate_steps)' if parts > 1 else ''
        raise InputError(
            f'config.train.batch_size is {batch_size}, which {mesh.size} devices cannot share evenly{share}; '
            f'use a multiple of {mesh.size * parts}.'
        )


def local_rows(batch_size: int) -> range:
    """The rows of a batch that the devices of this process hold: all of them, unless there are several processes."""
    places = batch_sharding_for(make_mesh(), batch_size).addressable_devices_indices_map((batch_size,))
    ranges = [index[0].indices(batch_size) for index in places.values() if index]
    return range(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def put_rows(mesh: jax.sharding.Mesh, batch, batch_size: int):
    """A batch on the devices of all processes, each of which passes its `local_rows`."""
    place = batch_sharding_for(mesh, batch_size)

    def put(rows):
        return jax.make_array_from_process_local_data(place, rows, (batch_size, *rows.shape[1:]))

    return jax.tree.map(put, batch)


def put_batch(mesh: jax.sharding.Mesh, batch: np.ndarray) -> jax.Array:
    """A batch on the devices of all processes, each of which passes all of it; only its `local_rows` count."""
    rows = local_rows(len(batch))
    return put_rows(mesh, batch[rows.start : rows.stop], len(batch))
