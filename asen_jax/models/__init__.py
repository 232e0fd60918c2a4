"""The networks, and the pure functions that train and evaluation call: photos in, vectors out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from asen_jax.errors import InputError
from asen_jax.models.asen import AsenHead, AsenV2Head, HeadOutput, Network, Projected
from asen_jax.models.csn import CsnHead, TripletHead
from asen_jax.models.layers import l2_normalize, normalize_pixels, numerics
from asen_jax.models.resnet import ResNet


class Model(NamedTuple):
    """What stays of a network once its arrays are taken out: its structure and how its outputs are finished."""

    graphdef: nnx.GraphDef
    num_attributes: int
    normalize: bool
    roles: int  # roles whose batch statistics are kept apart in training


def build_model(config, num_attributes: int) -> tuple[Model, dict, dict]:
    """The network that `config.model` names, freshly initialized from `config.seed`: (model, params, batch statistics)."""
    options, arithmetic = config.model, numerics(config.precision)
    make = {'numerics': arithmetic, 'rngs': nnx.Rngs(config.seed)}
    trunk = ResNet(options.trunk, options.trunk_width, **make)
    attention = {'spatial': options.spatial_attention, 'channel': options.channel_attention}
    match options.name:
        case 'asen':
            head = AsenHead(trunk.out_dim, options.embed_dim, num_attributes, **attention, **make)
        case 'asen_v2':
            head = AsenV2Head(trunk.out_dim, num_attributes, **attention, **make)
        case 'csn':
            head = CsnHead(trunk.out_dim, options.embed_dim, num_attributes, options.masks, **make)
        case 'triplet':
            head = TripletHead(trunk.out_dim, options.embed_dim, **make)
        case _:
            raise InputError(f'config.model.name is {options.name!r}; it is one of asen, asen_v2, csn, triplet.')
    graphdef, params, batch_stats = nnx.split(Network(trunk, head), nnx.Param, nnx.BatchStat)
    model = Model(graphdef, num_attributes, options.normalize, 3 if options.bn_per_role else 1)
    return model, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def build_shapes(config, num_attributes: int) -> tuple[Model, dict, dict]:
    """`build_model` with shapes in the place of arrays, for a network that will be filled: drawing weights takes seconds."""
    models = []

    def build():
        model, *arrays = build_model(config, num_attributes)
        models.append(model)
        return arrays

    params, batch_stats = jax.eval_shape(build)
    return models[0], params, batch_stats


def _finish(model: Model, output: HeadOutput) -> HeadOutput:
    embedding = output.embedding.astype(jnp.float32)
    return output._replace(embedding=l2_normalize(embedding) if model.normalize else embedding)


def _under_all(model: Model, network: Network, projected: Projected, count: Any) -> HeadOutput:
    """A head's answer under every attribute, second axis."""

    def under(attribute):
        return _finish(model, network.head(projected, jnp.full(count, attribute)))

    return jax.vmap(under, out_axes=1)(jnp.arange(model.num_attributes))


def embed_triplets(
    model: Model, params: dict, batch_stats: dict, images: UInt8[Array, 'b 3 h w 3'], attribute: Int[Array, ' b'],
    all_attributes: bool = False,
) -> tuple[HeadOutput, dict]:  # fmt: skip
    """Train mode: the head's answer [b, 3, ...] to anchor, positive, negative under the triplet's attribute, and the
    moved statistics.

    With `all_attributes` under every attribute: [b, 3, a, ...]. The roles are folded into the batch: one pass for the original's three.
    """
    network = nnx.merge(model.graphdef, params, batch_stats)
    batch, roles = images.shape[:2]
    pixels = normalize_pixels(images.reshape(batch * roles, *images.shape[2:]))
    projected = network.head.project(network.trunk(pixels, model.roles), model.roles)
    if all_attributes:
        output = _under_all(model, network, projected, batch * roles)
    else:
        output = _finish(model, network.head(projected, jnp.repeat(attribute, roles)))
    output = jax.tree.map(lambda part: part.reshape(batch, roles, *part.shape[1:]), output)
    return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))


def embed_all(
    model: Model, params: dict, batch_stats: dict, images: UInt8[Array, 'n h w 3']
) -> tuple[Float[Array, 'n a d'], Float[Array, 'n a h16 w16'] | None]:
    """Eval mode: each photo's vectors under every attribute, from one pass of the trunk, and the attention maps."""
    network = nnx.merge(model.graphdef, params, batch_stats)
    projected = network.head.project(network.trunk(normalize_pixels(images)), 0)
    output = _under_all(model, network, projected, images.shape[0])  # symbolic in an export
    return output.embedding, output.heatmap
