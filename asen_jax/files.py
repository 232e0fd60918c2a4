"""The one way to write, lock and fingerprint files: atomically, and by one process at a time."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from asen_jax.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # what a file system without locks answers
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears as `path` once it is complete and on disk; after an error `path` is unchanged.

    An OSError names `path`.
    """
    path = Path(path)
    # beside `path`, since a rename is atomic only within one file system
    temporary = path.with_name(f'.{path.name[:50]}.{os.getpid()}-{threading.get_ident()}.tmp')
    try:
        with errors_name(path, instead_of=temporary):
            with temporary.open('wb') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it is gone after a success, and an error must not hide the first one
            temporary.unlink()


@contextlib.contextmanager
def errors_name(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """Let an OSError name `path` if it names no file, as on a full disk, or the file `instead_of`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, os.fspath(instead_of or path)):
            error.filename = os.fspath(path)
        raise


def check_output(path: str | os.PathLike, suffixes: Sequence[str], inputs: Iterable[str | os.PathLike]) -> None:
    """Raise InputError if `path` is a folder, has none of `suffixes`, or is one of the files `inputs`, by whatever name."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f'{path} is a folder; name a file like {path / "output"}{suffixes[0]}.')
    if path.suffix.lower() not in suffixes:
        raise InputError(f'{path} does not end in {" or ".join(suffixes)}; name another --output.')
    if not path.exists():
        return
    existing = path.stat()
    for each in inputs:
        with contextlib.suppress(OSError, ValueError):  # an input that does not exist
            if os.path.samestat(existing, Path(each).stat()):
                raise InputError(f'{path} is one of the inputs; name another --output.')


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with write_atomically(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike, content: Any, indent: int = 2) -> None:
    """Write `content` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=indent) + '\n')


@contextlib.contextmanager
def lock(path: str | os.PathLike, busy: str, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which the operating system releases when this process ends, however it ends.

    With `shared`, any number of processes may hold it together. If another process holds the lock, raises InputError with the
    message `busy`; with `wait`, logs the message and waits. On a file system without locks, it logs a warning and proceeds. With
    `shared`, it also proceeds if the lock file cannot be opened, as in a read-only folder.
    """
    kind, mode = (fcntl.LOCK_SH, os.O_RDONLY) if shared else (fcntl.LOCK_EX, os.O_RDWR)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError) if shared else contextlib.nullcontext():
            file = os.open(path, mode | os.O_CREAT, 0o644)
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise InputError(busy) from None
                logger.warning(busy)
                fcntl.flock(file, kind)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                logger.warning('%s has no file locks; make sure that only one process works there.', Path(path).parent)
        yield


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Be the only process that trains in `workdir`, which is created if needed; raises InputError if another one does."""
    workdir.mkdir(parents=True, exist_ok=True)
    busy = f'Another process is training in {workdir}; wait until it ends, or name another --workdir.'
    with lock(workdir / '.lock', busy):
        yield


def sha256_of_json(content: Any) -> str:
    """The SHA-256 of `content` as JSON, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
