"""From prepared records to batches of pixels: a Grain pipeline whose position is the step alone."""

import functools
from collections.abc import Generator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.data import images
from asen_jax.data.cache import CachedPhotos, open_cache
from asen_jax.data.prepared import LoadOptions, Records, read_labels, read_record, read_rows
from asen_jax.data.triplets import Labels, TripletIndex, draw_triplets, make_index
from asen_jax.data.workers import map_in_processes
from asen_jax.errors import InputError
from asen_jax.signals import StopRequest

READ_THREADS = 2  # batches loaded at the same time in one process
READ_AHEAD = 4  # batches; Grain's default of 500 fills up the memory

Element = dict[str, Any]  # arrays and NumPy scalars


class PhotoLabels:
    """Every label of the train photos, by photo."""

    def __init__(self, records: Records):
        """Raises InputError if the records have no labels."""
        labels = _train_labels(records, 'which config.train.loss needs; set config.train.loss=triplet.')
        order = np.argsort(labels.photo, kind='stable')
        self.photo, self.attribute, self.value = (part[order] for part in labels)
        self.shape = len(records.attributes), max(map(len, records.values))

    def of(self, photos: Sequence[int]) -> UInt8[np.ndarray, 'photos attributes values']:
        """1 where a photo has a value of an attribute."""
        table = np.zeros((len(photos), *self.shape), np.uint8)
        for row, photo in zip(table, photos, strict=True):
            start, end = np.searchsorted(self.photo, [photo, photo + 1])
            row[self.attribute[start:end], self.value[start:end]] = 1
        return table


