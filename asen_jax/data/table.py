"""CSV tables of photos, such as a catalog's labels.csv; errors name the file and the line. Standard library only."""

import csv
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asen_jax.data.boxes import BOX_COLUMNS, Box, parse_box
from asen_jax.errors import InputError

EXAMPLE = 'the first line names the columns, for example "path,color,sleeve", and each line below it is a photo'


class Row(NamedTuple):
    """The line of one photo."""

    line: int
    cells: dict[str, str]  # stripped, by column


class Table(NamedTuple):
    """A table with a column `path`, which is never empty."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def where(self, row: Row) -> str:
        """The file and line of a row, with which an error begins."""
        return f'{self.path}, line {row.line}'

    def box(self, row: Row) -> Box | None:
        """The garment's box, if the table has the columns `x1,y1,x2,y2` and the row fills them; see boxes.py."""
        return parse_box(row.cells, self.where(row)) if BOX_COLUMNS[0] in self.columns else None


def read_table(path: Path) -> Table:
    """The photos that a CSV file lists, at least one."""
    lines = read_cells(path)
    first, columns = next(lines, (1, []))
    _check_columns(columns, f'{path}, line {first}')
    table = Table(path, tuple(columns), [Row(line, dict(zip(columns, cells, strict=True))) for line, cells in lines])
    if not table.rows:
        raise InputError(f'{path} lists no photos; {EXAMPLE}.')
    for row in table.rows:
        if not row.cells['path']:
            raise InputError(f"{table.where(row)}: the path is empty; write the photo's file.")
    return table


def read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line where each row starts and its stripped cells, as many in every row.

    Empty rows are left out: spreadsheets write them below a table.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=''), strict=True)
    line, columns = 1, 0
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                columns = columns or len(cells)
                if len(cells) != columns:
                    raise InputError(
                        f'{path}, line {line}: {len(cells)} cells, but the first line names {columns} columns; '
                        f'an empty cell needs its comma, and a cell with a comma needs quotes.'
                    )
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        remedy = 'put a cell with a comma, a quote or a line break in quotes, double its own quotes, and keep it below 131,072 characters'
        raise InputError(f'{path}, line {line}: {error}; {remedy}.') from error


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without a byte order mark."""
    try:
        return path.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b'\n') + 1
        raise InputError(
            f'{path}, line {line}: not UTF-8 text; save the file as UTF-8 (a table as "CSV UTF-8").'
        ) from error
    except OSError as error:
        raise InputError(
            f'{path} cannot be read ({error.strerror}); check that it exists, and its permissions.'
        ) from error


def split_values(cell: str) -> list[str]:
    """The values of one cell, each once: `a|b` has two."""
    return list(dict.fromkeys(value.strip() for value in cell.split('|') if value.strip()))


def _check_columns(columns: list[str], where: str) -> None:
    for mark, name in ((';', 'semicolons'), ('\t', 'tabs')):
        if len(columns) == 1 and mark in columns[0]:
            raise InputError(f'{where}: columns are separated by {name}; save it with commas ("CSV UTF-8").')
    if 'path' not in columns:
        close = [name for name in columns if difflib.get_close_matches(name.lower(), ['path'])]
        hint = f' ({close[0]!r} is close)' if close else ''
        raise InputError(f'{where}: no column is named path{hint}; {EXAMPLE}.')
    for number, name in enumerate(columns, 1):
        if not name or name in columns[: number - 1]:
            raise InputError(f'{where}: column {number} is named {name!r}; give it a name of its own, or remove it.')
    boxes = [name for name in BOX_COLUMNS if name in columns]
    if 0 < len(boxes) < len(BOX_COLUMNS):
        raise InputError(f'{where}: a box needs x1, y1, x2, y2, but there is only {", ".join(boxes)}.')
