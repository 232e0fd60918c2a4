"""Attribute-aware spatial and channel attention of ASEN (Ma et al., AAAI 2020, section 3), both published versions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from asen_jax.models.layers import BatchNorm, Conv, Linear, Numerics, Table

ATTRIBUTE_DIM = 512  # of the attribute table of v2


def spatial_dim(trunk_dim: int) -> int:
    """Channels in which photo and attribute meet: 512 for ResNet-50; 256-channel trunks take 256, as ASEN++'s local branch."""
    return min(512, trunk_dim)


def attend(
    x: Float[Array, 'n h w c'], scores: Float[Array, 'n h w']
) -> tuple[Float[Array, 'n c'], Float[Array, 'n h w']]:
    """sum over positions of x * softmax(scores), and that softmax: float32 whatever the type of x."""
    weights = jax.nn.softmax(scores.astype(jnp.float32).reshape(scores.shape[0], -1)).reshape(scores.shape)
    pooled = jnp.einsum('nhwc,nhw->nc', x.astype(jnp.float32), weights, precision=lax.Precision.HIGHEST)
    return pooled, weights


class SpatialAttention(nnx.Module):
    """v1: s = tanh(conv1x1(tanh(conv1x1(x)) * tanh(W1 onehot(c)))), softmax over the positions (equations 1-3)."""

    def __init__(self, trunk_dim: int, num_attributes: int, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, make = spatial_dim(trunk_dim), {'numerics': numerics, 'rngs': rngs}
        self.image_conv = Conv(trunk_dim, dim, 1, **make)
        self.attribute_rows = Table(num_attributes, dim, linear=True, rngs=rngs)
        self.score_conv = Conv(dim, 1, 1, **make)

    def project(self, x: Float[Array, 'n h w c'], roles: int) -> Float[Array, 'n h w k']:
        """tanh(conv1x1(x)): the same for every attribute."""
        return jnp.tanh(self.image_conv(x))

    def __call__(self, x: Float[Array, 'n h w c'], image: Float[Array, 'n h w k'], attribute: Int[Array, ' n']):
        rows = jnp.tanh(self.attribute_rows(attribute)).astype(image.dtype)
        return attend(x, jnp.tanh(self.score_conv(image * rows[:, None, None]))[..., 0])


class SpatialAttentionV2(nnx.Module):
    """v2: s = sum over channels of tanh(bn(conv1x1(x))) * tanh(fc(E_c)), over sqrt(channels), softmax over positions."""

    def __init__(self, trunk_dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, make = spatial_dim(trunk_dim), {'numerics': numerics, 'rngs': rngs}
        self.image_conv, self.image_bn = Conv(trunk_dim, dim, 1, **make), BatchNorm(dim)
        self.attribute_fc = Linear(ATTRIBUTE_DIM, dim, **make)
        self.precision = numerics.precision

    def project(self, x: Float[Array, 'n h w c'], roles: int) -> Float[Array, 'n h w k']:
        """tanh(bn(conv1x1(x))): the same for every attribute."""
        return jnp.tanh(self.image_bn(self.image_conv(x), roles))

    def __call__(self, x: Float[Array, 'n h w c'], image: Float[Array, 'n h w k'], embedded: Float[Array, 'n e']):
        attribute = jnp.tanh(self.attribute_fc(embedded))
        scores = jnp.einsum('nhwc,nc->nhw', image, attribute, precision=self.precision)
        return attend(x, scores / jnp.sqrt(jnp.float32(image.shape[-1])))


class ChannelAttention(nnx.Module):
    """v * sigmoid(fc(relu(fc([v; e])))), e what the attribute says (equations 5-7); the hidden size is half the trunk's."""

    def __init__(self, trunk_dim: int, attribute_dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        make = {'numerics': numerics, 'rngs': rngs}
        self.fc1 = Linear(trunk_dim + attribute_dim, trunk_dim // 2, **make)
        self.fc2 = Linear(trunk_dim // 2, trunk_dim, **make)

    def __call__(self, pooled: Float[Array, 'n c'], embedded: Float[Array, 'n e']) -> Float[Array, 'n c']:
        hidden = nnx.relu(self.fc1(jnp.concatenate([pooled, embedded.astype(pooled.dtype)], axis=-1)))
        return pooled * jax.nn.sigmoid(self.fc2(hidden))
