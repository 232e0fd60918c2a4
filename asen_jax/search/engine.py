"""How listed photos become the contents of a gallery: embedded in this process, or in others (ray_engine.py)."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from asen_jax.embedder import Embedder
from asen_jax.search.listing import ListedPhoto, slices

THUMBNAIL_SIDE = 192  # pixels


class Outcome(NamedTuple):
    """What became of a photo: vectors and a thumbnail, or why it cannot be used."""

    path: str
    vectors: Float[np.ndarray, 'attributes dim'] | None = None
    thumbnail: bytes | None = None
    why: str | None = None


Engine = Callable[[Sequence[ListedPhoto]], Iterator[Outcome]]  # embeds photos, in any order


def embed_here(embedder: Embedder, photos: Sequence[ListedPhoto]) -> Iterator[Outcome]:
    """The engine of this process."""
    pairs = [(photo.path, photo.box) for photo in photos]
    for photo, result in zip(
        photos, embedder.stream(slices(pairs, embedder.batch_size), keep=make_thumbnail), strict=True
    ):
        yield Outcome(photo.path, result.vectors, result.extra, result.why)


def make_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of a photo."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=85)
    return file.getvalue()