class Photos:
    """The photos of a split, each decoded and fitted when it is read."""

    def __init__(self, records: Records, split: str, config: ConfigDict):
        self.directory, self.split, self.count = records.directory, split, records.splits[split]
        self.options, self.num_attributes = LoadOptions.from_config(config), len(records.attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Element:
        record = read_record(self.directory, self.split, index)
        opened = self.options.open(record)
        element: Element = {'image': self.options.fit_square(opened.image)}
        if 'attribute_boxes' in record:
            boxes = np.full((self.num_attributes, 4), np.nan, np.float32)  # where each labeled attribute is visible
            for attribute, box in zip(record['attributes'], record['attribute_boxes'], strict=True):
                boxes[attribute] = images.box_to_square(tuple(box), opened, self.options.size, self.options.fit)
            element['boxes'] = boxes
        return element

    def read_jittered(self, photo: int, rng: np.random.Generator, jitter: float) -> UInt8[np.ndarray, 'size size 3']:
        """A photo of which `jitter_crop` has first kept a random part."""
        image = self.options.open(read_record(self.directory, self.split, photo)).image
        return self.options.fit_square(images.jitter_crop(image, rng, jitter))


def open_photos(
    records: Records, split: str, config: ConfigDict, stop: StopRequest | None = None
) -> Photos | CachedPhotos:
    """The photos of a split; with `data.cache`, from its cache, which is filled first unless it exists."""
    photos = Photos(records, split, config)
    if config.data.cache == 'none':
        return photos
    dataset = grain.MapDataset.source(photos).batch(config.eval.batch_size)
    return open_cache(records, split, photos.options, load_batches(dataset, photos, config), stop)


class TripletSource:
    """The triplets of a whole run: element i is triplet `i % epoch_size` of epoch `i // epoch_size`.

    An epoch's table is drawn at once from (seed, epoch), flips and jitter from (seed, i). So a run sees the same photos
    whichever step it starts from and however many workers load them. With `features` [photos, 2, ...], which a frozen trunk
    computed for each photo and its mirror image, no photo is read, nor with `data.cache=device`. The source has only those
    `rows` of each batch that this process needs. Raises InputError if `with_labels` and the records have none.
    """

    def __init__(
        self,
        records: Records,
        config: ConfigDict,
        rows: range,
        features: np.ndarray | None = None,
        with_labels: bool = False,
    ):
        self.features, self.rows, self.batch_size = features, rows, config.train.batch_size
        epoch_size = steps_per_epoch(records, config) * self.batch_size
        self.seed, self.epoch_size, self.num_epochs = config.seed, epoch_size, config.train.num_epochs
        self.flip, self.jitter = config.data.flip, config.data.jitter
        self.on_device = config.data.cache == 'device'
        self.strict_negatives = config.data.strict_negatives
        self.labels = PhotoLabels(records) if with_labels else None
        fixed = config.data.triplets == 'fixed'
        self.triplets = read_rows(records, 'train_triplets') if fixed else make_train_index(records)
        self.photos = None if self.on_device or features is not None else open_photos(records, 'train', config)

    def __len__(self) -> int:
        return self.epoch_size * self.num_epochs // self.batch_size * len(self.rows)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a source lives as long as its process
    def table(self, epoch: int) -> Int[np.ndarray, 'triplets 4']:
        """The epoch's triplets: (anchor, positive, negative, attribute)."""
        rng = np.random.default_rng([self.seed, 1, epoch])
        if isinstance(self.triplets, TripletIndex):
            return draw_triplets(self.triplets, self.epoch_size, rng, self.strict_negatives)
        return self.triplets[rng.permutation(len(self.triplets))[: self.epoch_size]]

    def __getitem__(self, index: int) -> Element:
        step, row = divmod(index, len(self.rows))
        index = step * self.batch_size + self.rows[row]  # in the batches of all processes
        epoch, place = divmod(index, self.epoch_size)
        *photos, attribute = self.table(epoch)[place].tolist()
        rng = np.random.default_rng([self.seed, 2, index])
        flips = rng.integers(0, 2, len(photos)).astype(bool) & self.flip
        element: Element = {'attribute': np.int32(attribute)}
        if self.features is not None:
            element['features'] = self.features[photos, flips.astype(int)]
        else:
            element['flip'] = flips
        if isinstance(self.photos, CachedPhotos):
            element['images'] = self.photos.images[photos]
        elif self.photos is not None:
            element['images'] = np.stack([self.photos.read_jittered(photo, rng, self.jitter) for photo in photos])
        if self.labels is not None or self.on_device:
            element['photo'] = np.array(photos, np.int32)
        if self.labels is not None:
            element['labels'] = self.labels.of(photos)
        return element


def make_train_index(records: Records) -> TripletIndex:
    """The index from which training draws its triplets; raises InputError if the train photos have no labels."""
    return make_index(_train_labels(records, 'from which new triplets are drawn; set config.data.triplets=fixed.'))


def _train_labels(records: Records, need: str) -> Labels:
    labels = read_labels(records, 'train')
    if not len(labels.photo):
        raise InputError(f'{records.directory} has triplets but no labels, {need}')
    return labels


def check_triplets(config: ConfigDict) -> None:
    """Raise InputError if `config` asks for triplets that no data can give."""
    if config.data.triplets == 'fixed' and config.data.strict_negatives:
        raise InputError('config.data.strict_negatives needs data.triplets=fresh; a fixed list is used as it is.')
    _count_steps(config.data.num_triplets, config)


def steps_per_epoch(records: Records, config: ConfigDict) -> int:
    """Full batches in an epoch; the last incomplete one is dropped, so that no batch spans two epochs.

    Raises InputError if there are no train photos, or fewer triplets than a batch has.
    """
    if 'train' not in records.splits:
        raise InputError(
            f'{records.directory} has no train photos; prepare.json there says which photos were read and which were skipped.'
        )
    num_triplets = config.data.num_triplets
    if config.data.triplets == 'fixed':
        num_triplets = min(num_triplets, records.splits.get('train_triplets', 0))
    return _count_steps(num_triplets, config)


def _count_steps(num_triplets: int, config: ConfigDict) -> int:
    if num_triplets < config.train.batch_size:
        raise InputError(
            f'An epoch has {num_triplets} triplets, fewer than config.train.batch_size ({config.train.batch_size}); '
            'raise config.data.num_triplets or lower the batch size.'
        )
    return num_triplets // config.train.batch_size


def train_batches(
    records: Records,
    config: ConfigDict,
    start_step: int = 0,
    features: np.ndarray | None = None,
    with_labels: bool = False,
) -> Generator[dict[str, np.ndarray]]:
    """Batches of triplets from `start_step` to the end of the last epoch.

    They have `attribute` int32 [B], `images` uint8 [B, 3, size, size, 3], and `flip` bool [B, 3], which says what the step mirrors.

    - With `features` of the photos and their mirror images, [photos, 2, h, w, c], they have `features` [B, 3, h, w, c] instead of
      `images` and `flip`.
    - With `data.cache=device`, they have `photo` int32 [B, 3], the position of the record, instead of `images`.
    - `with_labels`, they also have `photo`, and `labels` uint8 [B, 3, attributes, values], 1 where the photo has the value.

    With several processes, each gets its own rows of every batch.
    """
    rows = sharding.local_rows(config.train.batch_size)
    source = TripletSource(records, config, rows, features, with_labels)
    dataset = grain.MapDataset.source(source).batch(len(rows), drop_remainder=True)[start_step:]
    return load_batches(dataset, source.photos, config)


def eval_batch_size(records: Records, split: str, config: ConfigDict) -> int:
    """`eval.batch_size`, or less for a split of few photos: a power of two, which devices can still share evenly."""
    enough = max(64, 1 << (records.splits.get(split, 1) - 1).bit_length())
    return min(config.eval.batch_size, enough)


class EvalSource:
    """The photos `indices` of a split, for evaluation; masked repeats of the last one fill up the last batch.

    With several processes, each loads only its own rows of every batch; the others are black.
    """

    def __init__(self, records: Records, split: str, indices: Int[np.ndarray, ' photos'], config: ConfigDict):
        self.photos, self.indices = open_photos(records, split, config), np.asarray(indices)
        self.batch_size = eval_batch_size(records, split, config)
        self.rows = sharding.local_rows(self.batch_size)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size) * self.batch_size

    def __getitem__(self, index: int) -> Element:
        photo = int(self.indices[min(index, len(self.indices) - 1)])
        about = {'index': np.int32(photo), 'mask': np.bool_(index < len(self.indices))}
        return about | (self.photos[photo] if index % self.batch_size in self.rows else self._blank)

    @functools.cached_property
    def _blank(self) -> Element:
        """What stands for a photo that another process loads."""
        like = self.photos[int(self.indices[0])]
        return {name: np.full_like(part, np.nan if name == 'boxes' else 0) for name, part in like.items()}


def eval_batches(
    records: Records, split: str, indices: Int[np.ndarray, ' photos'], config: ConfigDict
) -> Generator[dict[str, np.ndarray]]:
    """Batches `image` uint8 [N, size, size, 3], `index`, `mask` (and `boxes` where there are any) of the photos `indices`."""
    source = EvalSource(records, split, indices, config)
    dataset = grain.MapDataset.source(source).batch(source.batch_size)
    return load_batches(dataset, source.photos, config)


def load_batches(
    dataset: grain.MapDataset, photos: Photos | CachedPhotos | None, config: ConfigDict
) -> Generator[dict[str, np.ndarray]]:
    """The batches of a dataset of `photos`, loaded ahead by `data.num_workers` processes or, with 0, by threads of this one.

    Without photos to decode, also by threads: arrays in memory or mapped are read faster than a process could hand them over.
    """
    if config.data.num_workers and isinstance(photos, Photos):
        yield from map_in_processes(dataset.__getitem__, len(dataset), config.data.num_workers)
        return
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
