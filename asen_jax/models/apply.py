"""Networks as pure functions of their graph and arrays, which training, evaluation, and exports compile."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from asen_jax.models.interfaces import Output, Train


def embed_all(graphdef: nnx.GraphDef, params: dict, batch_stats: dict, images: UInt8[Array, 'n h w 3']) -> Output:
    """Eval mode: each photo under every attribute, from one pass of the trunk: `embedding` [n, a, d], `heatmap` [n, a, h, w]."""
    network = nnx.merge(graphdef, params, batch_stats)
    return network(images, network.conditions()[None])._replace(extras=None)


def embed_triplets(
    graphdef: nnx.GraphDef,
    params: dict,
    batch_stats: dict,
    photos: UInt8[Array, 'b 3 h w 3'] | Float[Array, 'b 3 h w c'],
    attribute: Int[Array, ' b'] | None,
    mode: Train,
) -> tuple[Output, dict]:
    """Train mode: the output [b, 3, k, ...] for anchor, positive, negative, and the updated batch statistics.

    `photos` are pixels or features. The output is under each triplet's `attribute` (k = 1), or under every attribute without one.
    One pass of the folded batch does the work of the original's three.
    """
    network = nnx.merge(graphdef, params, batch_stats)
    batch, num_roles = photos.shape[:2]
    conditions = network.conditions()
    each = conditions[None] if attribute is None else conditions[jnp.repeat(attribute, num_roles)][:, None]
    output = network(photos.reshape(batch * num_roles, *photos.shape[2:]), each, mode)
    unfolded = jax.tree.map(lambda part: part.reshape(batch, num_roles, *part.shape[1:]), output)
    return unfolded, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))


def extract_features(
    graphdef: nnx.GraphDef, params: dict, batch_stats: dict, images: UInt8[Array, 'n h w 3']
) -> Float[Array, 'n h2 w2 c']:
    """Eval mode: the features of a network's trunk, which it takes in place of pixels."""
    return nnx.merge(graphdef, params, batch_stats).features(images)
