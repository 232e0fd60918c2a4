"""EfficientNet-Lite0, its ImageNet weights, and its depthwise convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from asen_jax import sharding
from asen_jax.errors import InputError
from asen_jax.models.apply import embed_all
from asen_jax.models.build import build_shapes
from asen_jax.models.depthwise import depthwise
from asen_jax.models.layers import numerics
from asen_jax.models.registry import trunk_kind
from asen_jax.weights.tensor_files import read_tensors
from asen_jax.weights.torch_names import fill_trunk, flatten
from asen_jax.weights.trunks import find_trunk, read_trunks
from configs import common
from tests.conftest import ROOT
from tests.golden import recipe


def depthwise_cases(size, kernel_size, stride):
    """Ours and XLA's grouped convolution; each maps (x, kernel, dy) to y and the gradients of x and kernel. And such arguments."""

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

    def with_gradients(convolve):
        def run(x, kernel, dy):
            y, transpose = jax.vjp(convolve, x, kernel)
            return y, *transpose(dy)

        return run

    rng = np.random.default_rng(0)
    shapes = (3, size, size + 1, 4), (kernel_size, kernel_size, 4), (3, -(-size // stride), -(-(size + 1) // stride), 4)
    arguments = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    return with_gradients(lambda x, kernel: depthwise(x, kernel, stride)), with_gradients(grouped), arguments


@pytest.mark.parametrize('size,kernel_size,stride', [(8, 3, 1), (8, 3, 2), (9, 5, 2), (7, 5, 1), (2, 5, 1)])
def test_depthwise_is_a_grouped_convolution_with_the_same_gradients(size, kernel_size, stride):
    ours, grouped, arguments = depthwise_cases(size, kernel_size, stride)
    for found, expected in zip(ours(*arguments), grouped(*arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size,kernel_size,stride', [(32, 3, 1), (32, 5, 2)])
@pytest.mark.parametrize('wrap', [jax.jit, lambda run: run])
def test_depthwise_rounds_bfloat16_no_more_than_a_grouped_convolution(size, kernel_size, stride, wrap):
    *runs, arguments = depthwise_cases(size, kernel_size, stride)
    arguments = [part.astype(jnp.bfloat16) for part in arguments]
    exact = runs[1](*[part.astype(jnp.float32) for part in arguments])
    ours, grouped = (
        [
            np.sqrt(np.mean((np.float32(part) - whole) ** 2))
            for part, whole in zip(wrap(run)(*arguments), exact, strict=True)
        ]
        for run in runs
    )
    assert (np.array(ours) <= 1.1 * np.array(grouped)).all(), (ours, grouped)


def test_no_photo_moves_between_devices():
    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    x = jax.device_put(np.ones((16, 8, 8, 4), np.float32), sharding.batch_sharding(mesh))
    kernel = jax.device_put(np.ones((3, 3, 4), np.float32), sharding.replicated(mesh))
    gradient = jax.jit(jax.grad(lambda x, kernel: jnp.square(depthwise(x, kernel, 1)).sum(), argnums=(0, 1)))
    program = gradient.lower(x, kernel).compile().as_text()
    assert 'all-reduce' in program and 'all-gather' not in program


def lite0(stride, head='asen_v2'):
    config = common.get_config()
    config.model.name, config.model.trunk, config.model.efficientnet.stride = head, 'efficientnet_lite0', stride
    return config


@pytest.mark.parametrize('head', ['asen', 'asen_v2', 'csn', 'triplet'])
@pytest.mark.parametrize('stride', [16, 32])
def test_every_head_takes_it(head, stride):
    model, *shapes = build_shapes(lite0(stride, head), 2)
    output = jax.eval_shape(lambda p, s, x: embed_all(model, p, s, x), *shapes, np.zeros((3, 64, 64, 3), np.uint8))
    assert output.embedding.shape[:2] == (3, 2)


@pytest.mark.parametrize('stride,channels', [(16, 112), (32, 1280)])
def test_features_have_the_stride_that_the_config_names(stride, channels):
    model, params, stats = build_shapes(lite0(stride), 2)
    photos = np.zeros((1, 96, 64, 3), np.uint8)
    vectors, heatmaps, _ = jax.eval_shape(lambda p, s, x: embed_all(model, p, s, x), params, stats, photos)
    assert vectors.shape == (1, 2, channels)
    assert heatmaps.shape == (1, 2, 96 // stride, 64 // stride)


@pytest.mark.parametrize('stride,channels', [(16, 304), (32, 2096)])
def test_the_features_of_all_stages_are_averaged_to_the_stride_of_the_last(stride, channels):
    config, build = lite0(stride), trunk_kind('efficientnet_lite0').build
    last = build(config.model, numerics('float32'), nnx.Rngs(0))
    config.model.efficientnet.all_stages = True
    every = build(config.model, numerics('float32'), nnx.Rngs(0))  # the same weights
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))
    x = every.normalize(images)
    found = every(x)
    side = 64 // stride
    assert found.shape == (1, side, side, channels) and every.out_dim == channels
    np.testing.assert_array_equal(found[..., -last.out_dim :], last(x))
    stem = jax.nn.relu6(every.stem_bn(every.stem(x), ()))
    squares = stem.reshape(1, side, stride // 2, side, stride // 2, -1).mean(axis=(2, 4))
    np.testing.assert_allclose(found[..., : stem.shape[-1]], squares, rtol=1e-5, atol=1e-5)
    assert every(x[:, :50, :33]).shape == (1, -(-50 // stride), -(-33 // stride), channels)


def test_every_stage_matches_pytorch_with_the_imagenet_weights():
    """The figures are those of benchmarks/torch_efficientnet.py; if this fails, fix the port, not the figures."""
    graphdef, *shapes = build_shapes(lite0(32), 2)
    trunk = read_trunks(lite0(32), *shapes)

    @jax.jit
    def run(trunk, images):
        return stages(graphdef, *(shape | arrays for shape, arrays in zip(shapes, trunk, strict=True)), images)

    found = run(trunk, recipe.make_images(1, 4, size=96, cells=6))
    with np.load(ROOT / 'tests/golden/efficientnet_lite0.npz') as golden:
        for name, expected in golden.items():
            stage, _, kind = name.partition('_')
            features = np.asarray(found[stage])
            _, height, width, _ = features.shape
            ours = features.mean(axis=(1, 2)) if kind == 'mean' else features[:, height // 2, width // 2]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def stages(graphdef, params, stats, images):
    """The trunk's features after the stem, each block, and the last convolution."""
    trunk = nnx.merge(graphdef, params, stats).trunk
    x = jax.nn.relu6(trunk.stem_bn(trunk.stem(trunk.normalize(images)), ()))
    found = {'stem': x}
    for number, block in enumerate(trunk.blocks):
        x = found[f'block{number}'] = block(x, ())
    return found | {'top': trunk(trunk.normalize(images))}


@pytest.fixture(scope='module')
def imagenet():
    return read_tensors(find_trunk(lite0(32), 'efficientnet_lite0'))


BEYOND_STRIDE_16 = ('_blocks.11.', '_blocks.12.', '_blocks.13.', '_blocks.14.', '_blocks.15.', '_conv_head.', '_bn1.')


@pytest.mark.parametrize('stride,unused', [(32, ()), (16, BEYOND_STRIDE_16)])
def test_every_tensor_of_imagenet_is_used_but_for_classifier_and_counters(imagenet, stride, unused):
    shapes = build_shapes(lite0(stride), 2)[1:]
    params, stats = fill_trunk(*(shape['trunk'] for shape in shapes), imagenet, 'efficientnet_lite0')
    used = [name for name in imagenet if not name.startswith(('_fc.', *unused))]
    num_counters = sum(name.endswith('num_batches_tracked') for name in used)
    assert len(flatten(params)) + len(flatten(stats)) == len(used) - num_counters


def test_tensors_of_another_efficientnet_are_refused(imagenet):
    shapes = build_shapes(lite0(16), 2)[1:]
    squeeze = {'_blocks.3._se_reduce.bias': np.zeros(4, np.float32)}
    with pytest.raises(
        InputError, match=r"'_blocks\.3\._se_reduce\.bias' has no place in the efficientnet_lite0 trunk"
    ):
        fill_trunk(*(shape['trunk'] for shape in shapes), {**imagenet, **squeeze}, 'efficientnet_lite0')
    rest = {name: array for name, array in imagenet.items() if name != '_blocks.10._bn1.bias'}
    with pytest.raises(InputError, match=r"has no tensor for 'blocks\.10\.depthwise_bn\.bias'"):
        fill_trunk(*(shape['trunk'] for shape in shapes), rest, 'efficientnet_lite0')
