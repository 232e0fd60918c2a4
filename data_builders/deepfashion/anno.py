"""Parsers of DeepFashion's own annotation files (its folder Anno): attribute names, each photo's attributes, and boxes.

Errors name the file and the line.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from asen_jax.data.boxes import BOX_COLUMNS, Box, parse_box
from asen_jax.errors import InputError
from data_builders.annotations import MAX_DIGITS, Meta, check_relative
from data_builders.records import Photo, RawDataset, photo_in

NAMES, PHOTOS, BOXES = 'list_attr_cloth.txt', 'list_attr_img.txt', 'list_bbox.txt'
PLACES = ('Anno', 'Anno_coarse', 'Eval', '.')  # below DeepFashion's folder; releases differ
ENTRIES = {'-1', '0', '1'}  # the photo lacks the attribute, unknown, has it


class Names(NamedTuple):
    """The 1,000 attributes in list_attr_cloth.txt, which are the values in the papers; their order gives the global ids."""

    path: Path
    names: tuple[str, ...]
    attribute: Int[np.ndarray, ' ids']  # the type of each id, counted from 0


class Boxes(NamedTuple):
    """Garment boxes by photo path, 0-based and half-open; a photo with two different boxes has none."""

    path: Path
    of: dict[str, tuple[int, Box]]  # line, box
    unclear: dict[str, tuple[int, int]]  # the two lines


def find(folder: Path, name: str) -> Path | None:
    """The path of one of DeepFashion's files below `folder`; None if it is missing."""
    return next((path for place in PLACES if (path := folder / place / name).is_file()), None)


def read_names(path: Path, meta: Meta) -> Names:
    """The rows `name type`; names may contain spaces, and each type must have as many as in meta.json."""
    types = {str(number): number - 1 for number in range(1, len(meta.attributes) + 1)}
    names, attribute = [], []
    for line, text in _rows(path, 'attribute_name attribute_type'):
        *name, kind = text.split()
        if not name or kind not in types:
            raise InputError(f'{path}, line {line}: {text[:80]!r}; expected a name and a type 1-{len(types)}.')
        names.append(' '.join(name))
        attribute.append(types[kind])
    for number, name in enumerate(meta.attributes):
        if (seen := attribute.count(number)) != (count := len(meta.values[name])):
            raise InputError(
                f'{path}: {seen} names of type {number + 1} ({name}), but meta.json has {count}; '
                f'download the list of all {sum(map(len, meta.values.values())):,} attributes.'
            )
    return Names(path, tuple(names), np.array(attribute))


def name_values(meta: Meta, names: Names) -> Meta:
    """`meta` with DeepFashion's names of the values."""
    ids = {name: np.flatnonzero(names.attribute == number) for number, name in enumerate(meta.attributes)}
    return meta._replace(values={name: tuple(names.names[i] for i in of) for name, of in ids.items()})


def read_photos(path: Path, num_ids: int) -> Iterator[tuple[int, str, list[int]]]:
    """Line number, path and global ids of each photo in list_attr_img.txt, which is too large to hold in memory."""
    for line, text in _rows(path, 'image_name attribute_labels'):
        name, *entries = text.split()
        if len(entries) != num_ids or not ENTRIES.issuperset(entries):
            raise InputError(
                f'{path}, line {line}: {len(entries)} entries after the path; expected {num_ids}, one for each name '
                f'in {NAMES}, all of them -1, 0 or 1.'
            )
        yield line, name, list(itertools.compress(range(num_ids), map('1'.__eq__, entries)))


