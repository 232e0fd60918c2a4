"""What `--images` names: the photos of a folder, of a pattern, or of a list."""

import csv
import glob
import io
import os
from pathlib import Path

from PIL import Image
from PIL.ImageFile import StubImageFile

from asen_jax.errors import InputError

TAKES = 'a photo, a folder, a pattern in quotes, a text file with one path a line, or a CSV with a column named path'


def list_photos(images: str | os.PathLike) -> list[str]:
    """The photos that `--images` names, as paths that open from the current folder; raises InputError where there are none.

    A folder: all files below it with a suffix that Pillow reads, sorted, without hidden ones. A pattern: all files that it
    matches, sorted. A text file, or the column `path` of a CSV: as listed there, from the list's folder. A photo: itself.
    """
    path, suffixes = Path(images).expanduser(), readable_suffixes()
    if path.is_dir():
        photos = _walk(path, suffixes)
    elif not path.exists():  # Path.glob would match hidden files
        photos = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
    elif path.suffix.lower() in suffixes:
        photos = [str(path)]
    else:
        lines = _read_csv(path) if path.suffix.lower() == '.csv' else _read_list(path)
        photos = [str(path.parent / line) for line in lines]
    if not photos:
        missing = 'matches no file' if glob.has_magic(str(path)) else 'does not exist'
        raise InputError(f'{images} {"holds no photos" if path.exists() else missing}; --images takes {TAKES}.')
    return photos


def readable_suffixes() -> set[str]:
    """The suffixes, in small letters with their dot, of the formats that Pillow itself can decode."""
    kinds = Image.registered_extensions()
    readers = {kind: factory for kind, (factory, _) in Image.OPEN.items()}
    none = {'MPEG'}  # known by name only, as are the stubs
    none |= {kind for kind, reader in readers.items() if isinstance(reader, type) and issubclass(reader, StubImageFile)}
    return {suffix for suffix, kind in kinds.items() if kind in readers and kind not in none}


def _walk(folder: Path, suffixes: set[str]) -> list[str]:
    """Photos below `folder`; links are followed, into each real folder once, so that a loop of them ends."""

    def fail(error: OSError):
        raise error

    photos, seen = [], set()
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        names = (name for name in files if not name.startswith('.'))
        photos += [str(Path(root, name)) for name in names if Path(name).suffix.lower() in suffixes]
    return sorted(photos)


def _read_list(path: Path) -> list[str]:
    return [line.strip() for line in _read_text(path).split('\n') if line.strip()]


def _read_csv(path: Path) -> list[str]:
    """The column `path`; empty lines are left out."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=''), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        if 'path' not in columns:
            raise InputError(
                f'{path}, line 1: no column is named path (it reads {",".join(columns)!r}); --images takes {TAKES}.'
            )
        place, photos = columns.index('path'), []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                photos.append(cells[place].strip() if place < len(cells) else '')
            if photos and not photos[-1]:
                raise InputError(f"{path}, line {reader.line_num}: the path is empty; write the photo's file.")
    except csv.Error as error:
        raise InputError(
            f'{path}, line {reader.line_num}: {error}; put a cell with a comma or a quote in quotes.'
        ) from error
    return photos


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is neither a photo nor UTF-8 text; --images takes {TAKES}.') from error
