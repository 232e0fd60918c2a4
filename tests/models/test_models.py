"""Networks: sizes, ablations, and the contract of their outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core.primitives import remat_p

from asen_jax.errors import InputError
from asen_jax.models.apply import embed_all, embed_triplets, extract_features
from asen_jax.models.build import build_model, build_shapes
from asen_jax.models.interfaces import Train
from asen_jax.models.single import ASEN_ROLES
from configs import fashionai
from configs.variants import VARIANTS

HEADS = ('asen', 'asen_v2', 'csn', 'triplet')


def small(name='asen', **fields):
    """A narrow network of kind `name`; a field such as csn.masks is written csn__masks."""
    config = fashionai.get_config()
    config.model.name, config.model.trunk, config.model.resnet.width, config.model.embed_dim = name, 'resnet18', 8, 16
    config.model.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return config


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_asen_has_the_originals_number_of_parameters():
    _, params, _ = build_model(fashionai.get_config(), num_attributes=8)
    assert count(params) == 11_704_897
    assert count(params['trunk']) == 8_543_296


@pytest.mark.parametrize('trunk,channels', [('resnet18', 256), ('resnet34', 256), ('resnet50', 1024)])
def test_trunks_have_stride_16(trunk, channels):
    config = small(trunk=trunk, resnet__width=64)
    model, params, stats = build_model(config, 2)
    shape = jax.eval_shape(lambda p, s, x: embed_all(model, p, s, x), params, stats, np.zeros((1, 96, 64, 3), np.uint8))
    assert shape.heatmap.shape == (1, 2, 6, 4)
    assert params['head']['fc']['kernel'].shape[0] == channels


@pytest.mark.parametrize('trunk,blocks', [('resnet18', 6), ('resnet50', 13), ('efficientnet_lite0', 11)])
def test_every_block_of_a_trunk_can_be_recomputed(trunk, blocks):
    graphdef, *arrays = build_shapes(small(trunk=trunk), 2)

    def train(remat, params, stats, images, attribute):
        return embed_triplets(graphdef, params, stats, images, attribute, Train(jax.random.key(0), remat))[0].embedding

    batch = np.zeros((1, 3, 32, 32, 3), np.uint8), np.zeros(1, np.int32)
    for remat in (False, True):
        program = jax.make_jaxpr(functools.partial(train, remat))(*arrays, *batch)
        assert sum(each.primitive is remat_p for each in program.eqns) == remat * blocks


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_returns_unit_vectors(variant):
    config = fashionai.get_config(variant)
    config.model.trunk, config.model.resnet.width = 'resnet18', 8
    model, params, stats = build_model(config, 3)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    vectors, heatmaps, _ = embed_all(model, params, stats, jnp.asarray(images))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    if config.model.name in ('csn', 'triplet') or not config.model.asen.spatial_attention:
        assert heatmaps is None
    else:
        np.testing.assert_allclose(np.sum(heatmaps, axis=(2, 3)), 1, rtol=1e-5)
    assert np.allclose(vectors[:, 0], vectors[:, 1]) == (variant == 'triplet')


@pytest.mark.parametrize('name,projection', [*((name, 0) for name in HEADS), ('asen_v2', 24)])
def test_training_under_one_attribute_agrees_with_training_under_all(name, projection):
    model, params, stats = build_model(small(name, asen_v2__projection=projection), 3)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32, 3), np.uint8))
    attribute, mode = jnp.array([2, 0]), Train(jax.random.key(0))
    one, moved = embed_triplets(model, params, stats, images, attribute, mode)
    every, moved_too = embed_triplets(model, params, stats, images, None, mode)
    np.testing.assert_allclose(one.embedding[0, :, 0], every.embedding[0, :, 2], atol=1e-5)
    np.testing.assert_allclose(one.embedding[1, :, 0], every.embedding[1, :, 0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved, moved_too)


def test_photos_do_not_influence_each_other_in_eval_mode():
    model, params, stats = build_model(small(), 2)
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    before = embed_all(model, params, stats, jnp.asarray(images)).embedding
    images[2] = 255 - images[2]
    after = embed_all(model, params, stats, jnp.asarray(images)).embedding
    np.testing.assert_allclose(before[:2], after[:2], atol=1e-6)
    assert np.abs(before[2] - after[2]).max() > 1e-4


def test_fixed_masks_are_disjoint_and_not_trained():
    model, params, stats = build_model(small('csn', csn__masks='fixed', normalize=False), 2)
    assert 'masks' not in params['head']
    vectors = embed_all(model, params, stats, jnp.full((1, 32, 32, 3), 90, jnp.uint8)).embedding
    assert not np.any(vectors[0, 0, 8:])
    assert not np.any(vectors[0, 1, :8])
    assert np.all(vectors[0, 0, :8] != 0)


def test_bfloat16_embeds_nearly_as_float32():
    config = small()
    images = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), np.uint8)
    vectors = []
    for config.precision in ('float32', 'bfloat16'):
        model, params, stats = build_model(config, 2)
        vectors.append(np.asarray(embed_all(model, params, stats, jnp.asarray(images)).embedding))
    assert vectors[1].dtype == np.float32
    difference = np.abs(vectors[0] - vectors[1]).max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize('field', ['name', 'trunk', 'trunk_bn', 'csn__masks'])
def test_an_unknown_choice_is_not_taken_for_another(field):
    config = small(**{'name': 'csn', field: 'other'})
    with pytest.raises((KeyError, ValueError), match='other'):
        build_model(config, 2)


def test_every_section_needs_a_channel():
    with pytest.raises(InputError, match=r'config\.model\.embed_dim is 16, too small for 17 sections'):
        embed_all(*build_model(small('csn', csn__masks='fixed'), 17), jnp.zeros((1, 32, 32, 3), jnp.uint8))


def test_a_projection_of_asen_v2_ends_in_embed_dim():
    for hidden, dim in ((0, 32), (24, 16)):  # the trunk has 32 channels
        model, params, stats = build_model(small('asen_v2', asen_v2__projection=hidden), 3)
        vectors, heatmaps, _ = embed_all(model, params, stats, jnp.zeros((2, 32, 32, 3), jnp.uint8))
        assert vectors.shape == (2, 3, dim) and heatmaps is not None
        assert ('hidden_fc' in params['head']) == (hidden > 0)


def test_each_attribute_has_its_own_last_layer_in_a_projection():
    model, params, stats = build_model(small('asen_v2', asen_v2__projection=24), 3)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8))
    before = np.asarray(embed_all(model, params, stats, images).embedding)
    params['head']['fc']['rows'] = params['head']['fc']['rows'].at[1].multiply(-1)
    after = embed_all(model, params, stats, images).embedding
    np.testing.assert_array_equal(after, before * np.array([1, -1, 1])[:, None])


@pytest.mark.parametrize('name', HEADS)
def test_every_head_takes_normalized_features(name):
    model, params, stats = build_model(small(name, feature_bn=True, trunk_bn='running'), 2)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32, 3), np.uint8))
    _, moved = embed_triplets(model, params, stats, images, jnp.array([1, 0]), Train(jax.random.key(0)))
    features = extract_features(model, params, stats, images.reshape(6, 32, 32, 3))
    expected = 0.1 * sum(
        0.9 ** (2 - place) * features[role::3].mean(axis=(0, 1, 2)) for place, role in enumerate(ASEN_ROLES)
    )
    np.testing.assert_allclose(moved['feature_bn']['mean'], expected, rtol=1e-4, atol=1e-6)


def test_training_drops_channels_that_the_key_decides_and_evaluation_none():
    model, params, stats = build_model(small('asen_v2', dropout=0.5), 2)
    whole, *_ = build_model(small('asen_v2'), 2)
    photos = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)

    def train(model, seed):
        attribute, mode = jnp.array([1, 0]), Train(jax.random.key(seed))
        return embed_triplets(model, params, stats, jnp.asarray(photos), attribute, mode)[0].embedding

    np.testing.assert_array_equal(train(model, 0), train(model, 0))
    assert np.abs(train(model, 0) - train(model, 1)).max() > 0.01
    np.testing.assert_array_equal(train(whole, 0), train(whole, 1))
    np.testing.assert_array_equal(
        *(embed_all(which, params, stats, jnp.asarray(photos[0])).embedding for which in (model, whole))
    )


def test_dropped_channels_are_zero_everywhere_and_the_mean_stays():
    model, *arrays = build_model(small('asen_v2', dropout=0.25), 2)
    kept = np.asarray(nnx.merge(model, *arrays).dropout(jnp.ones((8, 3, 2, 500)), rngs=jax.random.key(0)))
    assert {*np.unique(kept)} == {0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1, :1], kept.shape))
    assert abs(kept.mean() - 1) < 0.03  # five standard deviations