def rebuild_train(
    folder: Path, path: Path, names: Names, rank: Int[np.ndarray, ' ids'], held_out: set[str]
) -> tuple[list[Photo], str]:
    """The photos with at least one attribute that are in neither valid nor test, in the order of the file; and a note."""
    photos, found, bare, held_out = [], set(), 0, set(map(_plain, held_out))
    for line, name, ids in read_photos(path, len(names.names)):
        check_relative(name, f'{path}, line {line}')
        name = _plain(name)
        if name in held_out:
            found.add(name)
        elif not ids:
            bare += 1
        else:
            labels = list(zip(names.attribute[ids].tolist(), rank[ids].tolist(), strict=True))
            photos.append(photo_in(folder, name, labels, f'{path}, line {line}'))
    if absent := held_out - found:
        raise InputError(
            f'{path}: {len(absent):,} of the {len(held_out):,} photos of valid and test are missing from it (one is '
            f'{min(absent)}), so train could not be kept apart from them; download the file of all 289,222 photos, whose '
            f'paths are those in filenames_valid.txt.'
        )
    if not photos:
        raise InputError(f'{path}: no photos are left for train; download the file of all 289,222 photos.')
    note = (
        f'train: rebuilt from {path.name}, since the published train lists are missing: {len(photos):,} photos; left '
        f'out are the {len(found):,} photos of valid and test, and {bare:,} without any attribute'
    )
    return photos, note


def read_boxes(path: Path) -> Boxes:
    """The rows `path x_1 y_1 x_2 y_2`: first and last pixels, counted from 1.

    The published valid list has a path twice, with different labels, so DeepFashion's own files may have it twice too.
    A repeated box is one box; if the two differ, there is no telling which one is right.
    """
    boxes, unclear = {}, {}
    for line, text in _rows(path, 'image_name x_1 y_1 x_2 y_2'):
        where, words = f'{path}, line {line}', text.split()
        if len(words) != 5:
            raise InputError(f'{where}: {text[:80]!r}; expected a path and four whole numbers.')
        name, box = _plain(words[0]), parse_box(dict(zip(BOX_COLUMNS, words[1:], strict=True)), where)
        first, other = boxes.setdefault(name, (line, box))
        if other != box:
            unclear[name] = (first, line)
    return Boxes(path, {name: entry for name, entry in boxes.items() if name not in unclear}, unclear)


def add_boxes(raw: RawDataset, boxes: Boxes) -> RawDataset:
    """`raw` with the boxes of its photos, whose lines are added to `where`, and a note that counts them."""

    def add(photo: Photo) -> Photo:
        if photo.image_id not in boxes.of:
            return photo
        line, box = boxes.of[photo.image_id]
        return photo._replace(bbox=box, where=f'{photo.where}; {boxes.path}, line {line}')

    added = {split: list(map(add, photos)) for split, photos in raw.photos.items()}
    photos = [photo for many in added.values() for photo in many]
    boxed = sum(photo.bbox is not None for photo in photos)
    note = (
        f'{boxes.path.name}: boxes for {boxed:,} photos; {len(photos) - boxed:,} have none, so the whole photo is used'
    )
    unclear = list(dict.fromkeys(photo.image_id for photo in photos if photo.image_id in boxes.unclear))
    if unclear:
        first, second = boxes.unclear[unclear[0]]
        note += f'; {len(unclear):,} of these have two different boxes ({unclear[0]}, lines {first} and {second})'
    return raw._replace(photos=added, notes=(*raw.notes, note))


def _rows(path: Path, columns: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each row; the first two lines are the number of rows and the names of the columns."""
    with path.open('rb') as file:
        lines = ((line, _decode(path, line, text)) for line, text in enumerate(file, 1))
        (_, first), (_, second) = next(lines, (1, '')), next(lines, (2, ''))
        if not first.isdecimal() or len(first) > MAX_DIGITS or second.split()[:1] != columns.split()[:1]:
            raise InputError(
                f'{path}, lines 1 and 2: {first[:60]!r} and {second[:60]!r}; expected the number of rows and "{columns}".'
            )
        count, expected = 0, int(first)
        for line, text in tqdm(lines, total=expected, desc=f'Reading {path.name}', unit='row', disable=None, delay=1):
            if text:
                count += 1
                yield line, text
        if count != expected:
            raise InputError(
                f'{path}, line 1: {expected:,} rows are announced, but {count:,} follow; download the file again.'
            )


def _decode(path: Path, line: int, text: bytes) -> str:
    try:
        return text.decode('utf-8-sig').strip()
    except UnicodeDecodeError as error:
        raise InputError(f'{path}, line {line}: not UTF-8 text; download the file again.') from error


def _plain(name: str) -> str:
    """`name` without `./` and `//`, so that a photo has one name when train is kept apart from valid and test."""
    return PurePosixPath(name).as_posix()
