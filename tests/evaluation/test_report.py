"""The report: right figures, escaped names, and nothing from the network."""

import importlib
import json
import re

import numpy as np

from asen_jax.evaluation import evaluate, metrics, published, report
from asen_jax.evaluation.evaluate import AttributeRankings
from asen_jax.evaluation.vectors import Vectors
from asen_jax.models.interfaces import Output
from tests.conftest import ROOT

NEAREST_FIRST = np.array([[1.0], [0.9], [0.8], [0.7], [-1.0]], np.float32)  # a query and four candidates


def rank(query, candidate, vectors):
    """The rankings of an attribute's lists by the photos' vectors."""
    query, candidates = np.array(query), metrics.group_candidates(np.array(candidate), 0)
    scored = vectors[query[:, 0]], vectors[candidates.photos], query[:, 2], candidates.values
    return AttributeRankings(0, query, candidates, metrics.rank_candidates(*scored))


def test_queries_are_sorted_by_precision_and_confusion_counts_the_nearest(monkeypatch):
    monkeypatch.setattr(report, 'NUM_NEIGHBORS', 2)
    candidate = [[1, 0, 0], [2, 0, 1], [3, 0, 0], [3, 0, 1]]
    sheet = report.make_sheet(rank([[0, 0, 0], [4, 0, 1]], candidate, NEAREST_FIRST), ('long', 'short'))
    first, second = sheet.examples
    assert (first.query, first.value, first.nearest, first.relevant) == (0, 'long', [1, 2, 3], [True, False, True])
    assert (second.query, second.nearest, second.relevant) == (4, [3, 2, 1], [True, True, False])
    assert (first.ap, second.ap) == ((1 + 2 / 3) / 2, 1)
    assert sheet.names == ['long', 'short']
    np.testing.assert_allclose(sheet.confusion, [[0.5, 0.5], [0.5, 1]])
    unanswered = rank([[0, 0, 2], [4, 0, 1]], candidate, NEAREST_FIRST)
    assert [example.query for example in report.make_sheet(unanswered, ('long', 'short', 'none')).examples] == [4]


def test_the_page_has_every_part_escapes_names_and_loads_nothing(records, config, tmp_path):
    num_attributes, rng = len(records.attributes), np.random.default_rng(0)

    def embed(images):
        vectors = rng.normal(size=(len(images), num_attributes, 4)).astype(np.float32)
        return Output(vectors, rng.random((len(images), num_attributes, 2, 2), np.float32))

    names = ('<script>alert(1)</script>', *records.attributes[1:])
    records = records._replace(attributes=names, values=tuple(('<i>', *values[1:]) for values in records.values))
    evaluation = evaluate.evaluate(config, records, 'test', embed, 7)
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 4, 'valid_map': 0.5}) + '\n')
    page = report.make_report(config, records, evaluation, embed, tmp_path, {'config': json.loads(config.to_json())})
    assert len(page) < 10_000_000
    assert '<script>alert' not in page and '&lt;script&gt;alert(1)' in page and '<i>' not in page
    for part in ('How well', 'Training', 'One photo under each', 'Best queries', 'Worst queries', 'confused', 'Map of'):
        assert part in page
    outside_scripts = re.sub(r'<script.*?</script>', '', page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', outside_scripts)
    assert not re.findall(r'<script[^>]*src=', page)


def test_maps_spread_over_all_photos_and_gray_out_other_values():
    vectors = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    ranked = rank([[0, 0, 0]], [[index, 0, index % 3] for index in range(90)], vectors)
    collected = Vectors(np.arange(90)[:, None], vectors, np.zeros((90, 1)), np.zeros((90, 1)))
    plot = report.draw_map(ranked, ('long', 'short', 'none'), ['long', 'short'], collected, 10, str)
    data = plot.renderers[0].data_source.data
    photos = [int(photo) for photo in data['photo']]
    assert (len(photos), photos[0], photos[-1]) == (10, 0, 89)
    assert [color == report.GRAY for color in data['color']] == [group == report.OTHER for group in data['group']]
    assert len(set(data['color'])) == 3


def test_curves_draw_every_number_of_a_run_that_was_killed_in_the_middle_of_a_line(tmp_path):
    lines = [
        {'step': 2, 'train_loss': 0.3, 'train_triplet_accuracy': 0.5, 'train_mask_norm': 7.0},
        {'step': 4, 'valid_map': 0.25, 'valid_chance_map': 0.1},
        {'step': 4, 'train_loss': 0.2, 'train_triplet_accuracy': 0.75},
    ]
    content = '\n'.join(map(json.dumps, lines)).encode() + b'\n[8]\n{"step": "x"}\n\xff\n{"step": 6, "tra'
    (tmp_path / 'metrics.jsonl').write_bytes(content)
    curves = report.draw_curves(tmp_path)
    assert list(curves) == ['percent', 'train_loss', 'train_mask_norm']
    drawn = {item.label.value: item.renderers[0].data_source.data for item in curves['percent'].legend[0].items}
    assert list(drawn) == ['train_triplet_accuracy', 'valid_map', 'valid_chance_map']
    assert drawn['train_triplet_accuracy'] == {'x': [2, 4], 'y': [50, 75]}
    assert curves['train_loss'].renderers[0].data_source.data == {'x': [2, 4], 'y': [0.3, 0.2]}
    assert report.draw_curves(tmp_path / 'imported') == {}


def test_published_figures_are_compared_by_the_same_mean_with_their_source(records, config, tmp_path):
    def embed(images):
        return Output(np.ones((len(images), len(records.attributes), 4), np.float32))

    evaluation = evaluate.evaluate(config, records._replace(dataset='fashionai'), 'test', embed, 7)
    meta = {'config': json.loads(config.to_json())}
    page = report.make_report(config, records, evaluation, embed, tmp_path, meta)
    overall, macro = (100 * evaluation.result['map'][mean] for mean in ('overall', 'macro'))
    for part in (
        'ASEN 59.96 [recalled]',
        'RPF 70.11 [README]',
        f'Here {overall:.2f}',
        f'plain mean over attributes {macro:.2f}',
    ):
        assert part in page
    assert 'quoted from memory' in page


def test_the_docs_and_the_configs_have_the_published_figures():
    assert published.format_table() in (ROOT / 'docs/results.md').read_text()
    for dataset, systems in published.PUBLISHED.items():
        recipes = importlib.import_module(f'configs.{dataset}').__doc__
        assert all(each.figure in recipes and (each.plain or '') in recipes for each in systems if each.recipe)
