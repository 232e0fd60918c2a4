"""EfficientNet-Lite0 and its depthwise convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from asen_jax.errors import InputError
from asen_jax.models import build_model, embed_all
from asen_jax.models.depthwise import depthwise
from configs import common


@pytest.mark.parametrize('size,kernel_size,stride', [(8, 3, 1), (8, 3, 2), (9, 5, 2), (7, 5, 1), (2, 5, 1)])
def test_depthwise_is_a_grouped_convolution_with_the_same_gradients(size, kernel_size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, size, size + 1, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 4)), jnp.float32)

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            window_strides=(stride, stride),
            padding='SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=4,
            precision='highest',
        )

    expected, transpose = jax.vjp(grouped, x, kernel)
    found, ours = jax.vjp(lambda x, kernel: depthwise(x, kernel, stride), x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    dy = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
    for ours_part, expected_part in zip(ours(dy), transpose(dy), strict=True):
        np.testing.assert_allclose(ours_part, expected_part, rtol=1e-4, atol=1e-4)


def lite0(stride):
    config = common.get_config()
    config.model.name, config.model.trunk, config.model.trunk_stride = 'asen_v2', 'efficientnet_lite0', stride
    return config


@pytest.mark.parametrize('stride,channels', [(16, 112), (32, 1280)])
def test_features_have_the_stride_that_the_config_names(stride, channels):
    model, params, stats = build_model(lite0(stride), 2)
    photos = np.zeros((1, 96, 64, 3), np.uint8)
    vectors, heatmaps = jax.eval_shape(lambda p, s, x: embed_all(model, p, s, x), params, stats, photos)
    assert vectors.shape == (1, 2, channels)
    assert heatmaps.shape == (1, 2, 96 // stride, 64 // stride)


def test_a_stride_that_a_trunk_lacks_is_refused():
    with pytest.raises(InputError, match='trunk_stride is 8; efficientnet_lite0 has features of stride 16 and 32'):
        build_model(lite0(8), 2)
    config = lite0(32)
    config.model.trunk = 'resnet18'
    with pytest.raises(InputError, match='trunk_stride is 32; resnet18 has only features of stride 16'):
        build_model(config, 2)
