"""Prepared records: open what `data_builders` wrote, and read its labels, lists and photos."""

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from asen_jax import files
from asen_jax.data import images
from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError

NUM_MEASURED = 500  # photos whose size decides the size of the input
REPORT = 'prepare.json'
AS_BYTES: Any = {'image': tfds.decode.SkipDecoding()}
READING = '.reading'  # the lock, beside the records, of all who read them
FOOTER_BYTES = 2**18  # at the end of a file of records; more than its list of where each record lies
PHOTO_FIELDS = ('image', 'bbox', 'attributes', 'attribute_boxes')  # parsing all fields takes three times as long
SIZE_STEP, MIN_CHOSEN_SIZE, MAX_CHOSEN_SIZE = 32, 160, 288


class Records(NamedTuple):
    """A prepared directory, opened for reading."""

    directory: str
    dataset: str
    attributes: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]  # value names of each attribute
    splits: Mapping[str, int]  # number of records; a split without records is absent
    dropped: Mapping[str, dict]  # split -> queries and candidates that lost their photo
    caveat: str  # a remark that every figure from these records must carry, or ''
    fingerprint: str  # of everything the records were made from


@contextlib.contextmanager
def read_records(directory: str | os.PathLike) -> Iterator[Records]:
    """Open a prepared directory, and keep other processes from replacing its records until the context ends."""
    busy = f'Another process is replacing {directory}; waiting for it.'
    with files.lock(Path(directory).parent / READING, busy, wait=True, shared=True):
        yield open_records(directory)


def open_records(directory: str | os.PathLike) -> Records:
    """Open a prepared directory; raises InputError if it holds no records, or if anything but the photos is damaged."""
    directory = str(Path(directory))
    if not (Path(directory) / REPORT).is_file():
        raise InputError(f'{directory} holds no prepared records; run --mode prepare first.')
    with _damage_names(directory, directory):
        report = _check_files(Path(directory))
        builder = tfds.builder_from_directory(directory)
        metadata = builder.info.metadata
        records = Records(
            directory=directory,
            dataset=metadata['dataset'],
            attributes=tuple(metadata['attributes']),
            values=tuple(tuple(metadata['values'][name]) for name in metadata['attributes']),
            splits={name: split.num_examples for name, split in builder.info.splits.items()},
            dropped=metadata['dropped'],
            caveat=report['caveat'],
            fingerprint=report['fingerprint'],
        )
    _open_photos.cache_clear()  # other records may have been there before
    _read_arrays.cache_clear()
    return records


def _check_files(directory: Path) -> dict:
    """prepare.json; raises ValueError if it or a file that it lists is damaged."""
    try:
        report = json.loads((directory / REPORT).read_bytes())
    except ValueError:
        report = {}
    if report.get('checksum') != checksum_of_report(report):
        raise ValueError(REPORT)
    for name, expected in report['checksums'].items():
        if not (directory / name).is_file():
            raise ValueError(f'{name} is missing')
        if checksum(directory / name) != expected:
            raise ValueError(name)
    return report


def checksum(path: Path) -> str:
    """Size and SHA-256 of a file in a prepared directory; of one with records, only of its end, which says where each record lies.

    So opening does not read all photos. Each record carries a checksum of its own, which is verified when it is read.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        if '.array_record-' in path.name:
            file.seek(max(0, size - FOOTER_BYTES))
        return f'{size}-{hashlib.file_digest(file, "sha256").hexdigest()}'


def checksum_of_report(report: Mapping[str, Any]) -> str:
    """The SHA-256 of the content of prepare.json, without its field `checksum`."""
    return files.sha256_of_json({name: value for name, value in report.items() if name != 'checksum'})


def check_unchanged(records: Records) -> None:
    """Raise InputError if the records were replaced since they were opened, which a lock cannot prevent on every file system."""
    try:
        fingerprint = json.loads((Path(records.directory) / REPORT).read_bytes())['fingerprint']
    except (FileNotFoundError, ValueError, KeyError):
        fingerprint = None
    if fingerprint != records.fingerprint:
        raise InputError(f'{records.directory} was replaced while it was being read; run the same command again.')


@contextlib.contextmanager
def _damage_names(path: str, directory: str) -> Iterator[None]:
    """Turn whatever the libraries raise on a damaged or missing file into one sentence that names `path` and the remedy.

    Other OSErrors pass: missing permissions or too many open files are not damage.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError):
            raise
        reason = re.split(r' \(|[;,\n]', str(error))[0] or 'it cannot be read'  # without positions and hashes
        raise InputError(f'{path} is damaged ({reason}); delete {directory} and run the same command again.') from error


