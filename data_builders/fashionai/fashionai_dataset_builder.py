"""FashionAI (Tianchi 231671) with the published query and candidate lists of ASEN; README.md says where files go.

`data` is the config's part of that name.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from data_builders import annotations, records
from data_builders.records import Photo, RawDataset

DATASET = 'FashionAI'  # its folder, and its key in meta.json
INSTRUCTIONS = (
    'data_builders/fashionai/README.md says what to download and where each file goes (meta.json in the folder '
    '--config.data.manual_dir, lists and photos in FashionAI/ below it).'
)


class Builder(tfds.core.ShardBasedBuilder):
    """Writes the records of a FashionAI that was read and checked; `data_builders.prepare` is the way to call it."""

    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS

    def __init__(self, *, raw: RawDataset, **kwargs):
        self._raw = raw  # before TFDS's own constructor, which asks for _info
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return records.builder_info(self, self._raw)

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, list[Callable[[], Iterator]]]:
        return records.shard_iterators(self._raw)


def list_files(data) -> list[Path]:
    """The description of the data set: when one of these changes the records are made anew."""
    root = Path(data.manual_dir).expanduser()
    lists = ['filenames_train', 'label_train']
    lists += [f'{kind}_{split}' for split in ('valid', 'test') for kind in ('filenames', 'query', 'candidate')]
    return [root / 'meta.json', *(root / DATASET / f'{name}.txt' for name in lists)]


def config_name(data) -> str:
    """'all', or a name for the chosen attributes, whatever their order."""
    chosen = sorted({name.strip() for name in _as_names(data.attributes)})
    if not chosen:
        return 'all'
    return f'{len(chosen)}-attributes-{hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]}'


def read(data) -> RawDataset:
    """Read the lists; the labels of valid and test exist only in their query and candidate lists."""
    annotations.require_files(list_files(data), INSTRUCTIONS)
    root = Path(data.manual_dir).expanduser()
    folder = root / DATASET
    meta = annotations.read_meta(root / 'meta.json', DATASET)
    chosen = annotations.pick_attributes(data.attributes, meta.attributes, str(root / 'meta.json'))
    photos, queries, candidates = {}, {}, {}
    for split in records.SPLITS:
        names_file = folder / f'filenames_{split}.txt'
        names = annotations.read_filenames(names_file)
        if split == 'train':
            labels = annotations.read_label_train(folder / 'label_train.txt', len(names), meta)
        else:
            queries[split] = annotations.read_triples(folder / f'query_{split}.txt', len(names), meta)
            candidates[split] = annotations.read_triples(folder / f'candidate_{split}.txt', len(names), meta)
            labels = labels_of_lists(queries[split], candidates[split])
        photos[split] = make_photos(folder, names, labels, names_file)
    raw = RawDataset('fashionai', meta.attributes, meta.values, photos, queries, candidates)
    return records.choose_attributes(raw, chosen)


def labels_of_lists(query: Int[np.ndarray, 'n 3'], candidate: Int[np.ndarray, 'm 3']) -> Labels:
    """What the two lists say of the photos, each label once."""
    return Labels(*np.unique(np.concatenate([query, candidate]), axis=0).T)


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


def _as_names(attributes) -> list[str]:
    return attributes.split(',') if isinstance(attributes, str) else list(attributes)
