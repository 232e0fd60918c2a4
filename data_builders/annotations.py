"""Parsers of the ASEN annotation files; their errors name the file and the line."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from asen_jax.data.table import read_text
from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError

COLUMNS = ('index', 'attribute', 'value')
MAX_PATH, MAX_NAME = 4000, 255  # Linux allows 4,096 bytes with the folder
TAKE_META = 'use the meta.json that comes with the ASEN lists.'


class Meta(NamedTuple):
    """One dataset's part of meta.json: attribute names, and the value names of each ('0', '1', ... by default)."""

    attributes: tuple[str, ...]
    values: dict[str, tuple[str, ...]]


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
    if name.startswith(('/', '\\', '~')) or name[1:2] == ':':
        raise InputError(f'{where}: {name!r} is an absolute path; write it relative to the folder.')
    if '..' in name.replace('\\', '/').split('/'):
        raise InputError(f'{where}: {name!r} leaves the folder; write a path inside it, without "..".')
    if len(name) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in name.split('/')):
        raise InputError(
            f'{where}: the path has {len(name):,} characters, too long for a file; write at most {MAX_PATH:,}, and at most '
            f'{MAX_NAME} bytes between two slashes.'
        )


def read_label_train(path: Path, num_photos: int, meta: Meta) -> Labels:
    """Lines `index (attribute value)+`, all counted from 0; a photo may have several labels, also of one attribute."""
    expected = '"index attribute value ..."'
    triples, lines = [], []
    for line, (index, *pairs) in enumerate(_read_numbers(path, expected), 1):
        if not pairs or len(pairs) % 2:
            raise _wrong_count(path, line, 1 + len(pairs), expected)
        for attribute, value in zip(pairs[::2], pairs[1::2], strict=True):
            triples.append((index, attribute, value))
            lines.append(line)
    return Labels(*_check_triples(path, triples, lines, num_photos, meta).T)


def read_triples(path: Path, num_photos: int, meta: Meta) -> Int[np.ndarray, 'n 3']:
    """Lines `index attribute value` of a query or candidate list, in the list's order."""
    expected = '"index attribute value"'
    triples = _read_numbers(path, expected)
    for line, triple in enumerate(triples, 1):
        if len(triple) != 3:
            raise _wrong_count(path, line, len(triple), expected)
    return _check_triples(path, triples, range(1, len(triples) + 1), num_photos, meta)


def read_meta(path: Path, dataset: str) -> Meta:
    """`dataset`'s attributes and their numbers of values in meta.json, with value names if it has ATTRIBUTES_VALUES."""
    try:
        content = json.loads('\n'.join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(f'{path}, line {error.lineno}: not JSON ({error.msg}); download the file again.') from error
    part = content.get(dataset) if isinstance(content, dict) else None
    if not isinstance(part, dict) or not part.get('ATTRIBUTES') or not isinstance(part.get('ATTRIBUTES_NUM'), dict):
        raise InputError(f'{path}: {dataset} has no ATTRIBUTES and ATTRIBUTES_NUM; {TAKE_META}')
    attributes, names = part['ATTRIBUTES'], part.get('ATTRIBUTES_VALUES')
    if not isinstance(attributes, list) or not all(isinstance(name, str) for name in attributes):
        raise InputError(f'{path}: ATTRIBUTES of {dataset} is not a list of names; {TAKE_META}')
    if len(set(attributes)) < len(attributes):
        raise InputError(f'{path}: ATTRIBUTES of {dataset} has a name twice; {TAKE_META}')
    values = {}
    for attribute in attributes:
        count = part['ATTRIBUTES_NUM'].get(attribute)
        if type(count) is not int or count < 1:
            raise InputError(
                f'{path}: ATTRIBUTES_NUM of {dataset} has {count!r} for {attribute!r}; write its number of values.'
            )
        values[attribute] = _value_names(names, attribute, count)
    return Meta(tuple(attributes), values)


def require_files(paths: Sequence[Path], instructions: str) -> None:
    """Refuse to start without the dataset's lists; the error is `instructions`."""
    for path in paths:
        if not path.is_file():
            raise InputError(f'{path} is missing: {instructions}')


def split_names(names: Sequence[str] | str) -> list[str]:
    """The names that `data.attributes` holds, as a sequence or separated by commas."""
    return [name.strip() for name in names.split(',') if name.strip()] if isinstance(names, str) else list(names)


def pick_attributes(wanted: Sequence[str] | str, known: Sequence[str], where: str) -> tuple[str, ...]:
    """The attributes that `data.attributes` names, in the order of `known`; all of them if it names none."""
    wanted = split_names(wanted)
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f' (did you mean {close[0]!r}?)' if close else ''
            raise InputError(f'data.attributes: no attribute {name!r} in {where}{hint}; it has {", ".join(known)}.')
    return tuple(name for name in known if name in wanted) if wanted else tuple(known)


def is_whole(word: str) -> bool:
    """Whether `word` is a whole number."""
    try:
        int(word)
    except ValueError:
        return False
    return True


def _value_names(names: Any, attribute: str, count: int) -> tuple[str, ...]:
    """The attribute's names in ATTRIBUTES_VALUES, or numbers where it does not have `count` of them."""
    given = names.get(attribute) if isinstance(names, dict) else None
    named = isinstance(given, list) and len(given) == count
    return tuple(map(str, given if named else range(count)))


def _read_numbers(path: Path, expected: str) -> list[list[int]]:
    """The whole numbers of each line, at least one per line."""
    rows = []
    for line, text in enumerate(read_lines(path), 1):
        words = text.split()
        if not words:
            raise _wrong_count(path, line, 0, expected)
        try:
            rows.append(list(map(int, words)))
        except ValueError as error:
            word = next(word for word in words if not is_whole(word))
            raise InputError(f'{path}, line {line}: {word!r} is not a whole number; expected {expected}.') from error
    return rows


def _wrong_count(path: Path, line: int, count: int, expected: str) -> InputError:
    return InputError(f'{path}, line {line}: {count} numbers; expected {expected}.')


def _check_triples(
    path: Path, triples: Sequence[Sequence[int]], lines: Sequence[int], num_photos: int, meta: Meta
) -> Int[np.ndarray, 'n 3']:
    """`triples` as an array; refuses an index beyond the file names, and an attribute or value beyond meta.json."""
    counts = np.array([len(meta.values[name]) for name in meta.attributes])
    try:
        table = np.array(triples, np.int64)
    except OverflowError:
        large = np.array(triples, object)
        table = np.where(np.abs(large) < 2**62, large, -1).astype(np.int64)  # -1 is out of every range

    def check(column: int, limit: int | Int[np.ndarray, ' n'], source: str) -> None:
        limits = np.broadcast_to(limit, len(table))
        wrong = (table[:, column] < 0) | (table[:, column] >= limits)
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f'{path}, line {lines[row]}: {COLUMNS[column]} {triples[row][column]}, but {source} ends at '
                f'{limits[row] - 1} (counted from 0); use the lists and the meta.json of one release.'
            )

    check(0, num_photos, 'the list of file names')
    check(1, len(counts), 'the list in meta.json')
    check(2, counts[table[:, 1]], 'that attribute in meta.json')
    return table.astype(np.int32)
