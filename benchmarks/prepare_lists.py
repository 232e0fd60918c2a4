"""Prepares FashionAI, DARN and DeepFashion from the published lists at full size, and checks every figure against the papers.

    python benchmarks/prepare_lists.py ARCHIVE FOLDER    # ARCHIVE: asen_splits.tar.gz, the published lists

The photos may not be redistributed, so FOLDER gets stand-ins of 60 x 80 pixels under the published names, and small made-up
train lists, since the published train lists have no file names. main.py then prepares each dataset in its own process.
The table shows what came out, the time and the peak memory. The lists themselves are checked too: DeepFashion's two
dialects of labels must agree, and random vectors must score what the closed form of chance says.
Exit status 1 if a figure differs.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asen_jax.evaluation.metrics import rank_candidates, summarize
from data_builders import annotations, asen_lists
from data_builders.deepfashion import labels

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDERS, TRAIN_PHOTOS = 500, 2000
TOLERANCE = 0.08  # of the MAP of random vectors, in percent


class Expected(NamedTuple):
    """The figures of the published lists; chance is MAP in percent."""

    config: str
    values: tuple[int, ...]  # by attribute
    photos: int  # in each of valid and test, like the next two
    queries: int
    candidates: int
    unanswered: tuple[int, int]  # valid, test
    chance: tuple[float | None, float]  # valid, test
    chance_per_attribute: tuple[float, ...]  # test


EXPECTED = {
    'FashionAI': Expected(
        config='fashionai',
        values=(6, 9, 8, 6, 5, 5, 10, 5),
        photos=18_000,
        queries=3_600,
        candidates=14_400,
        unanswered=(0, 0),
        chance=(16.04, 15.79),
        chance_per_attribute=(17.20, 12.50, 13.35, 17.45, 22.36, 21.62, 11.09, 21.20),
    ),
    'DARN': Expected(
        config='darn',
        values=(20, 13, 55, 7, 28, 11, 26, 8, 17),
        photos=21_461,
        queries=4_293,
        candidates=17_168,
        unanswered=(4, 3),
        chance=(None, 31.26),
        chance_per_attribute=(5.48, 23.46, 10.55, 29.91, 43.27, 38.76, 15.22, 62.02, 54.54),
    ),
    'DeepFashion': Expected(
        config='deepfashion',
        values=(156, 218, 180, 216, 230),
        photos=27_625,
        queries=5_525,
        candidates=22_100,
        unanswered=(29, 23),
        chance=(None, 3.38),
        chance_per_attribute=(6.69, 2.69, 3.23, 2.55, 1.97),
    ),
}
FASHIONAI_TRAIN_PHOTOS = 144_335
DEEPFASHION_ENTRIES = 55_250  # queries and candidates of valid and test


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archive', type=Path)
    parser.add_argument('folder', type=Path, help='for raw files and records; created if it does not exist')
    args = parser.parse_args(argv[1:])
    raw = args.folder / 'raw' / 'data'
    with tarfile.open(args.archive) as archive:
        archive.extractall(raw.parent, filter='data')
    wrong = [*check_train_labels(raw), *check_dialects(raw), *check_random_vectors(raw)]
    heads = ('queries', 'candidates', 'unanswered', 'chance', 'seconds', 'MB')
    print(f'{"test":14}' + ''.join(f'{head:>12}' for head in heads))
    for dataset, expected in EXPECTED.items():
        make_placeholders(raw / dataset, json.loads((raw / 'meta.json').read_text())[dataset])
        seconds, memory = run_prepare(expected.config, raw, args.folder / 'records')
        (report,) = (args.folder / 'records' / expected.config).glob('all/*/prepare.json')
        splits = json.loads(report.read_text())['splits']
        wrong += check_splits(dataset, expected, splits)
        test = splits['test']
        chance = f'{100 * test["chance_map"]["overall"]:.2f}'
        figures = (test['queries'], test['candidates'], test['unanswered'], chance, f'{seconds:.0f}', f'{memory:.0f}')
        print(f'{dataset:14}' + ''.join(f'{figure:>12}' for figure in figures))
    print('\n'.join(wrong) or 'All counts and chance figures are those of the published lists.')
    return 1 if wrong else 0


def make_placeholders(folder: Path, meta: dict) -> None:
    """Write a photo for every listed name, and train lists in which every value has photos."""
    rng, photos = np.random.default_rng(0), []
    for _ in range(PLACEHOLDERS):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (10, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels[:, :60]).save(file, 'JPEG')
        photos.append(file.getvalue())
    counts = [meta['ATTRIBUTES_NUM'][name] for name in meta['ATTRIBUTES']]
    pairs = [(attribute, value) for attribute, count in enumerate(counts) for value in range(count)]
    names = [f'made_up/{number}.jpg' for number in range(TRAIN_PHOTOS)]
    lines = ['{} {} {}'.format(number, *pairs[number % len(pairs)]) for number in range(TRAIN_PHOTOS)]
    (folder / 'filenames_train.txt').write_text('\n'.join(names) + '\n')
    (folder / 'label_train.txt').write_text('\n'.join(lines) + '\n')
    for split in ('valid', 'test'):
        names += annotations.read_filenames(folder / f'filenames_{split}.txt')
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number % PLACEHOLDERS])


def run_prepare(config: str, raw: Path, records: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of `main.py --mode prepare`."""
    command = [sys.executable, ROOT / 'main.py', '--mode', 'prepare', '--config', ROOT / 'configs' / f'{config}.py']
    command += [f'--config.data.manual_dir={raw}', f'--config.data.dir={records}']
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'prepare_lists.py: preparing {config} ended with status {os.waitstatus_to_exitcode(status)}')
    return time.monotonic() - begin, usage.ru_maxrss / 1024


