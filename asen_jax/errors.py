"""Errors that a user can fix: main.py prints their one sentence and exits with their status."""


class InputError(Exception):
    """The input cannot be used; the message names the file, line or field and the remedy."""

    exit_status = 2


class NumericsError(Exception):
    """A loss, a weight, or a vector is not finite; the message names where, and what to try."""

    exit_status = 3


class PeerError(Exception):
    """Another process of the same run has ended, so that this one cannot go on."""

    exit_status = 4


class StoppedError(Exception):
    """The run was stopped by a signal, after saving; the exit status is the shell's usual 128 + signal number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_status = 128 + signal_number
