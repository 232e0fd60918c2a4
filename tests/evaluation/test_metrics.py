"""Metrics against figures of the original, brute force and simulation."""

from pathlib import Path

import numpy as np
import pytest

from asen_jax.evaluation import metrics

GOLDEN = Path(__file__).parents[1] / 'golden'


def test_average_precision_is_the_originals():
    with np.load(GOLDEN / 'map.npz') as golden:
        names = ('queries', 'candidates', 'query_values', 'candidate_values')
        figures = metrics.retrieval_metrics(*(golden[name] for name in names))
        np.testing.assert_allclose(figures['ap'], golden['average_precision'], rtol=0, atol=1e-6)
        np.testing.assert_allclose(figures['ap'].mean(), golden['mean_average_precision'], rtol=0, atol=1e-6)


def test_average_precision_by_hand():
    relevance = np.array([[True, False, True, False], [False, False, False, True], [False] * 4])
    np.testing.assert_allclose(metrics.average_precision(relevance), [(1 + 2 / 3) / 2, 1 / 4, 0])


def test_ties_rank_by_candidate_order():
    query, candidates = np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)
    ranked = metrics.rank_relevance(query, candidates, np.array([7]), np.array([1, 7, 2]))
    np.testing.assert_array_equal(ranked, [[False, True, False]])


def test_recall_and_precision_at_k():
    query = np.array([[1.0, 0.0]], np.float32)
    candidates = np.array([[0.9, 0], [0.8, 0], [0.7, 0]], np.float32)
    figures = metrics.retrieval_metrics(query, candidates, np.array([1]), np.array([0, 1, 1]), ks=(1, 2, 5))
    assert [figures[f'recall@{k}'][0] for k in (1, 2, 5)] == [0, 1, 1]
    np.testing.assert_allclose([figures[f'precision@{k}'][0] for k in (1, 2, 5)], [0, 1 / 2, 2 / 3])


def test_queries_are_ranked_alike_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(9, 4)), rng.normal(size=(20, 4)), rng.integers(0, 3, 9), rng.integers(0, 3, 20)
    whole = metrics.retrieval_metrics(*arrays)
    monkeypatch.setattr(metrics, 'QUERY_BLOCK', 2)
    for name, figures in metrics.retrieval_metrics(*arrays).items():
        np.testing.assert_array_equal(figures, whole[name])


@pytest.mark.parametrize('counts', [(3, 5), (1, 1), (1, 9)])
def test_chance_is_what_random_rankings_score(counts):
    values = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    scored = [metrics.average_precision(rng.permutation(values)[None] == 0)[0] for _ in range(20_000)]
    expected = metrics.chance_average_precision(np.array([0]), values)
    assert abs(np.mean(scored) - expected[0]) < 5 * np.std(scored) / np.sqrt(len(scored)) + 1e-9


def test_chance_without_a_relevant_candidate_is_nothing():
    np.testing.assert_array_equal(metrics.chance_average_precision(np.array([4]), np.array([1, 2])), [0])
    np.testing.assert_array_equal(metrics.chance_average_precision(np.array([4]), np.array([4])), [1])


def test_the_overall_mean_weighs_attributes_by_their_queries():
    summary = metrics.summarize({'a': np.array([1.0, 1.0, 1.0]), 'b': np.array([0.0]), 'c': np.zeros(0)})
    assert summary == {'overall': 0.75, 'macro': 0.5, 'per_attribute': {'a': 1.0, 'b': 0.0}}
    assert metrics.summarize({'a': np.zeros(0)})['overall'] is None


def test_a_tie_is_a_wrong_triplet():
    anchor = np.array([[1.0, 0.0]] * 2)
    positive, negative = np.array([[0.5, 1.0], [0.6, 0.0]]), np.array([[0.5, 0.0], [0.5, 0.0]])
    np.testing.assert_array_equal(metrics.triplet_is_right(anchor, positive, negative), [False, True])


def test_the_euclidean_ranking_and_the_euclidean_triplet_are_by_distance():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(6, 4)).astype(np.float32), 3 * rng.normal(size=(9, 4)).astype(np.float32)
    distances = np.linalg.norm(queries[:, None] - candidates[None], axis=2)
    order = np.argsort(-metrics.nearness(queries, candidates, 'euclidean'), axis=1)
    np.testing.assert_array_equal(order, np.argsort(distances, axis=1))
    assert (order != np.argsort(-metrics.nearness(queries, candidates), axis=1)).any()
    right = metrics.triplet_is_right(queries, candidates[:6], candidates[3:], 'euclidean')
    np.testing.assert_array_equal(right, distances[range(6), range(6)] < distances[range(6), range(3, 9)])
    assert not metrics.triplet_is_right(queries, candidates[:6], candidates[:6], 'euclidean').any()
