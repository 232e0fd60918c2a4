"""Retrieval metrics, and what a random ranking would score; numpy only, so that builders can use them too.

Lists hold rows (index, attribute, value). A candidate is a photo: one with several values has several rows, but is
ranked once, and is relevant to a query for any of its values.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# What is scored at a time, and what a thread sorts at a time (one query at least): they bound the memory and change no figure.
BLOCK_BYTES, CHUNK_BYTES = 2**29, 2**19
MAX_THREADS = 8  # each needs up to ten times the memory of its chunk
NO_VALUE = -1

# A block of queries [q, dim] -> their dot products with all candidates [q, candidates]
Product = Callable[[Float[np.ndarray, 'queries dim']], Float[np.ndarray, 'queries candidates']]


class Candidates(NamedTuple):
    """The photos that the queries of one attribute rank, each once, in the order of the list."""

    photos: Int[np.ndarray, ' candidates']
    values: Int[np.ndarray, 'candidates most']  # each photo's values, padded with NO_VALUE


class Rankings(NamedTuple):
    """Each query's AP and its `count` nearest candidates, nearest first, with whether they are relevant."""

    ap: Float[np.ndarray, ' queries']
    nearest: Int[np.ndarray, 'queries count']  # positions in the list of candidates
    relevant: Bool[np.ndarray, 'queries count']

    def recall_at(self, k: int) -> Float[np.ndarray, ' queries']:
        """1 where at least one of the first `k` candidates is relevant (as in metric learning), else 0; `k` <= `count`."""
        return np.asarray(self.relevant[:, :k].any(axis=1), np.float64)

    def precision_at(self, k: int) -> Float[np.ndarray, ' queries']:
        """The relevant share of the first min(`k`, candidates); `k` <= `count`."""
        top = self.relevant[:, :k]
        return top.sum(axis=1) / max(top.shape[1], 1)


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


def sort_by_score(scores: Float[np.ndarray, 'queries candidates']) -> Int[np.ndarray, 'queries candidates']:
    """The positions of each query's candidates, highest score first; ties rank in the candidates' order.

    This is a stable argsort, but several times as fast for float32: a score, as an integer that falls as it grows, and its
    position below it make one int64 key, and NumPy sorts plain integers with vector instructions.
    """
    if scores.dtype != np.float32:
        return np.argsort(-scores, axis=1, kind='stable')
    bits = (0 - scores).view(np.int32)  # 0 - 0.0 and 0 - -0.0 are the same
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats are ordered by magnitude, integers are not
    keys = bits.astype(np.int64) << 32
    keys |= np.arange(scores.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys


def rank_relevance(
    order: Int[np.ndarray, 'queries candidates'],
    query_values: Int[np.ndarray, ' queries'],
    candidate_values: Int[np.ndarray, 'candidates most'],
) -> Bool[np.ndarray, 'queries candidates']:
    """Whether the candidate at each rank of `order` has the query's value."""
    relevant = np.zeros(order.shape, bool)
    for values in candidate_values.T:  # one column at a time: a photo with many values must not multiply the memory
        relevant |= values == query_values[:, None]
    first = np.arange(len(order))[:, None] * order.shape[1]
    return relevant.take(order + first)  # of the flat array, which is faster than take_along_axis


def rank_candidates(
    queries: Float[np.ndarray, 'queries dim'],
    candidates: Float[np.ndarray, 'candidates dim'],
    query_values: Int[np.ndarray, ' queries'],
    candidate_values: Int[np.ndarray, 'candidates most'],
    count: int = 10,
    distance: str = 'cosine',
    product: Product | None = None,
) -> Rankings:
    """Rank all candidates for every query of one attribute, and keep the `count` nearest (all, if there are fewer).

    'cosine' ranks by q.c, the cosine of unit vectors, and 'euclidean' by q.c - ||c||^2 / 2, which falls as ||q - c|| grows.
    Ties rank in the candidates' order; the PyTorch original leaves their order undefined. `product` computes the dot products
    with these candidates elsewhere than in NumPy. Beside the arguments, this needs less than 1 GB for a million candidates.
    """
    product = product or (lambda block: block @ candidates.T)
    offset = np.einsum('nd,nd->n', candidates, candidates) / 2 if distance == 'euclidean' else 0.0
    shape = len(queries), min(count, len(candidates))
    ranked = Rankings(np.zeros(len(queries)), np.zeros(shape, np.int64), np.zeros(shape, bool))
    row_bytes = max(len(candidates) * queries.itemsize, 1)

    def rank_block(block: slice) -> None:
        scores = product(queries[block])

        def rank_chunk(chunk: slice) -> None:
            order = sort_by_score(scores[chunk] - offset)
            relevance = rank_relevance(order, query_values[block][chunk], candidate_values)
            ranked.ap[block][chunk] = average_precision(relevance)
            ranked.nearest[block][chunk], ranked.relevant[block][chunk] = order[:, :count], relevance[:, :count]

        list(pool.map(rank_chunk, _slices(len(scores), CHUNK_BYTES // row_bytes)))

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:  # NumPy sorts without Python's lock
        for block in _slices(len(queries), BLOCK_BYTES // row_bytes):
            rank_block(block)
    return ranked


def _slices(total: int, length: int) -> list[slice]:
    """Consecutive slices of `length`, or 1 if that is 0, which cover `total`."""
    length = max(length, 1)
    return [slice(start, start + length) for start in range(0, total, length)]


def average_precision(relevance: Bool[np.ndarray, 'queries candidates']) -> Float[np.ndarray, ' queries']:
    """Mean of the precision at the ranks of a query's relevant candidates; 0 where none is relevant.

    AP = (1/R) * sum over relevant ranks k of (relevant among the first k) / k, over the full ranking.
    """
    row, rank = np.divmod(np.flatnonzero(relevance), relevance.shape[1])  # of each relevant candidate; ranks from 0
    num_relevant = np.bincount(row, minlength=len(relevance))
    earlier = np.arange(len(row)) - (np.cumsum(num_relevant) - num_relevant)[row]  # of the same query
    return np.bincount(row, (earlier + 1) / (rank + 1), minlength=len(relevance)) / np.maximum(num_relevant, 1)


def chance_average_precision(
    query_values: Int[np.ndarray, ' queries'], candidate_values: Int[np.ndarray, 'candidates most']
) -> Float[np.ndarray, ' queries']:
    """The expected AP of a random ranking, for each query.

    With R relevant among N candidates: (1/N) * sum_{k=1..N} (1 + (k-1)(R-1)/(N-1)) / k, and 0 where R = 0.
    """
    total = len(candidate_values)
    if total == 0:
        return np.zeros(len(query_values))
    count_of = Counter(candidate_values.ravel().tolist())  # a photo has each of its values once
    relevant = np.array([count_of[value] for value in query_values.tolist()], np.float64)
    harmonic = np.sum(1 / np.arange(1, total + 1))
    # the sum of (k-1)/k is N - H_N; with one candidate the second term is empty
    later = (relevant - 1) * (total - harmonic) / (total - 1) if total > 1 else 0.0
    return np.where(relevant > 0, (harmonic + later) / total, 0.0)


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
