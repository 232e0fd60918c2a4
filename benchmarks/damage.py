"""Damage files of a trained workdir and its records at random, and check that no command is misled.

    python benchmarks/damage.py [--count 200] [--seed 0] [--jobs 2]

Each damage (a bit flipped, a file cut short, a block zeroed, or a file removed) is done to a fresh copy, on which one command runs:
training for one more epoch, eval, embed, or export. That is
- harmless, if it prints nothing on stderr and its figures and arrays are those without damage,
- noticed, if it ends in one sentence with status 2 or 3, or says something that it does not say without damage,
- a fault otherwise: a traceback, noise, other numbers without a word, a crash, or more than two minutes.

Prints a table and every fault; exits with 1 if there is one.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from safetensors.numpy import load_file

import main as entry
from asen_jax.errors import InputError
from benchmarks.soak import SAVES, SMALL, STEPS, compare
from cli import console

ROOT = Path(__file__).resolve().parents[1]
TRAIN = (
    f'--config={ROOT}/configs/synthetic.py',
    *SMALL.split(),
    *STEPS.split(),
    *SAVES.split(),
    '--config.data.dir=rec',
)
COMMANDS = {
    'train': (*TRAIN, '--config.train.num_epochs=3'),
    'eval': ('--mode=eval',),
    'embed': ('--mode=embed', '--images=../photos', '--output=vectors.npz'),
    'export': ('--mode=export', '--output=exported'),
}
KINDS = ('flip', 'cut', 'zero', 'remove')
SPAWN = multiprocessing.get_context('forkserver')  # imports once, and still runs each command in a process of its own


class Outcome(NamedTuple):
    """What a command did."""

    status: int | None  # None: it took too long
    stdout: str
    stderr: str


def main(argv: Sequence[str]) -> int:
    """Do the damages and print what came of them; 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--count', default=200, type=int, help='how many damages')
    parser.add_argument('--seed', default=0, type=int, help='of the damages')
    parser.add_argument('--jobs', default=2, type=int, help='how many commands run at the same time')
    args = parser.parse_args(argv)
    console.set_up_output()
    SPAWN.set_forkserver_preload(
        ['main', 'asen_jax.training.loop', 'asen_jax.search.embed_files', 'data_builders.prepare']
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            'JAX_COMPILATION_CACHE_DIR': f'{name}/compiled',
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
        (folder / 'whole').mkdir()
        check(run(folder / 'whole', (*TRAIN, '--config.train.num_epochs=2')))
        shutil.move(folder / 'whole/rec/synthetic/photos', folder / 'photos')
        expected = {}
        for command, arguments in COMMANDS.items():
            shutil.copytree(folder / 'whole', folder / command)
            expected[command] = run(folder / command, arguments)
            check(expected[command])

        def attempt(number: int) -> tuple[str, str, str, str]:
            rng = random.Random(f'{args.seed} {number}')
            copy = folder / f'damaged-{number}'
            shutil.copytree(folder / 'whole', copy)
            kind, (command, arguments) = rng.choice(KINDS), rng.choice(list(COMMANDS.items()))
            what = damage(copy, kind, rng)
            outcome = run(copy, arguments)
            verdict, why = judge(command, outcome, expected[command], folder / command, copy)
            shutil.rmtree(copy)
            return kind, command, verdict, f'{number}: {what}; {command}: {why}'

        with ThreadPoolExecutor(args.jobs) as pool:
            results = list(pool.map(attempt, range(args.count)))
    counts = collections.Counter((command, verdict) for _, command, verdict, _ in results)
    counts.update((kind, verdict) for kind, _, verdict, _ in results)
    verdicts = ('harmless', 'noticed', 'fault')
    print(f'{"":8}' + ''.join(f'{verdict:>10}' for verdict in verdicts))
    for row in (*COMMANDS, *KINDS):
        print(f'{row:8}' + ''.join(f'{counts[row, verdict]:>10}' for verdict in verdicts))
    faults = [text for _, _, verdict, text in results if verdict == 'fault']
    print('\n'.join(faults) or 'no fault')
    return 1 if faults else 0


def run(folder: Path, arguments: Sequence[str]) -> Outcome:
    """Run a command in `folder`, on the workdir `run` there."""
    process = SPAWN.Process(target=call, args=(folder, ('main.py', '--workdir=run', *arguments)))
    process.start()
    process.join(timeout=120)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    return Outcome(status, *((folder / name).read_text(errors='replace') for name in ('stdout', 'stderr')))


def call(folder: Path, argv: Sequence[str]) -> None:
    """In the new process: run the command with its output in files, to which libraries in C++ write, too."""
    os.chdir(folder)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.exit(entry.run(list(argv)))


def check(outcome: Outcome) -> None:
    """Raise RuntimeError unless the command succeeded silently."""
    if outcome.status != 0 or outcome.stderr:
        raise RuntimeError(f'a command fails without damage: {outcome}')


def damage(folder: Path, kind: str, rng: random.Random) -> str:
    """Damage one file of the workdir or the records; returns what was done."""
    files = sorted(path for part in ('run', 'rec') for path in (folder / part).rglob('*') if path.is_file())
    path = rng.choice([path for path in files if path.stat().st_size])
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    size = rng.randint(1, 4096)
    name = path.relative_to(folder)
    if kind == 'remove':
        path.unlink()
        return f'{name} removed'
    if kind == 'flip':
        content[place] ^= 1 << rng.randrange(8)
        what = f'{name}: bit flipped in byte {place}'
    elif kind == 'cut':
        del content[place:]
        what = f'{name} cut to {place} bytes'
    else:
        content[place : place + size] = bytes(len(content[place : place + size]))
        what = f'{name}: {size} bytes zeroed from {place}'
    path.write_bytes(content)
    return what


def judge(command: str, outcome: Outcome, expected: Outcome, whole: Path, copy: Path) -> tuple[str, str]:
    """The verdict on a command after damage, and what it did."""
    lines = outcome.stderr.splitlines()
    if outcome.status is None:
        return 'fault', 'not done after two minutes'
    if outcome.status in (2, 3) and len(lines) == 1:
        return 'noticed', lines[0]
    if outcome.status or len(lines) > 1:
        return 'fault', f'status {outcome.status}, {len(lines)} lines on stderr, the last is {lines[-1:]}'
    new = {shape(line) for line in outcome.stdout.splitlines() + lines} - {
        shape(line) for line in expected.stdout.splitlines()
    }
    if new:
        return 'noticed', min(new)
    different = differences(command, whole, copy)
    return ('fault', f'status 0, but {different[0]}') if different else ('harmless', '')


def shape(line: str) -> str:
    """A line of output without its numbers."""
    return re.sub(r'nan|[\d.,-]+', '#', line).strip()


def differences(command: str, whole: Path, copy: Path) -> list[str]:
    """What differs in the results of a command."""
    if command == 'train':
        try:
            return compare(whole / 'run', copy / 'run')
        except InputError:  # in a checkpoint that this command did not read, and that any other refuses with a sentence
            return []
    if command == 'eval':
        results = [json.loads((folder / 'run' / 'eval_test.json').read_text()) for folder in (whole, copy)]
        return [] if results[0] == results[1] else ['eval_test.json differs']
    if command == 'embed':
        arrays = [dict(np.load(folder / 'vectors.npz')) for folder in (whole, copy)]
    else:
        arrays = [load_file(next((folder / 'exported').rglob('*.safetensors'))) for folder in (whole, copy)]
    same = arrays[0].keys() == arrays[1].keys() and all(
        np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0]
    )
    return [] if same else [f'the arrays of {command} differ']


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
