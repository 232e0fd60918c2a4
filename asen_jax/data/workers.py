"""Loads batches ahead of the step, in threads of this process or in worker processes."""

import atexit
import contextlib
import multiprocessing
import pickle
import traceback
from collections.abc import Generator
from multiprocessing.connection import Connection

import grain
import numpy as np

from asen_jax.errors import InputError
from asen_jax.signals import signals_blocked

READ_THREADS = 2  # batches loaded at the same time in one process
READ_AHEAD = 4  # batches; Grain's default of 500 fills up the memory


def load_batches(dataset: grain.MapDataset, num_workers: int) -> Generator[dict[str, np.ndarray]]:
    """The batches of a dataset, loaded ahead by `num_workers` processes or, with 0, by threads of this one.

    Raises InputError if a process is killed, and any exception that loading a batch raises.
    """
    if num_workers:
        yield from _load_in_workers(dataset, num_workers)
        return
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _load_in_workers(dataset: grain.MapDataset, num_workers: int) -> Generator[dict[str, np.ndarray]]:
    """The batches, loaded in processes that hand them over through a pipe each, so that none waits for a dead one.

    Grain's own workers use shared memory, of which a killed run leaves megabytes behind.
    """
    spawn = multiprocessing.get_context('spawn')  # JAX has threads, which a fork would break
    num_workers = min(num_workers, len(dataset))
    pipes: list[Connection] = []
    with contextlib.ExitStack() as stack:
        atexit.register(stack.close)  # or Python would wait at its exit for workers that wait to hand over a batch
        stack.callback(atexit.unregister, stack.close)
        for number in range(num_workers):
            pipe, end = spawn.Pipe()
            worker = spawn.Process(target=_send_batches, args=(end, number, num_workers))
            pipes.append(stack.enter_context(pipe))
            with end, signals_blocked():  # only the worker keeps its end, so its death ends the pipe
                worker.start()
                stack.callback(worker.join)
                stack.callback(worker.kill)
        pickled = pickle.dumps(dataset)
        for pipe in pipes:  # as an argument of the process, `start` would wait until it is read, even by a dead worker
            with contextlib.suppress(OSError):  # of a dead worker, which is noticed below
                pipe.send_bytes(pickled)
        for number in range(len(dataset)):
            try:
                batch = pipes[number % num_workers].recv()
            except (EOFError, OSError):
                raise InputError(
                    'A process that loads photos was killed, perhaps because the memory is full; '
                    'lower --config.data.num_workers and run the same command again.'
                ) from None
            if isinstance(batch, Exception):
                raise batch
            yield batch


def _send_batches(pipe: Connection, first: int, step: int) -> None:
    """In a worker: load every `step`th batch of the dataset that comes through `pipe`, and send it back."""
    with contextlib.suppress(EOFError, OSError):  # the trainer has ended
        dataset = pipe.recv()
        for number in range(first, len(dataset), step):
            pipe.send_bytes(_pickled_batch(dataset, number))


def _pickled_batch(dataset: grain.MapDataset, number: int) -> bytes:
    """A batch, or the exception that loading it raised."""
    try:
        return pickle.dumps(dataset[number])
    except Exception as error:
        report = f'In a process that loads photos:\n{traceback.format_exc()}'
        error.add_note(report)
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # which fails for some that can be pickled
        except Exception:
            return pickle.dumps(RuntimeError(report))
        return pickled
