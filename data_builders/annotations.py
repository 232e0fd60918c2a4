"""Parsers of the ASEN annotation files; their errors name the file and the line."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from asen_jax.data.table import read_text
from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError

COLUMNS = ('index', 'attribute', 'value')
MAX_DIGITS = 9  # of a number, so that it fits into int32
MAX_PATH, MAX_NAME = 4000, 255  # Linux allows 4,096 bytes with the folder


class Meta(NamedTuple):
    """One dataset's part of meta.json: attribute names, and the value names of each ('0', '1', ... by default)."""

    attributes: tuple[str, ...]
    values: dict[str, tuple[str, ...]]

    @property
    def counts(self) -> Int[np.ndarray, ' attributes']:
        """The number of values of each attribute."""
        return np.array([len(self.values[name]) for name in self.attributes])


class Entries(NamedTuple):
    """The labels in a list, and the line of each."""

    path: Path
    line: Int[np.ndarray, ' n']
    table: Int[np.ndarray, 'n 3']  # index, attribute, value

    def check(self, column: int, limit: int | Int[np.ndarray, ' n'], place: str) -> None:
        """Refuse a number that is not below the `limit` of its column, which `place` sets."""
        limits = np.broadcast_to(limit, len(self.table))
        for row in np.flatnonzero(self.table[:, column] >= limits)[:1]:
            raise InputError(
                f'{self.path}, line {self.line[row]}: {COLUMNS[column]} {self.table[row, column]}, but the last {place} is '
                f'{limits[row] - 1}; use the lists and the meta.json of the same release.'
            )

    def check_all(self, meta: Meta) -> Int[np.ndarray, 'n 3']:
        """`table`; refuses an attribute or value beyond meta.json, where both are counted from 0."""
        self.check(1, len(meta.attributes), 'in meta.json')
        self.check(2, meta.counts[self.table[:, 1]], 'of that attribute in meta.json')
        return self.table


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a list, at least one.

    Lines may end in CR LF, the last may lack a newline, and blank lines at the end are ignored.
    """
    lines = [line.strip() for line in read_text(path).split('\n')]  # not splitlines: only a line feed ends a line
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f'{path} is empty; download it again.')
    return lines


def read_filenames(path: Path) -> list[str]:
    """One relative path per line. The line number is the photo's index, so no line may be blank; a path may repeat."""
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not line:
            raise InputError(f'{path}, line {number} is empty, but every line is a photo; download the file again.')
        check_relative(line, f'{path}, line {number}')
    return lines


def check_relative(name: str, where: str) -> None:
    """Refuse a photo's path that is absolute, leaves its folder, or is longer than file systems allow."""
    parts = name.replace('\\', '/').split('/')
    outside = parts[0] == '' or name[0] == '~' or name[1:2] == ':' or '..' in parts
    if outside or len(name) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in parts):
        raise InputError(
            f'{where}: {name[:80]!r} is not the path of a file in the folder; write it relative to the folder, without "..", in '
            f'at most {MAX_PATH:,} characters and {MAX_NAME} bytes between two slashes.'
        )


def read_label_train(path: Path, num_photos: int, meta: Meta) -> Labels:
    """Lines `index (attribute value)+`, all counted from 0; a photo may have several labels, also of one attribute."""
    return Labels(*read_pairs(path, num_photos).check_all(meta).T)


def read_triples(path: Path, num_photos: int, meta: Meta) -> Int[np.ndarray, 'n 3']:
    """Lines `index attribute value` of a query or candidate list, in the list's order."""
    return read_pairs(path, num_photos, '"index attribute value"', most=3).check_all(meta)


def read_pairs(
    path: Path, num_photos: int, expected: str = '"index attribute value ..."', most: float = np.inf
) -> Entries:
    """Lines `index (attribute value)+`, of which only the index is checked."""
    entries = []
    for line, (index, *pairs) in enumerate(read_numbers(path, expected, most), 1):
        entries += [(line, index, *pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    table = np.array(entries, np.int32)
    found = Entries(path, table[:, 0], table[:, 1:])
    found.check(0, num_photos, 'in the list of file names')
    return found


def read_numbers(path: Path, expected: str, most: float = 3) -> list[list[int]]:
    """The whole numbers of each line: an odd number of them, from three to `most`."""
    rows = []
    for line, text in enumerate(read_lines(path), 1):
        words = text.split()
        whole = all(word.isdecimal() and len(word) <= MAX_DIGITS for word in words)
        if not whole or not 3 <= len(words) <= most or len(words) % 2 == 0:
            expected = f'{expected}, all whole numbers of up to {MAX_DIGITS} digits'
            raise InputError(f'{path}, line {line}: {text[:80]!r}; expected {expected}.')
        rows.append(list(map(int, words)))
    return rows


def read_meta(path: Path, dataset: str) -> Meta:
    """`dataset`'s attributes and their numbers of values in meta.json, with value names if it has ATTRIBUTES_VALUES."""
    try:
        part = json.loads('\n'.join(read_lines(path)))[dataset]
        attributes, counts, names = part['ATTRIBUTES'], part['ATTRIBUTES_NUM'], part.get('ATTRIBUTES_VALUES', {})
        values = {name: tuple(map(str, names.get(name, range(counts[name])))) for name in attributes}
        usable = len(values) == len(attributes) and all(0 < len(values[name]) == counts[name] for name in values)
    except json.JSONDecodeError as error:
        raise InputError(f'{path}, line {error.lineno}: not JSON ({error.msg}); download the file again.') from error
    except (AttributeError, KeyError, TypeError):
        usable = False
    if not usable:
        raise InputError(
            f'{path}: {dataset} needs ATTRIBUTES, a list of different names, and ATTRIBUTES_NUM, the number of values of each '
            '(with ATTRIBUTES_VALUES, of their names); use the meta.json that comes with the ASEN lists.'
        )
    return Meta(tuple(attributes), values)


def pick_attributes(wanted: Sequence[str], known: Sequence[str], where: str) -> tuple[str, ...]:
    """The attributes that `data.attributes` names, in the order of `known`; all of them if it names none."""
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f' (did you mean {close[0]!r}?)' if close else ''
            raise InputError(f'data.attributes: no attribute {name!r} in {where}{hint}; it has {", ".join(known)}.')
    return tuple(name for name in known if name in wanted) if wanted else tuple(known)
