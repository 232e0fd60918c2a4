"""The layout that FashionAI, DARN and DeepFashion share: meta.json, and below it a folder of lists and photos for each.

`data` is the config's part of that name.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from data_builders import annotations, records
from data_builders.annotations import Meta
from data_builders.records import Photo, RawDataset

TRAIN_LISTS = ('filenames_train.txt', 'label_train.txt')


class Source(NamedTuple):
    """A data set's folder, and what meta.json says of it."""

    folder: Path
    meta: Meta


class Asked(NamedTuple):
    """The valid or test split: its photos, and the two lists that point at them."""

    photos: list[Photo]
    query: Int[np.ndarray, 'n 3']
    candidate: Int[np.ndarray, 'm 3']


def dataset_folder(data, dataset: str) -> Path:
    """Where `dataset`'s lists and photos lie."""
    return Path(data.manual_dir).expanduser() / dataset


def list_files(data, dataset: str, train: Sequence[Path] | None = None) -> list[Path]:
    """meta.json and the lists of the three splits; `train` are others in the place of the published train lists."""
    folder = dataset_folder(data, dataset)
    train = [folder / name for name in TRAIN_LISTS] if train is None else train
    asked = [
        folder / f'{kind}_{split}.txt' for split in ('valid', 'test') for kind in ('filenames', 'query', 'candidate')
    ]
    return [folder.parent / 'meta.json', *train, *asked]


def has_train_lists(data, dataset: str) -> bool:
    """Whether both published train lists are there: an index without its file names says nothing."""
    return all((dataset_folder(data, dataset) / name).is_file() for name in TRAIN_LISTS)


def config_name(data) -> str:
    """'all', or a name for the chosen attributes, whatever their order."""
    chosen = sorted({name.strip() for name in _as_names(data.attributes)})
    if not chosen:
        return 'all'
    return f'{len(chosen)}-attributes-{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}'


def open_source(data, dataset: str) -> Source:
    """Read meta.json."""
    folder = dataset_folder(data, dataset)
    return Source(folder, annotations.read_meta(folder.parent / 'meta.json', dataset))


def read_train(source: Source) -> list[Photo]:
    """The photos of filenames_train.txt with their labels of label_train.txt."""
    names_file, labels_file = (source.folder / name for name in TRAIN_LISTS)
    names = annotations.read_filenames(names_file)
    labels = annotations.read_label_train(labels_file, len(names), source.meta)
    return make_photos(source.folder, names, labels, names_file)


def read_asked(source: Source, split: str, labels: Labels | None = None) -> Asked:
    """Valid or test; a photo's labels are what the two lists ask of it, or `labels` where the source says more."""
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
    labels_of = defaultdict(dict)  # a dict, since a list may say the same twice
    for photo, attribute, value in zip(*(column.tolist() for column in labels), strict=True):
        labels_of[photo][attribute, value] = None
    photos = []
    for index, name in enumerate(names):
        attributes, values = zip(*labels_of[index], strict=True) if labels_of[index] else ((), ())
        path = folder / name
        where = f'{names_file}, line {index + 1}'
        photos.append(Photo(name, path.read_bytes, attributes, values, path=path, where=where))
    return photos


def assemble(
    data, name: str, source: Source, train: list[Photo], valid: Asked, test: Asked, notes: tuple[str, ...] = ()
) -> RawDataset:
    """The three splits as one source under the attributes that `data.attributes` names."""
    meta_file = str(source.folder.parent / 'meta.json')
    chosen = annotations.pick_attributes(data.attributes, source.meta.attributes, meta_file)
    raw = RawDataset(
        name, source.meta.attributes, source.meta.values,
        {'train': train, 'valid': valid.photos, 'test': test.photos},
        {'valid': valid.query, 'test': test.query}, {'valid': valid.candidate, 'test': test.candidate}, notes=notes,
    )  # fmt: skip
    return records.choose_attributes(raw, chosen)


def _as_names(attributes) -> list[str]:
    return attributes.split(',') if isinstance(attributes, str) else list(attributes)
