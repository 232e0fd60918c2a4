"""How a command runs from beginning to end: its output, its exit status, and the one sentence about what went wrong."""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import logging as absl_logging

from asen_jax.errors import InputError, NumericsError, StoppedError
from asen_jax.signals import end_if_interrupted
from cli import command_line

Dispatch = Callable[[command_line.Arguments], None]  # what runs a mode

# packages that only some modes need, and the extra that installs each
EXTRAS = {'ray': 'ray', **dict.fromkeys(('lancedb', 'uvicorn', 'fastapi', 'fastapi_offline', 'limits'), 'search')}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # full or failing, and often without a file's name
CLOSED_OUTPUT = 128 + signal.SIGPIPE


def run(argv: list[str], dispatch: Dispatch) -> int:
    """Run a command; the exit status.

    0 done, 1 a fault of this program, 2 invalid input, 3 numbers not finite, 4 another process of the run has ended, 128 + n
    stopped by signal n.
    """
    set_up_output()
    status, message = attempt(argv, dispatch)
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit would fail, too
        if isinstance(error, BrokenPipeError):
            status = status or CLOSED_OUTPUT
        else:
            status, message = 2, f'the output: {error.strerror}.'
    if message:
        with contextlib.suppress(BrokenPipeError):
            print(f'{Path(argv[0]).name}: {message}', file=sys.stderr)
    return status


def end(status: int) -> NoReturn:
    """Exit, together with the other processes of the run if there are any."""
    if processes := sys.modules.get('asen_jax.processes'):  # not loaded for --help
        processes.end_process(status)
    sys.exit(status)


def attempt(argv: list[str], dispatch: Dispatch) -> tuple[int, str]:
    """Run a command; its exit status, and the sentence about what went wrong, or ''."""
    arguments = None
    try:
        arguments = command_line.parse(argv)
        if arguments is not None:
            dispatch(arguments)
    except (InputError, NumericsError, StoppedError) as error:
        return error.exit_status, str(error)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        return CLOSED_OUTPUT, ''
    except KeyboardInterrupt:
        return 130, 'interrupted; run the same command again to continue.'
    except Exception as error:
        if sentence := explain(error, arguments):
            return 2, sentence
        if processes := sys.modules.get('asen_jax.processes'):
            processes.await_peer_error()
        traceback.print_exc()
        return 1, ''
    return 0, ''


def explain(error: Exception, arguments: command_line.Arguments | None) -> str:
    """The sentence about an error that is no fault of this program, but of a package, a disk or a file of the command; or ''."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"this needs {error.name}; pip install '.[{EXTRAS[error.name]}]' installs it."
    if not isinstance(error, OSError):
        return ''
    if error.errno in DISK_ERRORS:  # also of a print
        written = arguments.written if arguments else 'a file'
        return f'{error.filename or f"{written} or the output"}: {error.strerror}.'
    is_named = arguments and isinstance(error.filename, str)
    if is_named and any(_belongs(error.filename, path) for path in arguments.paths):
        return f'{error.filename}: {error.strerror}.'
    return ''


def _belongs(path: str, to: Path) -> bool:
    """Whether `path` is the file or folder `to`, is inside it, contains it, or continues its name, as v.npz.parts does."""
    for full in (lambda path: str(Path(path).absolute()), os.path.realpath):
        ours, given = full(path) + os.sep, full(to) + os.sep
        if ours.startswith((given, f'{full(to)}.')) or given.startswith(ours):
            return True
    return False


def _report_own_thread(error) -> None:
    """Be silent about threads of Orbax and tensorboardX: what fails in them also fails in the main thread."""
    if not type(error.thread).__module__.startswith(('orbax', 'tensorboardX')):
        threading.__excepthook__(error)


def set_up_output() -> None:
    """Print what this project logs, and hide the messages of libraries, which users cannot act on."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # XLA reads it when JAX is imported
    os.environ.setdefault('LANCEDB_LOG', 'error')  # it warns of every table that is new
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # Python already does this for stderr
    logging.raiseExceptions = False  # `attempt` and `run` notice a closed output, and say so once
    absl_logging.set_verbosity(absl_logging.FATAL)  # an error is also raised
    logging.getLogger('asyncio').setLevel('CRITICAL')
    threading.excepthook = _report_own_thread
    sys.unraisablehook = end_if_interrupted
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')  # the process that cleans up after a killed run
    for name in ('asen_jax', 'data_builders'):
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.StreamHandler(sys.stdout)]
        logger.setLevel('INFO')
        logger.propagate = False
