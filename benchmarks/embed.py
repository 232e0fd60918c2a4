"""Vectors of many photos: photos a second, peak memory, and a run that is killed and goes on.

    python benchmarks/embed.py FOLDER [--photos 10000]

Makes JPEGs of 96 x 96 pixels and a workdir with configs/catalog.py's network (random weights, 64 px, six attributes) in
FOLDER, then runs `main.py --mode embed` on a tenth of the photos and on all, kills a third run with SIGKILL in the middle and
runs it again. Exit status 1 where the file of the killed run is not, byte for byte, that of the unbroken one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

from asen_jax.checkpoint import Checkpoints
from asen_jax.models import build_model
from asen_jax.training.optimizer import make_optimizer
from asen_jax.training.step import create_state
from configs import catalog

ROOT = Path(__file__).resolve().parents[1]
NUM_ATTRIBUTES = 6


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='for photos, workdir and vectors; made where it is not')
    parser.add_argument('--photos', type=int, default=10_000)
    args = parser.parse_args(argv[1:])
    make_photos(args.folder / 'photos', args.photos)
    make_workdir(args.folder / 'workdir')
    few = args.folder / 'few.txt'
    few.write_text(
        '\n'.join(map(str, sorted(path.resolve() for path in (args.folder / 'photos').iterdir())[: args.photos // 10]))
    )
    print(f'{"photos":>10}{"photos/s":>12}{"peak MB":>10}')
    for images, output, count in (
        (few, 'few.npz', args.photos // 10),
        (args.folder / 'photos', 'all.npz', args.photos),
    ):
        said, memory = run(args.folder, images, output)
        print(f'{count:>10,}{re.search(r"([0-9.]+) photos/s", said)[1]:>12}{memory:>10.0f}', flush=True)
    process = start(args.folder, args.folder / 'photos', 'killed.npz')
    parts, half = args.folder / 'killed.npz.parts', args.photos // 1024 // 2
    while process.poll() is None and len(list(parts.glob('piece-*.npz'))) < half:
        time.sleep(0.02)
    process.kill()
    process.wait()
    said, _ = run(args.folder, args.folder / 'photos', 'killed.npz')
    print(f'killed after {half} pieces, then again: {said.splitlines()[0]}')
    same = (args.folder / 'killed.npz').read_bytes() == (args.folder / 'all.npz').read_bytes()
    print('the same file as the unbroken run' if same else 'NOT the file of the unbroken run')
    return 0 if same else 1


def make_photos(folder: Path, count: int) -> None:
    """Blurred noise, another in each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f'{number:06}.jpg', quality=90)


def make_workdir(workdir: Path) -> None:
    """A checkpoint of random weights."""
    config, attributes = catalog.get_config(), [f'attribute_{number}' for number in range(NUM_ATTRIBUTES)]
    _, params, batch_stats = build_model(config, NUM_ATTRIBUTES)
    state = create_state(params, batch_stats, make_optimizer(config, 1))
    meta = {
        'step': 0, 'score': 0.0, 'config': json.loads(config.to_json()), 'attributes': attributes,
        'values': [[] for _ in attributes], 'dataset': 'none', 'fingerprint': None,
    }  # fmt: skip
    with Checkpoints(workdir) as checkpoints:
        if checkpoints.latest_step() is None:
            for kind in ('best', 'latest'):
                checkpoints.save(kind, state, meta, 0.0)
    (workdir / 'config.json').write_text(config.to_json())


def start(folder: Path, images: Path, output: str) -> subprocess.Popen:
    command = [
        sys.executable,
        ROOT / 'main.py',
        '--mode',
        'embed',
        f'--workdir={folder / "workdir"}',
        f'--images={images}',
    ]
    return subprocess.Popen([*command, f'--output={folder / output}'], stdout=subprocess.PIPE, text=True)


def run(folder: Path, images: Path, output: str) -> tuple[str, float]:
    """What it said, and its peak megabytes."""
    process = start(folder, images, output)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'embed.py: main.py ended with status {os.waitstatus_to_exitcode(status)}')
    return said, usage.ru_maxrss / 1024


if __name__ == '__main__':
    sys.exit(main(sys.argv))
