"""From prepared records to batches: a Grain pipeline whose position is the step alone."""

import functools
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from PIL import Image

from asen_jax.data import images
from asen_jax.data.triplets import Labels, TripletIndex, draw_triplets, make_index
from asen_jax.errors import InputError

READ_THREADS = 2  # batches loaded side by side in one process
READ_AHEAD = 4  # batches; Grain's default of 500 fills the memory


class Records(NamedTuple):
    """A prepared directory: what `data_builders` wrote, opened for reading."""

    directory: str
    dataset: str
    attributes: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]  # value names of each attribute
    splits: Mapping[str, int]  # number of records; a split without records is absent
    dropped: Mapping[str, dict]  # split -> queries and candidates that lost their photo
    caveat: str  # what every figure from these records has to say, or ''
    fingerprint: str  # of what the records were made from


def open_records(directory: str | os.PathLike) -> Records:
    """Open a prepared directory; raises InputError where it is none."""
    directory = os.fspath(directory)
    try:
        builder = tfds.builder_from_directory(directory)
        report = json.loads((Path(directory) / 'prepare.json').read_text())
    except (OSError, ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
        raise InputError(f'{directory} holds no prepared records; run --mode prepare first ({error}).') from error
    metadata = builder.info.metadata
    return Records(
        directory, metadata['dataset'], tuple(metadata['attributes']),
        tuple(tuple(metadata['values'][name]) for name in metadata['attributes']),
        {name: split.num_examples for name, split in builder.info.splits.items()},
        metadata['dropped'], report.get('caveat', ''), report['fingerprint'],
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def open_split(directory: str, split: str):
    """Random access to the records of a split, images as their original bytes."""
    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})


def read_rows(records: Records, split: str) -> Int[np.ndarray, 'rows fields']:
    """A split of lists: (index, attribute, value) of `test_query` and its like, (anchor, positive, negative, attribute)
    of `test_triplets` and its like; no rows where it is absent.
    """
    if split not in records.splits:
        return np.zeros((0, 4 if split.endswith('_triplets') else 3), np.int32)
    return _read_arrays(records.directory, (split,))[0]


def read_labels(records: Records, split: str) -> Labels:
    """Every label of a split, without reading its photos."""
    return Labels(*_read_arrays(records.directory, tuple(f'{split}_{field}' for field in Labels._fields)))


@functools.lru_cache(maxsize=16)  # each evaluation asks for the same lists
def _read_arrays(directory: str, names: tuple[str, ...]) -> list[np.ndarray]:
    path = Path(directory) / 'arrays.npz'
    try:
        with np.load(path) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f'{path} is damaged ({error}); delete {directory} and prepare again.') from error


class LoadOptions(NamedTuple):
    """How a photo of a record becomes pixels; the fields of `config.data`."""

    size: int
    fit: str
    crop_to_bbox: bool

    @classmethod
    def from_config(cls, config) -> 'LoadOptions':
        if config.data.fit not in images.FITS:
            raise InputError(f'config.data.fit is {config.data.fit!r}; it is one of {", ".join(images.FITS)}.')
        return cls(config.data.image_size, config.data.fit, config.data.crop_to_bbox)

    def open(self, record: Mapping) -> images.Opened:
        """The record's photo, decoded, cropped to its garment where asked for."""
        box = record.get('bbox') if self.crop_to_bbox else None
        return images.open_photo(record['image'], None if box is None else tuple(box))

    def fit_square(self, image: Image.Image) -> np.ndarray:
        """The network's square input."""
        return images.fit_square(image, self.size, self.fit)


class TripletSource:
    """The triplets of a whole run by random access: element i is triplet `i % epoch_size` of epoch `i // epoch_size`.

    An epoch's table is drawn at once from (seed, epoch); flips and jitter come from (seed, i). So a run can start at any
    step, with any number of workers, and see the same photos.
    """

    def __init__(self, records: Records, config, epoch_size: int):
        self.directory, self.seed, self.epoch_size = records.directory, config.seed, epoch_size
        self.num_epochs, self.options = config.train.num_epochs, LoadOptions.from_config(config)
        self.flip, self.jitter = config.data.flip, config.data.jitter
        self.strict_negatives = config.data.strict_negatives
        self.label_shape = None  # [attributes, values] where the loss asks for every label of the photos
        if config.train.loss == 'contrastive':
            self.label_shape = len(records.attributes), max(map(len, records.values))
            if not len(read_labels(records, 'train').photo):
                raise InputError(
                    f'{records.directory} has triplets, but no labels, which the contrastive loss compares by; '
                    'set config.train.loss=triplet.'
                )
        self.fixed = self.index = None
        if config.data.triplets == 'fixed':
            self.fixed = read_rows(records, 'train_triplets')
        else:
            self.index = make_train_index(records)

    def __len__(self) -> int:
        return self.epoch_size * self.num_epochs

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one source lives as long as its process
    def table(self, epoch: int) -> Int[np.ndarray, 'triplets 4']:
        """The epoch's triplets: (anchor, positive, negative, attribute)."""
        rng = np.random.default_rng([self.seed, 1, epoch])
        if self.fixed is not None:
            return self.fixed[rng.permutation(len(self.fixed))[: self.epoch_size]]
        return draw_triplets(self.index, self.epoch_size, rng, self.strict_negatives)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(int(i), self.epoch_size)
        *photos, attribute = self.table(epoch)[place].tolist()
        rng = np.random.default_rng([self.seed, 2, int(i)])
        flips = rng.integers(0, 2, len(photos)).astype(bool) & self.flip
        source = open_split(self.directory, 'train')
        taken = [source[photo] for photo in photos]
        cropped = [images.jitter_crop(self.options.open(record).image, rng, self.jitter) for record in taken]
        pixels = np.stack([self.options.fit_square(image) for image in cropped])
        pixels[flips] = pixels[flips, :, ::-1]
        element = {'images': pixels, 'attribute': np.int32(attribute)}
        if self.label_shape is not None:
            element['photo'] = np.array(photos, np.int32)
            element['labels'] = np.zeros((len(photos), *self.label_shape), np.uint8)
            for role, record in enumerate(taken):
                element['labels'][role, record['attributes'], record['values']] = 1
        return element


