"""What all builders share: the photos and lists that they read from a source, and the records made from them."""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from tqdm import tqdm

from asen_jax import files
from asen_jax.data.triplets import Labels, draw_triplets, make_index
from asen_jax.errors import InputError

FORMAT = 3  # of the records; part of their description, so a new format rebuilds them
SPLITS = ('train', 'valid', 'test')
EXAMPLES_PER_SHARD = 2000
TRIPLETS_SEED = 20200207  # of the triplets drawn here; config.seed must not change records
MAX_TRIPLETS = {'train': 100_000, 'valid': 10_000, 'test': 10_000}
TRIPLETS_PER_LABEL = 10
MAX_NAMED = 8  # values that a note names
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
    queries: Mapping[str, Int[np.ndarray, 'n 3']] = NO_ENTRIES  # valid, test: index, attribute, value
    candidates: Mapping[str, Int[np.ndarray, 'n 3']] = NO_ENTRIES
    triplets: Mapping[str, Int[np.ndarray, 'n 4']] = NO_ENTRIES  # anchor, positive, negative, attribute
    notes: tuple[str, ...] = ()  # remarks for the user
    skipped: tuple[dict, ...] = ()  # {'image_id', 'why', 'path'} of photos left out
    caveat: str = ''  # a remark that must accompany every figure from these records
    dropped: Mapping[str, dict] = (
        NO_ENTRIES  # {split: {'queries', 'candidates'}}: how many were dropped with those photos
    )


def keep_photos(raw: RawDataset, keep: Mapping[str, Sequence[bool]]) -> RawDataset:
    """Leave out photos and the list entries that point to them, and renumber the other entries."""
    position = {split: np.where(keep[split], np.cumsum(keep[split]) - 1, -1) for split in raw.photos}

    def remap(lists, columns):
        kept = {}
        for split, rows in lists.items():
            moved = np.array(rows, np.int32)
            moved[:, columns] = position[split][moved[:, columns]]
            kept[split] = moved[(moved[:, columns] >= 0).all(axis=1)]
        return kept

    photos = {split: [p for p, k in zip(many, keep[split], strict=True) if k] for split, many in raw.photos.items()}
    return raw._replace(
        photos=photos,
        queries=remap(raw.queries, [0]),
        candidates=remap(raw.candidates, [0]),
        triplets=remap(raw.triplets, [0, 1, 2]),
    )


def choose_attributes(raw: RawDataset, chosen: Sequence[str]) -> RawDataset:
    """Only the `chosen` attributes, renumbered, and the photos that have a label of one; the others may be missing."""
    if tuple(chosen) == tuple(raw.attributes):
        return raw
    number = {raw.attributes.index(name): new for new, name in enumerate(chosen)}
    table = np.array([number.get(old, -1) for old in range(len(raw.attributes))], np.int32)

    def narrow(photo: Photo) -> Photo:
        kept = [i for i, attribute in enumerate(photo.attributes) if attribute in number]
        boxes = None if photo.attribute_boxes is None else [photo.attribute_boxes[i] for i in kept]
        attributes = tuple(number[photo.attributes[i]] for i in kept)
        return photo._replace(attributes=attributes, values=tuple(photo.values[i] for i in kept), attribute_boxes=boxes)

    def renumber(lists, column):
        moved = {split: np.array(rows, np.int32) for split, rows in lists.items()}
        for rows in moved.values():
            rows[:, column] = table[rows[:, column]]
        return {split: rows[rows[:, column] >= 0] for split, rows in moved.items()}

    raw = raw._replace(
        attributes=tuple(chosen),
        values={name: raw.values[name] for name in chosen},
        photos={split: [narrow(photo) for photo in photos] for split, photos in raw.photos.items()},
        queries=renumber(raw.queries, 1),
        candidates=renumber(raw.candidates, 1),
        triplets=renumber(raw.triplets, 3),
    )
    before = sum(map(len, raw.photos.values()))
    raw = keep_photos(raw, {split: [bool(p.attributes) for p in photos] for split, photos in raw.photos.items()})
    after = sum(map(len, raw.photos.values()))
    note = f'{before - after} photos without a label of {", ".join(chosen)} are left out'
    return raw._replace(notes=(*raw.notes, note))


