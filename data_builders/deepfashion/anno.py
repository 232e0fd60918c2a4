"""DeepFashion's own annotation files (its folder Anno): attribute names and types, each photo's attributes, and boxes.

What they refuse names the file and the line.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from asen_jax.errors import InputError
from data_builders.annotations import Meta, check_relative
from data_builders.records import Photo

NAMES, PHOTOS, BOXES = 'list_attr_cloth.txt', 'list_attr_img.txt', 'list_bbox.txt'
PLACES = ('Anno', 'Anno_coarse', 'Eval', '.')  # below DeepFashion's folder; the releases differ
ENTRIES = (b'-1', b'0', b'1')  # has it not, unknown, has it


class Names(NamedTuple):
    """The 1,000 attributes of list_attr_cloth.txt, which are the papers' values; a line is a global id."""

    path: Path
    names: tuple[str, ...]
    attribute: Int[np.ndarray, ' ids']  # the type, counted from 0


class Boxes(NamedTuple):
    """Garments' boxes by path, 0-based and half-open, each with its line; photos with two different boxes have none."""

    path: Path
    of: dict[str, tuple[int, tuple[float, float, float, float]]]
    unclear: dict[str, tuple[int, int]]  # the two lines


def find(folder: Path, name: str) -> Path | None:
    """Where one of DeepFashion's files lies below `folder`, if it is there."""
    return next((path for place in PLACES if (path := folder / place / name).is_file()), None)


def read_names(path: Path, meta: Meta) -> Names:
    """Rows `name type`; a name may contain blanks. Each type must have as many as meta.json says."""
    types = {str(number): number - 1 for number in range(1, len(meta.attributes) + 1)}
    names, attribute = [], []
    for line, text in _rows(path, 'attribute_name attribute_type'):
        *name, kind = _decode(path, line, text).split() or ['']
        if not name or kind not in types:
            raise InputError(
                f'{path}, line {line}: {" ".join([*name, kind])!r}; expected a name and a type 1-{len(types)}.'
            )
        names.append(' '.join(name))
        attribute.append(types[kind])
    for number, name in enumerate(meta.attributes):
        if (seen := attribute.count(number)) != (count := len(meta.values[name])):
            raise InputError(
                f'{path}: {seen} names of type {number + 1} ({name}), but meta.json says {count}; '
                f'take the list of all {sum(map(len, meta.values.values())):,} attributes.'
            )
    return Names(path, tuple(names), np.array(attribute))


def name_values(meta: Meta, names: Names) -> Meta:
    """`meta` with DeepFashion's names for the values."""
    values = {}
    for number, attribute in enumerate(meta.attributes):
        values[attribute] = tuple(names.names[i] for i in np.flatnonzero(names.attribute == number))
    return meta._replace(values=values)


def read_photos(path: Path, num_ids: int) -> Iterator[tuple[int, str, list[int]]]:
    """Line, path and global ids of each photo of list_attr_img.txt, one by one: the file is too large to be held."""
    for line, text in _rows(path, 'image_name attribute_labels'):
        words = text.split()
        count = words.count(b'1')
        if len(words) != num_ids + 1:
            raise InputError(
                f'{path}, line {line}: {len(words) - 1} entries after the path; expected {num_ids}, one for each name '
                f'of {NAMES}.'
            )
        if count + words.count(b'-1') + words.count(b'0') != num_ids:
            other = next(word for word in words[1:] if word not in ENTRIES)
            raise InputError(f'{path}, line {line}: entry {other.decode(errors="replace")!r}; expected -1, 0 or 1.')
        ids, place = [], 0
        for _ in range(count):
            place = words.index(b'1', place + 1)
            ids.append(place - 1)
        yield line, _decode(path, line, words[0]), ids


