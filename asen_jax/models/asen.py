"""ASEN and ASEN v2 (Ma et al., AAAI 2020): where an attribute is visible, and which channels describe it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from asen_jax.models.attention import ATTRIBUTE_DIM, ChannelAttention, SpatialAttention, SpatialAttentionV2
from asen_jax.models.conditions import AttributeConditions
from asen_jax.models.interfaces import NetworkKind, Output, TorchLayout
from asen_jax.models.layers import Numerics, Roles, Table, average_pool, linear, uniform_by_fan_in
from asen_jax.models.single import single


class AsenHead(nnx.Module):
    """fc(channel(spatial(x, c), c)), where the condition c is one-hot.

    In the paper's ablations, an average pool replaces spatial attention, and nothing replaces channel attention.
    """

    def __init__(self, options: ConfigDict, trunk_dim: int, num_attributes: int, numerics: Numerics, rngs: nnx.Rngs):
        make, attention = {'numerics': numerics, 'rngs': rngs}, options.asen
        self.spatial = SpatialAttention(trunk_dim, num_attributes, **make) if attention.spatial_attention else None
        self.channel = ChannelAttention(trunk_dim, trunk_dim, **make) if attention.channel_attention else None
        table = {'init': uniform_by_fan_in(num_attributes), 'rngs': rngs}
        self.channel_rows = Table(num_attributes, trunk_dim, **table) if self.channel else None
        self.fc = linear(trunk_dim, options.embed_dim, **make)

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> tuple[Array, Any]:
        """The features and their projection for spatial attention; without attention, the pooled features and no heatmap."""
        return (x, self.spatial.project(x, roles)) if self.spatial else (average_pool(x), None)

    def __call__(self, projected: tuple[Array, Any], condition: Float[Array, '#n a']) -> Output:
        pooled, heatmap = self.spatial(*projected, condition) if self.spatial else projected
        if self.channel and self.channel_rows:
            pooled = self.channel(pooled, nnx.relu(self.channel_rows(condition)))
        return Output(self.fc(pooled), heatmap)


class AsenV2Head(nnx.Module):
    """channel(spatial(x, E_c), E_c) with one attribute table E and no last layer, so the embedding has the trunk's size.

    The condition is E_c, or [E_c; onehot(c)] with `projection`, an addition that is not in the paper: relu(fc(.)) times
    the attribute's own matrix, [hidden units, dimensions of the embedding].
    """

    def __init__(self, options: ConfigDict, trunk_dim: int, num_attributes: int, numerics: Numerics, rngs: nnx.Rngs):
        make, attention, hidden = {'numerics': numerics, 'rngs': rngs}, options.asen, options.asen_v2.projection
        self.spatial = SpatialAttentionV2(trunk_dim, **make) if attention.spatial_attention else None
        self.channel = ChannelAttention(trunk_dim, ATTRIBUTE_DIM, **make) if attention.channel_attention else None
        self.channel_fc = linear(ATTRIBUTE_DIM, ATTRIBUTE_DIM, **make) if self.channel else None
        self.hidden_fc = linear(trunk_dim, hidden, **make) if hidden else None
        shape = (num_attributes, hidden, options.embed_dim)
        self.fc = Table(*shape, init=uniform_by_fan_in(hidden), rngs=rngs) if hidden else None
        self.num_attributes, self.precision = num_attributes, numerics.precision

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> tuple[Array, Any]:
        """The features and their projection for spatial attention; without attention, the pooled features and no heatmap."""
        return (x, self.spatial.project(x, roles)) if self.spatial else (average_pool(x), None)

    def __call__(self, projected: tuple[Array, Any], condition: Float[Array, '#n e']) -> Output:
        embedded = condition[:, :ATTRIBUTE_DIM]
        pooled, heatmap = self.spatial(*projected, embedded) if self.spatial else projected
        if self.channel and self.channel_fc:
            pooled = self.channel(pooled, nnx.relu(self.channel_fc(embedded)))
        if self.hidden_fc and self.fc:
            hidden = nnx.relu(self.hidden_fc(pooled))
            matrices = self.fc(condition[:, -self.num_attributes :]).astype(hidden.dtype)
            pooled = jnp.einsum('nh,nhd->nd', hidden, matrices, precision=self.precision)
        return Output(pooled, heatmap)


def v2_conditions(options: ConfigDict, num_attributes: int, rngs: nnx.Rngs) -> AttributeConditions:
    """The attribute table of ASEN v2, which only its attention reads, and the one-hot vectors that a projection needs."""
    attention = options.asen.spatial_attention or options.asen.channel_attention
    dim, one_hot = ATTRIBUTE_DIM if attention else 0, options.asen_v2.projection > 0
    return AttributeConditions(num_attributes, dim, one_hot, rngs=rngs)


def recognize_asen(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int] | None:
    """The config fields of a checkpoint of the original ASEN, and its number of attributes; None for other tensors."""
    table = next((tensors[name] for name in ('mask_fc1.weight', 'mask_fc2.weight') if name in tensors), None)
    if table is None:
        return None
    last = np.shape(tensors.get('feature_fc.weight', ()))
    return ({'model.embed_dim': last[0]} if len(last) == 2 else {}) | _attention(tensors), table.shape[1]


def recognize_asen_v2(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int] | None:
    """The same for ASEN v2."""
    table = tensors.get('attr_embedding.weight')
    return None if table is None else (_attention(tensors), len(table))


def _attention(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    marks = {'spatial_attention': 'conv1.weight', 'channel_attention': 'fc1.weight'}
    return {f'model.asen.{field}': mark in tensors for field, mark in marks.items()}


ASEN_NAMES = {
    'trunk': 'backbonenet',
    'head.spatial.image_conv': 'conv1',
    'head.spatial.score_conv': 'conv2',
    'head.spatial.attribute_rows': 'mask_fc1',
    'head.channel_rows': 'mask_fc2',
    'head.channel.fc1': 'fc1',
    'head.channel.fc2': 'fc2',
    'head.fc': 'feature_fc',
}
LINEAR_TABLES = ('head.spatial.attribute_rows.rows', 'head.channel_rows.rows')
ASEN_V2_NAMES = {
    'trunk': 'backbonenet',
    'conditions': 'attr_embedding',
    'head.spatial.attribute_fc': 'attr_transform1',
    'head.spatial.image_conv': 'conv1',
    'head.spatial.image_bn': 'img_bn1',
    'head.channel_fc': 'attr_transform2',
    'head.channel.fc1': 'fc1',
    'head.channel.fc2': 'fc2',
}
NETWORKS = {
    'asen': NetworkKind(
        paper='ASEN: Ma et al., AAAI 2020, arXiv 2002.02814',
        build=single(AsenHead),
        torch=TorchLayout(lambda options: ASEN_NAMES, recognize_asen, linear_tables=LINEAR_TABLES),
    ),
    'asen_v2': NetworkKind(
        paper="ASEN, second version in its authors' repository: Ma et al., AAAI 2020, arXiv 2002.02814",
        build=single(AsenV2Head, v2_conditions),
        torch=TorchLayout(lambda options: ASEN_V2_NAMES, recognize_asen_v2),
    ),
}
