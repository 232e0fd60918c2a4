"""Prepares FashionAI, DARN and DeepFashion from the published lists at full valid and test size, and checks every count.

    python benchmarks/prepare_lists.py ARCHIVE FOLDER    # ARCHIVE: asen_splits.tar.gz, the public lists

The photos may not be passed on, so placeholders of 60 x 80 pixels are made under the lists' names in FOLDER, and small
made-up train lists (the published ones name no files). Each data set is then prepared by main.py in a process of its
own; the table says what came out, how long it took and its peak memory. Exit status 1 where a figure differs from the
papers' lists (queries, candidates, chance MAP in percent to 0.01).
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDERS, TRAIN_PHOTOS = 500, 2000


class Expected(NamedTuple):
    """What the published lists give, in both of valid and test; chance MAP of test, in percent."""

    config: str
    photos: int
    queries: int
    candidates: int
    unanswered: tuple[int, int]
    chance: float
    per_attribute: tuple[float, ...]


EXPECTED = {
    'FashionAI': Expected(
        'fashionai', 18_000, 3_600, 14_400, (0, 0), 15.79, (17.20, 12.50, 13.35, 17.45, 22.36, 21.62, 11.09, 21.20)
    ),
    'DARN': Expected(
        'darn', 21_461, 4_293, 17_168, (4, 3), 31.26,
        (5.48, 23.46, 10.55, 29.91, 43.27, 38.76, 15.22, 62.02, 54.54),
    ),
    'DeepFashion': Expected('deepfashion', 27_625, 5_525, 22_100, (29, 23), 3.38, (6.69, 2.69, 3.23, 2.55, 1.97)),
}  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archive', type=Path)
    parser.add_argument('folder', type=Path, help='for raw files and records; made where it is not')
    args = parser.parse_args(argv[1:])
    raw = args.folder / 'raw'
    with tarfile.open(args.archive) as archive:
        archive.extractall(raw, filter='data')
    raw, wrong = raw / 'data', []
    heads = ('queries', 'candidates', 'unanswered', 'chance', 'seconds', 'MB')
    print(f'{"test":14}' + ''.join(f'{head:>12}' for head in heads))
    for dataset, expected in EXPECTED.items():
        make_placeholders(raw / dataset, json.loads((raw / 'meta.json').read_text())[dataset])
        seconds, memory = run_prepare(expected.config, raw, args.folder / 'records')
        (report,) = (args.folder / 'records' / expected.config).glob('all/*/prepare.json')
        content = json.loads(report.read_text())
        wrong += check(dataset, expected, content['splits'])
        test = content['splits']['test']
        figures = (
            test['queries'],
            test['candidates'],
            test['unanswered'],
            f'{100 * test["chance_map"]["overall"]:.2f}',
        )
        print(f'{dataset:14}' + ''.join(f'{figure:>12}' for figure in (*figures, f'{seconds:.0f}', f'{memory:.0f}')))
    print('\n'.join(wrong) or 'all counts and chance figures are those of the published lists')
    return 1 if wrong else 0


def make_placeholders(folder: Path, meta: dict) -> None:
    """A photo for every listed name, and train lists of which each value has photos."""
    rng, photos = np.random.default_rng(0), []
    for _ in range(PLACEHOLDERS):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (10, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels[:, :60]).save(file, 'JPEG')
        photos.append(file.getvalue())
    counts = [meta['ATTRIBUTES_NUM'][name] for name in meta['ATTRIBUTES']]
    labels = [(attribute, value) for attribute, count in enumerate(counts) for value in range(count)]
    names = [f'made_up/{number}.jpg' for number in range(TRAIN_PHOTOS)]
    lines = ['{} {} {}'.format(number, *labels[number % len(labels)]) for number in range(TRAIN_PHOTOS)]
    (folder / 'filenames_train.txt').write_text('\n'.join(names) + '\n')
    (folder / 'label_train.txt').write_text('\n'.join(lines) + '\n')
    for split in ('valid', 'test'):
        names += (folder / f'filenames_{split}.txt').read_text().split('\n')
    for number, name in enumerate(names):
        if name.strip():
            path = folder / name.strip()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photos[number % PLACEHOLDERS])


def run_prepare(config: str, raw: Path, records: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of `main.py --mode prepare`."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / 'main.py', '--mode', 'prepare', '--config', ROOT / 'configs' / f'{config}.py',
         f'--config.data.manual_dir={raw}', f'--config.data.dir={records}'], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'prepare_lists.py: preparing {config} ended with status {os.waitstatus_to_exitcode(status)}')
    return time.monotonic() - begin, usage.ru_maxrss / 1024


def check(dataset: str, expected: Expected, splits: dict) -> list[str]:
    """A line for every figure that is not the published lists'."""
    wanted = {}
    for number, split in enumerate(('valid', 'test')):
        for name in ('photos', 'queries', 'candidates'):
            wanted[split, name] = getattr(expected, name)
        wanted[split, 'unanswered'] = expected.unanswered[number]
    found = {(split, name): splits[split][name] for split, name in wanted}
    chance = splits['test']['chance_map']
    wanted['test', 'chance'], found['test', 'chance'] = expected.chance, round(100 * chance['overall'], 2)
    for name, figure in zip(chance['per_attribute'], expected.per_attribute, strict=True):
        wanted['test', f'chance of {name}'] = figure
        found['test', f'chance of {name}'] = round(100 * chance['per_attribute'][name], 2)
    return [
        f'{dataset} {split}: {name} {found[split, name]}, not {figure}'
        for (split, name), figure in wanted.items()
        if found[split, name] != figure
    ]


if __name__ == '__main__':
    sys.exit(main(sys.argv))
