"""Spatial and channel attention of ASEN (Ma et al., AAAI 2020, section 3), in both published versions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from asen_jax.models.layers import BatchNorm, Conv, Numerics, Roles, Table, linear, uniform_by_fan_in

ATTRIBUTE_DIM = 512  # width of the attribute table in v2


def spatial_dim(trunk_dim: int) -> int:
    """Channels of the space in which photo and attribute are compared: at most 512, and 256 for a 256-channel trunk (as in ASEN++)."""
    return min(512, trunk_dim)


def attend(
    x: Float[Array, 'n h w c'], scores: Float[Array, 'n h w']
) -> tuple[Float[Array, 'n c'], Float[Array, 'n h w']]:
    """sum over positions of x * softmax(scores), and the softmax itself, in float32 whatever the dtype of x."""
    weights = jax.nn.softmax(scores.astype(jnp.float32).reshape(scores.shape[0], -1)).reshape(scores.shape)
    n, *_, c = x.shape
    positions = x.astype(jnp.float32).reshape(n, -1, c)
    # the weights come first: the other way round, XLA would transpose x, and compute the trunk's last blocks once more for it
    pooled = jnp.matmul(weights.reshape(n, 1, -1), positions, precision=lax.Precision.HIGHEST)[:, 0]
    return pooled, weights


class SpatialAttention(nnx.Module):
    """v1: softmax over positions of tanh(conv1x1(tanh(conv1x1(x)) * tanh(W1 onehot(c)))) (equations 1-3)."""

    def __init__(self, trunk_dim: int, num_attributes: int, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, make = spatial_dim(trunk_dim), {'numerics': numerics, 'rngs': rngs}
        self.image_conv = Conv(trunk_dim, dim, 1, **make)
        self.attribute_rows = Table(num_attributes, dim, init=uniform_by_fan_in(num_attributes), rngs=rngs)
        self.score_conv = Conv(dim, 1, 1, **make)

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h w k']:
        """tanh(conv1x1(x)), which is the same for every attribute."""
        return jnp.tanh(self.image_conv(x))

    def __call__(self, x: Float[Array, 'n h w c'], image: Float[Array, 'n h w k'], one_hot: Float[Array, '#n a']):
        rows = jnp.tanh(self.attribute_rows(one_hot))  # float32, so that their gradients are sums in float32
        return attend(x, jnp.tanh(self.score_conv(image * rows[:, None, None]))[..., 0])


class SpatialAttentionV2(nnx.Module):
    """v2: softmax over positions of sum_channels(tanh(bn(conv1x1(x))) * tanh(fc(E_c))) / sqrt(channels)."""

    def __init__(self, trunk_dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        dim, make = spatial_dim(trunk_dim), {'numerics': numerics, 'rngs': rngs}
        self.image_conv, self.image_bn = Conv(trunk_dim, dim, 1, **make), BatchNorm(dim)
        self.attribute_fc = linear(ATTRIBUTE_DIM, dim, **make)

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h w k']:
        """tanh(bn(conv1x1(x))), which is the same for every attribute."""
        return jnp.tanh(self.image_bn(self.image_conv(x), roles))

    def __call__(self, x: Float[Array, 'n h w c'], image: Float[Array, 'n h w k'], embedded: Float[Array, '#n e']):
        attribute = jnp.tanh(self.attribute_fc(embedded))
        # in bfloat16, neighboring positions would get the same score
        image, attribute = image.astype(jnp.float32), attribute.astype(jnp.float32)
        scores = jnp.einsum('nhwc,nc->nhw', image, attribute, precision=lax.Precision.HIGHEST)
        return attend(x, scores / jnp.sqrt(jnp.float32(image.shape[-1])))


class ChannelAttention(nnx.Module):
    """v * sigmoid(fc(relu(fc([v; e])))), with e the embedded attribute (equations 5-7); the hidden size is half the trunk's."""

    def __init__(self, trunk_dim: int, attribute_dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        make = {'numerics': numerics, 'rngs': rngs}
        self.fc1 = linear(trunk_dim + attribute_dim, trunk_dim // 2, **make)
        self.fc2 = linear(trunk_dim // 2, trunk_dim, **make)

    def __call__(self, pooled: Float[Array, 'n c'], embedded: Float[Array, '#n e']) -> Float[Array, 'n c']:
        embedded = jnp.broadcast_to(embedded.astype(pooled.dtype), (pooled.shape[0], embedded.shape[-1]))
        hidden = nnx.relu(self.fc1(jnp.concatenate([pooled, embedded], axis=-1)))
        return pooled * jax.nn.sigmoid(self.fc2(hidden))
