"""The heads of ASEN and ASEN v2 (Ma et al., AAAI 2020): where an attribute is visible, and which channels describe it."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from asen_jax.models.attention import ATTRIBUTE_DIM, ChannelAttention, SpatialAttention, SpatialAttentionV2
from asen_jax.models.heads import HeadOutput, Projected
from asen_jax.models.layers import Numerics, Roles, Table, average_pool, linear, uniform_by_fan_in


class AsenHead(nnx.Module):
    """fc(channel(spatial(x, c), c)).

    In the paper's ablations, an average pool replaces spatial attention, and nothing replaces channel attention.
    """

    def __init__(
        self,
        trunk_dim: int,
        embed_dim: int,
        num_attributes: int,
        *,
        spatial: bool,
        channel: bool,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        make = {'numerics': numerics, 'rngs': rngs}
        self.spatial = SpatialAttention(trunk_dim, num_attributes, **make) if spatial else None
        self.channel = ChannelAttention(trunk_dim, trunk_dim, **make) if channel else None
        self.channel_rows = (
            Table(num_attributes, trunk_dim, init=uniform_by_fan_in(num_attributes), rngs=rngs) if channel else None
        )
        self.fc = linear(trunk_dim, embed_dim, **make)

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Projected:
        """The part that is the same for every attribute."""
        return Projected(x, self.spatial.project(x, roles)) if self.spatial else Projected(average_pool(x))

    def __call__(self, projected: Projected, attribute: Int[Array, ' #n']) -> HeadOutput:
        pooled, heatmap = projected.features, None
        if self.spatial and projected.image is not None:
            pooled, heatmap = self.spatial(projected.features, projected.image, attribute)
        if self.channel and self.channel_rows:
            pooled = self.channel(pooled, nnx.relu(self.channel_rows(attribute)))
        return HeadOutput(self.fc(pooled), heatmap)


class AsenV2Head(nnx.Module):
    """channel(spatial(x, E_c), E_c) with one attribute table E and no last layer, so the embedding has the trunk's size.

    `projection` adds what the paper does not have: relu(fc(.)) times the attribute's own matrix, [hidden units,
    dimensions of the embedding].
    """

    def __init__(
        self,
        trunk_dim: int,
        num_attributes: int,
        projection: tuple[int, int] | None = None,
        *,
        spatial: bool,
        channel: bool,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        make = {'numerics': numerics, 'rngs': rngs}
        self.attribute_rows = Table(num_attributes, ATTRIBUTE_DIM, rngs=rngs) if spatial or channel else None
        self.spatial = SpatialAttentionV2(trunk_dim, **make) if spatial else None
        self.channel = ChannelAttention(trunk_dim, ATTRIBUTE_DIM, **make) if channel else None
        self.channel_fc = linear(ATTRIBUTE_DIM, ATTRIBUTE_DIM, **make) if channel else None
        self.hidden_fc = linear(trunk_dim, projection[0], **make) if projection else None
        self.fc = (
            Table(num_attributes, *projection, init=uniform_by_fan_in(projection[0]), rngs=rngs) if projection else None
        )
        self.precision = numerics.precision

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Projected:
        """The part that is the same for every attribute."""
        return Projected(x, self.spatial.project(x, roles)) if self.spatial else Projected(average_pool(x))

    def __call__(self, projected: Projected, attribute: Int[Array, ' #n']) -> HeadOutput:
        pooled, heatmap = projected.features, None
        if self.attribute_rows:
            embedded = self.attribute_rows(attribute)
            if self.spatial and projected.image is not None:
                pooled, heatmap = self.spatial(projected.features, projected.image, embedded)
            if self.channel and self.channel_fc:
                pooled = self.channel(pooled, nnx.relu(self.channel_fc(embedded)))
        if self.hidden_fc and self.fc:
            hidden = nnx.relu(self.hidden_fc(pooled))
            matrices = self.fc(attribute).astype(hidden.dtype)
            pooled = jnp.einsum('nh,nhd->nd', hidden, matrices, precision=self.precision)
        return HeadOutput(pooled, heatmap)
