"""Time MAP from vectors against the original's loop and against PyTorch; or, with --million, against the matrix product alone.

    pip install torch
    python benchmarks/retrieval.py [--repeats 5] [--output FILE.json]
    python benchmarks/retrieval.py --million [--repeats 3] [--output FILE.json]    # needs 6 GB of memory

The vectors are random and of unit length, with 1,024 dimensions: as many as DARN's test split has, or 1,000 queries and a
million candidates. Nothing is timed until all sides agree. What no side can beat is the time of the matrix products alone.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'  # NumPy computes here

import argparse
import resource
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from timing import Timed, Work, report, take_turns

try:
    import torch
except ImportError:
    torch = None

from asen_jax.evaluation import metrics

DIM = 1024
DARN_VALUES = (20, 13, 55, 7, 28, 11, 26, 8, 17)  # of each attribute
DARN_QUERIES, DARN_CANDIDATES = 4_293, 17_168  # of all attributes, here evenly spread over them
NUM_MANY_VALUES = 100  # of the only attribute of the million
OURS, PRODUCT = 'asen_jax', 'product'
SAME_AP = 1e-4  # largest accepted difference, where sides round products differently


class Lists(NamedTuple):
    """One attribute's queries and candidates, in the order of the arguments of `rank_candidates`."""

    queries: np.ndarray  # [q, dim]
    candidates: np.ndarray  # [c, dim]
    query_values: np.ndarray  # [q]
    candidate_values: np.ndarray  # [c, 1]


def main(argv: list[str]) -> int:
    """Measure; returns 0 on success, 1 if the sides do not agree, 2 if it cannot run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--million', action='store_true', help='rank a million candidates, and measure the memory')
    parser.add_argument('--repeats', type=int, default=5, help='timed calls per side')
    parser.add_argument('--output', type=Path, help='where to write the figures as JSON')
    args = parser.parse_args(argv[1:])
    if args.repeats < 1:
        parser.error('--repeats must be at least 1.')
    if torch is None and not args.million:
        print('retrieval.py: PyTorch, which this command compares with, is missing: pip install torch', file=sys.stderr)
        return 2
    return measure_million(args) if args.million else measure_darn(args)


def measure_darn(args: argparse.Namespace) -> int:
    rng, count = np.random.default_rng(0), len(DARN_VALUES)
    sizes = zip(split_evenly(DARN_QUERIES, count), split_evenly(DARN_CANDIDATES, count), DARN_VALUES, strict=True)
    lists = [draw(rng, *each) for each in sizes]
    sides = {
        OURS: lambda: [rank(each) for each in lists],
        "the original's loop": lambda: [rank_in_a_loop(each) for each in lists],
        'PyTorch, one sort per attribute': lambda: [rank_in_torch(each) for each in lists],
        PRODUCT: lambda: [each.queries @ each.candidates.T for each in lists],
    }
    ours, *others = (np.concatenate(call()) for side, call in sides.items() if side != PRODUCT)
    apart = max(np.abs(ours - theirs).max() for theirs in others)
    print(f'MAP {100 * ours.mean():.4f}; largest difference of an AP between the sides: {apart:.1e}\n')
    if apart > SAME_AP:
        print('retrieval.py: the sides do not agree, so nothing was timed.', file=sys.stderr)
        return 1
    timed = take_turns(Work(f'{DARN_QUERIES:,} : {DARN_CANDIDATES:,}', 'queries', DARN_QUERIES, sides), args.repeats)
    report(f'MAP, as large as DARN ({count} attributes)', [beside_product(timed)], args.output)
    return 0


def measure_million(args: argparse.Namespace) -> int:
    lists = draw(np.random.default_rng(0), 1_000, 1_000_000, NUM_MANY_VALUES)
    block = metrics.BLOCK_BYTES // (4 * len(lists.candidates))
    blocks = [lists.queries[start : start + block] for start in range(0, len(lists.queries), block)]
    before = resident_bytes()
    rank(lists)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f'memory beyond the vectors ({before / 1e9:.2f} GB resident before): {extra / 1e9:.2f} GB at the peak\n')

    def multiply():
        for queries in blocks:
            queries @ lists.candidates.T

    timed = take_turns(
        Work('1,000 : 1,000,000', 'queries', 1_000, {OURS: lambda: rank(lists), PRODUCT: multiply}), args.repeats
    )
    report('MAP, a million candidates', [beside_product(timed)], args.output, {'extra_bytes': extra})
    return 0


def split_evenly(total: int, count: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(total), count)]


def draw(rng: np.random.Generator, num_queries: int, num_candidates: int, num_values: int) -> Lists:
    """Unit vectors with random directions and random values."""
    vectors = [np.empty((num_queries, DIM), np.float32), np.empty((num_candidates, DIM), np.float32)]
    for array in vectors:
        for start in range(0, len(array), 10_000):  # without a second array of their size
            part = array[start : start + 10_000]
            rng.standard_normal(dtype=np.float32, out=part)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
    values = [rng.integers(0, num_values, size) for size in (num_queries, (num_candidates, 1))]
    return Lists(*vectors, *values)


def rank(lists: Lists) -> np.ndarray:
    """Each query's AP, as an evaluation computes it: with the nearest candidates, which recall and precision at k need."""
    return metrics.rank_candidates(*lists).ap


def rank_in_a_loop(lists: Lists) -> np.ndarray:
    """Our own code for what the original does: for each query a sort of its scores, and Python loops over the ranks."""
    values, found = lists.candidate_values[:, 0], []
    for scores, value in zip(lists.queries @ lists.candidates.T, lists.query_values, strict=True):
        relevance = [bool(values[candidate] == value) for candidate in np.argsort(-scores)]
        num_relevant, total = 0, 0.0
        for rank, is_relevant in enumerate(relevance, start=1):
            if is_relevant:
                num_relevant += 1
                total += num_relevant / rank
        found.append(total / max(num_relevant, 1))
    return np.array(found)


def rank_in_torch(lists: Lists) -> np.ndarray:
    """All queries at once: one product, one sort, one cumulative sum."""
    queries, candidates, query_values, candidate_values = map(torch.from_numpy, lists)
    order = torch.sort(queries @ candidates.T, dim=1, descending=True).indices
    relevance = candidate_values[:, 0][order] == query_values[:, None]
    precision = relevance.cumsum(1) / torch.arange(1, relevance.shape[1] + 1)
    return ((precision * relevance).sum(1) / relevance.sum(1).clamp(min=1)).numpy()


def beside_product(timed: Timed) -> Timed:
    """The same timings, with the product as the limit instead of as one of the sides."""
    seconds = {side: each for side, each in timed.seconds.items() if side != PRODUCT}
    return Timed(timed.work._replace(limit=statistics.median(timed.seconds[PRODUCT])), seconds)


def resident_bytes() -> int:
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


if __name__ == '__main__':
    sys.exit(main(sys.argv))
