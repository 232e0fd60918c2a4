"""Layers with PyTorch's semantics: initializers, padding, and batch-norm statistics.

Layers and trunks take `roles`. Empty, they evaluate with running statistics. In training the first axis holds
[batch, len(roles)] folded together (anchor, positive, negative); batch statistics are computed for each role on its own, and
`roles` lists the roles in the order in which their statistics enter the running average.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

Roles = tuple[int, ...]


class Numerics(NamedTuple):
    """The dtype of activations, and the precision of float32 products."""

    dtype: jnp.dtype
    precision: lax.Precision


def numerics(precision: str) -> Numerics:
    """The arithmetic that `config.precision` names: exact float32, float32 on TF32 units where the GPU has them, or bfloat16."""
    return {
        'float32': Numerics(jnp.float32, lax.Precision.HIGHEST),
        'tensorfloat32': Numerics(jnp.float32, lax.Precision.DEFAULT),
        'bfloat16': Numerics(jnp.bfloat16, lax.Precision.DEFAULT),
    }[precision]


def uniform_by_fan_in(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for weights and biases of convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear(in_dim: int, out_dim: int, *, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Linear:
    """`nnx.Linear` with PyTorch's default initializer."""
    init = uniform_by_fan_in(in_dim)
    return nnx.Linear(in_dim, out_dim, kernel_init=init, bias_init=init, rngs=rngs, **numerics._asdict())


class Conv(nnx.Conv):
    """A convolution padded by `kernel_size // 2` on both sides, as PyTorch pads, or as TensorFlow does with `padding='SAME'`.

    A 1x1 kernel is applied as a matrix product, which XLA runs up to five times faster on a CPU than its convolution.
    A convolution of the trunk has no bias and starts from N(0, sqrt(2 / (k*k*out))), as torchvision's ResNet does; others
    start from PyTorch's default.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        *,
        stride: int = 1,
        trunk: bool = False,
        padding: str | None = None,
        numerics: Numerics,
        rngs: nnx.Rngs,
    ):
        area = kernel_size**2
        init = nnx.initializers.normal(math.sqrt(2 / (area * out_dim))) if trunk else uniform_by_fan_in(area * in_dim)
        super().__init__(
            in_dim,
            out_dim,
            (kernel_size, kernel_size),
            stride,
            padding=padding or kernel_size // 2,
            use_bias=not trunk,
            kernel_init=init,
            bias_init=init,
            rngs=rngs,
            **numerics._asdict(),
        )

    def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h2 w2 d']:
        if self.kernel_size != (1, 1):
            return super().__call__(x)
        x = x.astype(self.dtype)[:, :: self.strides, :: self.strides]
        rows = x.reshape(-1, x.shape[-1])  # XLA is slower on a CPU if the product has more axes
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.matmul(rows, kernel[0, 0], precision=self.precision).reshape(*x.shape[:-1], -1)
        if self.bias is None:
            return y
        return (y + self.bias[...].reshape(1, 1, 1, -1)).astype(self.dtype)  # the bias's gradient is a sum in float32


class Table(nnx.Module):
    """One row of the given shape per attribute, of which a one-hot condition picks its own.

    Rows start from N(0, 1) unless `init` says otherwise. PyTorch's bias-free linear layer on one-hot vectors is the same with
    `init=uniform_by_fan_in(num_rows)`.
    """

    def __init__(self, num_rows: int, *shape: int, init: nnx.Initializer = jax.random.normal, rngs: nnx.Rngs):
        self.rows = nnx.Param(init(rngs.params(), (num_rows, *shape)))

    def __call__(self, one_hot: Float[Array, 'n a']) -> Float[Array, 'n ...']:
        return jnp.tensordot(one_hot, self.rows[...], 1, precision=lax.Precision.HIGHEST)


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias with PyTorch's statistics.

    The batch is normalized by its biased variance; the running variance averages the unbiased one (n / (n - 1), n = the
    role's batch*h*w over all devices) with `momentum`. Running statistics are updated once per role. Statistics are
    float32 whatever the dtype of x.

    Both statistics come from one pass over x, var = E[(x - m)^2] - E[x - m]^2, where m is the running mean. Cancellation
    multiplies the rounding error of the variance by 1 + (mean - m)^2 / var, which is about 1 once m follows the batch's mean.
    """

    def __init__(self, dim: int, epsilon: float = 1e-5, momentum: float = 0.1):
        self.epsilon, self.momentum = epsilon, momentum
        self.scale, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(dim)), nnx.BatchStat(jnp.ones(dim))

    def __call__(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n h w c']:
        parts = self.scale, self.bias, self.mean, self.var
        scale, bias, mean, var = (part[...].reshape(1, 1, 1, -1) for part in parts)
        if not roles:
            factor = scale * lax.rsqrt(var + self.epsilon)
            return (x * factor + (bias - mean * factor)).astype(x.dtype)
        shifted = x.reshape(-1, len(roles), *x.shape[1:]).astype(jnp.float32) - mean[None]
        mean = shifted.mean(axis=(0, 2, 3), keepdims=True)
        var = jnp.maximum(jnp.square(shifted).mean(axis=(0, 2, 3), keepdims=True) - jnp.square(mean), 0)
        count = shifted.size // (len(roles) * x.shape[-1])
        unbiased, middle = var * (count / max(count - 1, 1)), self.mean[...]
        keep = 1 - self.momentum
        for role in roles:
            new = lax.stop_gradient((middle + mean[0, role, 0, 0], unbiased[0, role, 0, 0]))
            self.mean[...] = keep * self.mean[...] + self.momentum * new[0]
            self.var[...] = keep * self.var[...] + self.momentum * new[1]
        factor = scale[None] * lax.rsqrt(var + self.epsilon)
        return (shifted * factor + (bias[None] - mean * factor)).astype(x.dtype).reshape(x.shape)


def run_block(
    block: Callable[..., Array], x: Float[Array, 'n h w c'], roles: Roles, remat: bool
) -> Float[Array, 'n h2 w2 d']:
    """block(x, roles). With `remat`, gradients compute what is inside the block a second time instead of keeping it."""
    return nnx.remat(lambda block, x: block(x, roles))(block, x) if remat else block(x, roles)


def max_pool(x: Float[Array, 'n h w c']) -> Float[Array, 'n h2 w2 c']:
    """3x3 maximum, stride 2, padding 1, as the maximum of nine strided slices.

    That makes the gradient elementwise; XLA's own window gradient is seven times slower on a CPU.
    """
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    windows = [x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, windows)


def average_pool(x: Float[Array, 'n h w c']) -> Float[Array, 'n c']:
    """The mean over all positions, in float32."""
    return x.astype(jnp.float32).mean(axis=(1, 2))


def l2_normalize(x: Float[Array, '*n d']) -> Float[Array, '*n d']:
    """x / ||x|| in float32, without an epsilon, as in the original."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
