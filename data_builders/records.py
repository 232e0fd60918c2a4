"""What all builders share: the photos and lists that they read from a source, and the records made from them."""

import itertools
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from tqdm import tqdm

from asen_jax import files
from asen_jax.data.images import read_file
from asen_jax.data.triplets import Labels, draw_triplets, make_index
from asen_jax.errors import InputError

FORMAT = 3  # of the records; part of their description, so a new format rebuilds them
SPLITS = ('train', 'valid', 'test')
EXAMPLES_PER_SHARD = 2000
TRIPLETS_SEED = 20200207  # of the triplets drawn here; config.seed must not change records
MAX_TRIPLETS = {'train': 100_000, 'valid': 10_000, 'test': 10_000}
TRIPLETS_PER_LABEL = 10
MAX_NAMED = 8  # values that a note names
LABEL_FIELDS = ('index', 'attribute', 'value')  # of a query or candidate
TRIPLET_FIELDS = ('anchor', 'positive', 'negative', 'attribute')
ARRAYS = {  # shape and type of a photo's fields
    'attributes': ((None,), np.int32),
    'values': ((None,), np.int32),
    'bbox': ((4,), np.float32),
    'attribute_boxes': ((None, 4), np.float32),
}
NO_ENTRIES = types.MappingProxyType({})


class Photo(NamedTuple):
    """One photo of a source, not yet read. Boxes are left, top, right, bottom in pixels, 0-based and half-open."""

    image_id: str  # its path in the source
    read: Callable[[], bytes]  # the original encoded bytes
    attributes: tuple[int, ...]
    values: tuple[int, ...]  # one per attribute: together they are the labels
    bbox: tuple[float, float, float, float] | None = None
    attribute_boxes: Sequence[tuple[float, float, float, float]] | None = None  # one per label
    path: Path | None = None  # its file, if it has one: missing files are counted before any is decoded
    where: str = ''  # the file and line that list it, for error messages


class RawDataset(NamedTuple):
    """A source as a builder reads it, and as it is changed on its way to records."""

    dataset: str  # the builder's name
    attributes: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]  # the value names of each attribute
    photos: Mapping[str, list[Photo]]  # by split
    lists: Mapping[str, Int[np.ndarray, 'n fields']]  # by the records' own split: `valid_query`, `train_triplets`, ...
    notes: tuple[str, ...] = ()  # remarks for the user
    skipped: tuple[dict, ...] = ()  # {'image_id', 'why', 'path'} of photos left out
    caveat: str = ''  # a remark that must accompany every figure from these records
    dropped: Mapping[str, dict] = NO_ENTRIES  # {split: {'queries', 'candidates'}}: how many were dropped with them


def photo_in(folder: Path, name: str, labels: Collection[tuple[int, int]], where: str) -> Photo:
    """The photo at `folder/name`, which is listed at `where`, with its labels (attribute, value)."""
    attributes, values = zip(*labels, strict=True) if labels else ((), ())
    path = folder / name
    return Photo(name, partial(read_file, path), attributes, values, path=path, where=where)


def keep_photos(raw: RawDataset, keep: Mapping[str, Sequence[bool]]) -> RawDataset:
    """Leave out photos and the list entries that point to them, and renumber the other entries."""
    new = {split: np.where(kept, np.cumsum(kept) - 1, -1) for split, kept in keep.items()}
    photos = {split: list(itertools.compress(many, keep[split])) for split, many in raw.photos.items()}
    return raw._replace(photos=photos, lists=_renumber(raw.lists, {'index', 'anchor', 'positive', 'negative'}, new))


def _renumber(lists: Mapping[str, np.ndarray], fields: set[str], new: Mapping[str, np.ndarray]) -> dict:
    """The rows with the `new` numbers of their split in these fields, without those that get -1."""
    kept = {}
    for name, rows in lists.items():
        rows, columns = np.array(rows, np.int32), [i for i, field in enumerate(fields_of(rows)) if field in fields]
        rows[:, columns] = new[name.split('_')[0]][rows[:, columns]]
        kept[name] = rows[(rows[:, columns] >= 0).all(axis=1)]
    return kept


