"""The networks, as pure functions from photos to vectors that training and evaluation call."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from asen_jax.models import efficientnet
from asen_jax.models.asen import AsenHead, AsenV2Head
from asen_jax.models.csn import CsnHead, TripletHead
from asen_jax.models.efficientnet import EfficientNetLite0
from asen_jax.models.heads import HeadOutput, Projected
from asen_jax.models.layers import BatchNorm, Numerics, Roles, l2_normalize, numerics
from asen_jax.models.resnet import ResNet

Trunk = ResNet | EfficientNetLite0
Head = AsenHead | AsenV2Head | CsnHead | TripletHead

TOGETHER: Roles = (0,)  # the three roles as one batch
ASEN_ROLES: Roles = (0, 2, 1)  # the original passes anchor, negative, positive; our axis is anchor, positive, negative


class Structure(NamedTuple):
    """A network without its arrays."""

    graphdef: nnx.GraphDef
    num_attributes: int
    normalize: bool  # whether vectors have unit length
    roles: Roles  # how batch norm sees a batch of triplets in training
    trunk_roles: Roles  # the same for the trunk; empty if it keeps its running statistics


class TrunkAndHead(nnx.Module):
    """A trunk, whose features serve every attribute, batch norm of these features or none, and a head.

    `dropout` is the share of each photo's channels that training sets to zero everywhere (PyTorch's Dropout2d).
    """

    def __init__(self, trunk: Trunk, feature_bn: BatchNorm | None, dropout: float, head: Head):
        self.trunk, self.feature_bn, self.head = trunk, feature_bn, head
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def project(self, features: Float[Array, 'n h w c'], roles: Roles, key: Key[Array, ''] | None = None) -> Projected:
        """From the trunk's features to the part of the head that is the same for every attribute; drops nothing without a `key`."""
        if self.feature_bn is not None:
            features = self.feature_bn(features, roles)
        return self.head.project(self.dropout(features, deterministic=key is None, rngs=key), roles)


def build_model(config: ConfigDict, num_attributes: int) -> tuple[Structure, dict, dict]:
    """The network that `config.model` names: its structure, and parameters and batch statistics drawn from `config.seed`."""
    arithmetic, rngs = numerics(config.precision), nnx.Rngs(config.seed)
    trunk = build_trunk(config.model, arithmetic, rngs)
    head = build_head(config.model, trunk.out_dim, num_attributes, arithmetic, rngs)
    feature_bn = BatchNorm(trunk.out_dim) if config.model.feature_bn else None
    network = TrunkAndHead(trunk, feature_bn, config.model.dropout, head)
    graphdef, params, batch_stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    roles = ASEN_ROLES if config.model.bn_per_role else TOGETHER
    trunk_roles = {'batch': roles, 'running': ()}[config.model.trunk_bn]
    structure = Structure(graphdef, num_attributes, config.model.normalize, roles, trunk_roles)
    return structure, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def build_trunk(options: ConfigDict, numerics: Numerics, rngs: nnx.Rngs) -> Trunk:
    """The trunk that `options.trunk` names; `options` is `config.model`."""
    stride, make = options.efficientnet.stride, {'numerics': numerics, 'rngs': rngs}
    if options.trunk == efficientnet.NAME:
        return EfficientNetLite0(stride, options.efficientnet.all_stages, **make)
    return ResNet(options.trunk, options.resnet.width, **make)


def build_head(options: ConfigDict, trunk_dim: int, num_attributes: int, numerics: Numerics, rngs: nnx.Rngs) -> Head:
    """The head that `options.name` names; `options` is `config.model`."""
    make = {'numerics': numerics, 'rngs': rngs}
    attention = {'spatial': options.asen.spatial_attention, 'channel': options.asen.channel_attention}
    match options.name:
        case 'asen':
            return AsenHead(trunk_dim, options.embed_dim, num_attributes, **attention, **make)
        case 'asen_v2':
            projection = (options.asen_v2.projection, options.embed_dim) if options.asen_v2.projection else None
            return AsenV2Head(trunk_dim, num_attributes, projection, **attention, **make)
        case 'csn':
            return CsnHead(trunk_dim, options.embed_dim, num_attributes, options.csn.masks, **make)
        case 'triplet':
            return TripletHead(trunk_dim, options.embed_dim, **make)
    raise ValueError(f'there is no network {options.name!r}')


