"""Train a config with several seeds, test the best checkpoint of each, and print a row for a table of results.

    python benchmarks/reproduce.py --config configs/synthetic.py --seeds 0,1,2 [--config.FIELD=VALUE ...]

The row has the mean, sample standard deviation, minimum and maximum of the test figure, in percent: MAP, or triplet
accuracy if the dataset has no queries. Below it are the figure, time, commit and checkpoint hash of each seed, and the
figure of each attribute. Runs are kept in FOLDER/<name>-seed-<seed>; the same command resumes them, or only tests them
again if they are finished.
"""

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
import numpy as np

from asen_jax import sharding
from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError
from asen_jax.network import load_network
from asen_jax.weights.torch_names import flatten

ROOT = Path(__file__).resolve().parents[1]
HASH_DIGITS = 12
HEAD = '| dataset | config | metric | test | min | max | chance | command |'


class Run(NamedTuple):
    """A finished run: its seed, the content of eval_test.json, and where it comes from."""

    seed: int
    result: dict
    seconds: float  # of all attempts, up to the first that finished; nan if the run did not note it
    commit: str
    weights: str  # hash of the best checkpoint


def main(argv: Sequence[str]) -> int:
    """Run all seeds and print the table; returns the exit status of the first run that fails."""
    args, overrides = parse_arguments(argv)
    jax.config.update('jax_platforms', 'cpu')  # only hashes weights here; GPU memory is left to the runs
    runs = []
    for seed in args.seeds:
        workdir = args.folder / f'{name_of(args.config, overrides)}-seed-{seed}'
        if status := train(workdir, [f'--config={args.config}', f'--config.seed={seed}', *overrides]):
            return status
        try:
            runs.append(read_run(workdir, seed))
        except InputError as error:
            print(f'reproduce.py: {error}', file=sys.stderr)
            return error.exit_status
    seeds = ','.join(map(str, args.seeds))
    command = shlex.join(['python', 'benchmarks/reproduce.py', '--config', args.config, '--seeds', seeds, *overrides])
    print(format_table(runs, args.config, command))
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and the --config.FIELD=VALUE for main.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/fashionai.py', help='as for main.py')
    parser.add_argument('--seeds', default='0,1,2', type=read_seeds, help='distinct whole numbers, separated by commas')
    parser.add_argument('--folder', default='runs/reproduce', type=Path, help='folder for the runs')
    args, overrides = parser.parse_known_args(argv[1:])
    for flag in overrides:
        if not flag.startswith('--config.') or '=' not in flag or flag.startswith('--config.seed='):
            parser.error(f'{flag!r} is not of the form --config.FIELD=VALUE; seeds go into --seeds.')
    return args, overrides


def read_seeds(text: str) -> list[int]:
    """'0,1,2' as numbers; refuses negative and repeated ones."""
    seeds = [int(part) for part in text.split(',')]
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(text)
    return seeds


def name_of(config: str, overrides: Sequence[str]) -> str:
    """A folder name that depends on the config, its variant and the overrides."""
    path, _, variant = config.partition(':')
    name = f'{Path(path).stem}_{variant}' if variant else Path(path).stem
    digest = hashlib.sha256('\0'.join(sorted(overrides)).encode()).hexdigest()
    return f'{name}-{digest[:8]}' if overrides else name


def train(workdir: Path, options: Sequence[str]) -> int:
    """Train or resume `workdir`, or only test it if it is finished; notes commit and time, returns the exit status."""
    finished = (workdir / 'eval_test.json').exists()
    if not (workdir / 'checkpoints').exists():  # otherwise the run started at an earlier commit
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / 'commit.txt').write_text(commit() + '\n')
    command = [sys.executable, str(ROOT / 'main.py'), *options, f'--workdir={workdir}']
    print(shlex.join(command[1:]), flush=True)
    start = time.monotonic()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        if not finished:
            seconds = float(read_note(workdir, 'seconds.txt') or 0) + time.monotonic() - start
            (workdir / 'seconds.txt').write_text(f'{seconds:.1f}\n')


def read_run(workdir: Path, seed: int) -> Run:
    """What a finished run has written."""
    seconds = float(read_note(workdir, 'seconds.txt') or 'nan')
    return Run(seed, read_result(workdir), seconds, read_note(workdir, 'commit.txt'), checkpoint_hash(workdir))


def read_note(workdir: Path, name: str) -> str:
    """A line that `train` wrote into the workdir, or ''."""
    path = workdir / name
    return path.read_text().strip() if path.exists() else ''


def read_result(workdir: Path) -> dict:
    """The content of eval_test.json."""
    path = workdir / 'eval_test.json'
    if not path.exists():
        raise InputError(f'{path} is missing: the dataset has no test queries or triplets; choose another --config.')
    return json.loads(path.read_text())


def checkpoint_hash(workdir: Path) -> str:
    """The hash of the best checkpoint's weights."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        network = load_network(checkpoints, 'best', 'float32', sharding.make_mesh(devices=jax.devices()[:1]))
    return hash_weights(jax.device_get({'params': network.params, 'batch_stats': network.batch_stats}))


def hash_weights(tree: dict) -> str:
    """The first digits of a SHA-256 over names, types, shapes and bytes of all arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def commit() -> str:
    """The checkout's commit, with '-changed' if tracked files differ from it."""

    def git(*words):
        return subprocess.run(
            ['git', '-C', str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', '--short', 'HEAD') + ('-changed' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'no git checkout'


def format_table(runs: Sequence[Run], config: str, command: str) -> str:
    """The row for a table in Markdown, then each seed's run, each attribute's figure, and what qualifies the figures."""
    first = runs[0].result
    kind, title, chance = 'triplet_accuracy', 'triplet accuracy', 0.5
    if first['map']['overall'] is not None:
        kind, title, chance = 'map', 'MAP', first['chance_map']['overall']
    figures = [run.result[kind]['overall'] for run in runs]
    lowest, highest = percent(min(figures)), percent(max(figures))
    cells = [first['dataset'], f'`{config}`', title, spread(figures), lowest, highest, percent(chance), f'`{command}`']
    lines = [HEAD, '| --- ' * len(cells) + '|', f'| {" | ".join(cells)} |', '']
    for run, figure in zip(runs, figures, strict=True):
        minutes = f'{run.seconds / 60:.1f} min'
        lines.append(f'seed {run.seed}: {percent(figure)}, {minutes}, commit {run.commit}, checkpoint {run.weights}')
    lines += [f'tested at commit {commit()}', '']
    for name in first[kind]['per_attribute']:
        lines.append(f'{name:<24}{spread([run.result[kind]["per_attribute"][name] for run in runs])}')
    dropped = first['dropped']
    if dropped['queries'] or dropped['candidates']:
        lines.append(f'{dropped["queries"]} queries and {dropped["candidates"]} candidates lack their photo')
    return '\n'.join([*lines, *filter(None, [first['caveat']])])


def spread(figures: Sequence[float]) -> str:
    """Mean ± sample standard deviation in percent; only the mean if there is one figure."""
    mean = percent(statistics.mean(figures))
    return f'{mean} ± {percent(statistics.stdev(figures))}' if len(figures) > 1 else mean


def percent(fraction: float) -> str:
    """0.5 as '50.00'."""
    return f'{100 * fraction:.2f}'


if __name__ == '__main__':
    sys.exit(main(sys.argv))
