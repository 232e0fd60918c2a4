"""The train step learns, counts, and donates its input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asen_jax import sharding
from asen_jax.data.cache import put_on_devices
from asen_jax.models.build import build_model
from asen_jax.training.optimizer import make_schedule
from asen_jax.training.step import accumulate, gather_photos
from configs import fashionai
from tests.conftest import make_step


def make_run(loss='triplet', trunk='resnet18', model=(), devices=1, variant='asen', precision='float32', **fields):
    """(step, state, batch) for a small ASEN and sixteen random triplets; `fields` are those of config.train."""
    config = fashionai.get_config(variant)
    config.precision = precision
    config.model.trunk, config.model.resnet.width, config.model.embed_dim = trunk, 8, 16
    config.optim.learning_rate, config.train.loss = 1e-3, loss
    config.train.update(fields)
    config.model.update(dict(model))
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    step, state = make_step(config, *build_model(config, 2), mesh, steps_per_epoch=100)
    rng = np.random.default_rng(0)
    batch = {
        'images': rng.integers(0, 256, (16, 3, 32, 32, 3), np.uint8),
        'attribute': rng.integers(0, 2, 16, np.int32),
        'labels': np.eye(4, dtype=np.uint8)[rng.integers(0, 4, (16, 3, 2))],
        'photo': np.arange(48, dtype=np.int32).reshape(16, 3),
    }
    return step, state, batch


@pytest.mark.parametrize('loss,share', [('triplet', 0.3), ('contrastive', 0.9)])
def test_a_repeated_batch_is_learned(loss, share):
    step, state, batch = make_run(loss)
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics['loss']))
    assert losses[-1] < share * losses[0]
    assert float(metrics['triplet_accuracy']) > 0.9 or loss == 'contrastive'
    assert int(state.step) == 40


def test_the_state_is_donated():
    step, state, batch = make_run('triplet')
    compiled = step.lower(state, batch).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    step(state, batch)
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_photos_are_mirrored_where_the_batch_says_so():
    step, state, batch = make_run('triplet')
    flip = np.arange(48).reshape(16, 3) % 3 == 1
    mirrored = np.where(flip[..., None, None, None], batch['images'][:, :, :, ::-1], batch['images'])
    losses = [
        float(step(jax.tree.map(jnp.copy, state), each)[1]['loss'])
        for each in (batch | {'flip': flip}, batch | {'images': mirrored}, batch)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] != pytest.approx(losses[2], abs=1e-6)


@pytest.mark.parametrize('devices,model', [(1, 1), (8, 1), (8, 2)])
def test_each_device_gets_the_photos_of_its_part_of_the_batch(devices, model):
    mesh = sharding.make_mesh(model, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    photos, index = rng.integers(0, 256, (13, 4, 4, 3), np.uint8), rng.integers(0, 13, (16, 3), np.int32)
    placed, place = put_on_devices(photos, mesh), sharding.batch_sharding(mesh)
    gathered = jax.jit(gather_photos, static_argnums=0)(mesh, placed, jax.device_put(index, place))
    np.testing.assert_array_equal(gathered, photos[index])
    assert gathered.sharding.is_equivalent_to(place, gathered.ndim)


def test_recomputed_blocks_train_the_same_in_less_memory():
    kept, recomputed = (make_run(trunk='resnet50', remat=remat) for remat in (False, True))
    steps = [step.lower(state, batch).compile() for step, state, batch in (kept, recomputed)]
    memory = [step.memory_analysis().temp_size_in_bytes for step in steps]
    assert memory[1] < 0.6 * memory[0]
    states, batch = [kept[1], recomputed[1]], kept[2]
    for _ in range(2):
        states, metrics = zip(*(step(state, batch) for step, state in zip(steps, states, strict=True)), strict=True)
        np.testing.assert_allclose(metrics[1]['loss'], metrics[0]['loss'], rtol=1e-6)
        for one, other in zip(*(jax.tree.leaves(state.batch_stats) for state in states), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('devices', [1, 2])
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(devices):
    model = {'trunk_bn': 'running'}  # the head of ASEN has no batch norm
    whole, parts = (
        make_run(model=model, devices=each, accumulate_steps=each_parts) for each, each_parts in ((1, 1), (devices, 4))
    )
    states, metrics = zip(*(step(state, batch) for step, state, batch in (whole, parts)), strict=True)
    for name in ('loss', 'triplet_accuracy', 'gradient_norm'):
        np.testing.assert_allclose(metrics[1][name], metrics[0][name], rtol=1e-6)
    first = [optax.tree.get(state.opt_state, 'mu') for state in states]  # a tenth of the gradients
    jax.tree.map(lambda one, other: np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-7), *first)


def test_running_statistics_are_updated_once_per_part():
    step, state, batch = make_run(accumulate_steps=2)
    alone = make_run(accumulate_steps=1)[0]
    expected = jax.tree.map(jnp.copy, state)
    for part in range(2):
        rows = {name: each[part::2] for name, each in batch.items()}
        stats = alone(jax.tree.map(jnp.copy, expected), rows)[0].batch_stats
        expected = dataclasses.replace(expected, batch_stats=stats)
    after, _ = step(state, batch)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7),
        expected.batch_stats,
        after.batch_stats,
    )
    assert int(after.step) == 1


def test_each_part_has_its_own_key():
    def differentiate(stats, part, key):
        return {'drawn': jnp.append(stats['drawn'][1:], jax.random.uniform(key))}, part['attribute'].sum()

    stats, batch, mesh = (
        {'drawn': jnp.zeros(4)},
        {'attribute': jnp.arange(8)},
        sharding.make_mesh(devices=jax.devices()[:1]),
    )
    stats, mean = accumulate(differentiate, stats, batch, jax.random.key(0), 4, mesh)
    assert len({0, *stats['drawn'].tolist()}) == 5
    assert mean == 7


def equations(jaxpr):
    """Those of the program itself and of every program in it."""
    for each in jaxpr.eqns:
        yield each
        for inner in jax.tree.leaves(each.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns') or hasattr(leaf, 'jaxpr')):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


def is_attention(equation):
    """Whether this product is one of its sums over positions or channels, of each photo by itself."""
    return equation.primitive.name == 'dot_general' and equation.params['dimension_numbers'][1] != ((), ())


def is_lookup(equation):
    """Whether this product picks rows of a table, or is its gradient: one of its axes is that of the two attributes."""
    return any(2 in operand.aval.shape for operand in equation.invars)


@pytest.mark.parametrize('variant', ['asen', 'asen_v2'])
def test_bfloat16_multiplies_in_bfloat16_and_sums_in_float32(variant):
    step, state, batch = make_run(variant=variant, precision='bfloat16')
    products = 0
    for each in equations(jax.make_jaxpr(step)(state, batch).jaxpr):
        operand = each.invars[0].aval if each.invars else None
        if each.primitive.name in ('dot_general', 'conv_general_dilated') and not is_lookup(each):
            products += 1
            assert operand.dtype == (jnp.float32 if is_attention(each) else jnp.bfloat16), each
        if each.primitive.name == 'reduce_sum' and operand.dtype == jnp.bfloat16:
            assert operand.size <= 48 * each.outvars[0].aval.size, each  # one number per photo
    assert products > 30


def test_every_parameter_is_trained():
    step, state, batch = make_run('triplet')
    before = jax.device_get(state.params)
    state, _ = step(state, batch)
    changed = jax.tree.map(lambda old, new: np.any(old != new), before, state.params)
    for path, has_changed in jax.tree.leaves_with_path(changed):
        assert has_changed, jax.tree_util.keystr(path)


def test_the_schedule_matches_steplr():
    config = fashionai.get_config('asen_v2')  # times 0.9 every 3 epochs
    schedule = make_schedule(config, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 29, 30, 59, 60)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 9e-5, 9e-5, 8.1e-5], rtol=1e-6)
