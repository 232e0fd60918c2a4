"""`asen_jax.Embedder`: the vectors of any photos from a trained network."""

import contextlib
import difflib
import functools
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from asen_jax.data import images as pictures
from asen_jax.data.boxes import Box, clip_box
from asen_jax.data.prefetch import prefetch
from asen_jax.errors import InputError
from asen_jax.matching import config_as_trained
from asen_jax.models.apply import embed_all
from asen_jax.models.interfaces import Output
from asen_jax.network import TrainedNetwork, check_finite, load_network
from asen_jax.sharding import make_mesh

BATCH_SIZE = 64  # photos
READ_AHEAD = 2  # batches that are decoded while the device works
HASHED_FIELDS = ('name', 'trunk', 'normalize')  # of config.model; see Embedder.fingerprint
NUM_THREADS = min(8, os.cpu_count() or 1)  # for decoding


class Embedded(NamedTuple):
    """What became of a photo: vectors, or why it cannot be used."""

    vectors: Float[np.ndarray, 'attributes dim'] | None = None
    heatmaps: Float[np.ndarray, 'attributes h w'] | None = None
    extra: Any = None  # what `keep` made of the photo
    why: str | None = None


class Embedder:
    """A trained network for any photos: paths, PIL images or uint8 RGB arrays [H, W, 3].

    Photos are prepared as in training (`data.image_size`, `data.fit`, `data.crop_to_bbox`). Vectors have unit length unless
    the network was trained without `model.normalize`.
    """

    def __init__(self, network: TrainedNetwork, mesh: jax.sharding.Mesh, batch_size: int = BATCH_SIZE):
        if batch_size < 1:
            raise InputError(f'batch_size is {batch_size}; it must be at least 1.')
        self.network, self.precision = network, network.meta['config']['precision']
        self.attributes = tuple(network.meta['attributes'])
        self.origin: dict[str, str] = {}  # the workdir and checkpoint, if it was loaded from one
        data = network.meta['config']['data']
        self.size, self.fit, self.crop_to_bbox = data['image_size'], data['fit'], data['crop_to_bbox']
        self.batch_size = -(-batch_size // mesh.size) * mesh.size  # every device gets an equal share
        self._embed = network.embed_on(mesh)
        batch = jax.ShapeDtypeStruct((self.batch_size, self.size, self.size, 3), np.uint8)
        output = jax.eval_shape(
            functools.partial(embed_all, network.graphdef), network.params, network.batch_stats, batch
        )
        self.dim = output.embedding.shape[-1]
        # (h, w); None without attention
        self.heatmap_shape = None if output.heatmap is None else output.heatmap.shape[2:]
        self._image_lock = threading.Lock()

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike,
        checkpoint: str | int = 'best',
        precision: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> 'Embedder':
        """The network of a workdir's checkpoint (best, latest or a step), in the `precision` it was trained with by default.

        Raises InputError if the checkpoint does not exist or is damaged.
        """
        mesh = make_mesh()
        embedder = cls(load_network(Path(workdir), str(checkpoint), precision, mesh), mesh, batch_size)
        embedder.origin = {
            'workdir': os.path.abspath(workdir),  # noqa: PTH100 - resolve() would follow links
            'checkpoint': str(checkpoint),
        }
        return embedder

    def embed(
        self, images: Iterable, attributes: str | Sequence[str] | None = None, boxes: Iterable | None = None
    ) -> Float[np.ndarray, 'photos attributes dim']:
        """The vectors of photos under `attributes` (names in any order; by default all of `.attributes`).

        `boxes` has one entry per photo: the garment's (left, top, right, bottom) in pixels of the upright photo, 0-based and
        half-open, or None for the whole photo. They are needed if the network was trained with `data.crop_to_bbox`, and
        ignored otherwise. Raises InputError that names the photo that cannot be used, or the unknown attribute.
        """
        return self._collect(images, attributes, boxes, heatmaps=False)

    def heatmaps(
        self, images: Iterable, attributes: str | Sequence[str] | None = None, boxes: Iterable | None = None
    ) -> Float[np.ndarray, 'photos attributes h w']:
        """Where in each photo (or its box) the network looks for each attribute; arguments and errors as in `embed`.

        Raises InputError also if the network has no spatial attention.
        """
        self.check_attention()
        return self._collect(images, attributes, boxes, heatmaps=True)

    def stream(
        self,
        batches: Iterable[Sequence[tuple[Any, Box | None]]],
        heatmaps: bool = False,
        keep: Callable[[Image.Image], Any] | None = None,
    ) -> Generator[Embedded, None, None]:
        """The result for each photo, in order. A batch has at most `batch_size` pairs of a photo and its box, or None.

        Why a photo cannot be used is reported, not raised. `keep` is called with each opened photo, in several threads. While
        the caller uses the results of a batch, the next one is on the device, and the photos after it are being decoded.
        """
        pool = ThreadPoolExecutor(NUM_THREADS)
        try:
            loading = prefetch(
                ([pool.submit(self._load, *pair, keep) for pair in batch] for batch in batches), READ_AHEAD
            )
            for output, loaded in prefetch(map(self._start, loading), 1):
                vectors = np.asarray(output.embedding)
                maps = np.asarray(output.heatmap, np.float32) if heatmaps else [None] * len(loaded)
                for place, each in enumerate(loaded):
                    if isinstance(each, str):
                        yield Embedded(why=each)
                        continue
                    check_finite(vectors[place])
                    yield Embedded(vectors[place], maps[place], each[1])
        finally:
            pool.shutdown(cancel_futures=True)

    def check_attention(self) -> None:
        """Raise InputError if the network has no heatmaps."""
        if self.heatmap_shape is None:
            name = self.network.meta['config']['model']['name']
            raise InputError(f'The network ({name}) has no spatial attention, so it has no heatmaps.')

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines a photo's vectors, except the hardware.

        Of `config.model` it has only HASHED_FIELDS: the paths and shapes of the weights tell the rest, and fields that only
        training reads do not matter. So a new field leaves galleries valid. One that changes vectors without changing a path or
        a shape must be hashed as well, but only where it differs from what networks without it do.
        """
        model = self.network.meta['config']['model']
        facts = {
            'attributes': self.attributes,
            'model': {field: model[field] for field in HASHED_FIELDS},
            'size': self.size,
            'fit': self.fit,
            'crop_to_bbox': self.crop_to_bbox,
            'precision': self.precision,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path((self.network.params, self.network.batch_stats)):
            array = np.asarray(leaf)
            digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode() + array.tobytes())
        return digest.hexdigest()

    def _find(self, attributes: str | Sequence[str] | None) -> list[int]:
        """The positions of the named attributes in the network's output."""
        if attributes is None:
            return list(range(len(self.attributes)))
        names = [attributes] if isinstance(attributes, str) else attributes
        for name in names:
            if name not in self.attributes:
                near = difflib.get_close_matches(str(name), self.attributes, 1)
                hint = f'did you mean {near[0]!r}? It' if near else 'it'
                known = ', '.join(map(repr, self.attributes))
                raise InputError(f'The network has no attribute {name!r}; {hint} has {known}.')
        return [self.attributes.index(name) for name in names]

    def _collect(
        self, images: Iterable, attributes: str | Sequence[str] | None, boxes: Iterable | None, heatmaps: bool
    ) -> np.ndarray:
        """The vectors or the heatmaps of all photos in one array."""
        photos, columns = self._pair(images, boxes), self._find(attributes)
        shape = (self.heatmap_shape or ()) if heatmaps else (self.dim,)
        collected = np.zeros((len(photos), len(columns), *shape), np.float32)
        batches = (photos[start : start + self.batch_size] for start in range(0, len(photos), self.batch_size))
        with contextlib.closing(self.stream(batches, heatmaps)) as results:
            for place, result in enumerate(results):
                if result.why is not None:
                    photo, _ = photos[place]
                    name = os.fspath(photo) if isinstance(photo, str | os.PathLike) else f'images[{place}]'
                    raise InputError(f'{name}: {result.why}.')
                part = result.heatmaps if heatmaps else result.vectors
                assert part is not None
                collected[place] = part[columns]
        return collected

    def _pair(self, images: Iterable, boxes: Iterable | None) -> list[tuple]:
        """Each photo with its box. Rejects a single photo, which would be read as a sequence of letters or rows."""
        if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, 'ndim', None) == 3:
            raise InputError('images is a single photo; put it in a list: [photo].')
        photos = list(images)
        if boxes is None and photos and self.crop_to_bbox:
            warnings.warn(
                'No boxes were given: photos are used whole, which matters only if the training photos had boxes. '
                'Pass boxes=, with None for each photo that should be used whole.',
                stacklevel=4,
            )
        boxes = [None] * len(photos) if boxes is None else list(boxes)
        if len(boxes) != len(photos):
            raise InputError(
                f'images has {len(photos)} photos but boxes has {len(boxes)}; give one box or None per photo.'
            )
        return [
            (photo, box if box is None else tuple(map(float, box))) for photo, box in zip(photos, boxes, strict=True)
        ]

    def _load(
        self, photo: Any, box: Sequence[float] | None, keep: Callable[[Image.Image], Any] | None
    ) -> tuple[UInt8[np.ndarray, 'size size 3'], Any] | str:
        """The network's input from a photo and what `keep` makes of it, or why the photo cannot be used."""
        try:
            image = self._open(photo)
            kept = keep(image) if keep else None
            if self.crop_to_bbox and box is not None:
                clipped = np.array(clip_box(box, image.size), np.float32)  # as in the records of training
                image = pictures.crop_to_box(image, tuple(clipped)).image
            return pictures.fit_square(image, self.size, self.fit), kept
        except OSError as error:
            return f'cannot be read ({error.strerror or error})'
        except ValueError as error:
            return str(error)

    def _open(self, photo: Any) -> Image.Image:
        """The photo as upright RGB; raises OSError or ValueError if it cannot be used."""
        if isinstance(photo, str | os.PathLike):
            return pictures.decode(pictures.read_file(photo))
        if isinstance(photo, Image.Image):
            with self._image_lock:  # the same image may be given twice, and Pillow's lazy loading is not thread-safe
                return pictures.upright_rgb(photo)
        wanted = 'give a path, a PIL image or a uint8 array [H, W, 3]'
        if not isinstance(photo, np.ndarray | jax.Array):
            raise ValueError(f'it is of type {type(photo).__name__}; {wanted}')
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise ValueError(f'it is an array {list(photo.shape)} of {photo.dtype}; {wanted}')
        return Image.fromarray(np.asarray(photo))

    def _start(self, futures: Sequence[Future]) -> tuple[Output, list]:
        """Start a batch on the device, filled up with black photos: (its future output, what `_load` returned)."""
        loaded = [each.result() for each in futures]
        batch = np.zeros((self.batch_size, self.size, self.size, 3), np.uint8)
        for place, each in enumerate(loaded):
            if not isinstance(each, str):
                batch[place] = each[0]
        return self._embed(batch), loaded


def load_with_config(config: ConfigDict, workdir: Path, which: str) -> Embedder:
    """The network of a checkpoint with the precision and the batch size of `config`; prints fields that it uses as trained."""
    embedder = Embedder.load(workdir, which, config.precision, config.eval.batch_size)
    config_as_trained(embedder.network.meta, config)
    return embedder
