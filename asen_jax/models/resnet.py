"""ResNet-18/34/50 up to layer3 (He et al., 2016), the trunk of every published network, in torchvision's layout."""

import functools
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.models.interfaces import Pretrained, TrunkKind
from asen_jax.models.layers import BatchNorm, Conv, Numerics, Roles, max_pool, run_block

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, per channel
BLOCKS = {'resnet18': (2, 2, 2), 'resnet34': (3, 4, 6), 'resnet50': (3, 4, 6)}
WIDTH = 64  # channels of the first layer, as published
FOLDER, URL = Path('data/pretrained'), 'https://download.pytorch.org/models/'
# torchvision's v1 weights, which the papers used; the second name is an older file with the same weights
FILES = {
    'resnet18': ('resnet18-f37072fd.pth', 'resnet18-5c106cde.pth'),
    'resnet34': ('resnet34-b627a593.pth', 'resnet34-333f7ec4.pth'),
    'resnet50': ('resnet50-0676ba61.pth', 'resnet50-19c8e357.pth'),
}


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

    def __init__(self, name: str, width: int = WIDTH, *, numerics: Numerics, rngs: nnx.Rngs):
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
        self.out_dim = dim

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


def find_torchvision(name: str, options: ConfigDict) -> Path | None:
    """torchvision's file in FOLDER; raises InputError for a network of another width."""
    if options.resnet.width != WIDTH:
        raise InputError(
            f'config.model.resnet.width is {options.resnet.width}, but ImageNet weights have {WIDTH}; change it, or set '
            '--config.init.trunk=none.'
        )
    return next((FOLDER / file for file in FILES[name] if (FOLDER / file).is_file()), None)


def _kind(name: str) -> TrunkKind:
    newest = FILES[name][0]
    return TrunkKind(
        build=lambda options, numerics, rngs: ResNet(name, options.resnet.width, numerics=numerics, rngs=rngs),
        pretrained=Pretrained(
            about=f"torchvision's ImageNet weights (IMAGENET1K_V1; timm/{name}.tv_in1k on the Hub; BSD-3-Clause)",
            find=functools.partial(find_torchvision, name),
            remedy=f'check the network, or download {URL}{newest} to {FOLDER / newest}',
            hub=f'timm/{name}.tv_in1k',
        ),
        torch_names={'shortcut': 'downsample', 'conv': '0', 'bn': '1'},
        torch_unused=r'layer4\.',
        in_original=True,
    )


TRUNKS = {name: _kind(name) for name in BLOCKS}
