"""Zappos50k: UT-Zappos50K with the triplet lists of Conditional Similarity Networks (CSN, Veit et al., CVPR 2017)."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders import annotations, asen_lists, records
from data_builders.records import SPLITS, Photo, RawDataset
from data_builders.zappos50k import resample
from data_builders.zappos50k.resample import Lists

ATTRIBUTES = tuple(resample.FAMILIES)  # CSN's conditions, in its order
FOLDER, PHOTOS, FILENAMES = (
    'Zappos50k',
    'ut-zap50k-images',
    'filenames.json',
)  # despite its name, the last is plain text
LIST_NAMES = {'train': 'train', 'valid': 'val', 'test': 'test'}
TABLES = ('ut-zap50k-data/meta-data-bin.csv', f'{PHOTOS}/ut-zap50k-data/meta-data-bin.csv', 'meta-data-bin.csv')
NUM_TRIPLETS = {'train': 200_000, 'valid': 80_000, 'test': 160_000}  # that CSN uses, over its four conditions
SEED = 20170722  # chooses among the published triplets, which CSN does at random
CAVEAT = (
    'These triplets were resampled from meta-data-bin.csv (data.zappos50k.resample_triplets) and are not the published lists of '
    'CSN: figures are an approximation.'
)
INSTRUCTIONS = 'data_builders/zappos50k/README.md says what to download and where each file goes'
WITHOUT_LISTS = (
    f'{INSTRUCTIONS}; if the triplet lists of CSN are unavailable, --config.data.zappos50k.resample_triplets=True draws others '
    'from meta-data-bin.csv.'
)


class Builder(records.RecordsBuilder):
    """Writes the records of Zappos50k once its lists are read and its photos are checked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = WITHOUT_LISTS


def list_files(data: ml_collections.ConfigDict) -> list[Path]:
    """The files that describe the dataset: a change in one of them rebuilds the records."""
    folder = asen_lists.dataset_folder(data, FOLDER)
    if data.zappos50k.resample_triplets:
        tables = [folder / name for name in TABLES]
        table = next((path for path in tables if path.is_file()), tables[0])
        return [table, *filter(Path.is_file, [folder / FILENAMES])]
    paths = _list_paths(folder, _chosen(data))
    return [folder / FILENAMES, *(path for split in SPLITS for path in paths[split])]


def config_name(data: ml_collections.ConfigDict) -> str:
    """'all' for the published lists, 'resampled' for resampled ones, with a suffix if attributes are chosen."""
    kind = 'resampled' if data.zappos50k.resample_triplets else ''
    return '-'.join(filter(None, (kind, asen_lists.name_choice(data.attributes)))) or 'all'


def read(data: ml_collections.ConfigDict) -> RawDataset:
    """The published or resampled triplets, as many as CSN uses, and the photos they mention."""
    folder, chosen, paths = asen_lists.dataset_folder(data, FOLDER), _chosen(data), list_files(data)
    if data.zappos50k.resample_triplets:
        asen_lists.require_files(paths, f'{INSTRUCTIONS}.')
        return assemble(folder, chosen, draw_lists(folder, paths, chosen))._replace(caveat=CAVEAT)
    asen_lists.require_files(paths, WITHOUT_LISTS)
    return assemble(folder, chosen, read_lists(folder, chosen))


def read_lists(folder: Path, chosen: Sequence[str]) -> Lists:
    """The published lists, which have no labels."""
    names = annotations.read_filenames(folder / FILENAMES)
    triplets, notes = {}, []
    for split, paths in _list_paths(folder, chosen).items():
        triplets[split] = [read_triplets(path, len(names)) for path in paths]
        for path, rows in zip(paths, triplets[split], strict=True):
            anchor, positive, negative = rows.T
            if twice := int(((anchor == positive) | (anchor == negative) | (positive == negative)).sum()):
                notes.append(f'{path.name}: {twice:,} triplets name the same photo twice; they are kept')
    nothing = np.zeros(0, np.int32)
    return Lists(names, dict.fromkeys(chosen, ()), Labels(nothing, nothing, nothing), triplets, tuple(notes))


def read_triplets(path: Path, num_photos: int) -> Int[np.ndarray, 'n 3']:
    """Rows (anchor, positive, negative) from lines `a b c`, which say that a is closer to c than to b."""
    numbers = annotations.read_numbers(path, '"a b c", three lines of filenames.json counted from 0')
    for line, column in np.argwhere(numbers >= num_photos)[:1]:
        raise InputError(
            f'{path}, line {line + 1}: index {numbers[line, column]}, but filenames.json ends at {num_photos - 1} '
            f'(counted from 0); use the lists and the filenames.json of the same release.'
        )
    return numbers[:, [0, 2, 1]]


def draw_lists(folder: Path, files: Sequence[Path], chosen: Sequence[str]) -> Lists:
    """Lists resampled from the table, over the photos in filenames.json or, without it, in the folder of photos."""
    table, *listed = files
    if listed:
        return resample.draw_lists(table, annotations.read_filenames(listed[0]), chosen)
    names = sorted(path.relative_to(folder / PHOTOS).as_posix() for path in (folder / PHOTOS).rglob('*.jpg'))
    if not names:
        raise InputError(f'{folder / PHOTOS} contains no .jpg file: {INSTRUCTIONS}.')
    return resample.draw_lists(table, names, chosen)


def assemble(folder: Path, chosen: tuple[str, ...], lists: Lists) -> RawDataset:
    """As many triplets of each split as CSN uses, and the photos they mention, renumbered."""
    filenames = folder / FILENAMES
    everything = asen_lists.make_photos(folder / PHOTOS, lists.names, lists.labels, filenames)
    if not filenames.is_file():  # found in the folder, so no line lists them
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
    """(anchor, positive, negative, attribute) from one list per attribute, shuffled, as many as CSN uses."""
    numbered = [np.column_stack([rows, np.full(len(rows), attribute)]) for attribute, rows in enumerate(lists)]
    rows = np.concatenate(numbered)
    order = np.random.default_rng([SEED, SPLITS.index(split)]).permutation(len(rows))
    return rows[order[: NUM_TRIPLETS[split] * len(lists) // len(ATTRIBUTES)]]


def _note_shared(photos: dict[str, list[Photo]]) -> list[str]:
    """Counts photos, by path since a list may repeat one, that train shares with valid or test: CSN intends none."""
    train, valid, test = ({photo.image_id for photo in photos[split]} for split in SPLITS)
    shared = len(train & (valid | test))
    return [f'{shared:,} photos of train are also in valid or test'] if shared else []


def _chosen(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    return annotations.pick_attributes(data.attributes, ATTRIBUTES, 'Zappos50k')


def _list_paths(folder: Path, chosen: Sequence[str]) -> dict[str, list[Path]]:
    """The lists of the chosen attributes, by split."""
    lists = folder / 'tripletlists'
    return {
        split: [lists / f'{attribute}_tripletlist_{name}.txt' for attribute in chosen]
        for split, name in LIST_NAMES.items()
    }
