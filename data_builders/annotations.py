"""Parsers of the ASEN annotation files; what they refuse names the file and the line."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError


class Meta(NamedTuple):
    """One dataset's part of meta.json: attribute names, and each one's value names ('0', '1', ... by default)."""

    attributes: tuple[str, ...]
    values: dict[str, tuple[str, ...]]


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a list, which may end in CR LF, blank lines or without a newline; never none."""
    try:
        text = path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b'\n') + 1
        raise InputError(f'{path}, line {line}: not UTF-8 text; save the file as UTF-8.') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error.strerror}); put the file there.') from error
    lines = [line.strip() for line in text.split('\n')]  # not splitlines: only a line feed counts as a line
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f'{path} is empty; download it again.')
    return lines


def read_filenames(path: Path) -> list[str]:
    """One relative path a line; the line is the photo's index, so that none may be blank. A path may come twice."""
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not line:
            raise InputError(f'{path}, line {number} is empty, but a line is an index; download the file again.')
        check_relative(line, f'{path}, line {number}')
    return lines


def check_relative(name: str, where: str) -> None:
    """Refuse a photo's path that is absolute or leaves its folder."""
    if name.startswith(('/', '\\', '~')) or name[1:2] == ':':
        raise InputError(f'{where}: {name!r} is an absolute path; write it relative to the folder.')
    if '..' in name.replace('\\', '/').split('/'):
        raise InputError(f'{where}: {name!r} leaves the folder; photos lie inside of it, without "..".')


def read_label_train(path: Path, num_photos: int, meta: Meta) -> Labels:
    """Lines `index (attribute value)+`, all 0-based; a photo may have several labels and values."""
    expected = '"index attribute value ..."'
    photo, pairs, lines = [], [], []
    for line, row in enumerate(_parse(path, expected), 1):
        if len(row) < 3 or len(row) % 2 == 0:
            raise InputError(f'{path}, line {line}: {len(row)} numbers; expected {expected}.')
        count = len(row) // 2
        photo.extend(row[:1] * count)
        lines.extend((line,) * count)
        pairs.extend(row[1:])
    table = np.column_stack([_whole(photo), _whole(pairs).reshape(-1, 2)])
    _check_range(path, table, np.array(lines), num_photos, meta)
    return Labels(*table.T.astype(np.int32))


def read_triples(path: Path, num_photos: int, meta: Meta) -> Int[np.ndarray, 'n 3']:
    """Lines `index attribute value` of a query or candidate list, in the list's order."""
    expected = '"index attribute value"'
    rows = _parse(path, expected)
    for line, row in enumerate(rows, 1):
        if len(row) != 3:
            raise InputError(f'{path}, line {line}: {len(row)} numbers; expected {expected}.')
    table = _whole(rows)
    _check_range(path, table, np.arange(1, len(table) + 1), num_photos, meta)
    return table.astype(np.int32)


def read_meta(path: Path, dataset: str) -> Meta:
    """`dataset`'s attributes and their numbers of values from meta.json, with names if there are ATTRIBUTES_VALUES."""
    try:
        content = json.loads('\n'.join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(f'{path}, line {error.lineno}: not JSON ({error.msg}); download the file again.') from error
    part = content.get(dataset) if isinstance(content, dict) else None
    if not isinstance(part, dict) or not part.get('ATTRIBUTES') or not isinstance(part.get('ATTRIBUTES_NUM'), dict):
        raise InputError(f'{path}: {dataset} has no ATTRIBUTES and ATTRIBUTES_NUM; take meta.json of the ASEN lists.')
    attributes, values, names = part['ATTRIBUTES'], {}, part.get('ATTRIBUTES_VALUES')
    if not isinstance(attributes, list) or not all(isinstance(name, str) for name in attributes):
        raise InputError(f'{path}: ATTRIBUTES of {dataset} is no list of names; take meta.json of the ASEN lists.')
    if len(set(attributes)) < len(attributes):
        raise InputError(f'{path}: ATTRIBUTES of {dataset} has a name twice; take meta.json of the ASEN lists.')
    for attribute in attributes:
        count = part['ATTRIBUTES_NUM'].get(attribute)
        if type(count) is not int or count < 1:
            raise InputError(
                f'{path}: ATTRIBUTES_NUM of {dataset} has {count!r} for {attribute!r}; write its number of values.'
            )
        given = names.get(attribute) if isinstance(names, dict) else None
        named = isinstance(given, list) and len(given) == count
        values[attribute] = tuple(map(str, given if named else range(count)))
    return Meta(tuple(attributes), values)


def require_files(paths: Sequence[Path], instructions: str) -> None:
    """Refuse to start without the description files: the error is the instruction."""
    for path in paths:
        if not path.is_file():
            raise InputError(f'{path} is missing: {instructions}')


def pick_attributes(wanted: Sequence[str] | str, known: Sequence[str], where: str) -> tuple[str, ...]:
    """The attributes that `data.attributes` names, in the data set's order; all when it names none."""
    wanted = [name.strip() for name in wanted.split(',') if name.strip()] if isinstance(wanted, str) else list(wanted)
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f' (did you mean {close[0]!r}?)' if close else ''
            raise InputError(f'data.attributes: no attribute {name!r} in {where}{hint}; it has {", ".join(known)}.')
    return tuple(name for name in known if name in wanted) if wanted else tuple(known)


def _parse(path: Path, expected: str) -> list[list[int]]:
    """Each line as whole numbers."""
    rows = []
    for line, text in enumerate(read_lines(path), 1):
        words = text.split()
        try:
            rows.append(list(map(int, words)))
        except ValueError as error:
            word = next(word for word in words if not is_whole(word))
            raise InputError(f'{path}, line {line}: {word!r} is not a whole number; expected {expected}.') from error
    return rows


def is_whole(word: str) -> bool:
    """Whether `word` is a whole number."""
    try:
        int(word)
    except ValueError:
        return False
    return True


def _whole(rows: list) -> Int[np.ndarray, '...']:
    """int64, with a number too large for it cut to -1, which is out of every range."""
    try:
        return np.array(rows, np.int64)
    except OverflowError:
        cut = np.array(rows, object)
        return np.where(np.abs(cut) < 2**62, cut, -1).astype(np.int64)


def _check_range(
    path: Path, table: Int[np.ndarray, 'n 3'], lines: Int[np.ndarray, ' n'], num_photos: int, meta: Meta
) -> None:
    """Refuse an index beyond the file names, an attribute or a value beyond meta.json."""

    def refuse(wrong, column, what, count, source):
        for entry in np.flatnonzero(wrong)[:1]:
            limit = int(np.broadcast_to(count, len(table))[entry])
            raise InputError(
                f'{path}, line {lines[entry]}: {what} {table[entry, column]}, but {source} ends at {limit - 1} '
                f'(counted from 0); use the lists and the meta.json of one release.'
            )

    counts = np.array([len(meta.values[name]) for name in meta.attributes])
    refuse((table[:, 0] < 0) | (table[:, 0] >= num_photos), 0, 'index', num_photos, 'the list of file names')
    refuse((table[:, 1] < 0) | (table[:, 1] >= len(counts)), 1, 'attribute', len(counts), 'the list in meta.json')
    limits = counts[table[:, 1]]
    refuse((table[:, 2] < 0) | (table[:, 2] >= limits), 2, 'value', limits, 'that attribute in meta.json')
