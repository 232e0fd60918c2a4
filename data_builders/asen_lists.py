"""The layout that FashionAI, DARN and DeepFashion share: meta.json, and beside it a folder of lists and photos for each."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError
from data_builders import annotations, records
from data_builders.annotations import Meta
from data_builders.records import Photo, RawDataset, photo_in

TRAIN_LISTS = ('filenames_train.txt', 'label_train.txt')
EVAL_SPLITS, KINDS = ('valid', 'test'), ('filenames', 'query', 'candidate')
INSTRUCTIONS = (
    'data_builders/{name}/README.md says what to download and where each file goes (meta.json in the folder '
    '--config.data.manual_dir, lists and photos in {folder}/ below it{other}).'
)


class Source(NamedTuple):
    """A dataset's folder, and its part of meta.json."""

    folder: Path
    meta: Meta


class EvalLists(NamedTuple):
    """The lists of valid or test: photos, and the labels that make some of them queries and the others candidates."""

    names_file: Path
    names: list[str]
    query: Int[np.ndarray, 'n 3']
    candidate: Int[np.ndarray, 'm 3']

    @property
    def labels(self) -> Labels:
        """The labels that the lists give photos, each once."""
        return Labels(*np.unique(np.concatenate([self.query, self.candidate]), axis=0).T)


def dataset_folder(data: ConfigDict, dataset: str) -> Path:
    """The folder of `dataset`'s lists and photos."""
    return Path(data.manual_dir).expanduser() / dataset


def list_files(data: ConfigDict, dataset: str, train: Sequence[Path] | None = None) -> list[Path]:
    """The files that describe the dataset: meta.json and the lists of all splits; `train` replaces the published train lists."""
    folder = dataset_folder(data, dataset)
    train = [folder / name for name in TRAIN_LISTS] if train is None else train
    return [folder.parent / 'meta.json', *train, *(folder / f'{k}_{split}.txt' for split in EVAL_SPLITS for k in KINDS)]


def has_train_lists(data: ConfigDict, dataset: str) -> bool:
    """Whether both published train lists exist; one is useless without the other."""
    return all((dataset_folder(data, dataset) / name).is_file() for name in TRAIN_LISTS)


def require_files(paths: Sequence[Path], instructions: str) -> None:
    """Refuse to start without the dataset's lists; the error is `instructions`."""
    for path in paths:
        if not path.is_file():
            raise InputError(f'{path} is missing: {instructions}')


def config_name(data: ConfigDict) -> str:
    """'all', or a name for the chosen attributes in any order."""
    return name_choice(data.attributes) or 'all'


def name_choice(attributes: Sequence[str]) -> str:
    """A name for chosen attributes in any order; '' for none, which stands for all."""
    digits = hashlib.sha256(repr(sorted(set(attributes))).encode()).hexdigest()[:8]
    return f'{len(set(attributes))}-attributes-{digits}' if attributes else ''


def open_source(data: ConfigDict, dataset: str, files: Sequence[Path], instructions: str) -> Source:
    """Read `dataset`'s part of meta.json; without one of `files`, the error is `instructions`."""
    require_files(files, instructions)
    folder = dataset_folder(data, dataset)
    return Source(folder, annotations.read_meta(folder.parent / 'meta.json', dataset))


def read_train(source: Source) -> list[Photo]:
    """The photos of filenames_train.txt with their labels from label_train.txt."""
    names_file, labels_file = (source.folder / name for name in TRAIN_LISTS)
    names = annotations.read_filenames(names_file)
    labels = annotations.read_label_train(labels_file, len(names), source.meta)
    return make_photos(source.folder, names, labels, names_file)


def read_eval_lists(source: Source) -> dict[str, EvalLists]:
    """The lists of valid and test."""
    lists = {}
    for split in EVAL_SPLITS:
        names_file, *files = (source.folder / f'{kind}_{split}.txt' for kind in KINDS)
        names = annotations.read_filenames(names_file)
        rows = (annotations.read_triples(path, len(names), source.meta) for path in files)
        lists[split] = EvalLists(names_file, names, *rows)
    return lists


def make_photos(folder: Path, names: Sequence[str], labels: Labels, names_file: Path) -> list[Photo]:
    """The photos of one split with their labels, in the order of the list."""
    labels_of = defaultdict(dict)  # a dict, since a list may repeat a label
    for photo, attribute, value in zip(*(column.tolist() for column in labels), strict=True):
        labels_of[photo][attribute, value] = None
    return [
        photo_in(folder, name, labels_of[index], f'{names_file}, line {index + 1}') for index, name in enumerate(names)
    ]


def assemble(
    data: ConfigDict,
    name: str,
    source: Source,
    train: list[Photo],
    lists: Mapping[str, EvalLists],
    labels: Mapping[str, Labels] = records.NO_ENTRIES,
    notes: Sequence[str] = (),
) -> RawDataset:
    """The three splits, with the attributes that `data.attributes` names.

    Photos of valid and test have the labels that their lists give them, or those of the split in `labels`.
    """
    photos, rows = {'train': train}, {}
    for split, part in lists.items():
        rows |= {f'{split}_query': part.query, f'{split}_candidate': part.candidate}
        photos[split] = make_photos(source.folder, part.names, labels.get(split, part.labels), part.names_file)
    raw = RawDataset(name, source.meta.attributes, source.meta.values, photos, rows, tuple(notes))
    meta_file = str(source.folder.parent / 'meta.json')
    return records.choose_attributes(raw, annotations.pick_attributes(data.attributes, raw.attributes, meta_file))
