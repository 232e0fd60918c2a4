"""A folder of pieces that are whole or absent, from which one large .npz is made: what a stopped run goes on from.

It holds `request.json`, which says of what the pieces are, the pieces `piece-<number>.npz`, and `lock`.
"""

import contextlib
import fcntl
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from asen_jax.errors import InputError


class Rows(NamedTuple):
    """An array whose rows come part by part."""

    kind: np.dtype
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """`folder` for this process alone, however that ends; removed at the end, or after an error if it has no pieces yet.

    Raises InputError where another process holds it.
    """
    while (lock := _lock(folder)) is None:
        pass
    with lock:
        try:
            yield
        except BaseException:
            if not _pieces(folder):
                _remove(folder)
            raise
        _remove(folder)


def _lock(folder: Path) -> IO | None:
    """The locked file in `folder`, or None where the process that held it has just removed it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'lock'
    with contextlib.ExitStack() as closing, contextlib.suppress(FileNotFoundError):
        file = closing.enter_context(path.open('w'))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f'Another process works in {folder}; wait for it, or name another --output.') from error
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            closing.pop_all()
            return file
    return None


def _remove(folder: Path) -> None:
    """The request first: pieces without one are nobody's, and stand in no one's way. The lock last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name != 'request.json', path.name == 'lock')):
        path.unlink()
    with contextlib.suppress(OSError):  # the next process may be there already
        folder.rmdir()


def claim(folder: Path, request: Mapping[str, Any]) -> None:
    """Say of what the pieces are; raises InputError where there are pieces of another request."""
    known = None
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((folder / 'request.json').read_text())
    if known == request:
        return
    if known is not None and _pieces(folder):
        other = ', '.join(name for name in request if known.get(name) != request[name])
        raise InputError(
            f'{folder} holds pieces of a run with other {other}, which only its own command can finish; '
            'delete that folder, or name another --output.'
        )
    forget(folder)
    with written_whole(folder / 'request.json', folder) as file:
        file.write(json.dumps(request).encode())


def forget(folder: Path) -> None:
    """Delete the pieces."""
    for piece in _pieces(folder):
        piece.unlink()


def write(folder: Path, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Put a piece into the folder."""
    with written_whole(_path(folder, number), folder) as file:
        np.savez(file, **arrays)


def read(folder: Path, number: int, name: str) -> np.ndarray | None:
    """An array of a piece; None where that piece is not there. Raises InputError where it is damaged."""
    path = _path(folder, number)
    try:
        with path.open('rb') as file, np.load(file) as arrays:  # NumPy leaves a damaged file open
            return arrays[name]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{path} is damaged ({error}); delete it and run the same command again.') from error


@contextlib.contextmanager
def written_whole(path: Path, folder: Path) -> Iterator[IO]:
    """A file that is written in `folder` and appears as `path` only when all of it is on disk."""
    with (folder / f'{path.name}.tmp').open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


def write_npz(path: Path, folder: Path, arrays: Mapping[str, Rows]) -> None:
    """What `numpy.savez` writes, to the byte, with no more in memory than a part of one array at a time."""
    with written_whole(path, folder) as whole, zipfile.ZipFile(whole, 'w', zipfile.ZIP_STORED) as archive:
        for name, rows in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                kind = np.lib.format.dtype_to_descr(rows.kind)
                header = {'descr': kind, 'fortran_order': False, 'shape': rows.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in rows.parts:
                    file.write(part.astype(rows.kind, copy=False).tobytes())


def _path(folder: Path, number: int) -> Path:
    return folder / f'piece-{number:06}.npz'


def _pieces(folder: Path) -> list[Path]:
    return list(folder.glob('piece-*.npz'))
