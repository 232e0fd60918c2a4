"""Layers with PyTorch's semantics: initializers, padding, batch-norm statistics; fast on CPUs as on GPUs.

`roles` runs through every network here: 0 evaluates with running statistics; n >= 1 trains, with the batch read as
[batch, n, ...] folded into its first axis, and batch statistics of each of the n roles (anchor, positive, negative) apart.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, UInt8

from asen_jax.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROLE_ORDER = (0, 2, 1)  # the original passes anchor, negative, positive one after the other; our axis is a, p, n


class Numerics(NamedTuple):
    """The type that activations have, and what a float32 product may lose."""

    dtype: jnp.dtype
    precision: lax.Precision


def numerics(precision: str) -> Numerics:
    """What `config.precision` means: float32 exactly, float32 by TF32 units where the GPU has them, or bfloat16."""
    table = {
        'float32': Numerics(jnp.float32, lax.Precision.HIGHEST),
        'tensorfloat32': Numerics(jnp.float32, lax.Precision.DEFAULT),
        'bfloat16': Numerics(jnp.bfloat16, lax.Precision.DEFAULT),
    }
    if precision not in table:
        raise InputError(f'config.precision is {precision!r}; it is one of {", ".join(table)}.')
    return table[precision]


def normalize_pixels(images: UInt8[Array, 'n h w 3']) -> Float[Array, 'n h w 3']:
    """(pixel / 255 - mean) / std with ImageNet's channel statistics, in float32."""
    mean, std = jnp.array(IMAGENET_MEAN).reshape(1, 1, 1, 3), jnp.array(IMAGENET_STD).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def uniform_by_fan_in(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> Float[Array, '...']:
    """PyTorch's default for weights and biases of convolutions and linear maps: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Conv(nnx.Module):
    """A convolution padded by `kernel_size // 2` on both sides, as PyTorch pads; Flax's SAME differs at stride 2.

    A 1x1 kernel is applied as a matrix product: on a CPU XLA runs that up to five times faster than its convolution.
    `trunk` starts from N(0, sqrt(2 / (k*k*out))), the original ResNet's; otherwise from PyTorch's default.
    """

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int, *, stride: int = 1, trunk: bool = False,
        numerics: Numerics, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.kernel_size, self.stride = kernel_size, stride
        self.dtype, self.precision = numerics
        shape = (kernel_size, kernel_size, in_dim, out_dim)
        if trunk:
            scale = math.sqrt(2 / (kernel_size**2 * out_dim))
            self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
            self.bias = None
        else:
            fan_in = kernel_size**2 * in_dim
            self.kernel = nnx.Param(uniform_by_fan_in(rngs.params(), shape, fan_in))
            self.bias = nnx.Param(uniform_by_fan_in(rngs.params(), (out_dim,), fan_in))

    def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h2 w2 d']:
        kernel = self.kernel[...].astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel_size == 1:
            x = x[:, :: self.stride, :: self.stride]
            y = jnp.matmul(x, kernel[0, 0], precision=self.precision)
        else:
            pad = (self.kernel_size // 2, self.kernel_size // 2)
            y = lax.conv_general_dilated(
                x, kernel, (self.stride, self.stride), (pad, pad), dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                precision=self.precision,
            )  # fmt: skip
        return y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape(1, 1, 1, -1)


class Linear(nnx.Module):
    """x @ kernel + bias, from PyTorch's default initializer."""

    def __init__(self, in_dim: int, out_dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.dtype, self.precision = numerics
        self.kernel = nnx.Param(uniform_by_fan_in(rngs.params(), (in_dim, out_dim), in_dim))
        self.bias = nnx.Param(uniform_by_fan_in(rngs.params(), (out_dim,), in_dim))

    def __call__(self, x: Float[Array, 'n c']) -> Float[Array, 'n d']:
        y = jnp.matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype), precision=self.precision)
        return y + self.bias[...].astype(self.dtype)[None]


class Table(nnx.Module):
    """A row per attribute: an embedding from N(0, 1), or what PyTorch keeps as a linear map of a one-hot vector."""

    def __init__(self, num_rows: int, dim: int, *, linear: bool = False, rngs: nnx.Rngs):
        key, shape = rngs.params(), (num_rows, dim)
        rows = uniform_by_fan_in(key, shape, num_rows) if linear else jax.random.normal(key, shape)
        self.rows = nnx.Param(rows)

    def __call__(self, index) -> Float[Array, 'n d']:
        return self.rows[...][index]


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias with PyTorch's statistics.

    The batch is normalized by its biased variance; the running variance takes the unbiased one (n / (n - 1), n = the
    role's batch*h*w over all devices), momentum 0.1. With several roles the running statistics move once for each, in the
    original's order (anchor, negative, positive). Statistics are float32 whatever the type of x.
    """

    epsilon, momentum = 1e-5, 0.1

    def __init__(self, dim: int):
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(dim)), nnx.BatchStat(jnp.ones(dim))

    def __call__(self, x: Float[Array, 'n h w c'], roles: int) -> Float[Array, 'n h w c']:
        scale, bias = self.scale[...].reshape(1, 1, 1, -1), self.bias[...].reshape(1, 1, 1, -1)
        if not roles:
            factor = scale * lax.rsqrt(self.var[...] + self.epsilon).reshape(scale.shape)
            return (x * factor + (bias - self.mean[...].reshape(scale.shape) * factor)).astype(x.dtype)
        apart = x.reshape(-1, roles, *x.shape[1:]).astype(jnp.float32)
        mean = apart.mean(axis=(0, 2, 3), keepdims=True)
        centered = apart - mean
        var = jnp.square(centered).mean(axis=(0, 2, 3), keepdims=True)
        count = apart.size // (roles * x.shape[-1])
        self._move_running(mean.reshape(roles, -1), var.reshape(roles, -1), count)
        return (centered * (scale[None] * lax.rsqrt(var + self.epsilon)) + bias[None]).astype(x.dtype).reshape(x.shape)

    def _move_running(self, mean: Float[Array, 'roles c'], var: Float[Array, 'roles c'], count: int) -> None:
        keep = 1 - self.momentum
        unbiased = var * (count / max(count - 1, 1))
        for role in ROLE_ORDER if len(mean) == len(ROLE_ORDER) else range(len(mean)):
            self.mean[...] = keep * self.mean[...] + self.momentum * lax.stop_gradient(mean[role])
            self.var[...] = keep * self.var[...] + self.momentum * lax.stop_gradient(unbiased[role])


def max_pool(x: Float[Array, 'n h w c']) -> Float[Array, 'n h2 w2 c']:
    """3x3 maximum, stride 2, padding 1, as the maximum of nine strided slices.

    Its gradient is elementwise that way; XLA's own window gradient is seven times slower on a CPU.
    """
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    windows = [x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
    y = windows[0]
    for window in windows[1:]:
        y = jnp.maximum(y, window)
    return y


def l2_normalize(x: Float[Array, '*n d']) -> Float[Array, '*n d']:
    """x / ||x||, float32, without an epsilon, as the original does it."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
