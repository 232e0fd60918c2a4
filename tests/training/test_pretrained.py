"""Options for a trunk that has learned before: a slower learning rate, frozen statistics, or frozen altogether."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asen_jax.data.batches import train_batches
from asen_jax.errors import InputError
from asen_jax.models.apply import embed_triplets, extract_features
from asen_jax.models.build import build_model
from asen_jax.models.interfaces import Train
from asen_jax.network import load_network
from asen_jax.sharding import make_mesh
from asen_jax.signals import StopRequest
from asen_jax.training import loop
from asen_jax.training.features import compute_features
from asen_jax.training.optimizer import make_optimizer
from tests.conftest import make_step
from tests.training.test_loop import arrays_of, assert_same_arrays, run
from tests.training.test_step import equations


def freeze(config):
    config.optim.groups, config.train.precompute_features = ('trunk:0',), True
    config.data.jitter, config.model.trunk_bn = 0.0, 'running'
    config.model.feature_bn, config.model.dropout = True, 0.3
    return config


def test_the_trunk_learns_at_its_own_rate(config):
    params = {'trunk': {'kernel': jnp.ones(3)}, 'head': {'kernel': jnp.ones(3)}}
    gradients = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    updates = {}
    for groups in ((), ('trunk/k:0.25', '.*:1')):
        config.optim.groups = groups
        optimizer = make_optimizer(config, lambda step: 1e-2, params)
        updated, _ = optimizer.update(gradients, optimizer.init(params), params)
        updates[groups] = jax.tree.map(lambda new, old: new - old, updated, params)
    alone, grouped = updates.values()
    np.testing.assert_allclose(grouped['trunk']['kernel'], 0.25 * alone['trunk']['kernel'], rtol=1e-4)
    np.testing.assert_array_equal(grouped['head']['kernel'], alone['head']['kernel'])


def test_frozen_parameters_stay_and_have_no_gradient_and_no_state(config):
    config.optim.groups, config.model.trunk_bn = ('trunk:0', 'conditions:0.5'), 'running'
    graphdef, params, stats = build_model(config, 2)
    step, state = make_step(
        config, graphdef, *jax.tree.map(jnp.copy, (params, stats)), make_mesh(devices=jax.devices()[:1]), 10
    )
    kept = jax.device_get(state.params)
    assert 'trunk' not in state.opt_state[0].mu and state.opt_state[0].mu.keys() == {'conditions', 'head'}
    batch = {
        'images': np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32, 3), np.uint8),
        'attribute': np.zeros(8, np.int32),
        'labels': np.eye(4, dtype=np.uint8)[np.random.default_rng(1).integers(0, 4, (8, 3, 2))],
        'photo': np.arange(24, dtype=np.int32).reshape(8, 3),
    }
    config.optim.groups = ()
    unfrozen, whole = make_step(config, graphdef, params, stats, make_mesh(devices=jax.devices()[:1]), 10)
    convolutions = [
        sum(each.primitive.name == 'conv_general_dilated' for each in equations(jax.make_jaxpr(which)(s, batch).jaxpr))
        for which, s in ((step, state), (unfrozen, whole))
    ]
    assert 2 * convolutions[0] < convolutions[1]  # no gradients of the trunk's
    state, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params)['trunk'], kept['trunk'])
    assert (np.asarray(state.params['conditions']['rows']) != kept['conditions']['rows']).any()


@pytest.mark.parametrize(
    'group,says',
    [
        ('trunk', "has 'trunk'; write REGEX:FACTOR"),
        ('trunk:-1', "has 'trunk:-1'; write"),
        ('(trunk:0', "has '(trunk:0'; write"),
        ('neck:0', "has 'neck:0', which applies to no parameter; paths begin with conditions, head, trunk."),
    ],
)
def test_a_group_that_means_nothing_is_refused(group, says, config, tmp_path):
    config.optim.groups = (group,)
    with pytest.raises(InputError, match=re.escape(says)):
        loop.check_config(config, tmp_path)


@pytest.mark.parametrize('statistics', ['batch', 'running'])
def test_the_trunk_can_keep_its_running_statistics(config, statistics):
    config.model.trunk_bn = statistics
    graphdef, params, batch_stats = build_model(config, 2)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)
    mode = Train(jax.random.key(0))
    _, after = embed_triplets(graphdef, params, batch_stats, jnp.asarray(images), jnp.zeros(2, jnp.int32), mode)
    for part in ('trunk', 'head'):
        moved = any(
            (old != new).any()
            for old, new in zip(jax.tree.leaves(batch_stats[part]), jax.tree.leaves(after[part]), strict=True)
        )
        assert moved == (part == 'head' or statistics == 'batch')


def test_frozen_features_are_those_of_the_photo_and_of_its_mirror_image(config, records, tmp_path):
    graphdef, *arrays = build_model(freeze(config), len(records.attributes))
    features = compute_features(config, records, graphdef, tuple(arrays), make_mesh(), tmp_path, StopRequest())
    assert list(tmp_path.iterdir()) == []  # the file has no name
    batch = next(train_batches(records, config, features=features, with_labels=True))
    pixels = next(train_batches(records, config, with_labels=True))
    np.testing.assert_array_equal(batch['photo'], pixels['photo'])
    np.testing.assert_array_equal(batch['labels'], pixels['labels'])
    images, flip = pixels['images'][0], pixels['flip'][0]
    assert len(set(flip.tolist())) == 2
    mirrored = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
    expected = extract_features(graphdef, *arrays, jnp.asarray(mirrored))
    np.testing.assert_allclose(batch['features'][0], expected, rtol=2e-3, atol=2e-3)  # float16


def test_a_frozen_trunk_stays_the_same_and_a_resumed_run_ends_like_an_unbroken_one(config, tmp_path):
    config = freeze(config)
    _, params, _ = build_model(config, 2)
    run(config, tmp_path / 'whole')
    step, whole = arrays_of(tmp_path / 'whole')
    config.train.num_epochs = 1
    run(config, tmp_path / 'parts')
    config.train.num_epochs = 2
    run(config, tmp_path / 'parts')
    assert arrays_of(tmp_path / 'parts')[0] == step
    assert_same_arrays(arrays_of(tmp_path / 'parts')[1], whole)
    trained = load_network(tmp_path / 'whole', 'latest', None, make_mesh()).params
    jax.tree.map(np.testing.assert_array_equal, trained['trunk'], params['trunk'])


def test_a_frozen_trunk_cannot_see_random_crops(config, tmp_path):
    freeze(config).data.jitter = 0.1
    with pytest.raises(InputError, match=r'precompute_features stores each .* set config.data.jitter=0'):
        loop.check_config(config, tmp_path)


def test_a_size_that_the_config_names_is_kept(config, records):
    assert loop.with_image_size(config, records).data.image_size == 32
    config.data.image_size = 0
    assert loop.with_image_size(config, records).data.image_size == 160  # the photos have 32 pixels


def test_a_size_chosen_from_the_photos_is_part_of_the_checkpoint_but_not_of_the_config(config, records, tmp_path):
    config.data.image_size, config.train.num_epochs = 0, 1
    run(config, tmp_path / 'run')
    meta = load_network(tmp_path / 'run', 'best', None, make_mesh()).meta
    assert meta['config']['data']['image_size'] == 160
    assert json.loads((tmp_path / 'run/config.json').read_text())['data']['image_size'] == 0
    run(config, tmp_path / 'run')  # the same command resumes
