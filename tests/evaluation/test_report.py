"""The report: right figures, escaped names, and nothing from the network."""

import json
import re

import numpy as np

from asen_jax.evaluation import evaluate, report
from asen_jax.evaluation.vectors import Vectors

NEAREST_FIRST = np.array([[1.0], [0.9], [0.8], [0.7], [-1.0]], np.float32)  # a query and four candidates


def test_queries_are_sorted_by_precision_and_confusion_counts_the_nearest(records, monkeypatch):
    tables = {
        'test_query': np.array([[0, 0, 0], [4, 0, 1]]),
        'test_candidate': np.array([[1, 0, 0], [2, 0, 1], [3, 0, 0], [3, 0, 1]]),
    }
    monkeypatch.setattr(report, 'read_rows', lambda records, kind: tables[kind])
    monkeypatch.setattr(report, 'NUM_NEIGHBORS', 2)
    vectors = Vectors(np.arange(5)[:, None], NEAREST_FIRST, np.zeros((5, 1)), np.zeros((5, 1)))
    sheet = report.rank_attribute(records._replace(values=(('long', 'short'),)), 'test', vectors, 0)
    first, second = sheet.ranked
    assert (first.query, first.value, first.nearest, first.relevant) == (0, 'long', [1, 2, 3], [True, False, True])
    assert (second.query, second.nearest, second.relevant) == (4, [3, 2, 1], [True, True, False])
    assert (first.ap, second.ap) == ((1 + 2 / 3) / 2, 1)
    assert sheet.names == ['long', 'short']
    np.testing.assert_allclose(sheet.confusion, [[0.5, 0.5], [0.5, 1]])
    tables['test_query'] = np.array([[0, 0, 2], [4, 0, 1]])  # the first has no answer
    records = records._replace(values=(('long', 'short', 'none'),))
    assert [ranked.query for ranked in report.rank_attribute(records, 'test', vectors, 0).ranked] == [4]


def test_the_page_has_every_part_escapes_names_and_loads_nothing(records, config, tmp_path):
    num_attributes, rng = len(records.attributes), np.random.default_rng(0)

    def embed(images):
        vectors = rng.normal(size=(len(images), num_attributes, 4)).astype(np.float32)
        return vectors, rng.random((len(images), num_attributes, 2, 2), np.float32)

    names = ('<script>alert(1)</script>', *records.attributes[1:])
    records = records._replace(attributes=names, values=tuple(('<i>', *values[1:]) for values in records.values))
    result, vectors = evaluate.evaluate(config, records, 'test', embed, 7)
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 4, 'valid_map': 0.5}) + '\n')
    page = report.make_report(
        config, records, result, vectors, embed, tmp_path, {'config': json.loads(config.to_json())}
    )
    assert len(page) < 10_000_000
    assert '<script>alert' not in page and '&lt;script&gt;alert(1)' in page and '<i>' not in page
    for part in ('How well', 'Training', 'One photo under each', 'Best queries', 'Worst queries', 'confused', 'Map of'):
        assert part in page
    outside_scripts = re.sub(r'<script.*?</script>', '', page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', outside_scripts)
    assert not re.findall(r'<script[^>]*src=', page)


def test_maps_spread_over_all_photos_and_gray_out_other_values(records, monkeypatch):
    rows = np.array([[index, 0, index % 3] for index in range(90)])
    monkeypatch.setattr(report, 'read_rows', lambda records, kind: rows)
    monkeypatch.setattr(report, 'MAX_ON_MAP', 10)
    values = (('long', 'short', 'none'), *records.values[1:])
    vectors = Vectors(
        np.arange(90)[:, None], np.random.default_rng(0).normal(size=(90, 4)), np.zeros((90, 1)), np.zeros((90, 1))
    )
    sheets = {records.attributes[0]: report.Sheet([], np.zeros((2, 2)), ['long', 'short'])}
    [plot] = report.draw_maps(records._replace(values=values), 'test', vectors, sheets, str).values()
    data = plot.renderers[0].data_source.data
    photos = [int(photo) for photo in data['photo']]
    assert (len(photos), photos[0], photos[-1]) == (10, 0, 89)
    assert [color == report.GRAY for color in data['color']] == [group == report.OTHER for group in data['group']]
    assert len(set(data['color'])) == 3
