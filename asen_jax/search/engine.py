"""How listed photos become the contents of a gallery: embedded in this process, or in others (ray_engine.py)."""

import io
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from asen_jax.embedder import Embedded, Embedder
from asen_jax.search.listing import ListedPhoto, slices

THUMBNAIL_SIDE = 192  # pixels
Outcome = tuple[str, Embedded]  # a photo's path, and what became of it, with a thumbnail as `extra`
Engine = Callable[[Sequence[ListedPhoto]], Iterator[Outcome]]  # embeds photos, in any order


def embed_here(embedder: Embedder, photos: Sequence[ListedPhoto]) -> Iterator[Outcome]:
    """The engine of this process."""
    batches = slices([(photo.path, photo.box) for photo in photos], embedder.batch_size)
    return zip((photo.path for photo in photos), embedder.stream(batches, keep=make_thumbnail), strict=True)


def make_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of a photo."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=85)
    return file.getvalue()
