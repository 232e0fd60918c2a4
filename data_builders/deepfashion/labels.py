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
from data_builders.annotations import Entries, Meta

Ids = Int[np.ndarray, ' ids']


class Rows(NamedTuple):
    """The entries of a label file as written, and their dialect."""

    entries: Entries
    is_global: bool

    @property
    def note(self) -> str:
        """The dialect of the file, for the user."""
        if self.is_global:
            return f"{self.entries.path.name}: attributes are counted from 1, values are DeepFashion's ids of all attributes"
        return f'{self.entries.path.name}: attributes are counted from 0, values are numbered within each attribute'


def read_rows(path: Path, num_photos: int, meta: Meta) -> Rows:
    """The lines `index (attribute value)+`, separated by spaces or tabs, in whichever dialect they are written."""
    entries = annotations.read_pairs(path, num_photos)
    if not _is_global(entries, meta):
        entries.check_all(meta)
        return Rows(entries, False)
    entries.check(1, len(meta.attributes) + 1, 'in meta.json')
    entries.check(2, meta.counts.sum(), 'id in meta.json')
    return Rows(entries, True)


def infer_attributes(files: Sequence[Rows], meta: Meta, remedy: str) -> Ids:
    """The attribute of each global id, inferred from the label files themselves.

    Ranks are right only if no id is missing, so fewer ids than meta.json counts are refused.
    """
    known = np.full(meta.counts.sum(), -1)
    for rows in files:
        _, attribute, value = rows.entries.table.T
        ids, first = np.unique(value, return_index=True)
        fresh = known[ids] < 0
        known[ids[fresh]] = attribute[first][fresh] - 1
        check_attributes(rows, known, 'on an earlier line or in another label file')
    paths = ', '.join(str(rows.entries.path) for rows in files)
    for number, (name, count) in enumerate(zip(meta.attributes, meta.counts, strict=True)):
        if (seen := (known == number).sum()) != count:
            raise InputError(
                f'{paths}: {seen} ids of {name} appear, but meta.json has {count}, so the ids cannot be ranked; '
                f'{remedy}'
            )
    return known


def check_attributes(rows: Rows, known: Ids, source: str) -> None:
    """Refuse an id whose attribute differs from the `known` one, which was found in `source`."""
    path, line, (_, attribute, value) = rows.entries.path, rows.entries.line, rows.entries.table.T
    for entry in np.flatnonzero(known[value] != attribute - 1)[:1]:
        raise InputError(
            f'{path}, line {line[entry]}: id {value[entry]} is under attribute {attribute[entry]} here but under '
            f'{known[value[entry]] + 1} {source}; use the files of the same release.'
        )


def rank_ids(attribute: Ids) -> Ids:
    """The rank of each id among the ids of its attribute, which is its local value."""
    rank = np.zeros_like(attribute)
    for number in np.unique(attribute):
        ids = np.flatnonzero(attribute == number)
        rank[ids] = np.arange(len(ids))
    return rank


def to_labels(rows: Rows, attribute_of_id: Ids) -> Labels:
    """The entries as labels, in which attributes and values are counted from 0."""
    photo, attribute, value = rows.entries.table.T
    if rows.is_global:
        attribute, value = attribute_of_id[value], rank_ids(attribute_of_id)[value]
    return Labels(*(column.astype(np.int32) for column in (photo, attribute, value)))


def _is_global(entries: Entries, meta: Meta) -> bool:
    """Only local files have attribute 0, only global ones the highest number; otherwise values and tabs decide."""
    _, attribute, value = entries.table.T
    zero, last = (np.flatnonzero(attribute == number) for number in (0, len(meta.attributes)))
    if len(zero) and len(last):
        raise InputError(
            f'{entries.path}: attributes are counted from 0 on line {entries.line[zero[0]]} (attribute 0) and from 1 on '
            f'line {entries.line[last[0]]} (attribute {len(meta.attributes)}); download the file again.'
        )
    if len(zero) or len(last):
        return len(last) > 0
    limits = np.append(meta.counts, 0)[np.minimum(attribute, len(meta.attributes))]
    return bool((value >= limits).any()) or any('\t' in line for line in annotations.read_lines(entries.path))
