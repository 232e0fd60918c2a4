"""The photos that `--images` names: those of a folder, a pattern, or a list."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from PIL import Image

from asen_jax.data.boxes import BOX_COLUMNS, Box
from asen_jax.data.images import FORMATS
from asen_jax.data.table import read_table
from asen_jax.errors import InputError
from asen_jax.files import write_atomically

ACCEPTED = (
    'a photo, a folder, a pattern in quotes, a text file with one path per line, or a CSV with a column named path'
)
SUFFIXES = {
    suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS
}  # of photos, in lower case
# lists, and the vectors that --mode embed writes, are not counted among the files that a folder has besides photos
EXPECTED_SUFFIXES = {'.csv', '.txt', '.npz'}
TAB = '\t'  # between a skipped photo's path and the reason


class ListedPhoto(NamedTuple):
    """A photo to embed."""

    path: str  # opens from the current folder
    box: Box | None = None  # the garment, where the list has one
    metadata: Mapping[str, str] = MappingProxyType({})  # the other columns of a CSV, without empty cells


def list_photos(images: str | os.PathLike, with_boxes: bool = False) -> tuple[list[ListedPhoto], str]:
    """The photos that `images` names, and a line about files that were left out, or ''; raises InputError without photos.

    - A folder: all files below it with a photo's suffix, sorted, without hidden ones; the line counts others by suffix.
    - A pattern: all files that match it, sorted.
    - A text file, or the column `path` of a CSV: as listed, relative to the list's folder.
    - A photo: itself.

    Garment boxes, the columns `x1,y1,x2,y2` of a CSV (see asen_jax/data/boxes.py), are read only `with_boxes`, for a network
    that was trained on them; a notice says if there are none.
    """
    path, left_out = Path(images).expanduser(), ''
    if path.is_dir():
        photos, left_out = _walk(path)
    elif not path.exists():  # Path.glob would match hidden files
        names = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
        photos = [ListedPhoto(name) for name in names]
    elif path.suffix.lower() in SUFFIXES:
        photos = [ListedPhoto(str(path))]
    else:
        if not path.is_file():  # reading a pipe or a device may never end
            raise InputError(f'{path} is not a regular file; --images takes {ACCEPTED}.')
        listed = _read_csv(path, with_boxes) if path.suffix.lower() == '.csv' else _read_list(path)
        photos = [photo._replace(path=str(path.parent / photo.path)) for photo in listed]
    if not photos:
        missing = 'matches no file' if glob.has_magic(str(path)) else 'does not exist'
        fault = 'holds no photos' if path.exists() else missing
        fault += f' ({left_out})' if left_out else ''
        raise InputError(f'{images} {fault}; --images takes {ACCEPTED}.')
    if with_boxes and not any(photo.box for photo in photos):
        print(f'{images} has no boxes: photos are used whole (this matters only if the training photos had boxes)')
    return photos, left_out


def write_skipped(path: Path, lines: Sequence[str]) -> None:
    """Write which photos were skipped, each as `path<tab>reason`; without any, the file of an earlier run is deleted."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    with write_atomically(path) as file:
        file.writelines(os.fsencode(f'{line}\n') for line in lines)


def slices(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive parts of `items` with `size` elements each; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def absolute(path: str | os.PathLike) -> str:
    """`path` in full, without `..`; links stay."""
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - resolve() would follow links


def file_state(path: str) -> str | None:
    """A text that changes if the file does; None if there is no such file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return f'{status.st_size} {status.st_mtime_ns}'


def photo_state(path: str, box: Box | None) -> str | None:
    """A text that changes if the file or the garment's box does; None if there is no such file."""
    state = file_state(path)
    return state and f'{state} {box}'


def _walk(folder: Path) -> tuple[list[ListedPhoto], str]:
    """The photos below `folder`, outside of galleries' tables. Links are followed, but each real folder is visited once, so that a loop of links ends."""

    def fail(error: OSError):
        raise error

    paths, others, visited = [], Counter(), set()
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = Path(root).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.') and not name.endswith('.lance'))
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES and not name.startswith('.'):
                paths.append(str(Path(root, name)))
            elif suffix not in EXPECTED_SUFFIXES and not name.startswith('.'):
                others[suffix or 'none'] += 1
    counts = ', '.join(f'{suffix} {count:,}' for suffix, count in others.most_common())
    left_out = f'left out files whose suffix is not that of a photo ({counts})' if others else ''
    return [ListedPhoto(path) for path in sorted(paths)], left_out


def _read_list(path: Path) -> list[ListedPhoto]:
    """The lines of a text file that are not empty."""
    try:
        text = path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is neither a photo nor UTF-8 text; --images takes {ACCEPTED}.') from error
    return [ListedPhoto(line.strip()) for line in text.split('\n') if line.strip()]


def _read_csv(path: Path, with_boxes: bool) -> list[ListedPhoto]:
    """The column `path`, the boxes if there are any, and the other columns."""
    table = read_table(path)
    metadata = [name for name in table.columns if name not in ('path', *BOX_COLUMNS)]
    return [
        ListedPhoto(
            row.cells['path'],
            table.box(row) if with_boxes else None,
            {name: row.cells[name] for name in metadata if row.cells[name]},
        )
        for row in table.rows
    ]