def make_train_index(records: Records) -> TripletIndex:
    """The index from which training draws its triplets."""
    if 'train' not in records.splits:
        raise InputError(
            f'{records.directory} has no train photos, without which nothing is learned; prepare.json there says what was read and left out.'
        )
    labels = read_labels(records, 'train')
    if not len(labels.photo):
        raise InputError(
            f'{records.directory} has triplets, but no labels to draw others from; set config.data.triplets=fixed.'
        )
    return make_index(labels)


def steps_per_epoch(records: Records, config) -> int:
    """Whole batches of an epoch; the last incomplete one is left out, so that a batch never spans two epochs."""
    num_triplets = config.data.num_triplets
    if config.data.triplets == 'fixed' and config.data.strict_negatives:
        raise InputError('config.data.strict_negatives needs fresh triplets; a fixed list is taken as it is.')
    if config.data.triplets == 'fixed':
        num_triplets = min(num_triplets, records.splits.get('train_triplets', 0))
    elif config.data.triplets != 'fresh':
        raise InputError(f'config.data.triplets is {config.data.triplets!r}; it is fresh or fixed.')
    if num_triplets < config.train.batch_size:
        raise InputError(
            f'An epoch has {num_triplets} triplets, fewer than config.train.batch_size ({config.train.batch_size}); '
            'raise config.data.num_triplets or lower the batch size.'
        )
    return num_triplets // config.train.batch_size


def train_batches(records: Records, config, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches `images` uint8 [B, 3, size, size, 3] and `attribute` int32 [B] from `start_step` to the last epoch's end.

    With the contrastive loss also `photo` int32 [B, 3], the record's position, and `labels` uint8 [B, 3, attributes, values],
    1 where the photo has the value.
    """
    batch_size = config.train.batch_size
    source = TripletSource(records, config, steps_per_epoch(records, config) * batch_size)
    dataset = grain.MapDataset.source(source).batch(batch_size, drop_remainder=True)[start_step:]
    return _iterate(dataset, config.data.num_workers)


class EvalSource:
    """Photos of a split for evaluation, padded to whole batches: element i of `indices`, or a masked repeat of the last."""

    def __init__(self, records: Records, split: str, indices: Int[np.ndarray, ' photos'], config):
        self.directory, self.split, self.indices = records.directory, split, np.asarray(indices)
        self.options, self.num_attributes = LoadOptions.from_config(config), len(records.attributes)
        self.batch_size = config.eval.batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size) * self.batch_size

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        index = int(self.indices[min(int(i), len(self.indices) - 1)])
        record = open_split(self.directory, self.split)[index]
        opened = self.options.open(record)
        element = {
            'image': self.options.fit_square(opened.image), 'index': np.int32(index),
            'mask': np.bool_(i < len(self.indices)),
        }  # fmt: skip
        if 'attribute_boxes' in record:
            boxes = np.full((self.num_attributes, 4), np.nan, np.float32)  # where each labeled attribute shows
            for attribute, box in zip(record['attributes'], record['attribute_boxes'], strict=True):
                boxes[attribute] = images.box_to_square(tuple(box), opened, self.options.size, self.options.fit)
            element['boxes'] = boxes
        return element


def eval_batches(
    records: Records, split: str, indices: Int[np.ndarray, ' photos'], config
) -> Iterator[dict[str, np.ndarray]]:
    """Batches `image` uint8 [N, size, size, 3], `index`, `mask` (and `boxes`) over the photos `indices` of `split`."""
    dataset = grain.MapDataset.source(EvalSource(records, split, indices, config)).batch(config.eval.batch_size)
    return _iterate(dataset, config.data.num_workers)


def _iterate(dataset: grain.MapDataset, num_workers: int) -> Iterator[dict[str, np.ndarray]]:
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD))
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_die_with_parent)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _die_with_parent(worker_index: int, worker_count: int) -> None:
    """Workers of a killed trainer would live on for ever and hold shared memory."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