def build_shapes(config: ConfigDict, num_attributes: int) -> tuple[Structure, dict, dict]:
    """`build_model` with shapes instead of arrays, for weights that come from a file: drawing random ones takes seconds."""
    structures = []

    def build():
        structure, *arrays = build_model(config, num_attributes)
        structures.append(structure)
        return arrays

    params, batch_stats = jax.eval_shape(build)
    return structures[0], params, batch_stats


def embed_triplets(
    structure: Structure,
    params: dict,
    batch_stats: dict,
    photos: UInt8[Array, 'b 3 h w 3'] | Float[Array, 'b 3 h w c'],
    attribute: Int[Array, ' b'],
    key: Key[Array, ''],
    all_attributes: bool = False,
    remat: bool = False,
) -> tuple[HeadOutput, dict]:
    """Train mode: the head's output [b, 3, ...] for anchor, positive, negative, and the updated batch statistics.

    `photos` are pixels, or the features that a frozen trunk has for them (`extract_features`); `key` decides which channels
    are dropped. The output is under each triplet's attribute, or under every attribute, [b, 3, a, ...], with
    `all_attributes`. One pass of the folded batch does the work of the original's three. With `remat`, gradients compute each
    block of the trunk a second time instead of keeping what is inside it.
    """
    network = nnx.merge(structure.graphdef, params, batch_stats)
    batch, num_roles = photos.shape[:2]
    features = photos.reshape(batch * num_roles, *photos.shape[2:])
    if photos.dtype == jnp.uint8:
        features = network.trunk(network.trunk.normalize(features), structure.trunk_roles, remat)
    else:
        features = features.astype(jnp.float32)  # from float16, as they are on disk
    projected = network.project(features, structure.roles, key)
    if all_attributes:
        output = _under_all(structure, network.head, projected)
    else:
        output = _finish(structure, network.head(projected, jnp.repeat(attribute, num_roles)))
    output = jax.tree.map(lambda part: part.reshape(batch, num_roles, *part.shape[1:]), output)
    return output, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))


def extract_features(
    structure: Structure, params: dict, batch_stats: dict, images: UInt8[Array, 'n h w 3']
) -> Float[Array, 'n h2 w2 c']:
    """Eval mode: the trunk's features, from which the head computes everything else."""
    network = nnx.merge(structure.graphdef, params, batch_stats)
    return network.trunk(network.trunk.normalize(images))


def embed_all(
    structure: Structure, params: dict, batch_stats: dict, images: UInt8[Array, 'n h w 3']
) -> tuple[Float[Array, 'n a d'], Float[Array, 'n a h16 w16'] | None]:
    """Eval mode: each photo's vectors under every attribute, and the attention maps, from one pass of the trunk."""
    network = nnx.merge(structure.graphdef, params, batch_stats)
    projected = network.project(network.trunk(network.trunk.normalize(images)), ())
    output = _under_all(structure, network.head, projected)
    return output.embedding, output.heatmap


def _under_all(structure: Structure, head: Head, projected: Projected) -> HeadOutput:
    """The head's output under every attribute, as the second axis."""

    def under(attribute):
        output = head(projected, attribute[None])
        return _finish(structure, output._replace(extras=None))  # CSN's masks have one row here, and no loss reads them

    return jax.vmap(under, out_axes=1)(jnp.arange(structure.num_attributes))


def _finish(structure: Structure, output: HeadOutput) -> HeadOutput:
    embedding = output.embedding.astype(jnp.float32)
    return output._replace(embedding=l2_normalize(embedding) if structure.normalize else embedding)
