"""Work that several processes share: loading batches, or drawing photos."""

import atexit
import contextlib
import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

from asen_jax.errors import InputError
from asen_jax.signals import signals_blocked


def map_in_processes(function: Callable[[int], Any], count: int, num_processes: int) -> Generator[Any]:
    """`function` of each number below `count`, in order, computed ahead in processes.

    They hand results over through a pipe each, so that none waits for a dead one. Grain's own workers use shared memory, of
    which a killed run leaves megabytes behind. Raises InputError if a process is killed; an InputError or OSError in a process
    is raised here, other exceptions as RuntimeError.
    """
    spawn = multiprocessing.get_context('spawn')  # JAX has threads, which a fork would break
    num_processes = min(num_processes, count)
    pipes: list[Connection] = []
    with contextlib.ExitStack() as stack:
        atexit.register(stack.close)  # or Python would wait at its exit for workers that wait to hand over a result
        stack.callback(atexit.unregister, stack.close)
        for first in range(num_processes):
            pipe, end = spawn.Pipe()
            worker = spawn.Process(target=_send_results, args=(end, range(first, count, num_processes)))
            pipes.append(stack.enter_context(pipe))
            with end, signals_blocked():  # only the worker keeps its end, so its death ends the pipe
                worker.start()
                stack.callback(worker.join)
                stack.callback(worker.kill)
        pickled = pickle.dumps(function)
        for pipe in pipes:  # as an argument of the process, `start` would wait until it is read, even by a dead worker
            with contextlib.suppress(OSError):  # of a dead worker, which is noticed below
                pipe.send_bytes(pickled)
        for number in range(count):
            try:
                result = pipes[number % num_processes].recv()
            except (EOFError, OSError):
                raise InputError(
                    'A process that loads or draws photos was killed, perhaps because the memory is full; run the same command '
                    'again; if it was loading photos, lower --config.data.num_workers.'
                ) from None
            if isinstance(result, Exception):
                raise result
            yield result


def _send_results(pipe: Connection, numbers: range) -> None:
    """In a worker: call the function that comes through `pipe`, and send back what it returns for each number."""
    with contextlib.suppress(EOFError, OSError):  # the process that started this one has ended
        function = pipe.recv()
        for number in numbers:
            try:
                result = pickle.dumps(function(number))
            except (InputError, OSError) as error:
                result = pickle.dumps(error)
            except Exception:  # a bug: only its traceback, as not every exception can be pickled
                result = pickle.dumps(RuntimeError(f'In another process:\n{traceback.format_exc()}'))
            pipe.send_bytes(result)
