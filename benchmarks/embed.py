"""Embed many photos: photos per second, peak memory, and a run that is killed and resumed.

    python benchmarks/embed.py FOLDER [--photos 10000]

Makes JPEGs of 96 x 96 pixels and a workdir with the network of configs/catalog.py:scratch (random weights, 64 px, six attributes) in
FOLDER. Then runs `main.py --mode embed` on a tenth of the photos and on all of them, kills a third run halfway with SIGKILL,
and runs it again. Ends with exit status 1 if the two files of all photos are not the same, byte for byte.
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
from asen_jax.models.build import build_model
from asen_jax.search.embed_files import CHUNK_SIZE
from configs import catalog

ROOT = Path(__file__).resolve().parents[1]
NUM_ATTRIBUTES = 6


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='for photos, workdir and vectors; created if missing')
    parser.add_argument('--photos', type=int, default=10_000)
    args = parser.parse_args(argv[1:])
    photos, few = args.folder / 'photos', args.folder / 'few.txt'
    make_photos(photos, args.photos)
    make_workdir(args.folder / 'workdir')
    few.write_text('\n'.join(map(str, sorted(path.resolve() for path in photos.iterdir())[: args.photos // 10])))
    print(f'{"photos":>10}{"photos/s":>12}{"peak MB":>10}')
    for images, output, count in ((few, 'few.npz', args.photos // 10), (photos, 'all.npz', args.photos)):
        printed, memory = run(args.folder, images, output)
        rate = re.search(r'([0-9.]+) photos/s', printed)[1]
        print(f'{count:>10,}{rate:>12}{memory:>10.0f}', flush=True)
    process = start(args.folder, photos, 'killed.npz')
    parts, half = args.folder / 'killed.npz.parts', args.photos // CHUNK_SIZE // 2
    while process.poll() is None and len(list(parts.glob('part-*.npz'))) < half:
        time.sleep(0.02)
    process.kill()
    process.wait()
    printed, _ = run(args.folder, photos, 'killed.npz')
    resuming = re.search('resuming after .*', printed)
    print(f'killed after {half} parts, then again: {resuming[0] if resuming else "from the start"}')
    same = (args.folder / 'killed.npz').read_bytes() == (args.folder / 'all.npz').read_bytes()
    print('the same file as the unbroken run' if same else 'NOT the same file as the unbroken run')
    return 0 if same else 1


def make_photos(folder: Path, count: int) -> None:
    """Blurred noise, different in each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f'{number:06}.jpg', quality=90)


def make_workdir(workdir: Path) -> None:
    """A checkpoint with random weights."""
    config, attributes = catalog.get_config('scratch'), [f'attribute_{number}' for number in range(NUM_ATTRIBUTES)]
    _, params, batch_stats = build_model(config, NUM_ATTRIBUTES)
    meta = {
        'step': 0,
        'score': 0.0,
        'config': json.loads(config.to_json()),
        'attributes': attributes,
        'values': [[] for _ in attributes],
        'dataset': 'none',
        'fingerprint': None,
    }
    with Checkpoints(workdir) as checkpoints:
        if not checkpoints.steps():
            checkpoints.save('best', {'params': params, 'batch_stats': batch_stats}, meta)
    (workdir / 'config.json').write_text(config.to_json())


def start(folder: Path, images: Path, output: str) -> subprocess.Popen:
    flags = {'mode': 'embed', 'workdir': folder / 'workdir', 'images': images, 'output': folder / output}
    command = [sys.executable, ROOT / 'main.py', *(f'--{name}={value}' for name, value in flags.items())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(folder: Path, images: Path, output: str) -> tuple[str, float]:
    """What it printed, and its peak memory in megabytes."""
    process = start(folder, images, output)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'embed.py: main.py ended with status {os.waitstatus_to_exitcode(status)}')
    return printed, usage.ru_maxrss / 1024


if __name__ == '__main__':
    sys.exit(main(sys.argv))