def labels_of(photos: Sequence[Photo]) -> Labels:
    """Every label of a split, one entry each."""
    photo = np.repeat(np.arange(len(photos)), [len(p.attributes) for p in photos])
    attribute = [a for p in photos for a in p.attributes]
    value = [v for p in photos for v in p.values]
    return Labels(photo.astype(np.int32), np.array(attribute, np.int32), np.array(value, np.int32))


def with_triplets(raw: RawDataset) -> RawDataset:
    """Draw triplets with a fixed seed for each split whose source publishes none; notes say why some cannot be drawn."""
    triplets, notes = {split: rows for split, rows in raw.triplets.items() if len(rows)}, list(raw.notes)
    for number, split in enumerate(SPLITS):
        labels = labels_of(raw.photos.get(split, ()))
        if split in triplets or not len(labels.photo):
            continue
        try:
            index = make_index(labels)
        except InputError as error:  # not the user's mistake: a small split may allow no triplet
            notes.append(f'{split}: {error}')
            continue
        total = min(MAX_TRIPLETS[split], TRIPLETS_PER_LABEL * len(labels.photo))
        triplets[split] = draw_triplets(index, total, np.random.default_rng([TRIPLETS_SEED, number]))
        if index.left_out:
            notes.append(f'{split}: {_describe_left_out(raw, index.left_out)}')
    return raw._replace(triplets=triplets, notes=tuple(notes))


def _describe_left_out(raw: RawDataset, left_out: Sequence[tuple[int, int, int]]) -> str:
    """A note on (attribute, value, photos) that supply no anchor."""
    listed = []
    for attribute, value, num_photos in left_out:
        name = raw.attributes[attribute]
        listed.append(f'{name}={raw.values[name][value]} ({num_photos})')
    more = ', ...' if len(listed) > MAX_NAMED else ''
    return (
        f'{len(listed)} values give no triplets, because they have one photo or no other value to contrast with '
        f'(number of photos): {", ".join(listed[:MAX_NAMED])}{more}'
    )


class RecordsBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the records of a source that has been read and checked; `data_builders.prepare` calls it.

    Every dataset has a subclass `Builder`, which gives the records their name and version.
    """

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, raw: RawDataset, **kwargs):
        self._raw = raw  # set first: TFDS's constructor calls _info
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        info = builder_info(self, self._raw)
        info.initialize_from_bucket = lambda: None  # it would leave an empty folder in TMPDIR
        return info

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, list[Callable[[], Iterator]]]:
        return shard_iterators(self._raw)


def builder_info(builder: tfds.core.DatasetBuilder, raw: RawDataset) -> tfds.core.DatasetInfo:
    """The records' features, with the names of attributes and values as metadata.

    TFDS has one set of features for all splits, none of them optional. So every record has all fields, and those that
    belong to another kind of record are empty: b'' and '', no labels, -1, zeros. Box fields exist only if the source
    has boxes. Read with `decoders={'image': tfds.decode.SkipDecoding()}`, because the lists' b'' cannot be decoded.
    """
    features = {
        'image': tfds.features.Image(shape=(None, None, 3)),
        'image_id': tfds.features.Text(),
        'attributes': tfds.features.Tensor(shape=(None,), dtype=np.int32),
        'values': tfds.features.Tensor(shape=(None,), dtype=np.int32),
    }
    scalars = ('index', 'attribute', 'value', 'anchor', 'positive', 'negative')
    features |= {name: tfds.features.Scalar(dtype=np.int32) for name in scalars}
    boxes, attribute_boxes = _has_boxes(raw)
    if boxes:
        features['bbox'] = tfds.features.Tensor(shape=(4,), dtype=np.float32)
    if attribute_boxes:
        features['attribute_boxes'] = tfds.features.Tensor(shape=(None, 4), dtype=np.float32)
    metadata = {
        'dataset': raw.dataset,
        'attributes': list(raw.attributes),
        'values': {name: list(raw.values[name]) for name in raw.attributes},
        'dropped': {split: dict(counts) for split, counts in raw.dropped.items()},
    }
    return builder.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(metadata), disable_shuffling=True
    )


def shard_iterators(raw: RawDataset) -> dict[str, list[Callable[[], Iterator]]]:
    """The generators of the shards of each split that has records; photos are read one by one, as they are written."""
    empty = {'image': b'', 'image_id': '', 'attributes': np.zeros(0, np.int32), 'values': np.zeros(0, np.int32)}
    empty |= dict.fromkeys(('index', 'attribute', 'value', 'anchor', 'positive', 'negative'), -1)
    boxes, attribute_boxes = _has_boxes(raw)
    if boxes:
        empty['bbox'] = np.zeros(4, np.float32)
    if attribute_boxes:
        empty['attribute_boxes'] = np.zeros((0, 4), np.float32)

    label = partial(_list_fields, ('index', 'attribute', 'value'))
    triplet = partial(_list_fields, ('anchor', 'positive', 'negative', 'attribute'))
    splits = {split: (raw.photos.get(split, ()), _photo_fields) for split in SPLITS}
    for split in SPLITS:
        splits[f'{split}_query'] = raw.queries.get(split, ()), label
        splits[f'{split}_candidate'] = raw.candidates.get(split, ()), label
        splits[f'{split}_triplets'] = raw.triplets.get(split, ()), triplet
    total = sum(len(rows) for rows, _ in splits.values())
    bar = tqdm(total=total, desc='Writing', unit='record', disable=None)
    return {
        split: [partial(_shard, rows, start, fields, empty, bar) for start in range(0, len(rows), EXAMPLES_PER_SHARD)]
        for split, (rows, fields) in splits.items()
        if len(rows)  # TFDS can write an empty split, but not read it
    }


def write_arrays(raw: RawDataset, path: Path) -> None:
    """Write all labels as `<split>_photo`, `_attribute`, `_value`, and lists as `<split>_query`, `_candidate`, `_triplets`.

    They repeat the records because they are fast to read: 440,000 triplets take a moment here, and most of a minute there.
    """
    arrays = {}
    for split in SPLITS:
        for name, column in labels_of(raw.photos.get(split, ()))._asdict().items():
            arrays[f'{split}_{name}'] = column
        for name, lists in (('query', raw.queries), ('candidate', raw.candidates), ('triplets', raw.triplets)):
            if len(lists.get(split, ())):
                arrays[f'{split}_{name}'] = np.asarray(lists[split], np.int32)
    with files.write_atomically(path) as file:
        np.savez(file, **arrays)


def _shard(rows: Sequence, start: int, fields: Callable, empty: dict, bar: tqdm) -> Iterator[tuple[int, dict]]:
    for index in range(start, min(start + EXAMPLES_PER_SHARD, len(rows))):
        yield index, {**empty, **fields(index, rows[index])}
        bar.update()
    if bar.n == bar.total:
        bar.close()


def _photo_fields(index: int, photo: Photo) -> dict:
    """The fields of a photo's record. `image` is read later: TFDS holds all examples of a shard in memory."""
    fields = {
        'image': types.SimpleNamespace(read=photo.read),
        'image_id': photo.image_id,
        'index': index,
        'attributes': np.array(photo.attributes, np.int32),
        'values': np.array(photo.values, np.int32),
    }
    if photo.bbox is not None:
        fields['bbox'] = np.array(photo.bbox, np.float32)
    if photo.attribute_boxes is not None:
        fields['attribute_boxes'] = np.array(photo.attribute_boxes, np.float32).reshape(-1, 4)
    return fields


def _list_fields(names: Sequence[str], index: int, row: Int[np.ndarray, ' n']) -> dict:
    del index  # the row's own position; its field `index` is the photo's
    return dict(zip(names, map(int, row), strict=True))


def _has_boxes(raw: RawDataset) -> tuple[bool, bool]:
    """Whether any photo has a box for its garment, and whether any has boxes for its labels."""
    photos = [photo for many in raw.photos.values() for photo in many]
    return any(p.bbox is not None for p in photos), any(p.attribute_boxes is not None for p in photos)
