"""Metrics against figures of the original, brute force and simulation."""

from pathlib import Path

import numpy as np
import pytest

from asen_jax.evaluation import metrics

GOLDEN = Path(__file__).parents[1] / 'golden'


def test_average_precision_is_that_of_the_original():
    with np.load(GOLDEN / 'map.npz') as golden:
        vectors = golden['queries'], golden['candidates']
        ap = metrics.rank_candidates(*vectors, golden['query_values'], golden['candidate_values'][:, None]).ap
        np.testing.assert_allclose(ap, golden['average_precision'], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ap.mean(), golden['mean_average_precision'], rtol=0, atol=1e-6)


def test_average_precision_by_hand():
    relevance = np.array([[True, False, True, False], [False, False, False, True], [False] * 4])
    np.testing.assert_allclose(metrics.average_precision(relevance), [(1 + 2 / 3) / 2, 1 / 4, 0])


def test_ties_rank_by_candidate_order():
    query, candidates = np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)
    ranked = metrics.rank_candidates(query, candidates, np.array([7]), np.array([[1], [7], [2]]), count=5)
    assert ranked.ap.tolist() == [1 / 2]
    np.testing.assert_array_equal(ranked.nearest, [[0, 1, 2]])
    np.testing.assert_array_equal(ranked.relevant, [[False, True, False]])


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_scores_sort_like_a_stable_argsort(dtype):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 300)).astype(dtype)
    scores[1] = scores[1].round(1)  # many ties
    scores[2] = rng.choice([-0.0, 0.0, -1e-40, 1e-40], 300)  # zeros are equal, and denormal numbers are not zero
    scores[3] = rng.choice([-np.inf, -1e38, 1e38, np.inf], 300)
    scores[4] = -2.5
    np.testing.assert_array_equal(metrics.sort_by_score(scores), np.argsort(-scores, axis=1, kind='stable'))


@pytest.mark.parametrize('distance', ['cosine', 'euclidean'])
@pytest.mark.parametrize('num_candidates', [0, 1, 7, 400])
def test_figures_are_those_of_the_definition(distance, num_candidates):
    """Rankings with and without ties, candidates with several values, and queries without a relevant candidate."""
    rng = np.random.default_rng(num_candidates)
    for vectors in (rng.normal(size=(420, 16)), rng.integers(-1, 2, (420, 4))):
        queries, candidates = np.split(vectors.astype(np.float32)[: 20 + num_candidates], [20])
        query_values, values = rng.integers(0, 6, 20), rng.integers(-1, 5, (num_candidates, 3))
        ranked = metrics.rank_candidates(queries, candidates, query_values, values, 1000, distance)
        scores = queries @ candidates.T
        if distance == 'euclidean':
            scores -= np.einsum('nd,nd->n', candidates, candidates) / 2
        for row, value in enumerate(query_values):
            relevant = (values == value).any(axis=1)[np.argsort(-scores[row], kind='stable')]
            precision = np.cumsum(relevant) / np.arange(1, num_candidates + 1)
            assert ranked.ap[row] == pytest.approx(precision[relevant].mean() if relevant.any() else 0, abs=1e-12)
            for k in (1, 10, 1000):
                assert ranked.recall_at(k)[row] == relevant[:k].any()
                share = relevant[:k].sum() / max(min(k, num_candidates), 1)
                assert ranked.precision_at(k)[row] == pytest.approx(share, abs=1e-12)


def test_recall_and_precision_at_k():
    query = np.array([[1.0, 0.0]], np.float32)
    candidates = np.array([[0.9, 0], [0.8, 0], [0.7, 0]], np.float32)
    ranked = metrics.rank_candidates(query, candidates, np.array([1]), np.array([[0], [1], [1]]))
    assert [ranked.recall_at(k)[0] for k in (1, 2, 5)] == [0, 1, 1]
    np.testing.assert_allclose([ranked.precision_at(k)[0] for k in (1, 2, 5)], [0, 1 / 2, 2 / 3])


def test_a_photo_with_two_values_is_one_candidate_for_either():
    """The photo 9 has the values 0 and 1, and its first row twice."""
    rows = np.array([[9, 0, 1], [4, 1, 0], [9, 0, 0], [9, 0, 1], [2, 0, 0]], np.int32)
    candidates = metrics.group_candidates(rows, 0)
    assert candidates.photos.tolist() == [9, 2]
    assert candidates.values.tolist() == [[1, 0], [0, metrics.NO_VALUE]]
    assert metrics.count_candidates(rows) == 3  # with photo 4 of the other attribute
    queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    vectors = np.array([[0.7, 0.7], [0.9, 0.0]])
    ranked = metrics.rank_candidates(queries, vectors, np.array([0, 1]), candidates.values)
    assert ranked.ap.tolist() == [1, 1]
    assert ranked.precision_at(5).tolist() == [1, 1 / 2]


