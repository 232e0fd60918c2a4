"""Parser of DeepFashion's label files, which come in two dialects; errors name the file and the line.

Local: attributes are counted from 0, and so are the values of each attribute. Global: attributes are counted from 1, and
a value is an id, its position in DeepFashion's own list of all attributes (0-999). The local value is the rank of the id
among the ids of its attribute.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders import annotations
from data_builders.annotations import Meta

EXPECTED = '"index attribute value ..."'
LARGEST = 2**31 - 1
ONE_RELEASE = 'use the lists and the meta.json of the same release.'


class Rows(NamedTuple):
    """The entries of a label file as written."""

    path: Path
    is_global: bool
    line: Int[np.ndarray, ' n']
    photo: Int[np.ndarray, ' n']
    attribute: Int[np.ndarray, ' n']
    value: Int[np.ndarray, ' n']

    @property
    def note(self) -> str:
        """The dialect of the file, for the user."""
        if self.is_global:
            return f"{self.path.name}: attributes are counted from 1, values are DeepFashion's ids of all attributes"
        return f'{self.path.name}: attributes are counted from 0, values are numbered within each attribute'


def read_rows(path: Path, num_photos: int, meta: Meta) -> Rows:
    """The lines `index (attribute value)+`, separated by spaces or tabs, in whichever dialect they are written."""
    table, tabbed = _parse(path, num_photos)
    line, photo, attribute, value = table.T
    counts = np.array([len(meta.values[name]) for name in meta.attributes])
    for entry in np.flatnonzero(attribute > len(counts))[:1]:
        raise InputError(
            f'{path}, line {line[entry]}: attribute {attribute[entry]}, but meta.json has {len(counts)}; {ONE_RELEASE}'
        )
    is_global = _is_global(path, table, tabbed, counts)
    limits = np.full(len(table), counts.sum()) if is_global else counts[attribute]
    for entry in np.flatnonzero(value >= limits)[:1]:
        last = 'the last id' if is_global else f'the last value of {meta.attributes[attribute[entry]]}'
        raise InputError(
            f'{path}, line {line[entry]}: value {value[entry]}, but {last} in meta.json is {limits[entry] - 1} '
            f'(counted from 0); {ONE_RELEASE}'
        )
    return Rows(path, is_global, line, photo, attribute, value)


def infer_attributes(files: Sequence[Rows], meta: Meta, remedy: str) -> Int[np.ndarray, ' ids']:
    """The attribute of each global id, inferred from the label files themselves.

    Ranks are right only if no id is missing, so fewer ids than meta.json counts are refused.
    """
    counts = {name: len(meta.values[name]) for name in meta.attributes}
    known = np.full(sum(counts.values()), -1)
    for rows in files:
        ids, first = np.unique(rows.value, return_index=True)
        fresh = known[ids] < 0
        known[ids[fresh]] = rows.attribute[first][fresh] - 1
        check_attributes(rows, known, 'on an earlier line or in another label file')
    paths = ', '.join(str(rows.path) for rows in files)
    for number, (name, count) in enumerate(counts.items()):
        if (seen := int((known == number).sum())) != count:
            raise InputError(
                f'{paths}: {seen} ids of {name} appear, but meta.json has {count}, so the ids cannot be ranked; '
                f'{remedy}'
            )
    return known


def check_attributes(rows: Rows, known: Int[np.ndarray, ' ids'], source: str) -> None:
    """Refuse an id whose attribute differs from the `known` one, which was found in `source`."""
    for entry in np.flatnonzero(known[rows.value] != rows.attribute - 1)[:1]:
        raise InputError(
            f'{rows.path}, line {rows.line[entry]}: id {rows.value[entry]} is under attribute {rows.attribute[entry]} '
            f'here but under {known[rows.value[entry]] + 1} {source}; use the files of the same release.'
        )


def rank_ids(attribute: Int[np.ndarray, ' ids']) -> Int[np.ndarray, ' ids']:
    """The rank of each id among the ids of its attribute, which is its local value."""
    rank = np.zeros_like(attribute)
    for number in np.unique(attribute):
        ids = np.flatnonzero(attribute == number)
        rank[ids] = np.arange(len(ids))
    return rank


def to_labels(rows: Rows, attribute_of_id: Int[np.ndarray, ' ids']) -> Labels:
    """The entries as labels, in which attributes and values are counted from 0."""
    attribute, value = rows.attribute, rows.value
    if rows.is_global:
        attribute, value = attribute_of_id[value], rank_ids(attribute_of_id)[value]
    return Labels(*(column.astype(np.int32) for column in (rows.photo, attribute, value)))


def _parse(path: Path, num_photos: int) -> tuple[Int[np.ndarray, 'n 4'], bool]:
    """(line, photo, attribute, value) of each entry, and whether tabs separate any."""
    entries, tabbed = [], False
    for line, text in enumerate(annotations.read_lines(path), 1):
        words = text.split()
        try:
            row = list(map(int, words))
        except ValueError as error:
            raise InputError(f'{path}, line {line}: {text!r} is not all whole numbers; expected {EXPECTED}.') from error
        if len(row) < 3 or len(row) % 2 == 0:
            raise InputError(f'{path}, line {line}: {len(row)} numbers; expected {EXPECTED}.')
        if not 0 <= row[0] < num_photos:
            raise InputError(
                f'{path}, line {line}: index {row[0]}, but the list of file names ends at {num_photos - 1} '
                f'(counted from 0); use the lists of the same release.'
            )
        if min(row) < 0 or max(row) > LARGEST:
            raise InputError(f'{path}, line {line}: a number is negative or too large; download the file again.')
        entries.extend((line, row[0], row[i], row[i + 1]) for i in range(1, len(row), 2))
        tabbed = tabbed or '\t' in text
    return np.array(entries, np.int64), tabbed


def _is_global(path: Path, table: Int[np.ndarray, 'n 4'], tabbed: bool, counts: Int[np.ndarray, ' attributes']) -> bool:
    """Only local files have attribute 0, only global ones the highest number; otherwise values and tabs decide."""
    line, _, attribute, value = table.T
    zero, last = np.flatnonzero(attribute == 0), np.flatnonzero(attribute == len(counts))
    if len(zero) and len(last):
        raise InputError(
            f'{path}: attributes are counted from 0 on line {line[zero[0]]} (attribute 0) and from 1 on line '
            f'{line[last[0]]} (attribute {len(counts)}); download the file again.'
        )
    if len(zero) or len(last):
        return bool(len(last))
    return bool((value >= counts[attribute]).any()) or tabbed
