"""Kill a small training run at random moments, and check that it ends like an unbroken one.

    python benchmarks/soak.py [--kills 40] [--seed 0]

The command is started again after each SIGKILL, and every fourth start loads photos in two processes. A third of the kills come
within 20 milliseconds after Orbax has begun to write a checkpoint, the others at a random moment of the run. Whenever a run finishes,
and at the end, its checkpoints (parameters, optimizer state, batch statistics, and metadata), `eval_test.json`, and all numbers in
`metrics.jsonl` but the timings must be those of a run that was not killed; then its workdir is deleted.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from asen_jax.checkpoint import Checkpoints
from benchmarks.kill_index import finish, kill, sleep

ROOT = Path(__file__).resolve().parents[1]
SMALL = '--config.data.synthetic.num_photos=200 --config.data.synthetic.photo_size=48 --config.data.image_size=32 --config.model.resnet.width=8'
STEPS = (
    '--config.data.num_triplets=96 --config.train.batch_size=8 --config.train.num_epochs=6 --config.mesh.cpu_devices=1'
)
SAVES = '--config.train.save_every_steps=2 --config.train.log_every_steps=3 --config.eval.every_epochs=2'
ARRAYS = ('params', 'batch_stats', 'opt_state')
TIMINGS = {'train_triplets_per_second', 'train_step_seconds', 'train_data_wait_seconds'}


def main(argv: Sequence[str]) -> int:
    """Run the kills and compare; 0 if every finished run equals the unbroken one."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--kills', default=40, type=int, help='how often to kill the command')
    parser.add_argument('--seed', default=0, type=int, help='of the moments')
    args = parser.parse_args(argv)
    rng, begin = random.Random(args.seed), time.monotonic()
    killed_at, in_saves, finished, differences = [], 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, 'whole'), Path(folder, 'killed')
        finish(train(Path(folder), 'compile', 0))  # fills the cache, so that the next run is as fast as the others
        start = time.monotonic()
        finish(train(Path(folder), 'whole', 0))
        seconds, number = time.monotonic() - start, 0
        while True:
            number += 1
            process = train(Path(folder), 'killed', 2 if number % 4 == 0 else 0)
            if len(killed_at) == args.kills:
                finish(process)
            elif rng.random() < 1 / 3:
                wait_for_save(process, killed)
                time.sleep(rng.uniform(0, 0.02))
            else:
                sleep(process, rng.uniform(0.2, 1) * seconds)
            if kill(process):
                killed_at.append(last_step(killed))
                in_saves += any(unfinished(killed))
                continue
            finish(process)
            finished += 1
            differences += compare(whole, killed)
            if len(killed_at) == args.kills:
                break
            shutil.rmtree(killed)
    print(f'{len(killed_at)} kills, {in_saves} inside a save, after these steps: {sorted(killed_at)}')
    print(f'{finished} runs finished in {time.monotonic() - begin:.0f} s')
    print('\n'.join(differences) or 'all like the unbroken run')
    return 1 if differences else 0


def train(folder: Path, workdir: str, num_workers: int) -> subprocess.Popen:
    """Start or resume the training in `folder`."""
    command = [sys.executable, str(ROOT / 'main.py'), f'--config={ROOT}/configs/synthetic.py', f'--workdir={workdir}']
    command += [*SMALL.split(), *STEPS.split(), *SAVES.split(), f'--config.data.num_workers={num_workers}']
    cache = {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    return subprocess.Popen(command, cwd=folder, env=os.environ | cache, stdout=subprocess.DEVNULL)


def unfinished(workdir: Path) -> Iterator[Path]:
    """The checkpoints that are being written, or were when the run was killed."""
    return workdir.glob('checkpoints/*/*tmp*')


def wait_for_save(process: subprocess.Popen, workdir: Path) -> None:
    """Wait until the process begins to write a checkpoint, or ends."""
    before = set(unfinished(workdir))
    while process.poll() is None and not set(unfinished(workdir)) - before:
        time.sleep(0.001)


def last_step(workdir: Path) -> int:
    """The step from which a run would resume."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.steps().get('latest', 0)


def compare(whole: Path, killed: Path) -> list[str]:
    """Sentences on what differs between two finished runs."""
    found = []
    with Checkpoints(whole, read_only=True) as one, Checkpoints(killed, read_only=True) as other:
        if one.steps() != other.steps():
            return [f'the checkpoints are of steps {other.steps()} instead of {one.steps()}']
        for kind in one.steps():
            metas = [checkpoints.read_meta(kind) for checkpoints in (one, other)]
            for meta in metas:
                del meta['config']['data']['num_workers']  # which changes from start to start
            found += [
                f'{kind}: {name} in the metadata differs' for name in metas[0] if metas[0][name] != metas[1].get(name)
            ]
            for name in ARRAYS:
                trees = [checkpoints.restore(kind, {name: None})[name] for checkpoints in (one, other)]
                if not all(jax.tree.leaves(jax.tree.map(np.array_equal, *trees))):
                    found.append(f'{kind}: {name} differ')
    lines = [
        [{name: number for name, number in json.loads(line).items() if name not in TIMINGS} for line in file]
        for file in ((workdir / 'metrics.jsonl').read_text().splitlines() for workdir in (whole, killed))
    ]
    found += [
        f'metrics.jsonl: {line} instead of {expected}'
        for expected, line in zip(*lines, strict=False)
        if line != expected
    ]
    if len(lines[0]) != len(lines[1]):
        found.append(f'metrics.jsonl has {len(lines[1])} lines instead of {len(lines[0])}')
    if (whole / 'eval_test.json').read_text() != (killed / 'eval_test.json').read_text():
        found.append('eval_test.json differs')
    return found


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
