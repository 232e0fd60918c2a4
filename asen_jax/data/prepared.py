"""Prepared records: open what `data_builders` wrote, and read its labels, lists and photos."""

import functools
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from asen_jax.data import images
from asen_jax.data.triplets import Labels
from asen_jax.errors import InputError

NUM_MEASURED = 500  # photos whose size decides the size of the input
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


def open_records(directory: str | os.PathLike) -> Records:
    """Open a prepared directory; raises InputError if it holds no records."""
    directory = str(Path(directory))
    try:
        builder = tfds.builder_from_directory(directory)
        report = json.loads((Path(directory) / 'prepare.json').read_text())
    except (OSError, ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
        raise InputError(f'{directory} holds no prepared records; run --mode prepare first ({error}).') from error
    metadata = builder.info.metadata
    return Records(
        directory=directory,
        dataset=metadata['dataset'],
        attributes=tuple(metadata['attributes']),
        values=tuple(tuple(metadata['values'][name]) for name in metadata['attributes']),
        splits={name: split.num_examples for name, split in builder.info.splits.items()},
        dropped=metadata['dropped'],
        caveat=report.get('caveat', ''),
        fingerprint=report['fingerprint'],
    )


def has_targets(records: Records, split: str) -> bool:
    """Whether the split can be scored: it has queries with candidates, or triplets."""
    lists = f'{split}_query' in records.splits and f'{split}_candidate' in records.splits
    return lists or f'{split}_triplets' in records.splits


@functools.lru_cache(maxsize=16)
def open_split(directory: str, split: str) -> Any:
    """Random access to the records of a split (a TFDS data source), with images as their original bytes."""
    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})


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
    try:
        with np.load(path) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f'{path} is damaged ({error}); delete {directory} and prepare again.') from error


class LoadOptions(NamedTuple):
    """How a photo becomes the network's square input; fields of `config.data`."""

    size: int
    fit: str
    crop_to_bbox: bool

    @classmethod
    def from_config(cls, config: ConfigDict) -> 'LoadOptions':
        """Raises InputError if `config.data.fit` is unknown."""
        if config.data.fit not in images.FITS:
            raise InputError(f'config.data.fit is {config.data.fit!r}; it must be one of {", ".join(images.FITS)}.')
        return cls(config.data.image_size, config.data.fit, config.data.crop_to_bbox)

    def open(self, record: Mapping[str, Any]) -> images.Opened:
        """The record's photo, decoded; with `crop_to_bbox`, also cropped to its garment's box."""
        box = record.get('bbox') if self.crop_to_bbox else None
        return images.open_photo(record['image'], None if box is None else tuple(box))

    def fit_square(self, image: Image.Image) -> UInt8[np.ndarray, 'size size 3']:
        """The square input from a photo that is already decoded and cropped."""
        return images.fit_square(image, self.size, self.fit)


def choose_image_size(records: Records, crop_to_bbox: bool) -> int:
    """A side of the network's input for the train photos: twice the median of their longer sides, in steps of 32.

    Networks find more in photos that are enlarged. It is at least MIN_CHOSEN_SIZE, five positions of a trunk of stride 32, and
    at most MAX_CHOSEN_SIZE, since larger photos take long without a GPU.
    """
    photos = open_split(records.directory, 'train')
    places = np.linspace(0, len(photos) - 1, min(len(photos), NUM_MEASURED)).astype(int)
    sides = [_longer_side(photos[place], crop_to_bbox) for place in places.tolist()]
    size = SIZE_STEP * round(2 * float(np.median(sides)) / SIZE_STEP)
    return min(max(size, MIN_CHOSEN_SIZE), MAX_CHOSEN_SIZE)


def _longer_side(record: Mapping[str, Any], crop_to_bbox: bool) -> float:
    if crop_to_bbox and record.get('bbox') is not None:
        left, top, right, bottom = record['bbox']
        return float(max(right - left, bottom - top))
    return float(max(images.read_size(record['image'])))
