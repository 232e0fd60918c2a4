"""A trained network that takes any photos, without a data set: what `asen_jax.Embedder` is."""

import contextlib
import difflib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from asen_jax.data import images as pictures
from asen_jax.data.prefetch import prefetch
from asen_jax.errors import InputError
from asen_jax.models import embed_all
from asen_jax.network import TrainedNetwork, load_network
from asen_jax.sharding import make_mesh

BATCH_SIZE = 64  # photos
READ_AHEAD = 2  # batches that are decoded while the device works
NUM_THREADS = min(8, os.cpu_count() or 1)  # that decode


class Embedded(NamedTuple):
    """What became of a batch of photos."""

    vectors: Float[np.ndarray, 'kept attributes dim']
    heatmaps: Float[np.ndarray, 'kept attributes h w'] | None
    kept: list[int]  # the places in the batch of the photos that have a vector
    broken: dict[int, str]  # place of each other photo -> what is wrong with it


class Embedder:
    """A trained network for photos from anywhere: paths, PIL images or uint8 arrays [H, W, 3] in RGB.

    They are prepared as the photos that the network was trained on (`data.image_size`, `data.fit`), and vectors have unit
    length unless `model.normalize` was off. There are no boxes here: where `data.crop_to_bbox` was on, photos are still taken whole.
    """

    def __init__(self, network: TrainedNetwork, mesh: jax.sharding.Mesh, precision: str, batch_size: int = BATCH_SIZE):
        if batch_size < 1:
            raise InputError(f'batch_size is {batch_size}; give it more than zero.')
        self.network, self.precision = network, precision
        self.attributes = tuple(network.meta['attributes'])
        self.values = None  # value names of each attribute, where the checkpoint knows them
        if network.meta.get('values') is not None:
            self.values = tuple(map(tuple, network.meta['values']))
        self.size, self.fit = (network.meta['config']['data'][field] for field in ('image_size', 'fit'))
        devices = mesh.shape['data']
        self.batch_size = -(-batch_size // devices) * devices  # all devices share it
        self._embed = network.embed_on(mesh)
        batch = jax.ShapeDtypeStruct((self.batch_size, self.size, self.size, 3), np.uint8)
        vectors, heatmaps = jax.eval_shape(
            functools.partial(embed_all, network.structure), network.params, network.batch_stats, batch
        )
        self.dim = vectors.shape[-1]
        self.heatmap_shape = None if heatmaps is None else heatmaps.shape[2:]  # (h, w); None without attention
        self._one_at_a_time = threading.Lock()
        Image.preinit()  # Pillow loads its readers on first need, in a way that threads must not share
        Image.init()

    @classmethod
    def load(
        cls, workdir: str | os.PathLike, checkpoint: str | int = 'best', precision: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> 'Embedder':  # fmt: skip
        """The network of a workdir's checkpoint (best, latest or a step); `precision` is the trained one unless given.

        Raises InputError where there is no such checkpoint, or it is damaged.
        """
        mesh = make_mesh()
        network = load_network(Path(workdir), str(checkpoint), precision, mesh)
        return cls(network, mesh, precision or network.meta['config']['precision'], batch_size)

    def embed(
        self, images: Iterable, attributes: str | Sequence[str] | None = None
    ) -> Float[np.ndarray, 'photos attributes dim']:
        """The vectors of photos under `attributes` (names in any order; None: all of `.attributes`).

        Raises InputError that names the photo which cannot be used, or the attribute which the network does not know.
        """
        return self._collect(images, attributes, heatmaps=False)

    def heatmaps(
        self, images: Iterable, attributes: str | Sequence[str] | None = None
    ) -> Float[np.ndarray, 'photos attributes h w']:
        """Where the network looks in each photo under each attribute; raises InputError as `embed`, or without attention."""
        self.check_attention()
        return self._collect(images, attributes, heatmaps=True)

    def stream(
        self, batches: Iterable[Sequence], attributes: str | Sequence[str] | None = None, heatmaps: bool = False
    ) -> Iterator[Embedded]:
        """What becomes of each batch of at most `batch_size` photos, in order; broken photos are told, not raised.

        The next photos are decoded, and the next batch is on the device, while the caller has the last one.
        """
        columns = self._find(attributes)
        pool = ThreadPoolExecutor(NUM_THREADS)
        try:
            loading = prefetch(([pool.submit(self._load, photo) for photo in batch] for batch in batches), READ_AHEAD)
            for output, kept, broken in prefetch(map(self._start, loading), 1):
                vectors = np.asarray(output[0])[kept][:, columns]
                maps = np.asarray(output[1])[kept][:, columns].astype(np.float32, copy=False) if heatmaps else None
                yield Embedded(vectors, maps, kept, broken)
        finally:
            pool.shutdown(cancel_futures=True)

    def check_attention(self) -> None:
        """Raise InputError where the network has no heatmaps to give."""
        if self.heatmap_shape is None:
            name = self.network.meta['config']['model']['name']
            raise InputError(f'The network ({name}) has no spatial attention, so there are no heatmaps to ask it for.')

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides a photo's vectors but the machine: weights, network, preparation, precision."""
        meta = self.network.meta
        said = {'step': meta['step'], 'attributes': self.attributes, 'model': meta['config']['model']}
        said |= {'size': self.size, 'fit': self.fit, 'precision': self.precision}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path((self.network.params, self.network.batch_stats)):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def _find(self, attributes: str | Sequence[str] | None) -> list[int]:
        """The places of the named attributes in what the network gives."""
        names = [attributes] if isinstance(attributes, str) else self.attributes if attributes is None else attributes
        for name in names:
            if name not in self.attributes:
                near = difflib.get_close_matches(str(name), self.attributes, 1)
                hint = f'did you mean {near[0]!r}? It' if near else 'it'
                raise InputError(
                    f'The network has no attribute {name!r}; {hint} knows {", ".join(map(repr, self.attributes))}.'
                )
        return [self.attributes.index(name) for name in names]

    def _collect(self, images: Iterable, attributes: str | Sequence[str] | None, heatmaps: bool) -> np.ndarray:
        """The vectors or the heatmaps of all photos in one array."""
        photos, shape = _as_list(images), self.heatmap_shape if heatmaps else (self.dim,)
        result = np.zeros((len(photos), len(self._find(attributes)), *shape), np.float32)
        starts = range(0, len(photos), self.batch_size)
        batches = (photos[start : start + self.batch_size] for start in starts)
        with contextlib.closing(self.stream(batches, attributes, heatmaps)) as answers:
            for start, answer in zip(starts, answers, strict=True):
                for place, why in answer.broken.items():
                    photo = photos[start + place]
                    name = os.fspath(photo) if isinstance(photo, str | os.PathLike) else f'images[{start + place}]'
                    raise InputError(f'{name}: {why}.')
                result[start : start + len(answer.kept)] = answer.heatmaps if heatmaps else answer.vectors
        return result

    def _load(self, photo) -> np.ndarray | str:
        """The photo as the network's square, or what is wrong with it."""
        try:
            if isinstance(photo, str | os.PathLike):
                image = pictures.decode(Path(photo).read_bytes())
            elif isinstance(photo, Image.Image):
                with self._one_at_a_time:  # the same image may be given twice, and Pillow loads an opened file once
                    image = pictures.upright_rgb(photo)
            else:
                image = Image.fromarray(_check_array(photo))
            return pictures.fit_square(image, self.size, self.fit)
        except OSError as error:
            return f'cannot be read ({error.strerror or error})'
        except ValueError as error:
            return str(error)

    def _start(self, futures: Sequence[Future]) -> tuple[tuple, list[int], dict[int, str]]:
        """Hand a batch to the device, filled up with black, and do not wait: (what will come, places kept, broken)."""
        batch = np.zeros((self.batch_size, self.size, self.size, 3), np.uint8)
        kept, broken = [], {}
        for place, future in enumerate(futures):
            loaded = future.result()
            if isinstance(loaded, str):
                broken[place] = loaded
            else:
                batch[place] = loaded
                kept.append(place)
        output = self._embed(batch)
        return output, kept, broken


def _as_list(images) -> list:
    """`images` as a list; a single photo is refused, for it would be read as a sequence of letters or rows."""
    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, 'ndim', None) == 3:
        raise InputError('images is a single photo; put it into a list: [photo].')
    return list(images)


def _check_array(photo) -> np.ndarray:
    """A photo that is neither a path nor a PIL image; raises ValueError where it is no uint8 array [H, W, 3]."""
    wanted = 'give a path, a PIL image or a uint8 array [H, W, 3]'
    if not isinstance(photo, np.ndarray | jax.Array):
        raise ValueError(f'it is of type {type(photo).__name__}; {wanted}')
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise ValueError(f'it is an array {list(photo.shape)} of {photo.dtype}; {wanted}')
    return np.asarray(photo)