def test_an_attribute_without_candidates_has_figures_of_zero():
    candidates = metrics.group_candidates(np.zeros((0, 3), np.int32), 0)
    ranked = metrics.rank_candidates(np.ones((1, 2)), np.zeros((0, 2)), np.array([0]), candidates.values)
    assert ranked.ap == ranked.recall_at(5) == ranked.precision_at(5) == 0


@pytest.mark.parametrize(('block', 'chunk', 'sizes'), [(5, 2, [5, 4]), (1 / 2, 1 / 2, [1] * 9)])  # in queries
def test_queries_are_ranked_alike_in_blocks(block, chunk, sizes, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4)), rng.normal(size=(20, 4))
    values = rng.integers(0, 3, 9), rng.integers(0, 3, (20, 1))
    whole = metrics.rank_candidates(*vectors, *values)
    monkeypatch.setattr(metrics, 'BLOCK_BYTES', int(block * 20 * 8))
    monkeypatch.setattr(metrics, 'CHUNK_BYTES', int(chunk * 20 * 8))
    multiplied = []

    def product(queries):
        multiplied.append(len(queries))
        return queries @ vectors[1].T

    for part, expected in zip(metrics.rank_candidates(*vectors, *values, product=product), whole, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert multiplied == sizes


@pytest.mark.parametrize('values', [[[0]] * 3 + [[1]] * 5, [[0], [1]], [[0, -1], [1, 0], [1, 2], [2, -1]]])
def test_chance_is_what_random_rankings_score(values):
    rng, values = np.random.default_rng(0), np.array(values)
    shuffled = rng.permuted(np.tile((values == 0).any(axis=1), (20_000, 1)), axis=1)
    scored = metrics.average_precision(shuffled)
    expected = metrics.chance_average_precision(np.array([0]), values)
    assert abs(scored.mean() - expected[0]) < 5 * scored.std() / np.sqrt(len(scored)) + 1e-9


def test_chance_without_a_relevant_candidate_is_zero():
    np.testing.assert_array_equal(metrics.chance_average_precision(np.array([4]), np.array([[1], [2]])), [0])
    np.testing.assert_array_equal(metrics.chance_average_precision(np.array([4]), np.array([[4]])), [1])


def test_chance_map_counts_photos_not_rows():
    query, candidate = np.array([[0, 0, 0], [1, 1, 3]]), np.array([[2, 0, 0], [2, 0, 1], [3, 1, 3], [4, 1, 2]])
    assert metrics.chance_map(('color', 'fit'), query, candidate)['per_attribute'] == {'color': 1.0, 'fit': 0.75}


def test_the_overall_mean_weights_attributes_by_their_queries():
    summary = metrics.summarize({'a': np.array([1.0, 1.0, 1.0]), 'b': np.array([0.0]), 'c': np.zeros(0)})
    assert summary == {'overall': 0.75, 'macro': 0.5, 'per_attribute': {'a': 1.0, 'b': 0.0}}
    assert metrics.summarize({'a': np.zeros(0)}) == {'overall': None, 'macro': None, 'per_attribute': {}}


def test_a_tie_is_a_wrong_triplet():
    anchor = np.array([[1.0, 0.0]] * 2)
    positive, negative = np.array([[0.5, 1.0], [0.6, 0.0]]), np.array([[0.5, 0.0], [0.5, 0.0]])
    np.testing.assert_array_equal(metrics.triplet_is_right(anchor, positive, negative), [False, True])


def test_euclidean_rankings_and_triplets_follow_the_distance():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(6, 4)).astype(np.float32), 3 * rng.normal(size=(9, 4)).astype(np.float32)
    distances = np.linalg.norm(queries[:, None] - candidates[None], axis=2)
    values = np.zeros(6, int), np.zeros((9, 1), int)
    order = metrics.rank_candidates(queries, candidates, *values, distance='euclidean').nearest
    np.testing.assert_array_equal(order, np.argsort(distances, axis=1))
    assert (order != metrics.rank_candidates(queries, candidates, *values).nearest).any()
    right = metrics.triplet_is_right(queries, candidates[:6], candidates[3:], 'euclidean')
    np.testing.assert_array_equal(right, distances[range(6), range(6)] < distances[range(6), range(3, 9)])
    assert not metrics.triplet_is_right(queries, candidates[:6], candidates[:6], 'euclidean').any()
