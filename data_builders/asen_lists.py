"""The layout that FashionAI, DARN and DeepFashion share: meta.json, and beside it a folder of lists and photos for each."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from asen_jax.data.images import read_file
from asen_jax.data.triplets import Labels
from data_builders import annotations, records
from data_builders.annotations import Meta
from data_builders.records import Photo, RawDataset

TRAIN_LISTS = ('filenames_train.txt', 'label_train.txt')


class Source(NamedTuple):
    """A dataset's folder, and its part of meta.json."""

    folder: Path
    meta: Meta


class Asked(NamedTuple):
    """The valid or test split: its photos, and the two lists that point to them."""

    photos: list[Photo]
    query: Int[np.ndarray, 'n 3']
    candidate: Int[np.ndarray, 'm 3']


def dataset_folder(data: ConfigDict, dataset: str) -> Path:
    """The folder of `dataset`'s lists and photos."""
    return Path(data.manual_dir).expanduser() / dataset


def list_files(data: ConfigDict, dataset: str, train: Sequence[Path] | None = None) -> list[Path]:
    """meta.json and the lists of all splits; `train` replaces the published train lists."""
    folder = dataset_folder(data, dataset)
    train = [folder / name for name in TRAIN_LISTS] if train is None else train
    asked = [
        folder / f'{kind}_{split}.txt' for split in ('valid', 'test') for kind in ('filenames', 'query', 'candidate')
    ]
    return [folder.parent / 'meta.json', *train, *asked]


def has_train_lists(data: ConfigDict, dataset: str) -> bool:
    """Whether both published train lists exist; one is useless without the other."""
    return all((dataset_folder(data, dataset) / name).is_file() for name in TRAIN_LISTS)


def config_name(data: ConfigDict) -> str:
    """'all', or a name for the chosen attributes in any order."""
    chosen = sorted({name.strip() for name in annotations.split_names(data.attributes)})
    if not chosen:
        return 'all'
    return f'{len(chosen)}-attributes-{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}'


def open_source(data: ConfigDict, dataset: str) -> Source:
    """Read `dataset`'s part of meta.json."""
    folder = dataset_folder(data, dataset)
    return Source(folder, annotations.read_meta(folder.parent / 'meta.json', dataset))


def read_train(source: Source) -> list[Photo]:
    """The photos of filenames_train.txt with their labels from label_train.txt."""
    names_file, labels_file = (source.folder / name for name in TRAIN_LISTS)
    names = annotations.read_filenames(names_file)
    labels = annotations.read_label_train(labels_file, len(names), source.meta)
    return make_photos(source.folder, names, labels, names_file)


def read_asked(source: Source, split: str, labels: Labels | None = None) -> Asked:
    """The valid or test split; without `labels`, a photo has those that the query and candidate lists give it."""
    names_file = source.folder / f'filenames_{split}.txt'
    names = annotations.read_filenames(names_file)
    query, candidate = (
        annotations.read_triples(source.folder / f'{kind}_{split}.txt', len(names), source.meta)
        for kind in ('query', 'candidate')
    )
    if labels is None:
        labels = Labels(*np.unique(np.concatenate([query, candidate]), axis=0).T)
    return Asked(make_photos(source.folder, names, labels, names_file), query, candidate)


def make_photos(folder: Path, names: list[str], labels: Labels, names_file: Path) -> list[Photo]:
    """The photos of one split with their labels, in the order of the list."""
    labels_of = defaultdict(dict)  # a dict, since a list may repeat a label
    for photo, attribute, value in zip(*(column.tolist() for column in labels), strict=True):
        labels_of[photo][attribute, value] = None
    photos = []
    for index, name in enumerate(names):
        attributes, values = zip(*labels_of[index], strict=True) if labels_of[index] else ((), ())
        path = folder / name
        where = f'{names_file}, line {index + 1}'
        photos.append(Photo(name, partial(read_file, path), attributes, values, path=path, where=where))
    return photos


def assemble(
    data: ConfigDict,
    name: str,
    source: Source,
    train: list[Photo],
    valid: Asked,
    test: Asked,
    notes: tuple[str, ...] = (),
) -> RawDataset:
    """The three splits, with the attributes that `data.attributes` names."""
    meta_file = str(source.folder.parent / 'meta.json')
    chosen = annotations.pick_attributes(data.attributes, source.meta.attributes, meta_file)
    raw = RawDataset(
        dataset=name,
        attributes=source.meta.attributes,
        values=source.meta.values,
        photos={'train': train, 'valid': valid.photos, 'test': test.photos},
        queries={'valid': valid.query, 'test': test.query},
        candidates={'valid': valid.candidate, 'test': test.candidate},
        notes=notes,
    )
    return records.choose_attributes(raw, chosen)
