"""Eight devices compute the same as one, with one program and without moving photos between devices."""

import math
import os
import re

import jax
import numpy as np
import pytest

from asen_jax import sharding
from asen_jax.checkpoint import Checkpoints, abstract_like
from asen_jax.errors import InputError
from asen_jax.models.build import build_model, build_shapes
from asen_jax.network import make_embedder
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.step import create_state
from configs import fashionai
from tests.conftest import make_step

STEPS = 3


def small_config():
    config = fashionai.get_config('asen_v2')
    config.model.trunk, config.model.resnet.width = 'resnet18', 8
    return config


def make_run(devices, loss='triplet', model_axis=1, accumulate_steps=1):
    """(step, state, mesh) of a small ASEN v2 with batch norm per role, on that many devices."""
    config = small_config()
    config.train.loss, config.train.accumulate_steps = loss, accumulate_steps
    mesh = sharding.make_mesh(model_axis, jax.devices()[:devices])
    return *make_step(config, *build_model(config, 4), mesh, steps_per_epoch=100), mesh


def make_batch(number):
    rng = np.random.default_rng(number)
    return {
        'images': rng.integers(0, 256, (16, 3, 32, 32, 3), np.uint8),
        'attribute': rng.integers(0, 4, 16, np.int32),
        'labels': rng.integers(0, 2, (16, 3, 4, 5), np.uint8),
        'photo': np.arange(48, dtype=np.int32).reshape(16, 3),
    }


def put(batch, mesh):
    return sharding.put_rows(mesh, batch, len(batch['attribute']))


def train(devices, **options):
    step, state, mesh = make_run(devices, **options)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, put(make_batch(number), mesh))
        losses.append(float(metrics['loss']))
    return step, state, losses


@pytest.fixture(scope='module')
def alone():
    """(state, losses) of one device with the triplet loss."""
    return train(1)[1:]


@pytest.mark.parametrize('loss', ['triplet', 'contrastive'])
def test_eight_devices_match_one_and_compile_once(loss, alone):
    one, expected = alone if loss == 'triplet' else train(1, loss=loss)[1:]
    step, state, losses = train(8, loss=loss)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(one.batch_stats), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert step._cache_size() == 1


@pytest.fixture
def shard_everything(monkeypatch):
    """Also shard what is too small to matter."""
    monkeypatch.setattr(sharding, 'MIN_SHARDED_SIZE', 1)


@pytest.mark.parametrize('model_axis', [2, 8])
def test_a_sharded_state_trains_like_a_whole_one(model_axis, alone, shard_everything):
    _, state, losses = train(8, model_axis=model_axis)
    np.testing.assert_allclose(losses, alone[1], rtol=0, atol=1e-5)
    kernel = state.params['head']['channel_fc']['kernel']
    assert kernel.sharding.shard_shape(kernel.shape) == (512 // model_axis, 512)


def test_the_longest_axis_that_divides_evenly_is_sharded():
    shapes = [(3, 3, 512, 128), (130, 128), (127, 129), (128,)]
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    specs = [tuple(place.spec) for place in sharding.state_shardings(arrays, sharding.make_mesh(8))]
    assert specs == [(None, None, 'model'), (None, 'model'), (), ()]


def test_each_device_holds_an_eighth_of_a_sharded_state():
    config = fashionai.get_config()
    arrays = build_shapes(config, 8)[1:]
    optimizer = make_optimizer(config, make_schedule(config, 100), arrays[0])
    state = jax.eval_shape(lambda arrays: create_state(*arrays, optimizer), arrays)

    def bytes_per_device(model_axis):
        places = sharding.state_shardings(state, sharding.make_mesh(model_axis))
        held = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * 4, state, places)
        return sum(jax.tree.leaves((held.params, held.opt_state)))

    assert 1 / 8 < bytes_per_device(8) / bytes_per_device(1) < 1 / 7.5


