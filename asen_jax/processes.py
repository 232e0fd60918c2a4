"""The processes of a run: how they find each other, agree, exchange arrays, and end."""

import contextlib
import ctypes
import mmap
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
from asen_jax.signals import STOP_SIGNALS

START_SECONDS = 300  # in which the processes of a run have to find each other
HEARTBEAT_SECONDS = 30  # without a sign of life, a process counts as dead
LEAVE_SECONDS = 5  # for which a process that failed waits for the others to fail as well
LONGEST_WAIT_SECONDS = 24 * 3600  # for which a process that is done waits for the others
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def start_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of this run; before JAX is first used. It returns in a child process (see `_continue_in_child`).

    `coordinator` is HOST:PORT of process 0. JAX detects what is None under SLURM, Open MPI, and Kubernetes. If a process dies,
    the others end within HEARTBEAT_SECONDS with the sentence and status of PeerError, whatever they are doing.
    Raises InputError if the arguments are incomplete or invalid, or ends with its sentence and status if a process is missing.
    """
    remedy = 'give each process the HOST:PORT of process 0, the number of processes N, and its own number from 0 to N-1'
    if coordinator is not None:
        _check_coordinator(coordinator, is_here=process_id == 0)
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM away from Python
    have_met = _continue_in_child(
        InputError(f'the processes of this run did not find each other in {START_SECONDS} s; {remedy}.'),
        PeerError(
            'another process of this run has ended, or this one has crashed (see above); run the same command again to resume.'
        ),
    )
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
    have_met[0] = True


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


def _continue_in_child(missing: InputError, ended: PeerError) -> mmap.mmap:
    """Return in a child process; this one passes signals on to it, and exits with its status.

    JAX aborts a process when another one is missing or has died, from a thread of its own. Only a second process can turn that
    into a sentence and a status, whatever the first one's threads are doing: those of `missing`, or of `ended` once the caller
    has set byte 0 of the result.
    """
    have_met = mmap.mmap(-1, 1)  # shared by both processes
    sys.stdout.flush()

    def pass_on(number: int, _) -> None:
        with contextlib.suppress(ProcessLookupError):  # the child has just ended
            os.kill(child, number)

    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until there is someone to pass them on to
    child = os.fork()
    if child:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, pass_on)
    elif sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # when the parent dies
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    if not child:
        return have_met
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        error = ended if have_met[0] else missing
        os.write(2, f'{Path(sys.argv[0]).name}: {error}\n'.encode())
        status = error.exit_status
    os._exit(status if status >= 0 else 128 - status)  # as a shell does: nothing could kill process 1 of a container


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
