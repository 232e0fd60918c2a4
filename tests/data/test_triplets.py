"""Drawn triplets: which photos they may hold, how often each is drawn, and labels that allow none."""

import numpy as np
import pytest

from asen_jax.data import triplets
from asen_jax.data.triplets import Labels, draw_triplets, make_index
from asen_jax.errors import InputError


def labels_of(table):
    """Labels from {(photo, attribute): values}."""
    rows = [(photo, attribute, value) for (photo, attribute), values in table.items() for value in values]
    return Labels(*np.array(rows, np.int32).T)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    table = {(photo, 0): [int(rng.integers(0, 4))] for photo in range(60)}
    table |= {(photo, 2): sorted({int(v) for v in rng.integers(0, 3, 2)}) for photo in range(20, 50)}
    return table | {(58, 2): [7], (59, 5): [0], (57, 5): [0]}


def test_anchor_and_positive_share_a_value_that_the_negative_lists_otherwise(table):
    rows = draw_triplets(make_index(labels_of(table)), 5000, np.random.default_rng(1))
    assert rows.dtype == np.int32
    for anchor, positive, negative, attribute in rows.tolist():
        assert anchor != positive
        shared = set(table[anchor, attribute]) & set(table[positive, attribute])
        assert any(set(table[negative, attribute]) - {value} for value in shared)


def count_loose(table, rows):
    """Triplets whose negative has every value that anchor and positive share, so also the drawn one."""
    return sum(set(table[a, t]) & set(table[p, t]) <= set(table[n, t]) for a, p, n, t in rows.tolist())


def test_strict_negatives_never_have_the_anchors_value(table):
    index = make_index(labels_of(table))
    loose, strict = (draw_triplets(index, 5000, np.random.default_rng(1), which) for which in (False, True))
    assert count_loose(table, loose) > 100
    assert count_loose(table, strict) == 0


def test_strict_negatives_found_in_the_last_round_are_used(table, monkeypatch):
    index = make_index(labels_of(table))
    monkeypatch.setattr(triplets, 'STRICT_ROUNDS', 2)
    outcomes = set()
    for seed in range(40):
        try:
            rows = draw_triplets(index, 4, np.random.default_rng(seed), strict_negatives=True)
            outcomes.add(count_loose(table, rows))
        except InputError:
            outcomes.add('given up')
    assert outcomes == {0, 'given up'}


def test_attributes_and_values_are_uniform_and_negatives_follow_the_entries():
    sizes = {0: 2, 1: 10, 2: 40}  # photos of each value
    photos = np.repeat(list(sizes), list(sizes.values()))
    labels = Labels(np.arange(52), np.zeros(52, int), photos)
    rows = draw_triplets(make_index(labels), 60_000, np.random.default_rng(2))
    anchor_value, negative_value = photos[rows[:, 0]], photos[rows[:, 2]]
    np.testing.assert_allclose(np.bincount(anchor_value) / 60_000, 1 / 3, atol=0.01)
    of_first = np.bincount(negative_value[anchor_value == 0], minlength=3) / np.sum(anchor_value == 0)
    np.testing.assert_allclose(of_first, [0, 10 / 50, 40 / 50], atol=0.01)
    of_last = rows[anchor_value == 2]
    np.testing.assert_allclose(np.bincount(of_last[:, 1])[12:] / len(of_last), 1 / 40, atol=0.006)


def test_values_without_anchors_are_listed_and_still_serve_as_negatives(table):
    index = make_index(labels_of(table))
    assert index.left_out == ((2, 7, 1), (5, 0, 2))  # a single photo; the attribute's only value
    rows = draw_triplets(index, 3000, np.random.default_rng(3))
    assert set(rows[:, 3]) == {0, 2}
    assert 58 in rows[rows[:, 3] == 2][:, 2]


def test_a_repeated_label_counts_once():
    once = Labels(np.array([0, 1, 2]), np.zeros(3, int), np.array([0, 0, 1]))
    twice = Labels(*(np.tile(part, 2) for part in once))
    np.testing.assert_equal(make_index(twice)._asdict(), make_index(once)._asdict())


def test_labels_that_allow_no_triplet_are_refused():
    with pytest.raises(InputError, match='No triplet can be drawn'):
        make_index(Labels(np.arange(3), np.zeros(3, int), np.arange(3)))
    labels = labels_of({(0, 0): [0, 1], (1, 0): [0, 1]})
    with pytest.raises(InputError, match='turn strict_negatives off'):
        draw_triplets(make_index(labels), 4, np.random.default_rng(0), strict_negatives=True)
