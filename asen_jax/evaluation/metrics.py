"""Retrieval metrics, and what a random ranking would score; numpy only, so that builders can use them too.

Lists hold rows (index, attribute, value). A candidate is a photo: one with several values has several rows, but is
ranked once, and is relevant to a query for any of its values.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

QUERY_BLOCK = 256  # queries ranked at a time: bounds the memory of the scores and changes no figure
NO_VALUE = -1


class Candidates(NamedTuple):
    """The photos that the queries of one attribute rank, each once, in the order of the list."""

    photos: Int[np.ndarray, ' candidates']
    values: Int[np.ndarray, 'candidates most']  # each photo's values, padded with NO_VALUE


def group_candidates(rows: Int[np.ndarray, 'rows 3'], attribute: int) -> Candidates:
    """The candidates of `attribute` from the rows of a candidate list."""
    values_of = defaultdict(dict)  # dicts keep the list's order and drop repeated rows
    for photo, value in rows[rows[:, 1] == attribute][:, [0, 2]].tolist():
        values_of[photo][value] = None
    values = np.full((len(values_of), max(map(len, values_of.values()), default=1)), NO_VALUE)
    for row, known in zip(values, values_of.values(), strict=True):
        row[: len(known)] = list(known)
    return Candidates(np.array(list(values_of), np.int64), values)


def count_candidates(rows: Int[np.ndarray, 'rows 3']) -> int:
    """The number of candidates in a candidate list, summed over its attributes."""
    return len(np.unique(rows[:, :2], axis=0))


def nearness(
    queries: Float[np.ndarray, 'queries dim'], candidates: Float[np.ndarray, 'candidates dim'], distance: str = 'cosine'
) -> Float[np.ndarray, 'queries candidates']:
    """Scores that rank each query's candidates, highest for the nearest.

    'cosine' is q.c, the cosine of unit vectors. 'euclidean' is q.c - ||c||^2 / 2, which falls as ||q - c|| grows.
    """
    scores = queries @ candidates.T
    return scores - np.square(candidates).sum(axis=1) / 2 if distance == 'euclidean' else scores


def rank_relevance(
    queries: Float[np.ndarray, 'queries dim'],
    candidates: Float[np.ndarray, 'candidates dim'],
    query_values: Int[np.ndarray, ' queries'],
    candidate_values: Int[np.ndarray, 'candidates most'],
    distance: str = 'cosine',
) -> Bool[np.ndarray, 'queries candidates']:
    """Whether the candidate at each rank, nearest first, has the query's value.

    Ties rank in the candidates' order; the PyTorch original leaves their order undefined.
    """
    order = np.argsort(-nearness(queries, candidates, distance), axis=1, kind='stable')
    relevance = np.zeros(order.shape, bool)
    for values in candidate_values.T:  # one column at a time: a photo with many values must not multiply the memory
        relevance |= values[order] == query_values[:, None]
    return relevance


def average_precision(relevance: Bool[np.ndarray, 'queries candidates']) -> Float[np.ndarray, ' queries']:
    """Mean of the precision at the ranks of a query's relevant candidates; 0 where none is relevant.

    AP = (1/R) * sum over relevant ranks k of (relevant among the first k) / k, over the full ranking.
    """
    ranks = np.arange(1, relevance.shape[1] + 1)
    precision = np.cumsum(relevance, axis=1) / ranks
    num_relevant = relevance.sum(axis=1)
    return (precision * relevance).sum(axis=1) / np.maximum(num_relevant, 1)


def chance_average_precision(
    query_values: Int[np.ndarray, ' queries'], candidate_values: Int[np.ndarray, 'candidates most']
) -> Float[np.ndarray, ' queries']:
    """The expected AP of a random ranking, for each query.

    With R relevant among N candidates: (1/N) * sum_{k=1..N} (1 + (k-1)(R-1)/(N-1)) / k, and 0 where R = 0.
    """
    total = len(candidate_values)
    if total == 0:
        return np.zeros(len(query_values))
    values, counts = np.unique(candidate_values, return_counts=True)  # a photo has each of its values once
    count_of = dict(zip(values.tolist(), counts.tolist(), strict=True))
    relevant = np.array([count_of.get(value, 0) for value in query_values.tolist()], np.float64)
    harmonic = np.sum(1 / np.arange(1, total + 1))
    # the sum of (k-1)/k is N - H_N; with one candidate the second term is empty
    later = (relevant - 1) * (total - harmonic) / (total - 1) if total > 1 else 0.0
    return np.where(relevant > 0, (harmonic + later) / total, 0.0)


def retrieval_metrics(
    queries: Float[np.ndarray, 'queries dim'],
    candidates: Float[np.ndarray, 'candidates dim'],
    query_values: Int[np.ndarray, ' queries'],
    candidate_values: Int[np.ndarray, 'candidates most'],
    ks: Sequence[int] = (1, 5, 10),
    distance: str = 'cosine',
) -> dict[str, Float[np.ndarray, ' queries']]:
    """AP, recall@k and precision@k of every query of one attribute, as fractions.

    recall@k is 1 where at least one of the first k candidates is relevant (as in metric learning), else 0; precision@k
    is the relevant share of the first min(k, candidates).
    """
    blocks = []
    for start in range(0, len(queries), QUERY_BLOCK):
        part = slice(start, start + QUERY_BLOCK)
        relevance = rank_relevance(queries[part], candidates, query_values[part], candidate_values, distance)
        block: dict[str, Any] = {'ap': average_precision(relevance)}
        for k in ks:
            top = relevance[:, :k]
            block[f'recall@{k}'] = top.any(axis=1).astype(np.float64)
            block[f'precision@{k}'] = top.sum(axis=1) / max(top.shape[1], 1)
        blocks.append(block)
    names = ['ap', *(f'{kind}@{k}' for k in ks for kind in ('recall', 'precision'))]
    return {name: np.concatenate([b[name] for b in blocks]) if blocks else np.zeros(0) for name in names}


def summarize(per_query: Mapping[str, Float[np.ndarray, ' queries']]) -> dict:
    """Means per attribute, their plain mean (`macro`), and the mean over all queries (`overall`).

    An attribute without queries is left out; without any query both means are None.
    """
    means = {name: float(np.mean(figures)) for name, figures in per_query.items() if len(figures)}
    if not means:
        return {'overall': None, 'macro': None, 'per_attribute': {}}
    every = np.concatenate([figures for figures in per_query.values() if len(figures)])
    return {'overall': float(every.mean()), 'macro': float(np.mean(list(means.values()))), 'per_attribute': means}


def chance_map(
    attributes: Sequence[str], query: Int[np.ndarray, 'queries 3'], candidate: Int[np.ndarray, 'rows 3']
) -> dict:
    """The MAP of a random ranking of two lists: `summarize` of `chance_average_precision`."""
    figures = {}
    for number, name in enumerate(attributes):
        query_values = query[query[:, 1] == number, 2]
        figures[name] = chance_average_precision(query_values, group_candidates(candidate, number).values)
    return summarize(figures)


def triplet_is_right(
    anchor: Float[np.ndarray, 'n dim'],
    positive: Float[np.ndarray, 'n dim'],
    negative: Float[np.ndarray, 'n dim'],
    distance: str = 'cosine',
) -> Bool[np.ndarray, ' n']:
    """Whether each anchor lies strictly nearer to its positive than to its negative; a tie is wrong.

    By dot product, or by CSN's ||a - b + 1e-6||_2.
    """
    if distance == 'euclidean':
        near, far = (np.linalg.norm(anchor - other + 1e-6, axis=1) for other in (positive, negative))
        return near < far
    return np.einsum('nd,nd->n', anchor, positive) > np.einsum('nd,nd->n', anchor, negative)
