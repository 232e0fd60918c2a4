"""Each loss matches its formula, written out."""

import jax
import jax.numpy as jnp
import numpy as np

from asen_jax.training import losses


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_cosine_similarity_divides_by_both_norms():
    a, b = jnp.array([[3.0, 0.0], [1.0, 1.0]]), jnp.array([[1.0, 1.0], [-2.0, -2.0]])
    np.testing.assert_allclose(losses.cosine_similarity(a, b), [np.sqrt(0.5), -1], rtol=1e-6)


def test_triplet_loss_is_a_hinge_per_triplet():
    near, far = jnp.array([0.9, 0.5, 0.5]), jnp.array([0.1, 0.4, 0.5])
    np.testing.assert_allclose(losses.triplet_loss(near, far, 0.2), [0, 0.1, 0.2], atol=1e-6)


def test_triplet_loss_pulls_positives_closer_and_pushes_negatives_away():
    slope = jax.grad(lambda near, far: losses.triplet_loss(near, far, 0.2).mean(), argnums=(0, 1))
    near, far = slope(jnp.array([0.5, 0.9]), jnp.array([0.5, 0.1]))
    np.testing.assert_array_equal(near, [-0.5, 0])
    np.testing.assert_array_equal(far, [0.5, 0])


def test_contrastive_loss_matches_its_formula():
    rng = np.random.default_rng(0)
    embedding = unit(rng, 5, 2, 4)
    values = np.array([[{0}, {1}], [{0, 1}, set()], [{1}, {1}], [set(), {0}], [{0}, {1}]])
    labels = np.zeros((5, 2, 3), np.uint8)
    for photo, attribute in np.ndindex(5, 2):
        labels[photo, attribute, list(values[photo, attribute])] = 1
    ours = np.asarray(losses.contrastive_loss(jnp.asarray(embedding), jnp.asarray(labels), jnp.arange(5), 0.5))
    for i, attribute in np.ndindex(5, 2):
        others = [j for j in range(5) if j != i and values[j, attribute]]
        positives = [j for j in others if values[i, attribute] & values[j, attribute]]
        if not positives:
            assert np.isnan(ours[i, attribute])
            continue
        scores = {j: embedding[i, attribute] @ embedding[j, attribute] / 0.5 for j in others}
        total = np.log(sum(np.exp(score) for score in scores.values()))
        expected = -np.mean([scores[p] - total for p in positives])
        np.testing.assert_allclose(ours[i, attribute], expected, rtol=1e-5)


def test_contrastive_loss_has_a_finite_gradient_if_an_attribute_has_one_label():
    labels = jnp.zeros((3, 2, 2), jnp.uint8).at[:, 0, 0].set(1).at[0, 1, 0].set(1)
    embedding = jnp.asarray(unit(np.random.default_rng(1), 3, 2, 4))
    slope = jax.grad(lambda e: jnp.nanmean(losses.contrastive_loss(e, labels, jnp.arange(3), 0.1)))(embedding)
    assert np.isfinite(slope).all()
    assert np.abs(slope[:, 0]).max() > 0


def test_a_photo_drawn_twice_is_not_its_own_positive():
    embedding = jnp.asarray(unit(np.random.default_rng(2), 4, 1, 4))
    labels = jnp.array([0, 0, 1, 0])[:, None, None] == jnp.arange(2)[None, None]
    once = losses.contrastive_loss(embedding[1:], labels[1:].astype(jnp.uint8), jnp.arange(3), 0.1)
    twice = losses.contrastive_loss(
        embedding.at[0].set(embedding[1]), labels.astype(jnp.uint8), jnp.array([7, 7, 8, 9]), 0.1
    )
    np.testing.assert_allclose(twice[:2, 0], [once[0, 0]] * 2, rtol=1e-5)


def test_negative_distance_matches_pytorchs_pairwise_distance():
    a, b = jnp.array([[3.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 4.0], [1.0, 1.0]])
    np.testing.assert_allclose(losses.negative_distance(a, b), [-5, -np.sqrt(2) * 1e-6], rtol=1e-5)
    slope = jax.grad(lambda a: losses.negative_distance(a, b).sum())(a)
    np.testing.assert_allclose(slope[0], [-0.6, 0.8], rtol=1e-5)
    assert np.isfinite(slope).all()


def test_csn_norms_are_means_over_roles():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 3, 5)).astype(np.float32)
    frobenius = np.mean([np.linalg.norm(rows[:, role]) for role in range(3)]) / 2  # sqrt of a batch of 4
    np.testing.assert_allclose(losses.embedding_norm(jnp.asarray(rows)), frobenius, rtol=1e-6)
    absolute = np.mean([np.abs(rows[:, role]).sum() for role in range(3)]) / 4
    np.testing.assert_allclose(losses.mask_norm(jnp.asarray(rows)), absolute, rtol=1e-6)
