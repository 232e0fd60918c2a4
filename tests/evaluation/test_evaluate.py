"""Evaluation: exact for any batch size, honest about chance, silent about nothing."""

import json

import jax
import numpy as np
import pytest

from asen_jax import sharding
from asen_jax.data import batches
from asen_jax.errors import InputError
from asen_jax.evaluation import evaluate, metrics
from asen_jax.evaluation.vectors import collect_vectors, make_embedder, score_attention
from asen_jax.models import build_model


@pytest.fixture
def network(records, config):
    """(embedder, params, batch statistics) of an untrained network on one device."""
    model, params, stats = build_model(config, len(records.attributes))
    return make_embedder(model, sharding.make_mesh(devices=jax.devices()[:1])), params, stats


def test_figures_do_not_depend_on_the_batch_size(records, config, network):
    results = []
    for config.eval.batch_size in (1, 7, 64):
        results.append(evaluate.evaluate(config, records, 'test', *network, step=0).result)
    for result in results[1:]:
        flat, other = (jax.tree.leaves(r) for r in (results[0], result))
        np.testing.assert_allclose(
            [leaf for leaf in flat if isinstance(leaf, float)], [leaf for leaf in other if isinstance(leaf, float)],
            atol=1e-6,
        )  # fmt: skip


def test_map_is_that_of_all_vectors_ranked_at_once(records, config, network):
    result = evaluate.evaluate(config, records, 'test', *network, step=7).result
    count = records.splits['test']
    images = np.concatenate([
        np.array(batch['image'])[batch['mask']] for batch in batches.eval_batches(records, 'test', np.arange(count), config)
    ])  # fmt: skip
    vectors = np.asarray(network[0](network[1], network[2], images)[0])
    query = batches.read_rows(records, 'test_query')
    candidate = batches.read_rows(records, 'test_candidate')
    every = []
    for attribute in range(len(records.attributes)):
        for index, _, value in query[query[:, 1] == attribute].tolist():
            offered = candidate[candidate[:, 1] == attribute]
            order = np.argsort(-(vectors[offered[:, 0], attribute] @ vectors[index, attribute]), kind='stable')
            every.append(metrics.average_precision((offered[order, 2] == value)[None])[0])
    assert result['map']['overall'] == pytest.approx(np.mean(every), abs=1e-6)
    assert result['num_queries'] == len(query) == len(every)
    assert result['checkpoint_step'] == 7
    assert set(result['selectivity']['per_attribute']) == set(result['map']['per_attribute'])


def test_the_file_has_the_contracts_fields(records, config, network, tmp_path):
    result = evaluate.evaluate(config, records, 'test', *network, step=0).result
    read = json.loads(evaluate.write_result(tmp_path, result).read_text())
    assert read == json.loads(json.dumps(result))
    assert {'dataset', 'split', 'checkpoint_step', 'map', 'chance_map', 'recall_at_k', 'precision_at_k',
            'triplet_accuracy', 'num_queries', 'num_candidates', 'dropped'} <= read.keys()  # fmt: skip
    assert read['map'].keys() == read['chance_map'].keys() == {'overall', 'macro', 'per_attribute'}
    assert read['recall_at_k'].keys() == read['precision_at_k'].keys() == {'1', '5', '10'}
    assert read['dropped'].keys() == {'queries', 'candidates', 'list_file'}
    table = evaluate.format_table(result)
    assert f'{100 * read["map"]["overall"]:.2f}' in table
    assert f'{100 * read["chance_map"]["overall"]:.2f}' in table


def test_only_what_is_asked_about_is_kept(records, config, network):
    wanted = np.zeros((records.splits['test'], len(records.attributes)), bool)
    wanted[3, 1] = wanted[5, 0] = wanted[5, 2] = True
    photos = batches.eval_batches(records, 'test', np.array([3, 5]), config)
    vectors = collect_vectors(*network, photos, wanted, 'test')
    assert vectors.vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors.of(np.array([5]), 2)), 1, rtol=1e-5)
    with pytest.raises(ValueError, match='under attribute 2 was never collected'):
        vectors.of(np.array([5, 3]), 2)


def test_a_split_that_asks_nothing_is_named(records, config, network):
    with pytest.raises(InputError, match='no queries and no triplets in its other split'):
        evaluate.evaluate(config, records, 'other', *network, step=0)


def test_attention_is_scored_by_the_middle_of_its_hottest_cell():
    heatmaps = np.zeros((1, 2, 4, 4), np.float32)
    heatmaps[0, 0, 1, 2] = heatmaps[0, 1, 3, 3] = 1  # at 32 pixels: centers (20, 12) and (28, 28)
    boxes = np.array([[[16, 8, 24, 16], [0, 0, 28, 28]]], np.float32)
    inside, share = score_attention(heatmaps, boxes, 32)
    np.testing.assert_array_equal(inside, [[1, 0]])
    np.testing.assert_allclose(share, [[64 / 1024, 784 / 1024]])
    inside, share = score_attention(heatmaps, np.full_like(boxes, np.nan), 32)
    assert np.isnan(inside).all()
    assert np.isnan(share).all()
