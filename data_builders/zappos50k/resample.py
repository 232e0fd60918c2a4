"""Resamples triplet lists from UT-Zappos50K's meta-data-bin.csv, for when CSN's own lists are unavailable.

CSN says that it samples triplets at random. For class, closure and gender, two photos share a value and the third has
another; for heel, two have similar heights and the third a different one. The rest is our choice:

- The photos are shuffled once with a fixed seed: 70 % are train, 10 % valid and 20 % test.
- Only photos with exactly one value of an attribute are used for its triplets.
- The anchor is uniform over the photos of the split that have a positive and a negative, the positive over the other
  photos with the anchor's value, and the negative over the photos with another value.
- Heel heights are given as seven bins of about an inch. The positive is in the anchor's bin, the negative two or more
  bins away.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from asen_jax.data.table import read_cells
from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders.records import SPLITS

# the prefixes of their columns
FAMILIES = {'class': 'Category', 'closure': 'Closure', 'gender': 'Gender', 'heel': 'HeelHeight'}
HEELS = ('Flat', 'Under 1in', '1in - 1 3/4in', '2in - 2 3/4in', '3in - 3 3/4in', '4in - 4 3/4in', '5in & over')
MIN_BIN_DISTANCE = {'heel': 2}  # between anchor and negative; for the other attributes, any other value will do
SHARES = {'train': 0.7, 'valid': 0.1}  # of the photos; the rest is test
NUM_TRIPLETS = {'train': 200_000, 'valid': 20_000, 'test': 40_000}  # per attribute
SEED = 20170721  # never change it: it determines the split and the test triplets behind published figures
TABLE_HELP = 'take meta-data-bin.csv of UT-Zappos50K (data_builders/zappos50k/README.md)'


class Lists(NamedTuple):
    """Triplet lists, published or resampled, and labels of the photos they index."""

    values: Mapping[str, tuple[str, ...]]  # value names by attribute; empty where labels are unknown
    labels: Labels  # `photo` is an index into the list of photos
    triplets: Mapping[str, list[Int[np.ndarray, 'n 3']]]  # by split, then attribute: anchor, positive, negative
    notes: tuple[str, ...]


class Table(NamedTuple):
    """The columns of meta-data-bin.csv for the chosen attributes."""

    rows: dict[str, int]  # row of `flags` by the photo's file name
    values: dict[str, tuple[str, ...]]
    flags: dict[str, Bool[np.ndarray, 'rows values']]
    notes: list[str]


def draw_lists(path: Path, names: list[str], attributes: Sequence[str]) -> Lists:
    """Split the photos `names` that the table at `path` describes, and draw triplets for each attribute and split."""
    table = read_table(path, attributes)
    photo, row, notes = match_photos(path, names, table.rows)
    notes = [*table.notes, *notes]
    labels, single = [], []  # by attribute: every label, and the only value of each photo or -1
    for number, name in enumerate(attributes):
        flags = table.flags[name][row]
        which, value = np.nonzero(flags)
        labels.append(np.stack([photo[which], np.full(len(which), number), value]))
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
            # seeded by attribute, so that the others that are chosen do not matter
            rng = np.random.default_rng([SEED, number, list(FAMILIES).index(name)])
            rows = draw(value[known], MIN_BIN_DISTANCE.get(name, 1), NUM_TRIPLETS[split], rng)
            if not len(rows):
                raise InputError(
                    f'{path}: the {len(known)} {split} photos with one value of {name} allow no triplet; {TABLE_HELP}, '
                    f'or leave {name} out of --config.data.attributes.'
                )
            triplets[split].append(photo[known[rows]])
    entries = np.concatenate(labels, axis=1).astype(np.int32)
    return Lists(table.values, Labels(*entries), triplets, tuple(notes))


def split_photos(num_photos: int) -> dict[str, Int[np.ndarray, ' photos']]:
    """The indices of each split's photos; sort the photos first, so that the split does not depend on a file's order."""
    order = np.random.default_rng([SEED]).permutation(num_photos)
    ends = np.cumsum([int(share * num_photos) for share in SHARES.values()])
    return {split: np.sort(part) for split, part in zip(SPLITS, np.split(order, ends), strict=True)}


def draw(
    values: Int[np.ndarray, ' photos'], min_distance: int, num_triplets: int, rng: np.random.Generator
) -> Int[np.ndarray, 'triplets 3']:
    """Indices (anchor, positive, negative) of photos with one value each; no rows where no triplet is possible.

    In the order of values, the photos less than `min_distance` values away from the anchor are one block. The negative is drawn
    from the other photos by skipping that block. The `draw_triplets` of training would make values uniform, and has no
    notion of a distance between values.
    """
    order = np.argsort(values, kind='stable')
    ranked = values[order]
    same_start, same_size = _block(ranked, 0)
    near_start, near_size = _block(ranked, min_distance - 1)
    usable = np.flatnonzero((same_size >= 2) & (near_size < len(values)))
    if not len(usable):
        return np.zeros((0, 3), np.int64)
    anchor = usable[rng.integers(0, len(usable), num_triplets)]
    start, size = same_start[anchor], same_size[anchor]
    positive = start + (anchor - start + 1 + rng.integers(0, size - 1)) % size
    skipped_from, skipped = near_start[anchor], near_size[anchor]
    negative = rng.integers(0, len(values) - skipped)
    negative = np.where(negative >= skipped_from, negative + skipped, negative)
    return order[np.stack([anchor, positive, negative], axis=1)]


def match_photos(
    path: Path, names: list[str], rows: Mapping[str, int]
) -> tuple[Int[np.ndarray, ' photos'], Int[np.ndarray, ' photos'], list[str]]:
    """The photos in both `names` and the table, sorted by path: their indices and rows. Notes count all others."""
    found, without_row, repeated = {}, 0, 0  # `found` is keyed by file name
    for index in sorted(range(len(names)), key=names.__getitem__):
        file = names[index].rpartition('/')[2]
        if file not in rows:
            without_row += 1
        elif found.setdefault(file, index) != index:
            repeated += 1
    counts = {
        f'photos have no row in {path.name}': without_row,
        f'rows of {path.name} have no photo': len(rows) - len(found),
        'photos share a file name with another photo': repeated,
    }
    notes = [f'{count:,} {what}; they are left out' for what, count in counts.items() if count]
    if not found:
        raise InputError(
            f'{path}: none of its {len(rows):,} rows matches one of the {len(names):,} photos (CID 100627-72 stands for '
            f'100627.72.jpg); {TABLE_HELP}.'
        )
    photo = np.fromiter(found.values(), np.int64, len(found))
    return photo, np.array([rows[file] for file in found], np.int64), notes


def read_table(path: Path, attributes: Sequence[str]) -> Table:
    """The columns of `attributes`; all others are ignored."""
    lines = read_cells(path)
    header = next(lines, (1, []))[1]
    cid, columns, values, notes = _choose_columns(path, header, attributes)
    wanted = [column for chosen in columns.values() for column in chosen]
    rows, first, words = {}, {}, []
    for line, cells in lines:
        for column in wanted:
            if cells[column] not in ('0', '1'):
                raise InputError(
                    f'{path}, line {line}: {header[column]} is {cells[column]!r}; expected 0 or 1; {TABLE_HELP}.'
                )
        file = cells[cid].replace('-', '.') + '.jpg'
        if first.setdefault(file, line) != line:
            raise InputError(f'{path}, line {line}: CID {cells[cid]!r} is already on line {first[file]}; {TABLE_HELP}.')
        rows[file] = len(rows)
        words.append([cells[column] for column in wanted])
    bits, flags = np.array(words).reshape(len(rows), len(wanted)) == '1', {}
    for name, chosen in columns.items():
        flags[name] = np.zeros((len(rows), len(values[name])), bool)
        flags[name][:, list(chosen.values())] = bits[:, [wanted.index(column) for column in chosen]]
    return Table(rows, values, flags, notes)


def _choose_columns(
    path: Path, header: list[str], attributes: Sequence[str]
) -> tuple[int, dict[str, dict[int, int]], dict[str, tuple[str, ...]], list[str]]:
    """The column of CIDs, {column: value} and value names by attribute, and notes on columns that are left out."""
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
                notes.append(f'{path.name}: HeelHeight {", ".join(unknown)} is not a known height; it is left out')
            columns[name] = {column: bins[_plain(rest)] for column, rest in family.items() if rest not in unknown}
            values[name] = HEELS
        else:
            columns[name] = {column: value for value, column in enumerate(family)}
            values[name] = tuple(' '.join(rest.replace('.', ' ').split()) for rest in family.values())
        if not columns[name]:
            raise InputError(f'{path}, line 1: no column of {FAMILIES[name]}, which {name} is read from; {TABLE_HELP}.')
        meaning = [values[name][value] for value in columns[name].values()]
        for text in meaning:
            if meaning.count(text) > 1:
                raise InputError(f'{path}, line 1: two columns are {FAMILIES[name]} {text!r}; {TABLE_HELP}.')
    return plain.index('cid'), columns, values, notes


def _plain(name: str) -> str:
    """Letters and digits only, since releases differ in the punctuation between them."""
    return re.sub(r'[\W_]+', '', name).lower()


def _block(ranked: Int[np.ndarray, ' photos'], reach: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the ascending values, the start and size of the run of values up to `reach` away."""
    start = np.searchsorted(ranked, ranked - reach)
    return start, np.searchsorted(ranked, ranked + reach, 'right') - start
