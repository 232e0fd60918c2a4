"""Photos to vectors: every photo once through the trunk, whatever number of attributes asks about it."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from asen_jax.checkpoint import Checkpoints, abstract_like
from asen_jax.models import Model, build_shapes, embed_all
from asen_jax.sharding import batch_sharding_for, state_shardings


class Vectors(NamedTuple):
    """The vectors that were wanted of some photos, and where the attention of each (photo, attribute) peaked."""

    rows: Int[np.ndarray, 'photos attributes']  # row of `vectors`, -1 where none was wanted
    vectors: Float[np.ndarray, 'wanted dim']
    peak_in_box: Float[np.ndarray, 'photos attributes'] | None  # 1 inside its box, 0 outside, NaN without box
    box_share: Float[np.ndarray, 'photos attributes'] | None  # share of the input that the box covers
    distance: str = 'cosine'  # how they compare: config.train.distance

    def of(self, index: Int[np.ndarray, ' n'], attribute: int) -> Float[np.ndarray, 'n dim']:
        """The vectors of photos under one attribute, all of which were wanted."""
        rows = self.rows[index, attribute]
        if (rows < 0).any():
            raise ValueError(f'a vector under attribute {attribute} was never collected')
        return self.vectors[rows]


class Network(NamedTuple):
    """A trained network and what its checkpoint says of itself."""

    model: Model
    params: dict
    batch_stats: dict
    meta: dict


def load_network(checkpoints: Checkpoints, which: str, precision: str, mesh: jax.sharding.Mesh) -> Network:
    """The network of a checkpoint, built by the config in it; only the arithmetic's `precision` is the caller's."""
    meta = checkpoints.read_meta(which)
    config = ml_collections.ConfigDict(meta['config'])
    config.precision = precision
    model, *shapes = build_shapes(config, len(meta['attributes']))
    like = dict(zip(('params', 'batch_stats'), shapes, strict=True))
    restored = checkpoints.restore(which, abstract_like(like, state_shardings(like, mesh)))
    return Network(model, restored['params'], restored['batch_stats'], meta)


def make_embedder(model: Model, mesh: jax.sharding.Mesh) -> Callable:
    """A compiled `embed_all` over all devices: (params, batch statistics, images) -> vectors, heatmaps."""
    compiled = jax.jit(functools.partial(embed_all, model))

    def embedder(params, batch_stats, images):
        return compiled(params, batch_stats, jax.device_put(images, batch_sharding_for(mesh, len(images))))

    return embedder


def collect_vectors(
    embedder: Callable, params: dict, batch_stats: dict, batches: Iterable[Mapping[str, np.ndarray]],
    wanted: Bool[np.ndarray, 'photos attributes'], title: str,
) -> Vectors:  # fmt: skip
    """Embed `batches` and keep the vectors of the `wanted` (photo, attribute) pairs.

    The next batch is handed to the device before the last one is read back, so that it never waits for the host.
    """
    rows = np.where(wanted, np.cumsum(wanted).reshape(wanted.shape) - 1, -1)
    figures = {'vectors': None, 'inside': None, 'share': None}
    waiting = None
    with tqdm(total=int(wanted.any(axis=1).sum()), desc=title, unit='photo', disable=None) as bar:
        for batch in batches:
            output = embedder(params, batch_stats, np.asarray(batch['image']))
            if waiting is not None:
                _store(*waiting, rows, figures)
            waiting = ({name: np.array(part) for name, part in batch.items() if name != 'image'}, output)
            waiting[0]['size'] = batch['image'].shape[1]
            bar.update(int(batch['mask'].sum()))
        if waiting is not None:
            _store(*waiting, rows, figures)
    vectors = figures['vectors'] if figures['vectors'] is not None else np.zeros((0, 0), np.float32)
    return Vectors(rows, vectors, figures['inside'], figures['share'])


def _store(batch: Mapping, output: tuple, rows: np.ndarray, figures: dict) -> None:
    """Copy what is wanted of one batch to where `rows` says."""
    vectors = np.asarray(output[0])
    if figures['vectors'] is None:
        figures['vectors'] = np.zeros((int(rows.max()) + 1, vectors.shape[-1]), np.float32)
    mask, index = batch['mask'], batch['index']
    place = rows[index[mask]]
    figures['vectors'][place[place >= 0]] = vectors[mask][place >= 0]
    if 'boxes' in batch and output[1] is not None:
        if figures['inside'] is None:
            figures['inside'], figures['share'] = np.full((2, *rows.shape), np.nan, np.float32)
        inside, share = score_attention(np.asarray(output[1])[mask], batch['boxes'][mask], batch['size'])
        figures['inside'][index[mask]], figures['share'][index[mask]] = inside, share


def score_attention(
    heatmaps: Float[np.ndarray, 'n a h w'], boxes: Float[np.ndarray, 'n a 4'], size: int
) -> tuple[Float[np.ndarray, 'n a'], Float[np.ndarray, 'n a']]:
    """Whether the middle of the hottest cell lies in the attribute's box, and the box's share of the input; NaN without."""
    count, num_attributes, height, width = heatmaps.shape
    hottest = heatmaps.reshape(count, num_attributes, -1).argmax(axis=-1)
    y, x = (hottest // width + 0.5) * size / height, (hottest % width + 0.5) * size / width
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    share = (right - left) * (bottom - top) / size**2
    return np.where(np.isnan(left), np.nan, inside).astype(np.float32), share.astype(np.float32)
