"""Layers against PyTorch's definitions, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from asen_jax.models import layers
from asen_jax.models.attention import SpatialAttentionV2

NUMERICS = layers.numerics('float32')


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('roles', [1, 3])
def test_batch_norm_normalizes_each_role_by_its_biased_variance(rng, roles):
    x = rng.normal(2.0, 3.0, (4 * roles, 5, 6, 7)).astype(np.float32)
    norm = layers.BatchNorm(7)
    y = np.asarray(norm(jnp.asarray(x), tuple(range(roles))))
    for role in range(roles):
        part = x[role::roles]
        expected = (part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + 1e-5)
        np.testing.assert_allclose(y[role::roles], expected, atol=1e-5)


def test_running_statistics_are_updated_in_the_order_of_roles_with_unbiased_variance(rng):
    x = rng.normal(2.0, 3.0, (4, 3, 5, 6, 7)).astype(np.float32)  # photo, role, ...
    norm = layers.BatchNorm(7)
    norm(jnp.asarray(x.reshape(12, 5, 6, 7)), (0, 2, 1))
    mean, var = np.zeros(7), np.ones(7)
    for role in (0, 2, 1):
        mean = 0.9 * mean + 0.1 * x[:, role].mean((0, 1, 2))
        var = 0.9 * var + 0.1 * x[:, role].var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)


def test_batch_norm_evaluates_with_running_statistics(rng):
    norm = layers.BatchNorm(3)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])
    norm.scale[...], norm.bias[...] = jnp.array([0.5, 1.0, 2.0]), jnp.array([0.1, 0.2, 0.3])
    x = rng.normal(size=(2, 2, 2, 3)).astype(np.float32)
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 5, 6]) + 1e-5) * [0.5, 1, 2] + [0.1, 0.2, 0.3]
    np.testing.assert_allclose(norm(jnp.asarray(x), ()), expected, atol=1e-5)


@pytest.mark.parametrize('size', [7, 8])
def test_max_pool_is_a_padded_window_maximum(rng, size):
    x = jnp.asarray(rng.normal(size=(2, size, size + 1, 3)), jnp.float32)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    np.testing.assert_array_equal(layers.max_pool(x), expected)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_1x1_convolution_is_a_product_over_channels(rng, stride):
    conv = layers.Conv(5, 4, 1, stride=stride, numerics=NUMERICS, rngs=nnx.Rngs(0))
    x = rng.normal(size=(2, 6, 7, 5)).astype(np.float32)
    expected = x[:, ::stride, ::stride] @ np.asarray(conv.kernel[...])[0, 0] + np.asarray(conv.bias[...])
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, atol=1e-5)


def test_a_stride_2_convolution_pads_both_sides_equally(rng):
    conv = layers.Conv(3, 2, 7, stride=2, trunk=True, numerics=NUMERICS, rngs=nnx.Rngs(0))
    x = rng.normal(size=(1, 9, 9, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = np.asarray(conv.kernel[...])
    y = np.asarray(conv(jnp.asarray(x)))
    assert y.shape == (1, 5, 5, 2)
    for i, j in ((0, 0), (2, 3), (4, 4)):
        window = padded[0, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
        np.testing.assert_allclose(y[0, i, j], np.einsum('hwc,hwcd->d', window, kernel), atol=1e-4)


def test_initial_weights_have_the_originals_spread():
    trunk = layers.Conv(64, 128, 3, trunk=True, numerics=NUMERICS, rngs=nnx.Rngs(1)).kernel[...]
    assert abs(float(trunk.std()) / np.sqrt(2 / (9 * 128)) - 1) < 0.02
    head = layers.linear(400, 300, numerics=NUMERICS, rngs=nnx.Rngs(2))
    for weight in (head.kernel[...], head.bias[...]):
        assert 0.9 / 20 < float(jnp.abs(weight).max()) <= 1 / 20  # U(-1/sqrt(400), 1/sqrt(400))
    rows = layers.Table(8, 4000, rngs=nnx.Rngs(3)).rows[...]
    assert abs(float(rows.std()) - 1) < 0.02


def test_bfloat16_keeps_statistics_in_float32():
    norm = layers.BatchNorm(2)
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 2)).astype(jnp.bfloat16)
    assert norm(x, (0,)).dtype == jnp.bfloat16
    assert norm.var[...].dtype == jnp.float32


def test_batch_statistics_far_from_zero_are_exact_once_the_running_mean_follows():
    exact = np.random.default_rng(0).normal(1000, 1, (2, 8, 8, 3)).astype(np.float32).astype(np.float64)
    exact[..., 2] = 1000  # a constant channel
    x, norm = jnp.asarray(exact, jnp.float32), layers.BatchNorm(3)
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    assert np.isfinite(norm(x, (0,))).all()
    norm.mean[...] = np.full(3, 999, np.float32)
    np.testing.assert_allclose(norm(x, (0,)), expected, atol=2e-4)


def test_scores_of_attention_are_float32_sums_of_bfloat16_products():
    attention = SpatialAttentionV2(64, numerics=layers.numerics('bfloat16'), rngs=nnx.Rngs(0))
    image = jnp.tanh(jax.random.normal(jax.random.key(0), (1, 16, 16, 64))).astype(jnp.bfloat16)
    _, heatmap = attention(image, image, jax.random.normal(jax.random.key(1), (1, 512)))
    assert len(np.unique(heatmap)) == 16 * 16  # in bfloat16, many positions would have the same score
