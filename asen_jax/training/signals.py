"""Stop a run cleanly when a signal asks for it."""

import signal


class StopRequest:
    """A context in which SIGTERM and SIGINT set a flag, which the training loop reads after each step.

    A second signal raises KeyboardInterrupt: stop now, without saving.
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._previous = {}

    def __enter__(self) -> 'StopRequest':
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
