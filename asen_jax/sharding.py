"""The mesh of devices, how arrays are placed on it, and the processes that share it.

Batches are split over all devices, the train state over those of 'model'.
"""

import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from asen_jax.errors import InputError, PeerError

MIN_SHARDED_SIZE = 2**14  # elements; smaller arrays are not worth gathering
START_SECONDS = 300  # in which the processes of a run have to find each other
HEARTBEAT_SECONDS = 30  # without a sign of life, a process counts as dead
LEAVE_SECONDS = 5  # for which a process that failed waits for the others to fail as well
LONGEST_WAIT_SECONDS = 24 * 3600  # for which a process that is done waits for the others

WITHOUT_YNNPACK = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'

_on_abort = None  # the handler of SIGABRT, which must outlive the call that sets it


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


def start_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of this run; before JAX is first used.

    `coordinator` is HOST:PORT of process 0. JAX detects what is None under SLURM, Open MPI, and Kubernetes. If a process dies,
    the others end within HEARTBEAT_SECONDS with the sentence and status of PeerError, whatever they are doing.
    Raises InputError if the arguments are incomplete or invalid, or ends with its sentence and status if a process is missing.
    """
    remedy = 'give each process the HOST:PORT of process 0, the number of processes N, and its own number from 0 to N-1'
    if coordinator is not None:
        _check_coordinator(coordinator, is_here=process_id == 0)
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM away from Python
    _exit_on_abort(InputError(f'the processes of this run did not find each other in {START_SECONDS} s; {remedy}.'))
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LONGEST_WAIT_SECONDS,
        )
    except Exception as error:  # of many types, and all about the arguments or where they were detected
        reason = str(error).splitlines()[0]
        raise InputError(f'the processes of this run cannot be started ({reason}); {remedy}.') from error
    sentence = 'another process of this run has ended, or this one has crashed (see above)'
    _exit_on_abort(PeerError(f'{sentence}; run the same command again to resume.'))


def _check_coordinator(address: str, is_here: bool) -> None:
    """Raise InputError for an address that would crash JAX: not HOST:PORT, or, where it `is_here`, a port that is taken."""
    match = re.fullmatch(r'\S+:(\d+)', address)
    if not match:
        raise InputError(f'{address!r} is not the HOST:PORT of process 0.')
    try:
        if is_here:
            socket.create_server(('', int(match[1]))).close()
    except (OSError, OverflowError):
        raise InputError(f'process 0 cannot listen at {address}; choose another port.') from None


def _exit_on_abort(error: InputError | PeerError) -> None:
    """From now on, let an abort of this process end in the sentence and status of `error`.

    JAX aborts a process when another one is missing or has died, from a thread of its own and with no hook for Python.
    """
    global _on_abort
    sentence = f'{Path(sys.argv[0]).name}: {error}\n'.encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def exit_now(_: int) -> None:
        os.write(2, sentence)  # the main thread may hold the lock of sys.stderr
        os._exit(error.exit_status)

    ctypes.pythonapi.PyOS_setsig(signal.SIGABRT, exit_now)  # Python's own handlers would run only in the main thread
    _on_abort = exit_now


def await_peer_error() -> None:
    """Give JAX time to end this process, if an unexpected exception came from the death of another one.

    A collective fails at once if a process dies, but JAX needs up to HEARTBEAT_SECONDS to notice why.
    """
    if jax.distributed.is_initialized():
        time.sleep(HEARTBEAT_SECONDS + LEAVE_SECONDS)


def end_process(status: int) -> NoReturn:
    """Exit with `status`: after success when all processes are done, after a failure without waiting for those that go on."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        # after a signal, the others are ending, too; after an error, they may go on
        shutdown.join(HEARTBEAT_SECONDS if status > 128 else LEAVE_SECONDS if status else None)
        if shutdown.is_alive():
            os._exit(status)  # a normal exit would wait
    sys.exit(status)


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, each of which must call this, stacked along a new first axis."""
    return np.reshape(multihost_utils.process_allgather(array), (-1, *array.shape))


def agree(number: int) -> int:
    """The highest `number` of all processes, each of which must call this."""
    return int(gather(np.array(number, np.int32)).max())


def merge(array: np.ndarray) -> np.ndarray:
    """One array from those of all processes, each of which has other entries; its rest is NaN."""
    return np.fmax.reduce(gather(array))


def is_writer() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0
