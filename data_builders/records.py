"""What every builder shares: photos and lists as read from a source, and the records that they become."""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from tqdm import tqdm

from asen_jax.data.triplets import Labels, draw_triplets, make_index
from asen_jax.errors import InputError

FORMAT = 3  # of the records; part of the fingerprint, so that a change of it prepares anew
SPLITS = ('train', 'valid', 'test')
EXAMPLES_PER_SHARD = 2000
TRIPLETS_SEED = 20200207  # of the builder's own triplets; config.seed must not change records
MAX_TRIPLETS = {'train': 100_000, 'valid': 10_000, 'test': 10_000}
TRIPLETS_PER_LABEL = 10
NO_ENTRIES = types.MappingProxyType({})


class Photo(NamedTuple):
    """One photo of a source, not yet read; boxes are left, top, right, bottom in pixels, 0-based, half-open."""

    image_id: str  # its path in the source
    read: Callable[[], bytes]  # the original encoded bytes
    attributes: tuple[int, ...]
    values: tuple[int, ...]  # as long as attributes: one label each
    bbox: tuple[float, float, float, float] | None = None
    attribute_boxes: Sequence[tuple[float, float, float, float]] | None = None  # one a label
    path: Path | None = None  # where it lies, if in a file: absent photos are then counted before any is decoded
    where: str = ''  # the file and line that list it, for errors


class RawDataset(NamedTuple):
    """A source as a builder reads it, and what becomes of it on the way to records."""

    dataset: str  # the builder's name
    attributes: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]  # value names of each attribute
    photos: Mapping[str, list[Photo]]  # by split
    queries: Mapping[str, Int[np.ndarray, 'n 3']] = NO_ENTRIES  # valid, test: index, attribute, value
    candidates: Mapping[str, Int[np.ndarray, 'n 3']] = NO_ENTRIES
    triplets: Mapping[str, Int[np.ndarray, 'n 4']] = NO_ENTRIES  # published: anchor, positive, negative, attribute
    notes: tuple[str, ...] = ()  # lines for a person
    skipped: tuple[dict, ...] = ()  # {'image_id', 'why', 'path'} of photos left out
    caveat: str = ''  # what every figure from these records has to say of them
    dropped: Mapping[str, dict] = NO_ENTRIES  # {split: {'queries', 'candidates'}}: entries that went with those photos


def keep_photos(raw: RawDataset, keep: Mapping[str, Sequence[bool]]) -> RawDataset:
    """Leave out photos, and renumber the lists that point at them; entries that pointed at one go too."""
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
        photos=photos, queries=remap(raw.queries, [0]), candidates=remap(raw.candidates, [0]),
        triplets=remap(raw.triplets, [0, 1, 2]),
    )  # fmt: skip


def choose_attributes(raw: RawDataset, chosen: Sequence[str]) -> RawDataset:
    """Only the `chosen` attributes, renumbered, and the photos with a label of one: others need not even be there."""
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
        attributes=tuple(chosen), values={name: raw.values[name] for name in chosen},
        photos={split: [narrow(photo) for photo in photos] for split, photos in raw.photos.items()},
        queries=renumber(raw.queries, 1), candidates=renumber(raw.candidates, 1), triplets=renumber(raw.triplets, 3),
    )  # fmt: skip
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
    """Draw each split's triplets with a fixed seed where the source publishes none; a split may allow none."""
    triplets, notes = {split: rows for split, rows in raw.triplets.items() if len(rows)}, list(raw.notes)
    for number, split in enumerate(SPLITS):
        labels = labels_of(raw.photos.get(split, ()))
        if split in triplets or not len(labels.photo):
            continue
        try:
            index = make_index(labels)
        except InputError as error:  # not the user's mistake here: a small split simply has no triplets
            notes.append(f'{split}: {error}')
            continue
        total = min(MAX_TRIPLETS[split], TRIPLETS_PER_LABEL * len(labels.photo))
        triplets[split] = draw_triplets(index, total, np.random.default_rng([TRIPLETS_SEED, number]))
        if index.left_out:
            names = [f'{raw.attributes[a]}={raw.values[raw.attributes[a]][v]} ({n})' for a, v, n in index.left_out]
            more = ', ...' if len(names) > 8 else ''
            notes.append(
                f'{split}: {len(names)} values give no triplets, with one photo or nothing to contrast to (photos): '
                + ', '.join(names[:8]) + more
            )  # fmt: skip
    return raw._replace(triplets=triplets, notes=tuple(notes))


class RecordsBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the records of a source that was read and checked; each data set's `Builder` is this one with its version.

    `data_builders.prepare` is the way to call it.
    """

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, raw: RawDataset, **kwargs):
        self._raw = raw  # before TFDS's own constructor, which asks for _info
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return builder_info(self, self._raw)

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, list[Callable[[], Iterator]]]:
        return shard_iterators(self._raw)


def builder_info(builder: tfds.core.DatasetBuilder, raw: RawDataset) -> tfds.core.DatasetInfo:
    """The records' features, and the names that make their numbers readable, as metadata.

    TFDS has one set of features for all splits of a builder, and no optional one. So every record has all fields, and
    those of another kind are empty: b'' and '', no labels, -1, zeros. Boxes exist only where the source has them.
    Read with `decoders={'image': tfds.decode.SkipDecoding()}`: the lists' b'' is no picture.
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
    """For each split that has records the generators of its shards; photos are read one by one, as they are written."""
    empty = {'image': b'', 'image_id': '', 'attributes': np.zeros(0, np.int32), 'values': np.zeros(0, np.int32)}
    empty |= dict.fromkeys(('index', 'attribute', 'value', 'anchor', 'positive', 'negative'), -1)
    boxes, attribute_boxes = _has_boxes(raw)
    if boxes:
        empty['bbox'] = np.zeros(4, np.float32)
    if attribute_boxes:
        empty['attribute_boxes'] = np.zeros((0, 4), np.float32)

    splits = {split: (raw.photos.get(split, ()), _photo_fields) for split in SPLITS}
    for split in SPLITS:
        splits[f'{split}_query'] = raw.queries.get(split, ()), partial(_list_fields, ('index', 'attribute', 'value'))
        splits[f'{split}_candidate'] = raw.candidates.get(split, ()), splits[f'{split}_query'][1]
        roles = ('anchor', 'positive', 'negative', 'attribute')
        splits[f'{split}_triplets'] = raw.triplets.get(split, ()), partial(_list_fields, roles)
    total = sum(len(rows) for rows, _ in splits.values())
    bar = tqdm(total=total, desc='Writing', unit='record', disable=None)
    return {
        split: [partial(_shard, rows, start, fields, empty, bar) for start in range(0, len(rows), EXAMPLES_PER_SHARD)]
        for split, (rows, fields) in splits.items()
        if len(rows)  # TFDS prepares an empty split, but cannot read it
    }


def write_arrays(raw: RawDataset, path: Path) -> None:
    """All labels as `<split>_photo`, `_attribute`, `_value`, and the lists as `<split>_query`, `_candidate`, `_triplets`.

    The same as in the records: 440,000 triplets are read from here in a moment, one by one in most of a minute.
    """
    arrays = {}
    for split in SPLITS:
        for name, column in labels_of(raw.photos.get(split, ()))._asdict().items():
            arrays[f'{split}_{name}'] = column
        for name, lists in (('query', raw.queries), ('candidate', raw.candidates), ('triplets', raw.triplets)):
            if len(lists.get(split, ())):
                arrays[f'{split}_{name}'] = np.asarray(lists[split], np.int32)
    np.savez(path, **arrays)


def _shard(rows: Sequence, start: int, fields: Callable, empty: dict, bar: tqdm) -> Iterator[tuple[int, dict]]:
    for index in range(start, min(start + EXAMPLES_PER_SHARD, len(rows))):
        yield index, {**empty, **fields(index, rows[index])}
        bar.update()
    if bar.n == bar.total:
        bar.close()


def _photo_fields(index: int, photo: Photo) -> dict:
    """The fields of a photo's record; `image` is an object to read from: TFDS holds a shard's examples together."""
    fields = {
        'image': types.SimpleNamespace(read=photo.read), 'image_id': photo.image_id, 'index': index,
        'attributes': np.array(photo.attributes, np.int32), 'values': np.array(photo.values, np.int32),
    }  # fmt: skip
    if photo.bbox is not None:
        fields['bbox'] = np.array(photo.bbox, np.float32)
    if photo.attribute_boxes is not None:
        fields['attribute_boxes'] = np.array(photo.attribute_boxes, np.float32).reshape(-1, 4)
    return fields


def _list_fields(names: Sequence[str], index: int, row: Int[np.ndarray, ' n']) -> dict:
    del index  # a list's own position; its `index` is the photo's
    return dict(zip(names, map(int, row), strict=True))


def _has_boxes(raw: RawDataset) -> tuple[bool, bool]:
    photos = [photo for many in raw.photos.values() for photo in many]
    return any(p.bbox is not None for p in photos), any(p.attribute_boxes is not None for p in photos)
