"""Compare precision@10 of searches in a gallery with what `--mode eval` computes from the same photos.

    python benchmarks/gallery_precision.py --workdir W --records data/records/NAME/.../1.0.0

The candidates of the test split are written as files and indexed with their labels; each query photo then searches under its attribute
among the candidates that are labeled in it.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from asen_jax.data.prepared import Records, open_records, read_rows
from asen_jax.embedder import Embedder
from asen_jax.evaluation.evaluate import evaluate
from asen_jax.matching import config_as_trained
from asen_jax.search.gallery import Gallery
from asen_jax.search.indexing import index_photos
from asen_jax.sharding import make_mesh

K = 10
TOLERANCE = 1e-9


def main(argv: Sequence[str]) -> int:
    """Print both figures of each attribute; 0 if they are equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--workdir', required=True, help='workdir of a trained network')
    parser.add_argument('--records', required=True, help='directory of the prepared records it was trained on')
    args = parser.parse_args(argv)
    embedder, records = Embedder.load(args.workdir), open_records(args.records)
    with tempfile.TemporaryDirectory() as folder:
        searched = search(embedder, records, Path(folder))
    evaluated = evaluate_attributes(embedder, records)
    print(f'{"attribute":24}{"gallery":>10}{"eval":>10}{"queries":>10}')
    same = True
    for name, (ours, queries) in searched.items():
        expected = evaluated[name]
        same &= abs(ours - expected) < TOLERANCE
        print(f'{name:24}{100 * ours:>10.2f}{100 * expected:>10.2f}{queries:>10}')
    print('equal' if same else 'DIFFERENT')
    return 0 if same else 1


def search(embedder: Embedder, records: Records, folder: Path) -> dict[str, tuple[float, int]]:
    """precision@10 of each attribute by searches in a gallery, and its number of queries."""
    decoders = {'image': tfds.decode.SkipDecoding()}
    photos = tfds.builder_from_directory(records.directory).as_data_source('test', decoders=decoders)
    query = read_rows(records, 'test_query')
    candidate = read_rows(records, 'test_candidate')
    print(index_photos(embedder, write_list(records, photos, candidate, folder / 'candidates'), folder / 'gallery'))
    opened, found = Gallery.open(folder / 'gallery'), {}
    (folder / 'queries').mkdir()
    for number, name in enumerate(records.attributes):
        shares, rows = [], query[query[:, 1] == number].tolist()
        paths = [folder / 'queries' / f'{index}.jpg' for index, *_ in rows]
        for path, (index, *_) in zip(paths, rows, strict=True):
            path.write_bytes(photos[index]['image'])
        vectors = embedder.embed(paths, boxes=[box_of(photos[index]) for index, *_ in rows])
        for (_, _, value), vector in zip(rows, vectors, strict=True):
            matches = opened.search(vector, {name: 1.0}, K, f'`{name}` is not null')
            right = records.values[number][value]
            shares.append(np.mean([right in match.metadata[name].split('|') for match in matches]))
        if shares:
            found[name] = float(np.mean(shares)), len(shares)
    return found


def write_list(records: Records, photos: Sequence, candidate: np.ndarray, folder: Path) -> Path:
    """The candidates' photos as files, with a CSV of their labels and boxes."""
    folder.mkdir()
    boxed = box_of(photos[0]) is not None
    with (folder / 'labels.csv').open('w', newline='') as file:
        columns = ['path', *records.attributes, *(('x1', 'y1', 'x2', 'y2') if boxed else ())]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for index in np.unique(candidate[:, 0]).tolist():
            (folder / f'{index}.jpg').write_bytes(photos[index]['image'])
            row = {'path': f'{index}.jpg'}
            for number, name in enumerate(records.attributes):
                rows = candidate[(candidate[:, 0] == index) & (candidate[:, 1] == number)]
                row[name] = '|'.join(records.values[number][value] for value in rows[:, 2].tolist())
            if boxed:
                left, top, right, bottom = box_of(photos[index])
                row |= {'x1': left + 1, 'y1': top + 1, 'x2': right, 'y2': bottom}
            writer.writerow(row)
    return folder / 'labels.csv'


def box_of(record: dict) -> tuple[float, ...] | None:
    """The garment's box, if the records have boxes."""
    return None if record.get('bbox') is None else tuple(map(float, record['bbox']))


def evaluate_attributes(embedder: Embedder, records: Records) -> dict[str, float]:
    """precision@10 of each attribute as `--mode eval` computes it."""
    network = embedder.network
    config = config_as_trained(network.meta, ConfigDict(network.meta['config']))
    evaluation = evaluate(config, records, 'test', network.embed_on(make_mesh()), network.meta['step'])
    return {name: float(ranked.rankings.precision_at(K).mean()) for name, ranked in evaluation.by_attribute.items()}


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
