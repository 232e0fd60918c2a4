"""The errors that a person can mend: main.py prints their one sentence and exits with their status."""


class InputError(Exception):
    """What we were given cannot be used; the message names the file, line or field and the remedy."""

    exit_status = 2


class NumericsError(Exception):
    """The numbers broke (NaN or infinity); the message names the step and the last good checkpoint."""

    exit_status = 3
