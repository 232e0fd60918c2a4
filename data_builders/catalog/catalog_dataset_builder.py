"""Your own photos: a folder with a labels.csv; README.md describes it. `data` is the config's part of that name."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from asen_jax.errors import InputError
from data_builders import records
from data_builders.annotations import pick_attributes
from data_builders.catalog.table import RESERVED, Row, Table, read_box, read_table, split_values
from data_builders.records import SPLITS, Photo, RawDataset

MIN_VALUES, MAX_VALUES = 2, 100  # of a column that is taken for an attribute unasked
SHARES = {'train': 0.8, 'valid': 0.1, 'test': 0.1}
QUERY_SHARE = 0.2  # of a split's photos: queries to candidates 1:4


class Builder(records.RecordsBuilder):
    """Writes the records of a catalog that was read and checked; `data_builders.prepare` is the way to call it."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = 'A folder of photos with a labels.csv; data_builders/catalog/README.md describes it.'


def list_files(data) -> list[Path]:
    """The description of the data set: when it changes the records are made anew."""
    return [Path(data.manual_dir).expanduser() / 'labels.csv']


def config_name(data) -> str:
    """`<folder>-<8 hex>`, the digits for the whole path and the chosen attributes: two catalogs never share a name."""
    folder = Path(data.manual_dir).expanduser().resolve()
    wanted = data.attributes.split(',') if isinstance(data.attributes, str) else data.attributes
    description = repr((str(folder), sorted({name.strip() for name in wanted if name.strip()})))
    readable = re.sub(r'[^A-Za-z0-9_]+', '_', folder.name).strip('_') or 'photos'
    return f'{readable}-{hashlib.sha256(description.encode()).hexdigest()[:8]}'


def read(data) -> RawDataset:
    """Read labels.csv: splits, labels, boxes, and who asks whom in valid and test."""
    folder = Path(data.manual_dir).expanduser()
    table = read_table(folder)
    values = column_values(table)
    attributes, notes = choose_columns(table, values, data.attributes)
    values = {name: tuple(sorted(values[name])) for name in attributes}
    number = {name: {value: i for i, value in enumerate(values[name])} for name in attributes}
    rows = defaultdict(list)
    for row in table.rows:
        rows[row.cells.get('split') or split_of(row.key)].append(row)
    photos, queries, candidates = {}, {}, {}
    for split in SPLITS:
        photos[split] = [make_photo(folder, table, row, attributes, number) for row in rows[split]]
        if not rows[split]:
            notes.append(f'no photo is in {split}')
        if split != 'train':
            asks = choose_queries(rows[split])
            queries[split] = make_list(photos[split], asks)
            candidates[split] = make_list(photos[split], ~asks)
    return RawDataset('catalog', attributes, values, photos, queries, candidates, notes=tuple(notes))


def column_values(table: Table) -> dict[str, Counter]:
    """The values of each column that has no meaning of its own, and how many photos have them."""
    columns = [name for name in table.columns if name not in RESERVED]
    return {name: Counter(v for row in table.rows for v in split_values(row.cells[name])) for name in columns}


def choose_columns(table: Table, values: Mapping[str, Counter], wanted) -> tuple[tuple[str, ...], list[str]]:
    """The attributes, and notes that say which column is what; without `wanted` the columns with 2-100 values."""
    if len(wanted):
        attributes = pick_attributes(wanted, list(values), str(table.path))
        for name in attributes:
            if len(values[name]) < MIN_VALUES:
                raise InputError(
                    f'{table.path}: column {name!r} has too few values ({len(values[name])}) for an attribute; '
                    f'take it out of data.attributes.'
                )
    else:
        attributes = tuple(name for name in values if MIN_VALUES <= len(values[name]) <= MAX_VALUES)
    if not attributes:
        found = ', '.join(f'{name} has {len(values[name])}' for name in values) or 'there is no other column'
        raise InputError(
            f'{table.path}: no attribute, that is a column with {MIN_VALUES} to {MAX_VALUES} values ({found}); '
            f'add one, or name columns with --config.data.attributes.'
        )
    notes = ['attributes: ' + ', '.join(f'{name} ({len(values[name])} values)' for name in attributes)]
    others = [f'{name} ({len(values[name])} values)' for name in values if name not in attributes]
    if others:
        notes.append('metadata only: ' + ', '.join(others))
    return attributes, notes


def split_of(key: str) -> str:
    """The split of a product or photo by hash: it stays when photos are added."""
    place = _hash(f'split:{key}') / 2**64
    return 'train' if place < SHARES['train'] else 'valid' if place < 1 - SHARES['test'] else 'test'


def choose_queries(rows: list[Row]) -> np.ndarray:
    """Which photos ask: a fifth of the split, whole products, in the order of a hash; the others answer.

    The words before the colon are the hash's seed. Never tune them: they decide the test that figures are quoted on.
    """
    sizes = Counter(row.key for row in rows)
    if len(sizes) < 2:  # nobody to ask
        return np.zeros(len(rows), bool)
    wanted, count, asking = max(1, round(QUERY_SHARE * len(rows))), 0, set()
    for key in sorted(sizes, key=lambda key: _hash(f'query:{key}')):
        if count + sizes[key] <= wanted:
            asking.add(key)
            count += sizes[key]
    asking = asking or {min(sizes, key=lambda key: (sizes[key], _hash(f'query:{key}')))}
    return np.array([row.key in asking for row in rows], bool)


def make_photo(folder: Path, table: Table, row: Row, attributes: tuple[str, ...], number: Mapping) -> Photo:
    """A row's photo with all of its labels."""
    labels = [(a, number[name][v]) for a, name in enumerate(attributes) for v in split_values(row.cells[name])]
    path = folder / row.cells['path']
    return Photo(
        row.cells['path'], path.read_bytes, tuple(a for a, _ in labels), tuple(v for _, v in labels),
        bbox=read_box(table, row), path=path, where=f'{table.path}, line {row.line}',
    )  # fmt: skip


def make_list(photos: list[Photo], listed: np.ndarray) -> Int[np.ndarray, 'n 3']:
    """Every label of the listed photos as (index, attribute, value)."""
    rows = [
        (index, attribute, value)
        for index, photo in enumerate(photos)
        if listed[index]
        for attribute, value in zip(photo.attributes, photo.values, strict=True)
    ]
    return np.array(rows, np.int32).reshape(-1, 3)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')
