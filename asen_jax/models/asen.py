"""ASEN and ASEN v2: a trunk, attention to where an attribute shows and to which channels tell it (AAAI 2020)."""

from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int

from asen_jax.models.attention import ATTRIBUTE_DIM, ChannelAttention, SpatialAttention, SpatialAttentionV2
from asen_jax.models.layers import Linear, Numerics, Table
from asen_jax.models.resnet import ResNet, average_pool


class HeadOutput(NamedTuple):
    """What a head says of photos under attributes: vectors (not yet normalized), and where it looked, if it does."""

    embedding: Float[Array, 'n d']
    heatmap: Float[Array, 'n h w'] | None
    unmasked: Float[Array, 'n d'] | None = None  # csn only: the vectors before their mask, and the mask
    mask: Float[Array, 'n d'] | None = None


class Projected(NamedTuple):
    """Photos as a head keeps them, computed once for all attributes."""

    features: (
        Float[Array, 'n h w c'] | Float[Array, 'n c']
    )  # the trunk's, pooled where no attention needs the positions
    image: Float[Array, 'n h w k'] | None  # what spatial attention compares with the attribute


class AsenHead(nnx.Module):
    """v = channel(spatial(x, c), c), then fc; an attention that is off is an average pool, or no mask (the ablations)."""

    def __init__(
        self, trunk_dim: int, embed_dim: int, num_attributes: int, *, spatial: bool, channel: bool,
        numerics: Numerics, rngs: nnx.Rngs,
    ):  # fmt: skip
        make = {'numerics': numerics, 'rngs': rngs}
        self.spatial = SpatialAttention(trunk_dim, num_attributes, **make) if spatial else None
        self.channel = ChannelAttention(trunk_dim, trunk_dim, **make) if channel else None
        self.channel_rows = Table(num_attributes, trunk_dim, linear=True, rngs=rngs) if channel else None
        self.fc = Linear(trunk_dim, embed_dim, **make)

    def project(self, x: Float[Array, 'n h w c'], roles: int) -> Projected:
        """What the head computes of photos whatever the attribute."""
        return Projected(x, self.spatial.project(x, roles)) if self.spatial else Projected(average_pool(x), None)

    def __call__(self, projected: Projected, attribute: Int[Array, ' n']) -> HeadOutput:
        pooled, heatmap = projected.features, None
        if self.spatial:
            pooled, heatmap = self.spatial(*projected, attribute)
        if self.channel:
            pooled = self.channel(pooled, nnx.relu(self.channel_rows(attribute)))
        return HeadOutput(self.fc(pooled), heatmap)


class AsenV2Head(nnx.Module):
    """v = channel(spatial(x, E_c), E_c) with one attribute table E and no last layer: the embedding has the trunk's size."""

    def __init__(
        self, trunk_dim: int, num_attributes: int, *, spatial: bool, channel: bool, numerics: Numerics, rngs: nnx.Rngs
    ):
        make = {'numerics': numerics, 'rngs': rngs}
        self.attribute_rows = Table(num_attributes, ATTRIBUTE_DIM, rngs=rngs) if spatial or channel else None
        self.spatial = SpatialAttentionV2(trunk_dim, **make) if spatial else None
        self.channel = ChannelAttention(trunk_dim, ATTRIBUTE_DIM, **make) if channel else None
        self.channel_fc = Linear(ATTRIBUTE_DIM, ATTRIBUTE_DIM, **make) if channel else None

    def project(self, x: Float[Array, 'n h w c'], roles: int) -> Projected:
        """What the head computes of photos whatever the attribute."""
        return Projected(x, self.spatial.project(x, roles)) if self.spatial else Projected(average_pool(x), None)

    def __call__(self, projected: Projected, attribute: Int[Array, ' n']) -> HeadOutput:
        embedded = self.attribute_rows(attribute) if self.attribute_rows else None
        pooled, heatmap = projected.features, None
        if self.spatial:
            pooled, heatmap = self.spatial(*projected, embedded)
        if self.channel:
            pooled = self.channel(pooled, nnx.relu(self.channel_fc(embedded)))
        return HeadOutput(pooled, heatmap)


class Network(nnx.Module):
    """A trunk and a head; the trunk's features serve any number of attributes."""

    def __init__(self, trunk: ResNet, head: nnx.Module):
        self.trunk, self.head = trunk, head