def has_targets(records: Records, split: str) -> bool:
    """Whether the split can be scored: it has queries with candidates, or triplets."""
    lists = f'{split}_query' in records.splits and f'{split}_candidate' in records.splits
    return lists or f'{split}_triplets' in records.splits


def read_record(directory: str, split: str, index: int) -> Mapping[str, Any]:
    """A photo's record, with those of PHOTO_FIELDS that it has and the image as its original bytes.

    Raises InputError if the record's file is damaged.
    """
    source, features = _open_photos(directory, split)
    try:
        record: Any = features.deserialize_example_np(source[index], decoders=AS_BYTES)
        return record
    except Exception:
        shards = source.dataset_info.splits[split]
        path = str(shards.filepaths[np.searchsorted(np.cumsum(shards.shard_lengths), index, side='right')])
        with _damage_names(path, directory):
            with contextlib.suppress(FileNotFoundError):  # array_record raises RuntimeError, whatever is wrong
                Path(path).open('rb').close()
            raise


@functools.lru_cache(maxsize=16)
def _open_photos(directory: str, split: str) -> tuple[Any, tfds.features.FeaturesDict]:
    """The records of a split as they were serialized, and what parses their PHOTO_FIELDS."""
    with _damage_names(directory, directory):
        builder = tfds.builder_from_directory(directory)
        source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    known = builder.info.features
    return source, tfds.features.FeaturesDict({name: known[name] for name in PHOTO_FIELDS if name in known})


def read_rows(records: Records, split: str) -> Int[np.ndarray, 'rows fields']:
    """The rows of a list; empty if the list is absent.

    `<split>_query` and `<split>_candidate` have (index, attribute, value), `<split>_triplets` (anchor, positive, negative,
    attribute).
    """
    if split not in records.splits:
        return np.zeros((0, 4 if split.endswith('_triplets') else 3), np.int32)
    return _read_arrays(records.directory, (split,))[0]


def read_labels(records: Records, split: str) -> Labels:
    """Every label of a split, without reading its photos."""
    return Labels(*_read_arrays(records.directory, tuple(f'{split}_{field}' for field in Labels._fields)))


@functools.lru_cache(maxsize=16)  # each evaluation reads the same lists
def _read_arrays(directory: str, names: tuple[str, ...]) -> list[np.ndarray]:
    path = Path(directory) / 'arrays.npz'
    with _damage_names(str(path), directory), path.open('rb') as file, np.load(file) as arrays:
        return [arrays[name] for name in names]


class LoadOptions(NamedTuple):
    """How a photo becomes the network's square input; fields of `config.data`."""

    size: int
    fit: str
    crop_to_bbox: bool

    @classmethod
    def from_config(cls, config: ConfigDict) -> 'LoadOptions':
        """The options that `config` has."""
        return cls(config.data.image_size, config.data.fit, config.data.crop_to_bbox)

    def open(self, record: Mapping[str, Any]) -> images.Opened:
        """The record's photo, decoded; with `crop_to_bbox`, also cropped to its garment's box."""
        box = record.get('bbox') if self.crop_to_bbox else None
        return images.crop_to_box(images.decode(record['image']), None if box is None else tuple(box))

    def read_square(self, records: Records, split: str, index: int) -> UInt8[np.ndarray, 'size size 3']:
        """The square input from a photo in `records`."""
        return self.fit_square(self.open(read_record(records.directory, split, index)).image)

    def fit_square(self, image: Image.Image) -> UInt8[np.ndarray, 'size size 3']:
        """The square input from a photo that is already decoded and cropped."""
        return images.fit_square(image, self.size, self.fit)


def choose_image_size(records: Records, crop_to_bbox: bool) -> int:
    """A side of the network's input for the train photos: twice the median of their longer sides, in steps of 32.

    Networks find more in photos that are enlarged. It is at least MIN_CHOSEN_SIZE, five positions of a trunk of stride 32, and
    at most MAX_CHOSEN_SIZE, since larger photos take long without a GPU.
    """
    count, sides = records.splits['train'], []
    for place in np.linspace(0, count - 1, min(count, NUM_MEASURED)).astype(int).tolist():
        record = read_record(records.directory, 'train', place)
        if crop_to_bbox and 'bbox' in record:
            left, top, right, bottom = record['bbox']
            sides.append(max(right - left, bottom - top))
        else:
            sides.append(max(images.read_size(record['image'])))
    size = SIZE_STEP * round(2 * float(np.median(sides)) / SIZE_STEP)
    return min(max(size, MIN_CHOSEN_SIZE), MAX_CHOSEN_SIZE)