def test_a_checkpoint_of_eight_devices_loads_on_one_and_vice_versa(tmp_path, shard_everything):
    (_, sharded, _), (_, whole, _) = make_run(8, model_axis=8), make_run(1)
    for source, target in ((sharded, whole), (whole, sharded)):
        with Checkpoints(tmp_path / str(source is whole)) as checkpoints:
            checkpoints.save('latest', source.arrays(), {'step': 1})
            checkpoints.wait()
            places = jax.tree.map(lambda leaf: leaf.sharding, target.arrays())
            restored = checkpoints.restore('latest', abstract_like(target.arrays(), places))
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == places
        jax.tree.map(np.testing.assert_array_equal, restored, target.arrays())


def test_a_sharded_network_embeds_like_a_whole_one(shard_everything):
    graphdef, *arrays = build_model(small_config(), 4)
    photos = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)

    def vectors(mesh):
        placed = jax.device_put(arrays, sharding.state_shardings(arrays, mesh))
        return make_embedder(graphdef, mesh)(*placed)(photos).embedding

    expected = vectors(sharding.make_mesh(devices=jax.devices()[:1]))
    sharded = vectors(sharding.make_mesh(8))
    np.testing.assert_allclose(sharded, expected, rtol=0, atol=1e-5)
    assert len({shard.device for shard in sharded.addressable_shards}) == 8


@pytest.mark.parametrize('model_axis,parts', [(1, 1), (8, 1), (1, 2)])
def test_no_photo_moves_between_devices(model_axis, parts, shard_everything):
    step, state, mesh = make_run(8, model_axis=model_axis, accumulate_steps=parts)
    program = step.lower(state, put(make_batch(0), mesh)).compile().as_text()
    gathers = re.findall(r'= (\S+) all-gather', program)
    assert not [shape for shape in gathers if re.search(r'\[\d+,(3,)?32,32,3]|\[\d+,16,16,\d+]', shape)], gathers
    assert 'all-reduce' in program
    assert any('[512,512]' in shape for shape in gathers) == (model_axis == 8)  # parameters move instead
    photos_per_device = {int(rows) for rows in re.findall(r'f32\[(\d+),16,16,8]\S* convolution', program)}
    assert not re.search('all-to-all|collective-permute', program)
    assert photos_per_device == {6 // parts}  # 16 triplets of 3 photos on 8 devices


def test_batches_and_meshes_that_do_not_divide_evenly_are_rejected():
    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    with pytest.raises(InputError, match=r'config\.train\.batch_size is 12.*use a multiple of 8'):
        sharding.check_batch_size(12, mesh)
    with pytest.raises(InputError, match=r'config\.train\.batch_size is 24.*in 2 parts.*use a multiple of 16'):
        sharding.check_batch_size(24, mesh, parts=2)
    with pytest.raises(InputError, match=r'config\.mesh\.model is 3, but there are 8 devices'):
        sharding.make_mesh(3)
    with pytest.raises(InputError, match=r'use a multiple of 8'):
        sharding.check_batch_size(4, sharding.make_mesh(2))
    assert sharding.batch_sharding_for(mesh, 12) == sharding.replicated(mesh)
    assert sharding.batch_sharding_for(mesh, 16) == sharding.batch_sharding(mesh)


def test_a_process_reads_the_rows_of_its_devices():
    mesh = sharding.make_mesh(2)
    assert sharding.local_rows(16) == range(16)
    assert sharding.local_rows(12) == range(12)
    placed = sharding.put_rows(mesh, {'index': np.arange(16)}, 16)['index']
    assert placed.sharding == sharding.batch_sharding(mesh) and placed.tolist() == list(range(16))


@pytest.mark.parametrize(('version', 'flags'), [('0.10.2', sharding.WITHOUT_YNNPACK), ('0.11.0', '')])
def test_xla_gets_only_flags_that_it_knows(version, flags, monkeypatch):
    monkeypatch.setattr(sharding.jaxlib, '__version__', version)
    monkeypatch.setenv('XLA_FLAGS', '')
    sharding.set_up_cpu(1)
    assert os.environ['XLA_FLAGS'] == flags
