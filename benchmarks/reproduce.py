"""Trains a config once for each seed, tests each run's best checkpoint, and prints one row of a results table.

    python benchmarks/reproduce.py --config configs/synthetic.py --seeds 0,1,2 [--config.FIELD=VALUE ...]

The row has the test figure (MAP, or triplet accuracy where the data set has no queries) as mean ± sample standard
deviation over the seeds, in percent, the command, the commit and a hash of each best checkpoint. Runs lie in
FOLDER/<name>-seed-<seed>; the same command goes on where it was stopped, and only tests what is trained.
"""

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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
HEAD = '| dataset | config | figure | test | chance | seeds | commit | checkpoints | command |'


def main(argv: Sequence[str]) -> int:
    """Run every seed and print the row; the exit status is that of the first run that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/fashionai.py', help='as main.py takes it')
    parser.add_argument('--seeds', default='0,1,2', type=read_seeds, help='whole numbers, separated by commas')
    parser.add_argument('--folder', default='runs/reproduce', type=Path, help='of the runs')
    args, overrides = parser.parse_known_args(argv[1:])
    for flag in overrides:
        if not flag.startswith('--config.') or '=' not in flag or flag.startswith('--config.seed='):
            parser.error(f'{flag!r} is no --config.FIELD=VALUE; seeds go into --seeds.')
    jax.config.update('jax_platforms', 'cpu')  # here weights are only hashed: a GPU's memory is the runs' own
    results, hashes, commits = [], [], []
    for seed in args.seeds:
        workdir = args.folder / f'{name_of(args.config, overrides)}-seed-{seed}'
        command = [
            sys.executable,
            str(ROOT / 'main.py'),
            f'--config={args.config}',
            f'--config.seed={seed}',
            *overrides,
        ]
        print(shlex.join([*command[1:], f'--workdir={workdir}']), flush=True)
        commits.append(commit_of(workdir))
        if status := subprocess.run([*command, f'--workdir={workdir}'], check=False).returncode:
            return status
        try:
            results.append(read_result(workdir))
            hashes.append(checkpoint_hash(workdir))
        except InputError as error:
            print(f'reproduce.py: {error}', file=sys.stderr)
            return error.exit_status
    seeds = ','.join(map(str, args.seeds))
    command = shlex.join(['python', 'benchmarks/reproduce.py', '--config', args.config, '--seeds', seeds, *overrides])
    at_commit = ', '.join(dict.fromkeys([*commits, commit()]))  # the last is where they were tested
    print(format_table(results, args.config, args.seeds, at_commit, hashes, command))
    return 0


def read_seeds(text: str) -> list[int]:
    """'0,1,2' as numbers, each once."""
    seeds = [int(part) for part in text.split(',')]
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(text)
    return seeds


def name_of(config: str, overrides: Sequence[str]) -> str:
    """A folder's name that other options do not share."""
    name = Path(config.partition(':')[0]).stem + config.partition(':')[1].replace(':', '_') + config.partition(':')[2]
    changed = hashlib.sha256('\0'.join(sorted(overrides)).encode()).hexdigest()[:8]
    return f'{name}-{changed}' if overrides else name


def read_result(workdir: Path) -> dict:
    """eval_test.json, without which the data set has nothing to test."""
    path = workdir / 'eval_test.json'
    if not path.exists():
        raise InputError(f'{path} is missing: the data set has no test queries or triplets; take another --config.')
    return json.loads(path.read_text())


def checkpoint_hash(workdir: Path) -> str:
    """The hash of the best checkpoint's weights."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        network = load_network(checkpoints, 'best', 'float32', sharding.make_mesh(devices=jax.devices()[:1]))
    return hash_weights(jax.device_get({'params': network.params, 'batch_stats': network.batch_stats}))


def hash_weights(tree: dict) -> str:
    """SHA-256 over names, types, shapes and bytes of all arrays, its first digits: equal weights, equal hash."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def commit_of(workdir: Path) -> str:
    """The commit at which a run began: a finished one is only tested again, perhaps by other code."""
    path = workdir / 'commit.txt'
    if not path.exists() or not (workdir / 'checkpoints').exists():  # nothing is trained yet
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(commit() + '\n')
    return path.read_text().strip()


def commit() -> str:
    """The checkout's commit, marked where files differ from it."""

    def git(*words):
        return subprocess.run(
            ['git', '-C', str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', '--short', 'HEAD') + ('-changed' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'no git checkout'


def format_table(
    results: Sequence[dict], config: str, seeds: Sequence[int], at_commit: str, hashes: Sequence[str], command: str
) -> str:
    """The row under its head in Markdown, then each attribute's figure, then what the records have to say of them."""
    kind, title = (
        ('map', 'MAP') if results[0]['map']['overall'] is not None else ('triplet_accuracy', 'triplet accuracy')
    )
    chance = results[0]['chance_map']['overall'] if kind == 'map' else 0.5
    cells = [
        results[0]['dataset'], f'`{config}`', title, spread([result[kind]['overall'] for result in results]),
        f'{100 * chance:.2f}', ', '.join(map(str, seeds)), at_commit, ', '.join(hashes), f'`{command}`',
    ]  # fmt: skip
    lines = [HEAD, '| --- ' * len(cells) + '|', '| ' + ' | '.join(cells) + ' |', '']
    for name in results[0][kind]['per_attribute']:
        lines.append(f'{name:<24}{spread([result[kind]["per_attribute"][name] for result in results])}')
    dropped = results[0]['dropped']
    if dropped['queries'] or dropped['candidates']:
        lines.append(f'{dropped["queries"]} queries and {dropped["candidates"]} candidates went with missing photos')
    return '\n'.join([*lines, *filter(None, [results[0]['caveat']])])


def spread(figures: Sequence[float]) -> str:
    """Mean ± sample standard deviation in percent; of one figure there is no deviation."""
    mean = f'{100 * statistics.mean(figures):.2f}'
    return f'{mean} ± {100 * statistics.stdev(figures):.2f}' if len(figures) > 1 else mean


if __name__ == '__main__':
    sys.exit(main(sys.argv))
