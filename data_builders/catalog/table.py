"""Reads the labels.csv of a catalog; errors name the file and the line."""

import csv
import difflib
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from asen_jax.data.boxes import BOX_COLUMNS, has_boxes
from asen_jax.errors import InputError
from data_builders.annotations import check_relative
from data_builders.records import SPLITS

RESERVED = ('path', 'split', 'group', *BOX_COLUMNS)
EXAMPLE = 'the first line names the columns, for example "path,color,sleeve", and each line below it is a photo'


class Row(NamedTuple):
    """The line of one photo."""

    line: int
    cells: dict[str, str]  # stripped, by column

    @property
    def key(self) -> str:
        """What must stay in one split: the product or, without one, the photo itself."""
        return self.cells.get('group') or self.cells['path']


class Table(NamedTuple):
    """The content of a labels.csv."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]


def read_table(folder: Path) -> Table:
    """The labels.csv of `folder`, with its paths and splits checked."""
    path = folder / 'labels.csv'
    lines = _parse(path, _read_text(folder, path))
    columns = _check_columns(path, [name.strip() for name in next(lines, (1, []))[1]])
    rows = []
    for line, cells in lines:
        cells = [cell.strip() for cell in cells]
        if not any(cells):  # spreadsheets write empty lines below the table
            continue
        if len(cells) != len(columns):
            raise InputError(
                f'{path}, line {line}: {len(cells)} cells, but the first line names {len(columns)} columns; '
                f'an empty cell needs its comma, and a cell with a comma needs quotes.'
            )
        rows.append(Row(line, dict(zip(columns, cells, strict=True))))
    if not rows:
        raise InputError(f'{path} lists no photos; {EXAMPLE}.')
    _check_paths(path, rows)
    _check_splits(path, rows)
    return Table(path, columns, rows)


def split_values(cell: str) -> list[str]:
    """The values of one cell, each once: `a|b` has two."""
    return list(dict.fromkeys(value.strip() for value in cell.split('|') if value.strip()))


def _read_text(folder: Path, path: Path) -> str:
    if not folder.exists():
        raise InputError(
            f'{folder} does not exist; set --config.data.manual_dir to the folder of labels.csv and photos.'
        )
    if not folder.is_dir():
        raise InputError(f'{folder} is a file; set --config.data.manual_dir to the folder of labels.csv and photos.')
    if not path.is_file():
        what = 'has no labels.csv' if any(folder.iterdir()) else 'is empty: it has no labels.csv'
        raise InputError(f'{folder} {what}; {EXAMPLE} (data_builders/catalog/README.md).')
    try:
        return path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b'\n') + 1
        raise InputError(f'{path}, line {line}: not UTF-8 text; save the table as "CSV UTF-8".') from error
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error.strerror}); check its permissions.') from error


def _parse(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line number and cells."""
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        remedy = 'put a cell with a comma, a quote or a line break in quotes, double its own quotes, and keep it below 131,072 characters'
        raise InputError(f'{path}, line {line}: {error}; {remedy}.') from error


def _check_columns(path: Path, columns: list[str]) -> tuple[str, ...]:
    if not any(columns):
        raise InputError(f'{path} is empty or begins with an empty line; {EXAMPLE}.')
    for mark, name in ((';', 'semicolons'), ('\t', 'tabs')):
        if len(columns) == 1 and mark in columns[0]:
            raise InputError(f'{path}, line 1: columns are separated by {name}; save it with commas ("CSV UTF-8").')
    if 'path' not in columns:
        close = difflib.get_close_matches('path', [name.lower() for name in columns], 1)
        hint = f' ({columns[[name.lower() for name in columns].index(close[0])]!r} is close)' if close else ''
        raise InputError(
            f"{path}, line 1: no column is named path{hint}; give that name to the one with the photos' files."
        )
    for number, name in enumerate(columns, 1):
        if not name:
            raise InputError(f'{path}, line 1: column {number} has no name; name it or remove it.')
        if columns.index(name) != number - 1:
            raise InputError(f'{path}, line 1: two columns are named {name!r}; rename one.')
    has_boxes(columns, f'{path}, line 1')
    return tuple(columns)


def _check_paths(path: Path, rows: list[Row]) -> None:
    first = {}
    for row in rows:
        name = row.cells['path']
        if not name:
            raise InputError(f"{path}, line {row.line}: the path is empty; write the photo's file.")
        check_relative(name, f'{path}, line {row.line}')
        line = first.setdefault(PurePosixPath(name), row.line)  # ./a.jpg equals a.jpg
        if line != row.line:
            raise InputError(
                f'{path}, line {row.line}: {name!r} is already on line {line}; write two values of one photo as "a|b".'
            )


def _check_splits(path: Path, rows: list[Row]) -> None:
    """Refuse an unknown split, and a product whose views are in different splits."""
    if 'split' not in rows[0].cells:
        return
    first = {}
    for row in rows:
        split = row.cells['split']
        if split not in SPLITS:
            close = 'valid' if split.lower().startswith('val') else ''.join(difflib.get_close_matches(split, SPLITS, 1))
            hint = f' (did you mean {close!r}?)' if close else ''
            raise InputError(f'{path}, line {row.line}: the split is {split!r}{hint}; write train, valid or test.')
        other = first.setdefault(row.key, row)
        if other.cells['split'] != split:
            raise InputError(
                f'{path}, line {row.line}: group {row.key!r} is in {split} here and in {other.cells["split"]} on line '
                f'{other.line}; all views of a product belong in one split: change one, or remove the column split or group.'
            )
