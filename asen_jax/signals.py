"""Signals that ask a run to stop: it saves first, and its worker processes wait for it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

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
        elif number == signal.SIGINT and time.monotonic() - self._received > PATIENCE:
            end_now(number)


def end_now(number: int) -> None:
    """End the process as SIGKILL would, since libraries print tracebacks or hang where an exception interrupts them."""
    message = f'{Path(sys.argv[0]).name}: Stopped at once; run the same command to resume from the last checkpoint.\n'
    os.write(2, message.encode())
    os._exit(128 + number)


def interrupt_once(number: int, frame) -> None:
    """Handle Ctrl-C: raise KeyboardInterrupt, and ignore further ones, so that nothing disturbs the end of the process."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


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
