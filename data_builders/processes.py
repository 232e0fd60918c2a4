"""Work that several processes share."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from asen_jax.errors import InputError
from asen_jax.signals import signals_blocked


def map_in_processes(function: Callable[[Any], Any], items: Sequence, items_per_process: int) -> Iterator[Any]:
    """`map(function, items)` in as many processes as there are cores, each of which gets at least `items_per_process`.

    Fewer items stay in this process, since another one takes a second to start. Raises InputError if a process is killed.
    """
    num_processes = min(os.cpu_count() or 1, len(items) // items_per_process)
    if num_processes < 2:
        yield from map(function, items)
        return
    spawn = multiprocessing.get_context('spawn')  # JAX has threads, which a fork would break
    pool = ProcessPoolExecutor(num_processes, spawn, _end_with_parent)
    try:
        with signals_blocked():  # this process decides when the others end
            results = pool.map(function, items, chunksize=20)
        yield from results
    except BrokenProcessPool:
        raise InputError(
            'A process that works on photos was killed, perhaps because the memory is full; run the same command again.'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: end when the process that started it does, however that ends; the pool's own workers would wait forever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
