"""The errors that a person can mend: main.py prints their one sentence and exits with their status."""


class InputError(Exception):
    """What we were given cannot be used; the message names the file, line or field and the remedy."""

    exit_status = 2


class NumericsError(Exception):
    """The numbers broke (NaN or infinity); the message names the step and the last good checkpoint."""

    exit_status = 3


class StoppedError(Exception):
    """A signal asked the run to stop, and it has saved; the exit status is the shell's usual 128 + signal number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_status = 128 + signal_number
