"""Zappos50k: UT-Zappos50K with the triplet lists of Conditional Similarity Networks (CSN, Veit et al., CVPR 2017).

README.md says where files go. `data` is the config's part of that name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders import annotations, asen_lists, records
from data_builders.records import SPLITS, Photo, RawDataset
from data_builders.zappos50k import resample
from data_builders.zappos50k.resample import Lists

ATTRIBUTES = tuple(resample.FAMILIES)  # CSN's conditions, in its order
FOLDER, PHOTOS, FILENAMES = 'Zappos50k', 'ut-zap50k-images', 'filenames.json'  # the last is plain text all the same
LIST_NAMES = {'train': 'train', 'valid': 'val', 'test': 'test'}
TABLES = ('ut-zap50k-data/meta-data-bin.csv', f'{PHOTOS}/ut-zap50k-data/meta-data-bin.csv', 'meta-data-bin.csv')
NUM_TRIPLETS = {'train': 200_000, 'valid': 80_000, 'test': 160_000}  # that CSN takes, over its four conditions
SEED = 20170722  # of the choice among the published triplets, which CSN left to chance
CAVEAT = (
    'Triplets drawn anew from meta-data-bin.csv (data.resample_triplets), not the published lists of CSN: '
    'figures are an approximation.'
)
INSTRUCTIONS = 'data_builders/zappos50k/README.md says what to download and where each file goes'
WITHOUT_LISTS = (
    f'{INSTRUCTIONS}; where the triplet lists of CSN cannot be had, --config.data.resample_triplets=True draws others '
    'from meta-data-bin.csv.'
)


class Builder(records.RecordsBuilder):
    """Writes the records of a Zappos50k that was read and checked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = WITHOUT_LISTS


def list_files(data) -> list[Path]:
    """The description of the data set: when one of these changes the records are made anew."""
    folder = asen_lists.dataset_folder(data, FOLDER)
    if data.resample_triplets:
        tables = [folder / name for name in TABLES]
        table = next((path for path in tables if path.is_file()), tables[0])
        return [table, *filter(Path.is_file, [folder / FILENAMES])]
    paths = _list_paths(folder, _chosen(data))
    return [folder / FILENAMES, *(path for split in SPLITS for path in paths[split])]


def config_name(data) -> str:
    """'all' for the published lists, 'resampled' for others, and what says which attributes were chosen."""
    chosen = asen_lists.config_name(data)
    if not data.resample_triplets:
        return chosen
    return 'resampled' if chosen == 'all' else f'resampled-{chosen}'


def read(data) -> RawDataset:
    """Read or draw the triplet lists, and take of them what CSN takes."""
    chosen, files = _chosen(data), list_files(data)
    annotations.require_files(files, f'{INSTRUCTIONS}.' if data.resample_triplets else WITHOUT_LISTS)
    if data.resample_triplets:
        lists = draw_lists(asen_lists.dataset_folder(data, FOLDER), files, chosen)
        return assemble(asen_lists.dataset_folder(data, FOLDER), chosen, lists)._replace(caveat=CAVEAT)
    return assemble(
        asen_lists.dataset_folder(data, FOLDER), chosen, read_lists(asen_lists.dataset_folder(data, FOLDER), chosen)
    )


def read_lists(folder: Path, chosen: Sequence[str]) -> Lists:
    """The published lists, which say nothing of labels."""
    names = annotations.read_filenames(folder / FILENAMES)
    triplets, notes = {}, []
    for split, paths in _list_paths(folder, chosen).items():
        triplets[split] = [read_triplets(path, len(names)) for path in paths]
        for path, rows in zip(paths, triplets[split], strict=True):
            anchor, positive, negative = rows.T
            if twice := int(((anchor == positive) | (anchor == negative) | (positive == negative)).sum()):
                notes.append(f'{path.name}: {twice:,} triplets name one photo twice; they are kept')
    nothing = np.zeros(0, np.int32)
    return Lists(names, dict.fromkeys(chosen, ()), Labels(nothing, nothing, nothing), triplets, tuple(notes))


