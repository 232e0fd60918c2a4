"""Time from a command to what its user waits for: the help, a search's result, the first embedded photo, the first step.

    python benchmarks/startup.py FOLDER [--repeats 5] [--code CHECKOUT ...] [--output FILE]

Trains a network on a few drawn photos, and indexes them, in FOLDER. Then runs each command with an empty folder of compiled
programs (cold), and with the one that the last run left (warm), in turn. `--code` names checkouts to compare, by default this one.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import hardware, spread
from tqdm import tqdm

from asen_jax import files

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ('--config=configs/synthetic.py', '--config.data.synthetic.num_photos=200', '--config.data.num_triplets=160')
PHOTO = 'data/records/synthetic/photos/000160.jpg'
COMMANDS = {
    'help': ('--help',),
    'search': ('--mode=search', '--gallery=gallery', f'--query={PHOTO}', '--attribute=sleeve_length'),
    'embed one photo': ('--mode=embed', '--workdir=trained', f'--images={PHOTO}', '--output=vectors.npz'),
    'train to its first step': (*CONFIG, '--workdir=fresh', '--config.train.log_every_steps=1'),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='for records, a workdir, and a gallery; created if missing')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--code', type=Path, nargs='*', default=[ROOT])
    parser.add_argument('--output', type=Path)
    args = parser.parse_args(argv[1:])
    folder, codes = args.folder.resolve(), [code.resolve() for code in args.code]
    folder.mkdir(parents=True, exist_ok=True)
    set_up(folder)
    seconds = defaultdict(list)
    runs = list(itertools.product(range(args.repeats), (False, True), COMMANDS.items(), codes))
    for _, warm, (name, arguments), code in tqdm(runs, unit='command'):
        cache = folder / 'caches' / f'{name}-{codes.index(code)}'
        if not warm:
            shutil.rmtree(cache, ignore_errors=True)
        seconds[name, str(code), 'warm' if warm else 'cold'].append(run(folder, code, arguments, cache))
    print('{device}\n{versions}\n'.format(**hardware()))
    print(f'{"":<26}{"checkout":<24}{"":<6}{"seconds (lowest - highest)":<30}CPU seconds')
    rows = []
    for (name, code, cache), each in sorted(seconds.items()):
        passed, busy = (spread(numbers) for numbers in zip(*each, strict=True))
        rows.append({'command': name, 'checkout': code, 'cache': cache, 'seconds': passed, 'cpu_seconds': busy})
        figures = f'{passed["median"]:.2f} ({passed["lowest"]:.2f} - {passed["highest"]:.2f})'
        print(f'{name:<26}{Path(code).name:<24}{cache:<6}{figures:<30}{busy["median"]:.2f}')
    if args.output:
        files.write_json(args.output, {**hardware(), 'rows': rows})
    return 0


def set_up(folder: Path) -> None:
    """Train for an epoch, and index the photos, unless that was done before."""
    if not (folder / 'gallery').exists():
        call(folder, *CONFIG, '--config.train.num_epochs=1', '--workdir=trained')
        call(folder, '--mode=index', '--workdir=trained', f'--images={Path(PHOTO).parent}', '--gallery=gallery')


def call(folder: Path, *arguments: str) -> None:
    """Run a command of this checkout to its end."""
    subprocess.run(command_of(ROOT, arguments), cwd=folder, check=True, stdout=subprocess.DEVNULL)


def command_of(code: Path, arguments: tuple[str, ...]) -> list[str]:
    """`main.py` of the checkout `code`, which also has the config."""
    found = [each.replace('configs/', f'{code}/configs/') for each in arguments]
    return [sys.executable, f'{code}/main.py', *found]


def run(folder: Path, code: Path, arguments: tuple[str, ...], cache: Path) -> tuple[float, float]:
    """The seconds that a command took, and those of the CPU; a training is killed after the first line of its metrics."""
    lines = folder / 'fresh' / 'metrics.jsonl'
    shutil.rmtree(lines.parent, ignore_errors=True)
    environment = os.environ | {'XDG_CACHE_HOME': str(cache), 'PYTHONPATH': str(code)}
    start = time.perf_counter()
    process = subprocess.Popen(command_of(code, arguments), cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    ended = 0
    while not ended and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.005)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    passed = time.perf_counter() - start
    if not ended:
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
    elif status:
        raise SystemExit(f'startup.py: main.py ended with status {os.waitstatus_to_exitcode(status)}')
    return passed, usage.ru_utime + usage.ru_stime


if __name__ == '__main__':
    sys.exit(main(sys.argv))
