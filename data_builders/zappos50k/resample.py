"""Triplet lists drawn anew from UT-Zappos50K's meta-data-bin.csv, for when those of CSN cannot be had.

CSN tells little of its draw: triplets are sampled at random; class, closure and gender: two photos share the value and one
has another; heel: two of similar height and one of different height. The rest is our choice:

- 70 / 10 / 20 % of the photos, shuffled once with a fixed seed, are train, valid and test.
- Only photos with exactly one value of an attribute are in its triplets.
- The anchor is uniform over those photos of the split that have a positive and a negative; the positive is uniform over the
  other photos with the anchor's value; the negative is uniform over the photos whose value is another.
- Heel heights come as seven bins, about an inch each. The positive is of the anchor's bin, the negative two or more bins away.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders import annotations
from data_builders.records import SPLITS

FAMILIES = {'class': 'Category', 'closure': 'Closure', 'gender': 'Gender', 'heel': 'HeelHeight'}  # their columns' names
HEELS = ('Flat', 'Under 1in', '1in - 1 3/4in', '2in - 2 3/4in', '3in - 3 3/4in', '4in - 4 3/4in', '5in & over')
APART = {'heel': 2}  # bins from the anchor to a negative; 1, another value, for the other attributes
SHARES = {'train': 0.7, 'valid': 0.1}  # of the photos; the others are test
NUM_TRIPLETS = {'train': 200_000, 'valid': 20_000, 'test': 40_000}  # of each attribute
SEED = 20170721  # never change it: it decides the split and the test that figures are quoted on
TABLE_HELP = 'take meta-data-bin.csv of UT-Zappos50K (data_builders/zappos50k/README.md)'


class Lists(NamedTuple):
    """Triplet lists, published or drawn, and what they point at."""

    names: list[str]  # photos' paths below the folder of photos
    values: Mapping[str, tuple[str, ...]]  # value names of each attribute; none where labels are unknown
    labels: Labels  # `photo` is the place in `names`
    triplets: Mapping[
        str, list[Int[np.ndarray, 'n 3']]
    ]  # by split, a list for each attribute: anchor, positive, negative
    notes: tuple[str, ...]


class Table(NamedTuple):
    """What meta-data-bin.csv says of the chosen attributes."""

    rows: dict[str, int]  # a photo's file name -> its row of `flags`
    values: dict[str, tuple[str, ...]]
    flags: dict[str, Bool[np.ndarray, 'rows values']]
    notes: list[str]


def draw_lists(path: Path, names: list[str], attributes: Sequence[str]) -> Lists:
    """Split the photos `names` that the table at `path` describes, and draw each attribute's triplets in each split."""
    table = read_table(path, attributes)
    photo, row, notes = match_photos(path, names, table.rows)
    notes = [*table.notes, *notes]
    labels, single = [], []
    for number, name in enumerate(attributes):
        flags = table.flags[name][row]
        place, value = np.nonzero(flags)
        labels.append(np.stack([photo[place], np.full(len(place), number), value]))
        count = flags.sum(axis=1)
        single.append(np.where(count == 1, flags.argmax(axis=1), -1))
        notes.append(
            f'{name}: triplets come from the {(count == 1).sum():,} photos with one value; {(count > 1).sum():,} have '
            f'several, {(count == 0).sum():,} none'
        )
    triplets = {}
    for number, (split, members) in enumerate(split_photos(len(photo)).items()):
        triplets[split] = []
        for name, value in zip(attributes, single, strict=True):
            known = members[value[members] >= 0]
            rng = np.random.default_rng([SEED, number, list(FAMILIES).index(name)])  # whichever others are chosen
            rows = draw(value[known], APART.get(name, 1), NUM_TRIPLETS[split], rng)
            if not len(rows):
                raise InputError(
                    f'{path}: the {len(known)} photos of {split} with one value of {name} give no triplet; {TABLE_HELP}, '
                    f'or leave {name} out of --config.data.attributes.'
                )
            triplets[split].append(photo[known[rows]])
    entries = np.concatenate(labels, axis=1).astype(np.int32)
    return Lists(names, table.values, Labels(*entries), triplets, tuple(notes))


def split_photos(num_photos: int) -> dict[str, Int[np.ndarray, ' photos']]:
    """The places of each split's photos in a list of `num_photos`; the caller sorts it, so that no file's order counts."""
    order = np.random.default_rng([SEED]).permutation(num_photos)
    ends = np.cumsum([int(share * num_photos) for share in SHARES.values()])
    return {split: np.sort(part) for split, part in zip(SPLITS, np.split(order, ends), strict=True)}


def draw(
    values: Int[np.ndarray, ' photos'], apart: int, num_triplets: int, rng: np.random.Generator
) -> Int[np.ndarray, 'triplets 3']:
    """Places (anchor, positive, negative) of photos with one value each; no rows where there is nothing to draw.

    Sorted by value, the photos less than `apart` values away from the anchor are one block: the negative is drawn among the
    others, and steps over it. `draw_triplets` of training would make values uniform, and knows no distance of values.
    """
    order = np.argsort(values, kind='stable')
    ranked = values[order]
    start, size = _block(ranked, 0)
    near_start, near_size = _block(ranked, apart - 1)
    usable = np.flatnonzero((size >= 2) & (near_size < len(values)))
    if not len(usable):
        return np.zeros((0, 3), np.int64)
    anchor = usable[rng.integers(0, len(usable), num_triplets)]
    start, size, near_start, near_size = (column[anchor] for column in (start, size, near_start, near_size))
    positive = start + (anchor - start + 1 + rng.integers(0, size - 1)) % size
    negative = rng.integers(0, len(values) - near_size)
    negative = np.where(negative >= near_start, negative + near_size, negative)
    return order[np.stack([anchor, positive, negative], axis=1)]


