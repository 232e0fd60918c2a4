"""ResNet-18/34/50 up to layer3 (He et al., 2016), the trunk of every network, in torchvision's layout."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from asen_jax.models.layers import BatchNorm, Conv, Numerics, Roles, max_pool, run_block

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, per channel
BLOCKS = {'resnet18': (2, 2, 2), 'resnet34': (3, 4, 6), 'resnet50': (3, 4, 6)}


class BasicBlock(nnx.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(self, in_dim: int, dim: int, stride: int, *, numerics: Numerics, rngs: nnx.Rngs):
        make = {'trunk': True, 'numerics': numerics, 'rngs': rngs}
        self.conv1, self.bn1 = Conv(in_dim, dim, 3, stride=stride, **make), BatchNorm(dim)
        self.conv2, self.bn2 = Conv(dim, dim, 3, **make), BatchNorm(dim)
        self.shortcut = Shortcut(in_dim, dim, stride, **make) if stride != 1 or in_dim != dim else None

    def __call__(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h2 w2 d']:
        y = nnx.relu(self.bn1(self.conv1(x), roles))
        y = self.bn2(self.conv2(y), roles)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, roles)))


class Bottleneck(nnx.Module):
    """relu(bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) + shortcut(x)); the stride is on the 3x3."""

    expansion = 4

    def __init__(self, in_dim: int, dim: int, stride: int, *, numerics: Numerics, rngs: nnx.Rngs):
        make = {'trunk': True, 'numerics': numerics, 'rngs': rngs}
        out_dim = dim * self.expansion
        self.conv1, self.bn1 = Conv(in_dim, dim, 1, **make), BatchNorm(dim)
        self.conv2, self.bn2 = Conv(dim, dim, 3, stride=stride, **make), BatchNorm(dim)
        self.conv3, self.bn3 = Conv(dim, out_dim, 1, **make), BatchNorm(out_dim)
        self.shortcut = Shortcut(in_dim, out_dim, stride, **make) if stride != 1 or in_dim != out_dim else None

    def __call__(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h2 w2 d']:
        y = nnx.relu(self.bn1(self.conv1(x), roles))
        y = nnx.relu(self.bn2(self.conv2(y), roles))
        y = self.bn3(self.conv3(y), roles)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, roles)))


class Shortcut(nnx.Module):
    """bn(conv1x1(x)): the shortcut of a block that changes the shape."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, **make):
        self.conv, self.bn = Conv(in_dim, out_dim, 1, stride=stride, **make), BatchNorm(out_dim)

    def __call__(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h2 w2 d']:
        return self.bn(self.conv(x), roles)


class ResNet(nnx.Module):
    """Features at stride 16 from normalized pixels: 16 * width channels with bottlenecks, 4 * width with basic blocks."""

    def __init__(self, name: str, width: int = 64, *, numerics: Numerics, rngs: nnx.Rngs):
        block = Bottleneck if name == 'resnet50' else BasicBlock
        make = {'numerics': numerics, 'rngs': rngs}
        self.conv1, self.bn1 = Conv(3, width, 7, stride=2, trunk=True, **make), BatchNorm(width)
        dim, stages = width, []
        for stage, num_blocks in enumerate(BLOCKS[name]):
            stage_dim, blocks = width * 2**stage, []
            for number in range(num_blocks):
                blocks.append(block(dim, stage_dim, 2 if stage and not number else 1, **make))
                dim = stage_dim * block.expansion
            stages.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.out_dim, self.stride = dim, 16

    def normalize(self, images: UInt8[Array, 'n h w 3']) -> Float[Array, 'n h w 3']:
        """(pixel / 255 - mean) / std with ImageNet's channel statistics, in float32."""
        mean, std = jnp.array(MEAN).reshape(1, 1, 1, 3), jnp.array(STD).reshape(1, 1, 1, 3)
        return (images.astype(jnp.float32) / 255.0 - mean) / std

    def __call__(
        self, x: Float[Array, 'n h w 3'], roles: Roles = (), remat: bool = False
    ) -> Float[Array, 'n h16 w16 d']:
        x = nnx.relu(self.bn1(self.conv1(x), roles))
        x = max_pool(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                x = run_block(block, x, roles, remat)
        return x
