"""The processes of a run: how they find each other, agree, exchange arrays, and end."""

import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from asen_jax.errors import InputError, PeerError

START_SECONDS = 300  # in which the processes of a run have to find each other
HEARTBEAT_SECONDS = 30  # without a sign of life, a process counts as dead
LEAVE_SECONDS = 5  # for which a process that failed waits for the others to fail as well
LONGEST_WAIT_SECONDS = 24 * 3600  # for which a process that is done waits for the others

_on_abort = None  # the handler of SIGABRT, which must outlive the call that sets it


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
