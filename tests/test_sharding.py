"""Eight devices compute the same as one, with one program and without moving photos between devices."""

import re

import jax
import numpy as np
import pytest

from asen_jax import sharding
from asen_jax.errors import InputError
from asen_jax.models import build_model
from configs import fashionai
from tests.conftest import make_step

STEPS = 4


def make_run(devices, loss='triplet', model_axis=1):
    """(step, state, mesh) of a small ASEN v2 with batch norm per role, on that many devices."""
    config = fashionai.get_config('asen_v2')
    config.model.trunk, config.model.trunk_width, config.train.loss = 'resnet18', 8, loss
    mesh = sharding.make_mesh(model_axis, jax.devices()[:devices])
    return *make_step(config, *build_model(config, 4), mesh, steps_per_epoch=100), mesh


def make_batch(number, mesh):
    rng = np.random.default_rng(number)
    batch = {
        'images': rng.integers(0, 256, (16, 3, 32, 32, 3), np.uint8),
        'attribute': rng.integers(0, 4, 16, np.int32),
        'labels': rng.integers(0, 2, (16, 3, 4, 5), np.uint8),
        'photo': np.arange(48, dtype=np.int32).reshape(16, 3),
    }
    return jax.device_put(batch, sharding.batch_sharding(mesh))


def train(devices, **options):
    step, state, mesh = make_run(devices, **options)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, make_batch(number, mesh))
        losses.append(float(metrics['loss']))
    return step, state, losses


@pytest.mark.parametrize('loss', ['triplet', 'contrastive'])
def test_eight_devices_match_one_and_compile_once(loss):
    _, alone, expected = train(1, loss=loss)
    step, state, losses = train(8, loss=loss)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(alone.batch_stats), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert step._cache_size() == 1


def test_wide_matrices_can_be_sharded_over_the_model_axis():
    expected = train(1)[2]
    _, state, losses = train(8, model_axis=2)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    kernel = state.params['head']['channel_fc']['kernel']
    assert kernel.sharding.shard_shape(kernel.shape) == (512, 256)


def test_no_photo_moves_between_devices():
    step, state, mesh = make_run(8)
    program = step.lower(state, make_batch(0, mesh)).compile().as_text()
    gathers = re.findall(r'= (\S+) all-gather', program)
    assert not [shape for shape in gathers if re.search(r'\[\d+,(3,)?32,32,3]|\[\d+,16,16,\d+]', shape)], gathers
    assert 'all-reduce' in program
    photos_per_device = {int(rows) for rows in re.findall(r'f32\[(\d+),16,16,8]\S* convolution', program)}
    assert photos_per_device == {6}  # 16 triplets of 3 photos on 8 devices


def test_batches_and_meshes_that_do_not_divide_evenly_are_rejected():
    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    with pytest.raises(InputError, match=r'config\.train\.batch_size is 12.*use a multiple of 8'):
        sharding.check_batch_size(12, mesh)
    with pytest.raises(InputError, match=r'config\.mesh\.model is 3, but there are 8 devices'):
        sharding.make_mesh(3)
    assert sharding.batch_sharding_for(mesh, 12) == sharding.replicated(mesh)
    assert sharding.batch_sharding_for(mesh, 16) == sharding.batch_sharding(mesh)
