"""A trained network: its graph, its arrays, and what its checkpoint records about it."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.checkpoint import ADVICE, Checkpoints, Place, abstract_like
from asen_jax.errors import NumericsError
from asen_jax.models.apply import embed_all
from asen_jax.models.build import build_shapes
from asen_jax.models.interfaces import Output

# uint8 photos [n, h, w, 3] -> each photo under every attribute: `embedding` [n, a, d], `heatmap` [n, a, h, w] or None
Embed = Callable[[UInt8[np.ndarray, 'n h w 3']], Output]


class TrainedNetwork(NamedTuple):
    """A network and the metadata of its checkpoint (`step`, `config`, `attributes`, `values`, ...)."""

    graphdef: nnx.GraphDef
    params: dict
    batch_stats: dict
    meta: dict[str, Any]

    def embed_on(self, mesh: jax.sharding.Mesh) -> Embed:
        """The network as one compiled function on the devices of `mesh`."""
        return make_embedder(self.graphdef, mesh)(self.params, self.batch_stats)


def load_network(
    checkpoints: Checkpoints | Path, which: str, precision: str | None, mesh: jax.sharding.Mesh
) -> TrainedNetwork:
    """The network of the checkpoint `which` (best, latest, or a step) in a workdir, which may already be open.

    It is built from the config in the checkpoint; only `precision`, that of the arithmetic, can be chosen.
    Raises InputError if there is no such checkpoint, or if it is damaged.
    """
    source = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints, read_only=True)

    def load(place: Place) -> TrainedNetwork:
        meta = source.meta_of(place)
        meta['config']['precision'] = precision or meta['config']['precision']
        graphdef, *shapes = build_shapes(ConfigDict(meta['config']), len(meta['attributes']))
        like = dict(zip(('params', 'batch_stats'), shapes, strict=True))
        restored = source.arrays_of(place, abstract_like(like, sharding.state_shardings(like, mesh)))
        return TrainedNetwork(graphdef, restored['params'], restored['batch_stats'], meta)

    with contextlib.nullcontext() if source is checkpoints else source:
        return source.read(which, load)


def make_embedder(graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> Callable[[dict, dict], Embed]:
    """`embed_all`, compiled once for all arrays of this graph: bind(params, batch_stats) returns the `Embed` for them."""
    whole = sharding.replicated(mesh)  # so that each process can read the vectors
    compiled = jax.jit(functools.partial(embed_all, graphdef), out_shardings=whole)

    def bind(params: dict, batch_stats: dict) -> Embed:
        params = jax.device_put(params, whole)  # gathered once, not for each batch
        return lambda images: compiled(params, batch_stats, sharding.put_batch(mesh, images))

    return bind


def check_finite(vectors: Float[np.ndarray, '*n d']) -> None:
    """Raise NumericsError if a vector is not finite: finite weights may be so large that their products are not."""
    finite = np.isfinite(vectors).all(axis=-1)
    if not finite.all():
        raise NumericsError(f'{(~finite).sum():,} of {finite.size:,} vectors are not finite; {ADVICE}')
