"""The fitted photos of a split, decoded once and kept beside the records, or also on the accelerators."""

import contextlib
import math
import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from asen_jax import files, processes, sharding
from asen_jax.data.prepared import LoadOptions, Records
from asen_jax.errors import InputError, StoppedError
from asen_jax.signals import StopRequest, stopped

FORMAT = 1  # to be raised when the same photos get other pixels or boxes
FOLDER = 'cache'  # in the directory of the records, with which it is deleted
KEY_DIGITS = 16
STOPPED = 'while photos were being cached; run the same command again to continue.'
FREE_SHARE = 0.75  # of a device's memory; the rest is left for the step


class CachedPhotos:
    """The fitted photos of a split, and the boxes of their attributes if the records have any; both are memory-mapped."""

    def __init__(self, path: Path):
        """Raises InputError if a file is damaged."""
        self.images: UInt8[np.ndarray, 'photos size size 3']
        self.boxes: Float[np.ndarray, 'photos attributes 4'] | None = None
        try:
            self.images = np.load(path, mmap_mode='r')
            if _boxes_path(path).exists():
                self.boxes = np.load(_boxes_path(path), mmap_mode='r')
        except (ValueError, EOFError) as error:
            raise InputError(f'{path} is damaged; delete {path.parent} and run the same command again.') from error

    def __getitem__(self, photo: int) -> dict[str, np.ndarray]:
        """`image`, and `boxes` if there are any."""
        element = {'image': self.images[photo]}
        return element if self.boxes is None else element | {'boxes': self.boxes[photo]}


def open_cache(
    records: Records,
    split: str,
    options: LoadOptions,
    batches: Generator[dict[str, np.ndarray]],
    stop: StopRequest | None = None,
) -> CachedPhotos:
    """The cache of a split, filled first from `batches` of its photos unless it exists; other processes wait meanwhile.

    Raises InputError if it cannot be written, and StoppedError after a signal that `stop` received.
    """
    path = cache_path(records, split, options)
    if processes.is_writer() and not path.exists():
        try:
            path.parent.mkdir(exist_ok=True)
            busy = f'Another process is filling {path.parent}; waiting for it.'
            lock = files.lock(path.parent / '.lock', busy, wait=True)
            with lock, contextlib.suppress(StoppedError), contextlib.closing(batches):
                if not path.exists():
                    _fill(path, (records.splits[split], options.size, options.size, 3), batches, f'cache {split}', stop)
        except OSError as error:
            if not str(error.filename).startswith(str(path.parent)):  # the records, perhaps
                raise
            raise InputError(
                f'{path.parent} cannot be written ({error.strerror or error}); make room there or allow it, '
                'or set --config.data.cache=none.'
            ) from error
    signal_number = (stop.signal_number if stop else None) or 0
    if number := processes.agree(signal_number):  # with several processes, all wait here
        raise stopped(number, STOPPED)
    return CachedPhotos(path)


def cache_path(records: Records, split: str, options: LoadOptions) -> Path:
    """The file of a split's photos; its name depends on everything that determines their pixels."""
    facts = [FORMAT, records.fingerprint, split, options.size, options.fit, options.crop_to_bbox, PIL.__version__]
    return Path(records.directory) / FOLDER / f'{split}-{files.sha256_of_json(facts)[:KEY_DIGITS]}.npy'


def _boxes_path(path: Path) -> Path:
    return path.with_suffix('.boxes.npy')


def _fill(
    path: Path, shape: tuple[int, ...], batches: Iterable[dict[str, np.ndarray]], title: str, stop: StopRequest | None
) -> None:
    """Write the photos of `batches`; `path` appears last, so that it stands for a complete cache."""
    for left in path.parent.glob('.*.tmp'):  # by a process that was killed
        left.unlink()
    boxes = []
    with files.write_atomically(path) as file, tqdm(total=shape[0], desc=title, unit='photo', disable=None) as bar:
        about = {'descr': np.lib.format.dtype_to_descr(np.dtype(np.uint8)), 'fortran_order': False, 'shape': shape}
        np.lib.format.write_array_header_1_0(file, about)
        if hasattr(os, 'posix_fallocate'):  # a full disk is an error at once
            os.posix_fallocate(file.fileno(), 0, file.tell() + math.prod(shape))
        for batch in batches:
            file.write(batch['image'].tobytes())
            boxes += [batch['boxes']] if 'boxes' in batch else []
            bar.update(len(batch['image']))
            if stop is not None and stop.signal_number:
                raise stopped(stop.signal_number, STOPPED)
        if boxes:
            with files.write_atomically(_boxes_path(path)) as other:
                np.save(other, np.concatenate(boxes))


def put_on_devices(photos: UInt8[np.ndarray, 'photos size size 3'], mesh: jax.sharding.Mesh) -> Array:
    """The photos divided over all devices of the mesh; black ones fill up the last part.

    Raises InputError if they do not fit the memory of the devices.
    """
    share = -(-len(photos) // mesh.size)
    check_memory(share * math.prod(photos.shape[1:]), mesh.local_devices)

    def part(index: Any) -> np.ndarray:
        rows = photos[index[0]]
        missing = share - len(rows)  # otherwise without a copy, which would have to fit into the memory of the host
        return np.pad(rows, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else rows

    shape = (share * mesh.size, *photos.shape[1:])
    return jax.make_array_from_callback(shape, sharding.batch_sharding(mesh), part)


def check_memory(needed: int, devices: Iterable[Any]) -> None:
    """Raise InputError if a device has fewer than `needed` bytes for photos; a CPU reports no limit."""
    for device in devices:
        stats: Mapping[str, int] = device.memory_stats() or {}
        free = FREE_SHARE * stats.get('bytes_limit', math.inf) - stats.get('bytes_in_use', 0)
        if needed > free:
            raise InputError(
                f'the train photos take {needed / 1e9:.1f} GB of each device, but {device} has {max(free, 0) / 1e9:.1f} GB for them; '
                'set --config.data.cache=disk.'
            )
