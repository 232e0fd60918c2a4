"""Signals that ask a run to stop: it saves first, and its worker processes wait for it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

from asen_jax.errors import StoppedError

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0  # seconds after the first signal in which further ones count as the same


class StopRequest:
    """A context in which SIGHUP, SIGINT, and SIGTERM set a flag, which the training loop reads after each step.

    Shells and schedulers may send a signal twice, so repeated ones change nothing, except that Ctrl-C more than a second
    after the first signal ends the process at once, without saving.
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._received = 0.0
        self._previous = {}

    def __enter__(self) -> 'StopRequest':
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if self.signal_number is None:
            self.signal_number, self._received = number, time.monotonic()
        else:
            _repeat(number, self._received)


def stopped(number: int, outcome: str) -> StoppedError:
    """The error that ends a run after the signal `number`; `outcome` says what was saved and how to go on."""
    return StoppedError(f'Stopped by {signal.Signals(number).name} {outcome}', number)


def handle_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt once; repeated ones are handled as by `StopRequest`."""

    def interrupt(number: int, frame) -> None:
        first = time.monotonic()
        signal.signal(number, lambda number, frame: _repeat(number, first))
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def end_if_interrupted(unraisable) -> None:
    """A `sys.unraisablehook` that is silent, but ends the process after a Ctrl-C during garbage collection, which drops it."""
    if unraisable.exc_type is KeyboardInterrupt:
        end_now(signal.SIGINT)


def _repeat(number: int, first: float) -> None:
    if number == signal.SIGINT and time.monotonic() - first > PATIENCE:
        end_now(number)


def end_now(number: int) -> None:
    """End the process as SIGKILL would, since libraries print tracebacks or hang where an exception interrupts them."""
    os.write(2, f'{Path(sys.argv[0]).name}: interrupted; run the same command again to continue.\n'.encode())
    os._exit(128 + number)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that stop a run in this thread; processes that it starts meanwhile never receive them.

    Terminals and schedulers also send them to workers, which the run needs until it has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    resource_tracker.ensure_running()  # when this starts the tracker, it unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
