"""EfficientNet-Lite0 (Tan and Le, 2019; TensorFlow's Lite variant): a trunk whose ImageNet weights a package carries.

Unlike EfficientNet-B0, it has no squeeze-and-excitation and uses ReLU6 throughout.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from asen_jax.errors import InputError
from asen_jax.models.depthwise import DepthwiseConv
from asen_jax.models.layers import BatchNorm, Conv, Numerics, Roles

NAME = 'efficientnet_lite0'
# blocks, kernel size, stride of the first block, factor by which a block expands its input, channels
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
STAGES_OF_STRIDE_32 = ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
STEM_DIM, TOP_DIM = 32, 1280
NORM = {'epsilon': 1e-3, 'momentum': 0.01}  # TensorFlow calls this momentum 0.99


class MBConv(nnx.Module):
    """bn(conv1x1(relu6(bn(depthwise(relu6(bn(conv1x1(x)))))))), plus x where the shape stays the same."""

    def __init__(
        self, in_dim: int, dim: int, kernel_size: int, stride: int, expand: int, *, numerics: Numerics, rngs: nnx.Rngs
    ):
        make, wide = {'trunk': True, 'numerics': numerics, 'rngs': rngs}, in_dim * expand
        self.expand = Conv(in_dim, wide, 1, **make) if expand > 1 else None
        self.expand_bn = BatchNorm(wide, **NORM) if expand > 1 else None
        self.depthwise = DepthwiseConv(wide, kernel_size, stride=stride, numerics=numerics, rngs=rngs)
        self.depthwise_bn = BatchNorm(wide, **NORM)
        self.project, self.project_bn = Conv(wide, dim, 1, **make), BatchNorm(dim, **NORM)
        self.has_skip = stride == 1 and in_dim == dim

    def __call__(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h2 w2 d']:
        y = x
        if self.expand is not None and self.expand_bn is not None:
            y = jax.nn.relu6(self.expand_bn(self.expand(y), roles))
        y = jax.nn.relu6(self.depthwise_bn(self.depthwise(y), roles))
        y = self.project_bn(self.project(y), roles)
        return y + x if self.has_skip else y


class EfficientNetLite0(nnx.Module):
    """Features of 112 channels at stride 16, or of 1280 at stride 32, after the last 1x1 convolution."""

    def __init__(self, stride: int = 32, *, numerics: Numerics, rngs: nnx.Rngs):
        if stride not in (16, 32):
            raise InputError(f'config.model.trunk_stride is {stride}; {NAME} has features of stride 16 and 32.')
        make = {'numerics': numerics, 'rngs': rngs}
        self.stride = stride
        self.stem = Conv(3, STEM_DIM, 3, stride=2, trunk=True, padding='same', **make)
        self.stem_bn = BatchNorm(STEM_DIM, **NORM)
        dim, blocks = STEM_DIM, []
        for num_blocks, kernel_size, first_stride, expand, stage_dim in STAGES + STAGES_OF_STRIDE_32 * (stride == 32):
            for number in range(num_blocks):
                blocks.append(MBConv(dim, stage_dim, kernel_size, 1 if number else first_stride, expand, **make))
                dim = stage_dim
        self.blocks, self.out_dim = nnx.List(blocks), TOP_DIM if stride == 32 else dim
        self.top = Conv(dim, TOP_DIM, 1, trunk=True, **make) if stride == 32 else None
        self.top_bn = BatchNorm(TOP_DIM, **NORM) if stride == 32 else None

    def normalize(self, images: UInt8[Array, 'n h w 3']) -> Float[Array, 'n h w 3']:
        """(pixel - 127) / 128, in float32."""
        return (images.astype(jnp.float32) - 127.0) / 128.0

    def __call__(self, x: Float[Array, 'n h w 3'], roles: Roles = ()) -> Float[Array, 'n h2 w2 d']:
        x = jax.nn.relu6(self.stem_bn(self.stem(x), roles))
        for block in self.blocks:
            x = block(x, roles)
        if self.top is None or self.top_bn is None:
            return x
        return jax.nn.relu6(self.top_bn(self.top(x), roles))
