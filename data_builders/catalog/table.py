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
    table, first_of_path, first_of_product = read_table(path), {}, {}
    for row in table.rows:
        name = row.cells['path']
        check_relative(name, table.where(row))
        line = first_of_path.setdefault(PurePosixPath(name), row.line)  # ./a.jpg equals a.jpg
        if line != row.line:
            raise InputError(
                f'{table.where(row)}: {name!r} is already on line {line}; write two values of one photo as "a|b".'
            )
        if 'split' in table.columns:
            _check_split(table, row, first_of_product.setdefault(product_of(row), row))
    return table


def product_of(row: Row) -> str:
    """What must stay in one split: the product or, without one, the photo itself."""
    return row.cells.get('group') or row.cells['path']


def _check_split(table: Table, row: Row, other: Row) -> None:
    """Refuse an unknown split, or one in which the `other` view of the product is not."""
    split = row.cells['split']
    if split not in SPLITS:
        close = 'valid' if split.lower().startswith('val') else ''.join(difflib.get_close_matches(split, SPLITS, 1))
        hint = f' (did you mean {close!r}?)' if close else ''
        raise InputError(f'{table.where(row)}: the split is {split!r}{hint}; write train, valid or test.')
    if other.cells['split'] != split:
        raise InputError(
            f'{table.where(row)}: group {product_of(row)!r} is in {split} here and in {other.cells["split"]} on line '
            f'{other.line}; all views of a product belong in one split: change one, or remove the column split or group.'
        )