def fields_of(rows: Int[np.ndarray, '*n fields']) -> tuple[str, ...]:
    """The names of a list's columns: for queries and candidates, or for triplets."""
    return LABEL_FIELDS if rows.shape[-1] == len(LABEL_FIELDS) else TRIPLET_FIELDS


def choose_attributes(raw: RawDataset, chosen: Sequence[str]) -> RawDataset:
    """Only the `chosen` attributes, renumbered, and the photos that have a label of one; the others may be missing."""
    if tuple(chosen) == tuple(raw.attributes):
        return raw
    number = {raw.attributes.index(name): new for new, name in enumerate(chosen)}
    new = dict.fromkeys(SPLITS, np.array([number.get(old, -1) for old in range(len(raw.attributes))]))

    def narrow(photo: Photo) -> Photo:
        kept = [i for i, attribute in enumerate(photo.attributes) if attribute in number]
        boxes = None if photo.attribute_boxes is None else [photo.attribute_boxes[i] for i in kept]
        attributes = tuple(number[photo.attributes[i]] for i in kept)
        return photo._replace(attributes=attributes, values=tuple(photo.values[i] for i in kept), attribute_boxes=boxes)

    raw = raw._replace(
        attributes=tuple(chosen),
        values={name: raw.values[name] for name in chosen},
        photos={split: [narrow(photo) for photo in photos] for split, photos in raw.photos.items()},
        lists=_renumber(raw.lists, {'attribute'}, new),
    )
    keep = {split: [bool(photo.attributes) for photo in photos] for split, photos in raw.photos.items()}
    count = sum(kept.count(False) for kept in keep.values())
    note = f'{count} photos without a label of {", ".join(chosen)} are left out'
    return keep_photos(raw, keep)._replace(notes=(*raw.notes, note))


def label_rows(photos: Sequence[Photo], indices: Iterable[int]) -> Int[np.ndarray, 'n 3']:
    """Every label of the photos at `indices`, as (index, attribute, value)."""
    rows = (
        (index, *label)
        for index in indices
        for label in zip(photos[index].attributes, photos[index].values, strict=True)
    )
    return np.fromiter(rows, np.dtype((np.int32, 3)))


def labels_of(photos: Sequence[Photo]) -> Labels:
    """Every label of a split, one entry each."""
    return Labels(*label_rows(photos, range(len(photos))).T)


def with_triplets(raw: RawDataset) -> RawDataset:
    """Draw triplets with a fixed seed for each split whose source publishes none; notes say why some cannot be drawn.

    Lists without rows are left out, since TFDS cannot read them.
    """
    lists, notes = {name: rows for name, rows in raw.lists.items() if len(rows)}, list(raw.notes)
    for number, split in enumerate(SPLITS):
        labels = labels_of(raw.photos.get(split, ()))
        if f'{split}_triplets' in lists or not len(labels.photo):
            continue
        try:
            index = make_index(labels)
        except InputError as error:  # not the user's mistake: a small split may allow no triplet
            notes.append(f'{split}: {error}')
            continue
        total = min(MAX_TRIPLETS[split], TRIPLETS_PER_LABEL * len(labels.photo))
        lists[f'{split}_triplets'] = draw_triplets(index, total, np.random.default_rng([TRIPLETS_SEED, number]))
        if index.left_out:
            notes.append(f'{split}: {_describe_left_out(raw, index.left_out)}')
    return raw._replace(lists=lists, notes=tuple(notes))


def _describe_left_out(raw: RawDataset, left_out: Sequence[tuple[int, int, int]]) -> str:
    """A note on (attribute, value, photos) that supply no anchor."""
    values = [(name, raw.values[name]) for name in raw.attributes]
    listed = [f'{values[a][0]}={values[a][1][value]} ({num_photos})' for a, value, num_photos in left_out]
    more = ', ...' if len(listed) > MAX_NAMED else ''
    return (
        f'{len(listed)} values give no triplets, because they have one photo or no other value to contrast with '
        f'(number of photos): {", ".join(listed[:MAX_NAMED])}{more}'
    )


class RecordsBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the records of a source that has been read and checked; `data_builders.prepare` calls it.

    Every dataset has a subclass `Builder`, which gives the records their name and version. TFDS has one set of features for all
    splits, none of them optional. So every record has all fields, and those that belong to another kind of record are empty: b''
    and '', no labels, -1, zeros. Box fields exist only if the source has boxes. Read with `decoders={'image': tfds.decode.SkipDecoding()}`, because the lists' b'' cannot be decoded.
    """

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, raw: RawDataset, **kwargs):
        self._raw = raw  # set first: TFDS's constructor calls _info
        features, photos = tfds.features, [photo for many in raw.photos.values() for photo in many]
        self._features = {'image': features.Image(shape=(None, None, 3)), 'image_id': features.Text()}
        self._empty = {'image': b'', 'image_id': ''}
        for name in (*LABEL_FIELDS, *TRIPLET_FIELDS):
            self._features[name], self._empty[name] = features.Scalar(dtype=np.int32), -1
        for name, (shape, dtype) in ARRAYS.items():
            if any(getattr(photo, name) is not None for photo in photos):
                self._features[name] = features.Tensor(shape=shape, dtype=dtype)
                self._empty[name] = np.zeros([length or 0 for length in shape], dtype)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        raw = self._raw
        metadata = {
            'dataset': raw.dataset,
            'attributes': list(raw.attributes),
            'values': {name: list(raw.values[name]) for name in raw.attributes},
            'dropped': {split: dict(counts) for split, counts in raw.dropped.items()},
        }
        info = self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(self._features),
            metadata=tfds.core.MetadataDict(metadata),
            disable_shuffling=True,
        )
        info.initialize_from_bucket = lambda: None  # it would leave an empty folder in TMPDIR
        return info

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Iterator]]:
        """Photos are read one by one, as they are written."""
        splits = {split: (photos, _photo_fields) for split in SPLITS if (photos := self._raw.photos.get(split))}
        splits |= {name: (rows, _list_fields) for name, rows in self._raw.lists.items()}
        total = sum(len(rows) for rows, _ in splits.values())
        bar = tqdm(total=total, desc='Writing', unit='record', disable=None)

        def shard(start: int, rows: Sequence, fields: Callable) -> Iterator[tuple[int, dict]]:
            for index in range(start, min(start + EXAMPLES_PER_SHARD, len(rows))):
                yield index, self._empty | fields(index, rows[index])
                bar.update()
            if bar.n == bar.total:
                bar.close()

        return {
            split: [partial(shard, start, *part) for start in range(0, len(part[0]), EXAMPLES_PER_SHARD)]
            for split, part in splits.items()
        }


def _photo_fields(index: int, photo: Photo) -> dict:
    """The fields of a photo's record. `image` is read later: TFDS holds all examples of a shard in memory."""
    fields = {'image': types.SimpleNamespace(read=photo.read), 'image_id': photo.image_id, 'index': index}
    for name, (shape, dtype) in ARRAYS.items():
        if (values := getattr(photo, name)) is not None:
            fields[name] = np.array(values, dtype).reshape(-1, *shape[1:])
    return fields


def _list_fields(_: int, row: Int[np.ndarray, ' fields']) -> dict:
    """The fields of a list's row, whose own position is not stored: `index` is the photo's."""
    return dict(zip(fields_of(row), row.tolist(), strict=True))


def write_arrays(raw: RawDataset, path: Path) -> None:
    """Write all labels as `<split>_photo`, `_attribute`, `_value`, and lists as `<split>_query`, `_candidate`, `_triplets`.

    They repeat the records because they are fast to read: 440,000 triplets take a moment here, and most of a minute there.
    """
    arrays = {}
    for split in SPLITS:
        for name, column in labels_of(raw.photos.get(split, ()))._asdict().items():
            arrays[f'{split}_{name}'] = column
    with files.write_atomically(path) as file:
        np.savez(file, **arrays, **raw.lists)