def read_triplets(path: Path, num_photos: int) -> Int[np.ndarray, 'n 3']:
    """Lines `a b c`, 0-based, a being closer to c than to b: rows (anchor, positive, negative) are (a, c, b)."""
    expected = 'expected "a b c", three lines of filenames.json counted from 0'
    rows = [line.split() for line in annotations.read_lines(path)]
    for line, words in enumerate(rows, 1):
        if len(words) != 3:
            raise InputError(f'{path}, line {line}: {len(words)} numbers; {expected}. Download it again.')
    words = [word for row in rows for word in row]
    try:
        numbers = list(map(int, words))
    except ValueError as error:
        place = next(place for place, word in enumerate(words) if not annotations.is_whole(word))
        raise InputError(
            f'{path}, line {place // 3 + 1}: {words[place]!r} is not a whole number; {expected}.'
        ) from error
    if min(numbers) < 0 or max(numbers) >= num_photos:
        place = next(place for place, number in enumerate(numbers) if not 0 <= number < num_photos)
        raise InputError(
            f'{path}, line {place // 3 + 1}: index {numbers[place]}, but filenames.json ends at {num_photos - 1} '
            f'(counted from 0); use the lists and the filenames.json of one release.'
        )
    return np.array(numbers, np.int32).reshape(-1, 3)[:, [0, 2, 1]]


def draw_lists(folder: Path, files: Sequence[Path], chosen: Sequence[str]) -> Lists:
    """Lists drawn from the table, over the photos of filenames.json or else over those in the folder of photos."""
    table, *listed = files
    if listed:
        return resample.draw_lists(table, annotations.read_filenames(listed[0]), chosen)
    names = sorted(path.relative_to(folder / PHOTOS).as_posix() for path in (folder / PHOTOS).rglob('*.jpg'))
    if not names:
        raise InputError(f'{folder / PHOTOS} holds no .jpg file: {INSTRUCTIONS}.')
    return resample.draw_lists(table, names, chosen)


def assemble(folder: Path, chosen: tuple[str, ...], lists: Lists) -> RawDataset:
    """CSN's share of the triplets of each split, and the photos that they mention, renumbered."""
    filenames = folder / FILENAMES
    everything = asen_lists.make_photos(folder / PHOTOS, lists.names, lists.labels, filenames)
    if not filenames.is_file():  # found in the folder, and listed nowhere
        everything = [photo._replace(where='') for photo in everything]
    photos, triplets = {}, {}
    for split in SPLITS:
        rows = cut(lists.triplets[split], split)
        mentioned, place = np.unique(rows[:, :3], return_inverse=True)
        photos[split] = [everything[index] for index in mentioned.tolist()]
        triplets[split] = np.column_stack([place.reshape(-1, 3), rows[:, 3]]).astype(np.int32)
    notes = (*lists.notes, *_note_shared(photos))
    return RawDataset('zappos50k', chosen, lists.values, photos, triplets=triplets, notes=notes)


def cut(lists: Sequence[Int[np.ndarray, 'n 3']], split: str) -> Int[np.ndarray, 'n 4']:
    """(anchor, positive, negative, attribute) of the attributes' lists, shuffled, as many as CSN takes of so many."""
    numbered = [np.column_stack([rows, np.full(len(rows), attribute)]) for attribute, rows in enumerate(lists)]
    rows = np.concatenate(numbered)
    order = np.random.default_rng([SEED, SPLITS.index(split)]).permutation(len(rows))
    return rows[order[: NUM_TRIPLETS[split] * len(lists) // len(ATTRIBUTES)]]


def _note_shared(photos: dict[str, list[Photo]]) -> list[str]:
    """CSN's splits are meant to have no photo in common; by its path, since a list may have a path twice."""
    train, others = (
        {photo.image_id for split in splits for photo in photos[split]} for splits in (SPLITS[:1], SPLITS[1:])
    )
    shared = len(train & others)
    return [f'{shared:,} photos of train are also in valid or test'] if shared else []


def _chosen(data) -> tuple[str, ...]:
    return annotations.pick_attributes(data.attributes, ATTRIBUTES, 'Zappos50k')


def _list_paths(folder: Path, chosen: Sequence[str]) -> dict[str, list[Path]]:
    """Each split's lists of the chosen attributes."""
    lists = folder / 'tripletlists'
    return {
        split: [lists / f'{attribute}_tripletlist_{name}.txt' for attribute in chosen]
        for split, name in LIST_NAMES.items()
    }
