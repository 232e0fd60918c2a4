"""The vectors of a split's photos: each photo goes through the trunk once, however many attributes are needed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from asen_jax import processes
from asen_jax.data.prefetch import prefetch
from asen_jax.evaluation.metrics import Product
from asen_jax.network import Embed, check_finite


class Vectors(NamedTuple):
    """The wanted vectors of some photos, and where the attention of each (photo, attribute) peaked."""

    rows: Int[np.ndarray, 'photos attributes']  # row of `vectors`, or -1 if none was wanted
    vectors: Float[np.ndarray, 'wanted dim']
    peak_in_box: Float[np.ndarray, 'photos attributes']  # 1 inside the label's box, 0 outside, NaN without a box
    box_share: Float[np.ndarray, 'photos attributes']  # fraction of the input that the box covers, NaN without a box
    distance: str = 'cosine'  # how vectors are compared: config.train.distance

    def of(self, index: Int[np.ndarray, ' n'], attribute: int) -> Float[np.ndarray, 'n dim']:
        """The vectors of the photos `index` under one attribute, all of which were wanted."""
        rows = self.rows[index, attribute]
        assert (rows >= 0).all()
        return self.vectors[rows]


def collect_vectors(
    embed: Embed, batches: Iterable[Mapping[str, np.ndarray]], wanted: Bool[np.ndarray, 'photos attributes'], title: str
) -> Vectors:
    """The vectors of the `wanted` (photo, attribute) pairs of `batches`; `title` names the progress bar.

    Raises NumericsError if a vector is not finite.
    """
    rows = np.where(wanted, np.cumsum(wanted).reshape(wanted.shape) - 1, -1)
    vectors = np.zeros((0, 0), np.float32)
    inside, share = np.full((2, *rows.shape), np.nan, np.float32)

    def started() -> Iterator[tuple]:
        for batch in batches:
            output = embed(batch['image'])
            kept = {name: part[batch['mask']] for name, part in batch.items() if name in ('index', 'boxes')}
            yield batch['mask'], kept, batch['image'].shape[1], output

    with tqdm(total=int(wanted.any(axis=1).sum()), desc=title, unit='photo', disable=None) as bar:
        for mask, kept, size, output in prefetch(started(), 1):
            if not len(vectors):
                vectors = np.zeros((int(wanted.sum()), output.embedding.shape[-1]), np.float32)
            index = kept['index']
            place = rows[index]
            vectors[place[place >= 0]] = np.asarray(output.embedding)[mask][place >= 0]
            if 'boxes' in kept and output.heatmap is not None:
                inside[index], share[index] = score_attention(np.asarray(output.heatmap)[mask], kept['boxes'], size)
            bar.update(len(index))
    check_finite(vectors)
    inside, share = map(processes.merge, (inside, share))  # each process has the boxes of the photos that it loaded
    return Vectors(rows, vectors, inside, share)


def score_attention(
    heatmaps: Float[np.ndarray, 'n a h w'], boxes: Float[np.ndarray, 'n a 4'], size: int
) -> tuple[Float[np.ndarray, 'n a'], Float[np.ndarray, 'n a']]:
    """Whether the center of the hottest cell lies in the label's box, and the box's fraction of the input; NaN without a box."""
    count, num_attributes, height, width = heatmaps.shape
    hottest = heatmaps.reshape(count, num_attributes, -1).argmax(axis=-1)
    y, x = (hottest // width + 0.5) * size / height, (hottest % width + 0.5) * size / width
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    share = (right - left) * (bottom - top) / size**2
    return np.where(np.isnan(left), np.nan, inside).astype(np.float32), share.astype(np.float32)


def product_on_device(candidates: Float[np.ndarray, 'candidates dim']) -> Product:
    """The dot products of queries with `candidates`, which stay on the first device of this process, in full float32."""
    on_device = jax.device_put(candidates, jax.local_devices()[0])
    precision = jax.lax.Precision.HIGHEST
    return lambda queries: np.asarray(jnp.einsum('qd,cd->qc', queries, on_device, precision=precision))