def rebuild_train(
    folder: Path, path: Path, names: Names, rank: Int[np.ndarray, ' ids'], held_out: set[str]
) -> tuple[list[Photo], str]:
    """All photos with an attribute that are in neither valid nor test, in the file's order; and a note."""
    photos, found, bare, held_out = [], set(), 0, set(map(_plain, held_out))
    for line, name, ids in read_photos(path, len(names.names)):
        check_relative(name, f'{path}, line {line}')
        name = _plain(name)
        if name in held_out:
            found.add(name)
        elif not ids:
            bare += 1
        else:
            file = folder / name
            labels = tuple(names.attribute[ids].tolist()), tuple(rank[ids].tolist())
            photos.append(Photo(name, file.read_bytes, *labels, path=file, where=f'{path}, line {line}'))
    if absent := held_out - found:
        raise InputError(
            f'{path}: {len(absent):,} of the {len(held_out):,} photos of valid and test are not in it (one is '
            f'{min(absent)}), so that train could not be kept apart from them; take the file of all 289,222 photos, '
            f'with paths as in filenames_valid.txt.'
        )
    if not photos:
        raise InputError(f'{path}: no photo is left for train; take the file of all 289,222 photos.')
    note = (
        f'train: rebuilt from {path.name}, since the published train lists are not there: {len(photos):,} photos; left '
        f'out are the {len(found):,} photos of valid and test, and {bare:,} without any attribute'
    )
    return photos, note


def read_boxes(path: Path) -> Boxes:
    """Rows `path x_1 y_1 x_2 y_2`: first and last pixels, counted from 1.

    The published valid list has a path twice with different labels, so that DeepFashion's own files have it twice too:
    a repeated box is one box, and where the two differ nobody can say which is the photo's.
    """
    boxes, unclear = {}, {}
    for line, text in _rows(path, 'image_name x_1 y_1 x_2 y_2'):
        words = _decode(path, line, text).split()
        try:
            name, (left, top, right, bottom) = _plain(words[0]), map(int, words[1:])
            box = (left - 1.0, top - 1.0, float(right), float(bottom))
        except (ValueError, IndexError, OverflowError) as error:
            shown = ' '.join(words)[:80]
            raise InputError(f'{path}, line {line}: {shown!r}; expected a path and four whole numbers.') from error
        if right < left or bottom < top:
            raise InputError(
                f'{path}, line {line}: the box {left} {top} {right} {bottom} is empty; expected the top left pixel '
                f'and the bottom right one.'
            )
        first, other = boxes.setdefault(name, (line, box))
        if other != box:
            unclear[name] = (first, line)
    return Boxes(path, {name: entry for name, entry in boxes.items() if name not in unclear}, unclear)


def add_box(photo: Photo, boxes: Boxes) -> Photo:
    """`photo` with its box and the line that says so; unchanged if it has none."""
    if photo.image_id not in boxes.of:
        return photo
    line, box = boxes.of[photo.image_id]
    return photo._replace(bbox=box, where=f'{photo.where}; {boxes.path}, line {line}')


def note_boxes(photos: list[Photo], boxes: Boxes) -> str:
    """How many of `photos` have a box."""
    boxed = sum(photo.bbox is not None for photo in photos)
    bare = len(photos) - boxed
    note = f'{boxes.path.name}: boxes of {boxed:,} photos; {bare:,} have none, which is then the whole photo'
    unclear = {photo.image_id: boxes.unclear[photo.image_id] for photo in photos if photo.image_id in boxes.unclear}
    for name, lines in list(unclear.items())[:1]:
        note += f'; {len(unclear):,} of these have two boxes that differ ({name}, lines {lines[0]} and {lines[1]})'
    return note


def _rows(path: Path, columns: str) -> Iterator[tuple[int, bytes]]:
    """Line number and text of each row below a line with their number and a line with the columns' names."""
    try:
        file = path.open('rb')
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error.strerror}); put the file there.') from error
    with file:
        first = file.readline().removeprefix(b'\xef\xbb\xbf').strip()
        if not first.isdigit() or len(first) > 12:  # Python refuses to convert thousands of digits
            raise InputError(f'{path}, line 1: {_show(first)}; expected the number of rows.')
        second = file.readline()
        if second.split()[:1] != [columns.split()[0].encode()]:
            raise InputError(f'{path}, line 2: {_show(second)}; expected the names of the columns, "{columns}".')
        count, expected = 0, int(first)
        lines = tqdm(file, total=expected, desc=f'Reading {path.name}', unit='row', disable=None, delay=1)
        for line, text in enumerate(lines, 3):
            if not text.isspace():
                count += 1
                yield line, text
        if count != expected:
            raise InputError(
                f'{path}, line 1: {expected:,} rows are expected, but {count:,} follow; download it again.'
            )


def _plain(name: str) -> str:
    """`name` without `./` and `//`: one file has one name, by which train is kept apart from valid and test."""
    return PurePosixPath(name).as_posix()


def _decode(path: Path, line: int, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f'{path}, line {line}: not UTF-8 text; download the file again.') from error


def _show(text: bytes) -> str:
    return repr(text.strip().decode(errors='replace')[:60])
