"""Measure searches in galleries of up to a million rows: how good, how fast, and in how much memory.

    python benchmarks/gallery_size.py FOLDER [--rows 10000,100000,1000000]

Fills `FOLDER/<rows>` with rows of one attribute whose unit vectors are drawn from overlapping clusters, searches in several ways,
each in its own process, and prints a row for each. Recall is that of the 10 nearest rows, by comparing all of them in float32. Then
times what else a gallery of the largest size does.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfFlat, IvfPq, IvfRq

from asen_jax.search import gallery as galleries
from asen_jax.search.gallery import ID, SOURCE, STATE, THUMBNAIL, Gallery

DIM, LATENT_DIM, NUM_CENTERS = 128, 24, 4000  # of the vectors; half of a row's nearest are from other clusters
SPREAD, NOISE = 0.8, 0.3  # beside centers of length 1: in the clusters' subspace, and in all dimensions
NUM_QUERIES, K = 300, 10
THUMBNAIL_BYTES = 5000
NOW = timedelta(0)
CHUNK = 50_000  # rows that are added at once
ATTRIBUTE, VECTOR = 'sleeve', galleries.VECTOR.format(0)


class Variant(NamedTuple):
    """A way to search."""

    index: Any = None
    num_probes: int = 1  # partitions that are searched
    refine_factor: int = 0  # this many times K rows are compared again, by their full vectors


CHOSEN = f'IVF_FLAT, {galleries.NUM_PROBES} probes'
VARIANTS = {
    'exact': Variant(),
    'IVF_FLAT, 20 probes': Variant(IvfFlat('dot'), 20),
    CHOSEN: Variant(IvfFlat('dot'), galleries.NUM_PROBES),  # a gallery's
    'IVF_PQ, 64 probes, refine 20': Variant(IvfPq('dot', num_sub_vectors=DIM // 4), 64, 20),
    'IVF_RQ, 64 probes, refine 30': Variant(IvfRq('dot'), 64, 30),
}


def main(argv: Sequence[str]) -> int:
    """Build and measure; prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path, help='where to make the galleries; 6 GB for a million rows')
    parser.add_argument('--rows', default='10000,100000,1000000', help='sizes of the galleries')
    parser.add_argument('--step', nargs='+', help=argparse.SUPPRESS)  # one process of a measurement
    args = parser.parse_args(argv)
    if args.step:
        warnings.filterwarnings('ignore', r'optimize\(cleanup_older_than=0\)')  # it could harm other readers
        step, *options = args.step
        print(json.dumps({'fill': fill, 'index': index, 'search': search, 'rest': rest}[step](args.folder, *options)))
        return 0
    print('| rows | search | recall@10 | median | 95% | peak memory | index on disk | built in | in memory |')
    print('| --- | --- | --- | --- | --- | --- | --- | --- | --- |', flush=True)
    for rows in map(int, args.rows.split(',')):
        folder = args.folder / str(rows)
        if not folder.exists():
            run(folder, 'fill', str(rows))
        for variant in VARIANTS:
            built, found = run(folder, 'index', variant), run(folder, 'search', variant)
            figures = [
                f'{found["recall"]:.3f}',
                f'{found["median"]:.1f} ms',
                f'{found["p95"]:.1f} ms',
                f'{found["peak"]:.0f} MB',
                f'{built["size"]:.0f} MB',
                f'{built["seconds"]:.0f} s',
                f'{built["peak"]:.0f} MB',
            ]
            print(f'| {rows:,} | {variant} | {" | ".join(figures)} |', flush=True)
    run(folder, 'index', CHOSEN)
    for name, seconds in run(folder, 'rest').items():
        print(f'{name}: {seconds:.3f}')
    return 0