def match_photos(
    path: Path, names: list[str], rows: Mapping[str, int]
) -> tuple[Int[np.ndarray, ' photos'], Int[np.ndarray, ' photos'], list[str]]:
    """Places in `names` in the order of the paths, their rows in the table, and notes on what has no counterpart."""
    found, strangers, repeats = {}, 0, 0  # by file name
    for place in sorted(range(len(names)), key=names.__getitem__):
        file = names[place].rpartition('/')[2]
        if file not in rows:
            strangers += 1
        elif found.setdefault(file, place) != place:
            repeats += 1
    notes = [
        f'{count:,} {what}; they are left out'
        for count, what in (
            (strangers, f'photos have no row in {path.name}'),
            (len(rows) - len(found), f'rows of {path.name} have no photo'),
            (repeats, "photos have another's file name"),
        )
        if count
    ]
    if not found:
        raise InputError(
            f'{path}: none of its {len(rows):,} rows belongs to one of {len(names):,} photos; CID 100627-72 is the photo '
            f'100627.72.jpg: {TABLE_HELP}.'
        )
    photo = np.fromiter(found.values(), np.int64, len(found))
    return photo, np.array([rows[file] for file in found], np.int64), notes


def read_table(path: Path, attributes: Sequence[str]) -> Table:
    """The columns of `attributes`; the table's others are not looked at."""
    lines = _parse(path)
    header = next(lines)[1]
    cid, columns, values, notes = _choose_columns(path, header, attributes)
    wanted = [column for chosen in columns.values() for column in chosen]
    rows, first, packed = {}, {}, []
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise InputError(f'{path}, line {line}: {len(cells)} cells, but line 1 names {len(header)}; {TABLE_HELP}.')
        for column in wanted:
            if cells[column] not in ('0', '1'):
                raise InputError(
                    f'{path}, line {line}: {header[column]} is {cells[column]!r}; expected 0 or 1, so {TABLE_HELP}.'
                )
        file = cells[cid].replace('-', '.') + '.jpg'
        if first.setdefault(file, line) != line:
            raise InputError(f'{path}, line {line}: CID {cells[cid]!r} is on line {first[file]} already; {TABLE_HELP}.')
        rows[file] = len(rows)
        packed.append(''.join([cells[column] for column in wanted]))
    if not rows:
        raise InputError(f'{path} has no row below its first line; {TABLE_HELP}.')
    bits = np.frombuffer(''.join(packed).encode(), np.uint8).reshape(len(rows), len(wanted)) == ord('1')
    flags = {}
    for name, chosen in columns.items():
        flags[name] = np.zeros((len(rows), len(values[name])), bool)
        flags[name][:, list(chosen.values())] = bits[:, : len(chosen)]
        bits = bits[:, len(chosen) :]
    return Table(rows, values, flags, notes)


def _parse(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row, the first with the columns' names."""
    reader = csv.reader(annotations.read_lines(path), strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f'{path}, line {line}: {error}; {TABLE_HELP}.') from error


def _choose_columns(
    path: Path, header: list[str], attributes: Sequence[str]
) -> tuple[int, dict[str, dict[int, int]], dict[str, tuple[str, ...]], list[str]]:
    """Where CIDs are, each attribute's {column: value}, value names, and notes on columns that mean nothing here."""
    plain = [_plain(name) for name in header]
    if 'cid' not in plain:
        raise InputError(f'{path}, line 1: no column is named CID; {TABLE_HELP}.')
    bins = {_plain(heel): value for value, heel in enumerate(HEELS)}
    columns, values, notes = {}, {}, []
    for name in attributes:
        pattern = re.compile(r'[\W_]*'.join(FAMILIES[name]) + r'[\W_]+', re.IGNORECASE)  # HeelHeight, Heel Height, ...
        family = {column: pattern.sub('', text, count=1) for column, text in enumerate(header) if pattern.match(text)}
        if name == 'heel':
            if unknown := [rest for rest in family.values() if _plain(rest) not in bins]:
                notes.append(f'{path.name}: {FAMILIES[name]} {", ".join(unknown)} is no known height; it is left out')
            columns[name] = {column: bins[_plain(rest)] for column, rest in family.items() if rest not in unknown}
            values[name] = HEELS
        else:
            columns[name] = {column: value for value, column in enumerate(family)}
            values[name] = tuple(' '.join(rest.replace('.', ' ').split()) for rest in family.values())
        if not columns[name]:
            raise InputError(f'{path}, line 1: no column of {FAMILIES[name]}, from which {name} comes; {TABLE_HELP}.')
        meaning = [values[name][value] for value in columns[name].values()]
        for text in meaning:
            if meaning.count(text) > 1:
                raise InputError(f'{path}, line 1: two columns are {FAMILIES[name]} {text!r}; {TABLE_HELP}.')
    return plain.index('cid'), columns, values, notes


def _plain(name: str) -> str:
    """Letters and digits only: releases differ in what is between them."""
    return re.sub(r'[\W_]+', '', name).lower()


def _block(ranked: Int[np.ndarray, ' photos'], reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and size of the run of values up to `reach` away, at each place of ascending values."""
    start = np.searchsorted(ranked, ranked - reach)
    return start, np.searchsorted(ranked, ranked + reach, 'right') - start