def check_splits(dataset: str, expected: Expected, splits: dict) -> list[str]:
    """A line for every figure in prepare.json that differs from that of the published lists."""
    wrong = []

    def compare(split, what, found, wanted):
        if found != wanted:
            wrong.append(f'{dataset} {split}: {what} {found}, not {wanted}')

    compare('train', 'values', tuple(splits['train']['values'].values()), expected.values)
    for number, split in enumerate(('valid', 'test')):
        facts = splits[split]
        for what in ('photos', 'queries', 'candidates'):
            compare(split, what, facts[what], getattr(expected, what))
        compare(split, 'unanswered', facts['unanswered'], expected.unanswered[number])
        if expected.chance[number] is not None:
            compare(split, 'chance', round(100 * facts['chance_map']['overall'], 2), expected.chance[number])
    chance = splits['test']['chance_map']['per_attribute']
    for (name, found), wanted in zip(chance.items(), expected.chance_per_attribute, strict=True):
        compare('test', f'chance of {name}', round(100 * found, 2), wanted)
    return wrong


def check_train_labels(raw: Path) -> Iterator[str]:
    """FashionAI is the only dataset whose train labels are in the archive: every photo must have one."""
    meta = annotations.read_meta(raw / 'meta.json', 'FashionAI')
    table = annotations.read_label_train(raw / 'FashionAI' / 'label_train.txt', FASHIONAI_TRAIN_PHOTOS, meta)
    if (found := len(np.unique(table.photo))) != FASHIONAI_TRAIN_PHOTOS:
        yield f'FashionAI train: {found} photos with labels, not {FASHIONAI_TRAIN_PHOTOS}'


def check_dialects(raw: Path) -> Iterator[str]:
    """DeepFashion's label files are global, its lists local: every listed label must be among those of its photo."""
    folder, agreed = raw / 'DeepFashion', 0
    source = asen_lists.Source(folder, annotations.read_meta(raw / 'meta.json', 'DeepFashion'))
    lists = asen_lists.read_eval_lists(source)
    rows = {s: labels.read_rows(folder / f'label_{s}.txt', len(lists[s].names), source.meta) for s in lists}
    attribute_of_id = labels.infer_attributes(list(rows.values()), source.meta, 'use the published label files.')
    for split, part in lists.items():
        if not rows[split].is_global:
            yield f'DeepFashion {split}: label_{split}.txt was read as local'
        given = set(zip(*(c.tolist() for c in labels.to_labels(rows[split], attribute_of_id)), strict=True))
        agreed += sum(tuple(row) in given for row in np.concatenate([part.query, part.candidate]).tolist())
    if agreed != DEEPFASHION_ENTRIES:
        yield f'DeepFashion: the dialects agree on {agreed} queries and candidates, not {DEEPFASHION_ENTRIES}'


def check_random_vectors(raw: Path) -> Iterator[str]:
    """The MAP of random vectors on FashionAI's test lists must be close to chance."""
    source = asen_lists.Source(raw / 'FashionAI', annotations.read_meta(raw / 'meta.json', 'FashionAI'))
    lists, rng, figures = asen_lists.read_eval_lists(source)['test'], np.random.default_rng(0), {}
    for number, name in enumerate(source.meta.attributes):
        query, candidate = (rows[rows[:, 1] == number] for rows in (lists.query, lists.candidate))
        vectors = [rng.normal(size=(len(rows), 64)).astype(np.float32) for rows in (query, candidate)]
        vectors = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in vectors]
        figures[name] = rank_candidates(*vectors, query[:, 2], candidate[:, 2:]).ap
    found, wanted = 100 * summarize(figures)['overall'], EXPECTED['FashionAI'].chance[1]
    if abs(found - wanted) > TOLERANCE:
        yield f'FashionAI test: MAP of random vectors {found:.2f}, not {wanted} +- {TOLERANCE}'


if __name__ == '__main__':
    sys.exit(main(sys.argv))