def run(folder: Path, *step: str) -> dict[str, float]:
    """The figures of one step, in its own process."""
    command = [sys.executable, __file__, str(folder), '--step', *step]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit vectors from clusters that overlap, in a subspace, with noise around it."""
    fixed = np.random.default_rng(0)
    subspace = np.linalg.qr(fixed.normal(size=(DIM, LATENT_DIM)))[0].T.astype(np.float32)
    centers = fixed.normal(size=(NUM_CENTERS, LATENT_DIM)).astype(np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    spread = SPREAD / LATENT_DIM**0.5 * rng.standard_normal((count, LATENT_DIM), np.float32)
    noise = NOISE / DIM**0.5 * rng.standard_normal((count, DIM), np.float32)
    vectors = (centers[rng.integers(NUM_CENTERS, size=count)] + spread) @ subspace + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(folder: Path, rows: str) -> dict[str, float]:
    """A gallery without an index of its vectors, and its nearest rows in `truth.npz`."""
    total = int(rows)
    about = {'fingerprint': '', 'attributes': [ATTRIBUTE], 'metric': 'dot'}
    gallery = Gallery.create(folder, about, DIM)
    gallery.table.add_columns({'color': 'cast(null as string)', 'shop': 'cast(null as string)'})
    rng = np.random.default_rng(1)
    queries = draw(np.random.default_rng(2), NUM_QUERIES)
    scores, places = np.full((NUM_QUERIES, K), -2, np.float32), np.zeros((NUM_QUERIES, K), int)
    for start in range(0, total, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, total))
        vectors = draw(rng, len(numbers))
        columns = {
            'path': [path_of(number) for number in numbers],
            ID: [galleries.photo_id(path_of(number)) for number in numbers],
            SOURCE: ['/photos/list.csv'] * len(numbers),
            STATE: [f'{number} 1700000000000000000 None' for number in numbers],
            THUMBNAIL: [rng.bytes(THUMBNAIL_BYTES) for _ in numbers],
            VECTOR: pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM),
            'color': [f'color {number % 10}' for number in numbers],
            'shop': [f'shop {number % 1000}' for number in numbers],
        }
        gallery.table.add(pa.table(columns, schema=gallery.table.schema))
        scores = np.concatenate([scores, queries @ vectors.T], axis=1)
        places = np.concatenate([places, np.broadcast_to(numbers, (NUM_QUERIES, len(numbers)))], axis=1)
        best = np.argsort(-scores, axis=1)[:, :K]
        scores, places = np.take_along_axis(scores, best, 1), np.take_along_axis(places, best, 1)
    gallery.table.create_index('path', config=BTree())
    gallery.table.optimize(cleanup_older_than=NOW)
    np.savez(folder / 'truth.npz', queries=queries, places=places)
    return {}


def path_of(number: int) -> str:
    """The path of a row."""
    return f'/photos/{number:07d}.jpg'


def index(folder: Path, variant: str) -> dict[str, float]:
    """Build the variant's index in place of the one before."""
    table = Gallery.open(folder).table
    for each in table.list_indices():
        if each.columns == [VECTOR]:
            table.drop_index(each.name)
    table.optimize(cleanup_older_than=NOW)
    before, start = size(folder), time.monotonic()
    if config := VARIANTS[variant].index:
        table.create_index(VECTOR, config=config)
    return {'seconds': time.monotonic() - start, 'size': (size(folder) - before) / 1e6, 'peak': peak_memory()}


def size(folder: Path) -> int:
    """Bytes on disk."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def search(folder: Path, variant: str) -> dict[str, float]:
    """Search one photo after another."""
    _, galleries.NUM_PROBES, factor = VARIANTS[variant]
    truth, gallery = np.load(folder / 'truth.npz'), Gallery.open(folder)
    if factor:  # a gallery does not do this
        plain = gallery.table.search
        gallery.table.search = lambda *query, **options: (
            plain(*query, **options).refine_factor(factor) if query else plain()
        )
    times, recalls = [], []
    for query, places in zip(truth['queries'], truth['places'], strict=True):
        start = time.perf_counter()
        found = gallery.search(query[None], {ATTRIBUTE: 1.0}, K)
        times.append(1000 * (time.perf_counter() - start))
        recalls.append(len({match.path for match in found} & set(map(path_of, places))) / K)
    return {
        'recall': np.mean(recalls),
        'median': np.median(times),
        'p95': np.percentile(times, 95),
        'peak': peak_memory(),
    }


def rest(folder: Path) -> dict[str, float]:
    """Seconds of the other steps of --mode index and --mode search, and the memory of the first."""
    from asen_jax.search import indexing  # loads JAX, which would add to the memory of the other steps

    gallery, query = Gallery.open(folder), np.load(folder / 'truth.npz')['queries'][:1]
    figures = {}

    def measure(name: str, work: Callable[[], Any]) -> None:
        start = time.perf_counter()
        work()
        figures[name] = time.perf_counter() - start

    measure('read what the gallery knows', lambda: indexing.read_known(gallery))
    figures['peak memory so far, GB'] = peak_memory() / 1000
    rows = [
        {'path': f'/new/{n}', ID: str(n), SOURCE: '', STATE: '', THUMBNAIL: b'', VECTOR: each, 'color': '', 'shop': ''}
        for n, each in enumerate(draw(np.random.default_rng(3), 4024))
    ]
    gallery.table.create_index(ID, config=BTree())
    measure('commit 1,024 new photos', lambda: indexing.merge(gallery, rows[:1024]))
    indexing.merge(gallery, rows[1024:])
    measure('tidy after 4,024 new photos', lambda: indexing.tidy(gallery))
    for where in ("color = 'color 3'", "shop = 'shop 7'"):
        gallery.search(query, {ATTRIBUTE: 1.0}, K, where)
        measure(f'search with {where}', lambda where=where: gallery.search(query, {ATTRIBUTE: 1.0}, K, where))
    measure('compare all photos in Python, per attribute', lambda: gallery._scan({0: 1.0}, query, K, None))
    measure('values of a column, for the page', lambda: gallery.values('color', 100))
    paths = [path_of(number) for number in range(20)]
    measure('find 20 rows by path', lambda: list(gallery.rows(paths, [])))
    measure('find a row by id', lambda: gallery.find(galleries.photo_id(paths[1]), []))
    gallery.table.delete("path like '/new/%'")
    return figures


def peak_memory() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
