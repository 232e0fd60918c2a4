"""Zappos50k: UT-Zappos50K with the triplet lists of Conditional Similarity Networks (CSN, Veit et al., CVPR 2017)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders import annotations, asen_lists
from data_builders.records import SPLITS, RawDataset, RecordsBuilder
from data_builders.zappos50k import resample
from data_builders.zappos50k.resample import Lists

ATTRIBUTES = tuple(resample.FAMILIES)  # CSN's conditions, in its order
FOLDER, PHOTOS = 'Zappos50k', 'ut-zap50k-images'
FILENAMES = 'filenames.json'  # despite its name, plain text
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


class Builder(RecordsBuilder):
    """Writes the records of Zappos50k."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = WITHOUT_LISTS


def list_files(data: ConfigDict) -> list[Path]:
    """The files that describe the dataset; when one changes, the records are rebuilt."""
    folder = asen_lists.dataset_folder(data, FOLDER)
    if data.zappos50k.resample_triplets:
        tables = [folder / name for name in TABLES]
        table = next(filter(Path.is_file, tables), tables[0])
        return [table, *filter(Path.is_file, [folder / FILENAMES])]
    return [folder / FILENAMES, *(path for paths in _triplet_lists(data).values() for path in paths)]


def config_name(data: ConfigDict) -> str:
    """'all' for the published lists, 'resampled' for resampled ones, with a suffix if attributes are chosen."""
    kind = 'resampled' if data.zappos50k.resample_triplets else ''
    return '-'.join(filter(None, (kind, asen_lists.name_choice(data.attributes)))) or 'all'


def read(data: ConfigDict) -> RawDataset:
    """The published or resampled triplets, as many as CSN uses, and the photos they mention."""
    chosen, resampled = _chosen(data), data.zappos50k.resample_triplets
    folder, files = asen_lists.dataset_folder(data, FOLDER), list_files(data)
    asen_lists.require_files(files, f'{INSTRUCTIONS}.' if resampled else WITHOUT_LISTS)
    if (folder / FILENAMES).is_file():
        names = annotations.read_filenames(folder / FILENAMES)
    else:
        names = sorted(path.relative_to(folder / PHOTOS).as_posix() for path in (folder / PHOTOS).rglob('*.jpg'))
    if not names:
        raise InputError(f'{folder / PHOTOS} contains no .jpg file: {INSTRUCTIONS}.')
    lists = resample.draw_lists(files[0], names, chosen) if resampled else _read_lists(data, len(names))
    raw = RawDataset('zappos50k', chosen, lists.values, *_take(folder, names, lists), lists.notes)
    train, valid, test = ({photo.image_id for photo in raw.photos[split]} for split in SPLITS)
    if shared := len(train & (valid | test)):  # by path, since a list may repeat one; CSN intends none
        raw = raw._replace(notes=(*raw.notes, f'{shared:,} photos of train are also in valid or test'))
    return raw._replace(caveat=CAVEAT) if resampled else raw


def read_triplets(path: Path, num_photos: int) -> Int[np.ndarray, 'n 3']:
    """Rows (anchor, positive, negative) from lines `a b c`, which say that a is closer to c than to b."""
    expected = '"a b c", three lines of filenames.json counted from 0'
    numbers = np.array(annotations.read_numbers(path, expected), np.int32)
    for line, column in np.argwhere(numbers >= num_photos)[:1]:
        raise InputError(
            f'{path}, line {line + 1}: index {numbers[line, column]}, but filenames.json ends at {num_photos - 1} '
            f'(counted from 0); use the lists and the filenames.json of the same release.'
        )
    return numbers[:, [0, 2, 1]]


def _read_lists(data: ConfigDict, num_photos: int) -> Lists:
    """The published lists, which have no labels."""
    triplets, notes = {}, []
    for split, paths in _triplet_lists(data).items():
        triplets[split] = [read_triplets(path, num_photos) for path in paths]
        for path, rows in zip(paths, triplets[split], strict=True):
            if twice := sum(len(set(row)) < 3 for row in rows.tolist()):
                notes.append(f'{path.name}: {twice:,} triplets name the same photo twice; they are kept')
    nothing = np.zeros(0, np.int32)
    return Lists(dict.fromkeys(_chosen(data), ()), Labels(nothing, nothing, nothing), triplets, tuple(notes))


def _take(folder: Path, names: Sequence[str], lists: Lists) -> tuple[dict, dict]:
    """The photos of each split, and its list of triplets: as many triplets as CSN uses, shuffled."""
    everything = asen_lists.make_photos(folder / PHOTOS, names, lists.labels, folder / FILENAMES)
    if not (folder / FILENAMES).is_file():  # found in the folder, so no line lists them
        everything = [photo._replace(where='') for photo in everything]
    photos, triplets = {}, {}
    for number, split in enumerate(SPLITS):
        parts = enumerate(lists.triplets[split])
        rows = np.concatenate([np.column_stack([rows, np.full(len(rows), attribute)]) for attribute, rows in parts])
        order = np.random.default_rng([SEED, number]).permutation(len(rows))
        rows = rows[order[: NUM_TRIPLETS[split] * len(lists.triplets[split]) // len(ATTRIBUTES)]]
        mentioned, place = np.unique(rows[:, :3], return_inverse=True)
        photos[split] = [everything[index] for index in mentioned.tolist()]
        triplets[f'{split}_triplets'] = np.column_stack([place.reshape(-1, 3), rows[:, 3]]).astype(np.int32)
    return photos, triplets


def _chosen(data: ConfigDict) -> tuple[str, ...]:
    return annotations.pick_attributes(data.attributes, ATTRIBUTES, 'Zappos50k')


def _triplet_lists(data: ConfigDict) -> dict[str, list[Path]]:
    """The published lists of the chosen attributes, by split."""
    folder = asen_lists.dataset_folder(data, FOLDER) / 'tripletlists'
    return {
        split: [folder / f'{attribute}_tripletlist_{name}.txt' for attribute in _chosen(data)]
        for split, name in LIST_NAMES.items()
    }
