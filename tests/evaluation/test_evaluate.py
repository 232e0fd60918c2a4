"""Evaluation: exact for any batch size, and complete in what it reports."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from asen_jax import sharding
from asen_jax.data.batches import eval_batches
from asen_jax.data.prepared import read_rows
from asen_jax.errors import InputError
from asen_jax.evaluation import evaluate, metrics
from asen_jax.evaluation.run import evaluate_network, match_attributes
from asen_jax.evaluation.vectors import collect_vectors, product_on_device, score_attention
from asen_jax.models.build import build_model
from asen_jax.models.interfaces import Output
from asen_jax.network import TrainedNetwork, make_embedder


@pytest.fixture
def embed(records, config):
    """An untrained network on one device."""
    graphdef, params, batch_stats = build_model(config, len(records.attributes))
    return make_embedder(graphdef, sharding.make_mesh(devices=jax.devices()[:1]))(params, batch_stats)


def test_figures_do_not_depend_on_the_batch_size(records, config, embed):
    figures = []
    for config.eval.batch_size in (1, 7, 64):
        figures.append(evaluate.evaluate(config, records, 'test', embed, step=0).result)
    for result in figures[1:]:
        first, other = ([leaf for leaf in jax.tree.leaves(r) if isinstance(leaf, float)] for r in (figures[0], result))
        np.testing.assert_allclose(first, other, atol=1e-6)


def test_map_is_that_of_all_vectors_ranked_at_once(records, config, embed):
    result = evaluate.evaluate(config, records, 'test', embed, step=7).result
    count = records.splits['test']
    batches = eval_batches(records, 'test', np.arange(count), config)
    images = np.concatenate([np.array(batch['image'])[batch['mask']] for batch in batches])
    vectors = np.asarray(embed(images)[0])
    query, candidate = read_rows(records, 'test_query'), read_rows(records, 'test_candidate')
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


def evaluate_untrained(config, records, workdir, **meta):
    """`evaluate_network` of an untrained network, whose checkpoint has this `meta` besides what it must have."""
    graphdef, params, batch_stats = build_model(config, len(records.attributes))
    needed = {'step': 1, 'config': json.loads(config.to_json()), 'attributes': list(records.attributes)}
    needed['checksums'] = {'params': 'abc'}
    network = TrainedNetwork(graphdef, params, batch_stats, needed | meta)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return evaluate_network(config, network, records, workdir, 'test', mesh)


def test_the_file_has_the_contracts_fields(records, config, tmp_path, capsys):
    result = evaluate_untrained(config, records, tmp_path)
    table = capsys.readouterr().out
    read = json.loads((tmp_path / 'eval_test.json').read_text())
    assert read == json.loads(json.dumps(result))
    fields = 'dataset split checkpoint_step checkpoint_sha256 map chance_map triplet_accuracy num_queries num_candidates dropped'
    assert set(fields.split()) <= read.keys()
    assert read['map'].keys() == read['chance_map'].keys() == {'overall', 'macro', 'per_attribute'}
    assert read['recall_at_k'].keys() == read['precision_at_k'].keys() == {'1', '5', '10'}
    assert read['dropped'].keys() == {'queries', 'candidates', 'list_file'}
    assert f'{100 * read["map"]["overall"]:.2f}' in table
    assert f'{100 * read["chance_map"]["overall"]:.2f}' in table


def test_only_wanted_vectors_are_kept(records, config, embed):
    wanted = np.zeros((records.splits['test'], len(records.attributes)), bool)
    wanted[3, 1] = wanted[5, 0] = wanted[5, 2] = True
    photos = eval_batches(records, 'test', np.array([3, 5]), config)
    vectors = collect_vectors(embed, photos, wanted, 'test')
    assert vectors.vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors.of(np.array([5]), 2)), 1, rtol=1e-5)
    with pytest.raises(AssertionError):
        vectors.of(np.array([5, 3]), 2)


def test_products_on_the_device_are_those_of_numpy():
    queries, candidates = np.split(np.random.default_rng(0).normal(size=(9, 300)).astype(np.float32), [4])
    product = product_on_device(candidates)
    np.testing.assert_allclose(product(queries), queries @ candidates.T, rtol=0, atol=1e-4)
    values = np.arange(4), np.arange(5)[:, None]
    for distance in ('cosine', 'euclidean'):
        there = metrics.rank_candidates(queries, candidates, *values, count=5, distance=distance, product=product)
        here = metrics.rank_candidates(queries, candidates, *values, count=5, distance=distance)
        jax.tree.map(np.testing.assert_array_equal, there, here)


def test_products_run_on_an_accelerator_if_there_is_one(records, config, embed, monkeypatch):
    result, placed = evaluate.evaluate(config, records, 'test', embed, step=0).result, []
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(evaluate, 'product_on_device', lambda found: placed.append(found) or product_on_device(found))
    again = evaluate.evaluate(config, records, 'test', embed, step=0).result
    assert len(placed) >= len(records.attributes)
    assert again['map']['overall'] == pytest.approx(result['map']['overall'], abs=1e-6)


@pytest.mark.parametrize(('distance', 'expected'), [('cosine', 1), ('euclidean', 6)])
def test_only_cosines_scale_vectors_to_unit_length(records, config, distance, expected):
    def embed(images):
        return Output(np.full((len(images), len(records.attributes), 4), 3, np.float32))

    config.model.normalize, config.train.distance = False, distance
    vectors = evaluate.evaluate(config, records, 'test', embed, step=0).vectors.vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, rtol=1e-6)


def test_triplets_are_judged_alike_in_parts(records, config, embed, monkeypatch):
    whole = evaluate.evaluate(config, records, 'test', embed, step=0).result['triplet_accuracy']
    monkeypatch.setattr(evaluate, 'TRIPLETS_AT_A_TIME', 3)
    assert evaluate.evaluate(config, records, 'test', embed, step=0).result['triplet_accuracy'] == whole


def test_a_split_without_targets_is_named(records, config, embed):
    with pytest.raises(InputError, match='no queries and no triplets in its other split'):
        evaluate.evaluate(config, records, 'other', embed, step=0)


def test_attention_is_scored_by_the_center_of_its_hottest_cell():
    heatmaps = np.zeros((1, 2, 4, 4), np.float32)
    heatmaps[0, 0, 1, 2] = heatmaps[0, 1, 3, 3] = 1  # at 32 pixels: centers (20, 12) and (28, 28)
    boxes = np.array([[[16, 8, 24, 16], [0, 0, 28, 28]]], np.float32)
    inside, share = score_attention(heatmaps, boxes, 32)
    np.testing.assert_array_equal(inside, [[1, 0]])
    np.testing.assert_allclose(share, [[64 / 1024, 784 / 1024]])
    inside, share = score_attention(heatmaps, np.full_like(boxes, np.nan), 32)
    assert np.isnan(inside).all()
    assert np.isnan(share).all()


def test_attributes_are_matched_by_name_or_by_position_with_a_notice(config, records, embed, capsys):
    photos = np.zeros((2, 32, 32, 3), np.uint8)

    def match(names):
        matched = match_attributes(config, {'attributes': list(names)}, records, Path('W'), embed)
        return np.asarray(matched(photos)[0])

    plain = match(records.attributes)
    assert not capsys.readouterr().out
    np.testing.assert_array_equal(match(reversed(records.attributes)), plain[:, ::-1])
    nameless = [f'attribute_{i}' for i in range(len(records.attributes))]
    np.testing.assert_array_equal(match(nameless), plain)
    assert f'assuming the order of the data: attribute_0 = {records.attributes[0]},' in capsys.readouterr().out
    with pytest.raises(InputError, match='W was trained on the attributes color, but'):
        match(['color'])
    config.data.attributes = records.attributes[::-1]
    np.testing.assert_array_equal(match(nameless), plain[:, ::-1])


def test_no_figure_of_records_that_were_replaced_meanwhile_is_kept(records, config, embed):
    opened = records._replace(fingerprint='of the records that were there before')
    with pytest.raises(InputError, match='was replaced while it was being read'):
        evaluate.evaluate(config, opened, 'test', embed, step=0)


@pytest.mark.parametrize(('trained_on', 'is_noted'), [('other records', True), (None, False), ('', False)])
def test_figures_of_records_other_than_those_trained_on_say_so(records, config, tmp_path, capsys, trained_on, is_noted):
    fingerprint = records.fingerprint if trained_on == '' else trained_on
    evaluate_untrained(config, records._replace(caveat='Few photos.'), tmp_path, fingerprint=fingerprint)
    note = ' The network was trained on other records, which may include photos that are scored here.' * is_noted
    assert json.loads((tmp_path / 'eval_test.json').read_text())['caveat'] == f'Few photos.{note}'
    assert f'\nFew photos.{note}\n' in capsys.readouterr().out
