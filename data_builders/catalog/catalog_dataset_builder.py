"""Your own photos: a folder with a labels.csv, as README.md describes."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from asen_jax.data.table import Row, Table, split_values
from asen_jax.errors import InputError
from data_builders import records
from data_builders.annotations import pick_attributes
from data_builders.catalog.table import RESERVED, product_of, read_labels
from data_builders.records import SPLITS, Photo, RawDataset, RecordsBuilder

MIN_VALUES, MAX_VALUES = 2, 100  # of a column that becomes an attribute without being named
SHARES = {'train': 0.8, 'valid': 0.1, 'test': 0.1}
QUERY_SHARE = 0.2  # of a split's photos; the published lists have the same ratio


class Builder(RecordsBuilder):
    """Writes the records of a catalog."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = 'A folder of photos with a labels.csv; data_builders/catalog/README.md describes it.'


def list_files(data: ConfigDict) -> list[Path]:
    """The files that describe the dataset; when one changes, the records are rebuilt."""
    return [Path(data.manual_dir).expanduser() / 'labels.csv']


def config_name(data: ConfigDict) -> str:
    """`<folder>-<8 hex digits>`; the digits hash the full path and the chosen attributes, so catalogs never collide."""
    folder = Path(data.manual_dir).expanduser().resolve()
    chosen = sorted(set(data.attributes))
    readable = re.sub(r'[^A-Za-z0-9_]+', '_', folder.name).strip('_') or 'photos'
    return f'{readable}-{hashlib.sha256(repr((str(folder), chosen)).encode()).hexdigest()[:8]}'


def read(data: ConfigDict) -> RawDataset:
    """Read labels.csv: splits, labels, boxes, and which photos of valid and test are queries."""
    table = read_labels(Path(data.manual_dir).expanduser())
    values, notes = choose_columns(table, data.attributes)
    numbers = {name: {value: number for number, value in enumerate(names)} for name, names in values.items()}
    rows = defaultdict(list)
    for row in table.rows:
        rows[row.cells.get('split') or split_of(product_of(row))].append(row)
    photos, lists = {}, {}
    for split in SPLITS:
        photos[split] = [make_photo(table, row, numbers) for row in rows[split]]
        if not rows[split]:
            notes.append(f'no photo is in {split}')
        if split != 'train':
            is_query = choose_queries(rows[split])
            lists[f'{split}_query'] = records.label_rows(photos[split], np.flatnonzero(is_query))
            lists[f'{split}_candidate'] = records.label_rows(photos[split], np.flatnonzero(~is_query))
    return RawDataset('catalog', tuple(values), values, photos, lists, tuple(notes))


def choose_columns(table: Table, wanted: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The values of the columns that are attributes, and notes that say what each column is used for.

    They are the `wanted` columns, or without any the columns with 2 to 100 values.
    """
    columns = [name for name in table.columns if name not in RESERVED]
    values = {name: sorted({v for row in table.rows for v in split_values(row.cells[name])}) for name in columns}
    counts = {name: f'{name} ({len(values[name])} values)' for name in columns}
    if wanted:
        attributes = pick_attributes(wanted, columns, str(table.path))
        for name in attributes:
            if len(values[name]) < MIN_VALUES:
                raise InputError(
                    f'{table.path}: column {name!r} has too few values ({len(values[name])}) for an attribute; '
                    f'remove it from data.attributes.'
                )
    else:
        attributes = tuple(name for name in columns if MIN_VALUES <= len(values[name]) <= MAX_VALUES)
    if not attributes:
        found = ', '.join(f'{name} has {len(values[name])}' for name in values) or 'there is no other column'
        raise InputError(
            f'{table.path}: no column can serve as an attribute, which needs {MIN_VALUES} to {MAX_VALUES} values ({found}); '
            f'add one, or name columns with --config.data.attributes.'
        )
    notes = ['attributes: ' + ', '.join(counts[name] for name in attributes)]
    if others := [counts[name] for name in columns if name not in attributes]:
        notes.append('metadata only: ' + ', '.join(others))
    return {name: tuple(values[name]) for name in attributes}, notes


def split_of(key: str) -> str:
    """The split of a product or photo by its hash, which does not change when photos are added."""
    place = _hash(f'split:{key}') / 2**64
    return 'train' if place < SHARES['train'] else 'valid' if place < 1 - SHARES['test'] else 'test'


def choose_queries(rows: list[Row]) -> Bool[np.ndarray, ' photos']:
    """Which photos are queries: about a fifth of the split, whole products, in the order of a hash; the rest are candidates.

    Never change the text that is hashed: it determines the test set behind every quoted figure.
    """
    sizes = Counter(map(product_of, rows))
    if len(sizes) < 2:  # queries need another product to find
        return np.zeros(len(rows), bool)
    wanted, count, chosen = max(1, round(QUERY_SHARE * len(rows))), 0, set()
    for key in sorted(sizes, key=lambda key: _hash(f'query:{key}')):
        if count + sizes[key] <= wanted:
            chosen.add(key)
            count += sizes[key]
    chosen = chosen or {min(sizes, key=lambda key: (sizes[key], _hash(f'query:{key}')))}
    return np.array([product_of(row) in chosen for row in rows], bool)


def make_photo(table: Table, row: Row, numbers: Mapping[str, Mapping[str, int]]) -> Photo:
    """A row's photo with all its labels; `numbers` maps each attribute to the numbers of its values."""
    labels = [
        (attribute, number_of[value])
        for attribute, (column, number_of) in enumerate(numbers.items())
        for value in split_values(row.cells[column])
    ]
    photo = records.photo_in(table.path.parent, row.cells['path'], labels, table.where(row))
    return photo._replace(bbox=table.box(row))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')
