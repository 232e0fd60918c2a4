"""Reads the labels.csv of a catalog; errors name the file and the line."""

import difflib
from pathlib import Path, PurePosixPath

from asen_jax.data.boxes import BOX_COLUMNS
from asen_jax.data.table import EXAMPLE, Row, Table, read_table
from asen_jax.errors import InputError
from data_builders.annotations import check_relative
from data_builders.records import SPLITS

RESERVED = ('path', 'split', 'group', *BOX_COLUMNS)


def read_labels(folder: Path) -> Table:
    """The labels.csv of `folder`, with its paths and splits checked."""
    path = folder / 'labels.csv'
    if not path.is_file():
        where = 'set --config.data.manual_dir to a folder of photos with a labels.csv'
        raise InputError(f'{path} does not exist; {where}, in which {EXAMPLE} (data_builders/catalog/README.md).')
    table = read_table(path)
    _check_paths(table)
    _check_splits(table)
    return table


def product_of(row: Row) -> str:
    """What must stay in one split: the product or, without one, the photo itself."""
    return row.cells.get('group') or row.cells['path']


def _check_paths(table: Table) -> None:
    first = {}
    for row in table.rows:
        name = row.cells['path']
        check_relative(name, table.where(row))
        line = first.setdefault(PurePosixPath(name), row.line)  # ./a.jpg equals a.jpg
        if line != row.line:
            raise InputError(
                f'{table.where(row)}: {name!r} is already on line {line}; write two values of one photo as "a|b".'
            )


def _check_splits(table: Table) -> None:
    """Refuse an unknown split, and a product whose views are in different splits."""
    if 'split' not in table.columns:
        return
    first = {}
    for row in table.rows:
        split, product = row.cells['split'], product_of(row)
        if split not in SPLITS:
            close = 'valid' if split.lower().startswith('val') else ''.join(difflib.get_close_matches(split, SPLITS, 1))
            hint = f' (did you mean {close!r}?)' if close else ''
            raise InputError(f'{table.where(row)}: the split is {split!r}{hint}; write train, valid or test.')
        other = first.setdefault(product, row)
        if other.cells['split'] != split:
            raise InputError(
                f'{table.where(row)}: group {product!r} is in {split} here and in {other.cells["split"]} on line '
                f'{other.line}; all views of a product belong in one split: change one, or remove the column split or group.'
            )
