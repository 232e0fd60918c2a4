"""Kill `--mode index` at random moments, and check that the gallery has lost and doubled nothing.

    python benchmarks/kill_index.py --workdir W --images=PATH [--kills 40]

The command is started again after each kill. Half of the kills come at a random moment of the run, the others within 30 milliseconds
after LanceDB has begun to write a file, that is, around a commit. Whenever a run finishes before it is killed, and at the end, the
rows must be those of a gallery that was filled without a kill; then the gallery is deleted and rebuilt. Prints the number of committed
rows at each kill.
"""

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from asen_jax.errors import InputError
from asen_jax.search.gallery import VECTOR, Gallery

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> int:
    """Run the kills and compare; 0 if the galleries are equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--workdir', required=True, help='workdir of a trained network')
    parser.add_argument('--images', required=True, help='as for --mode index')
    parser.add_argument('--kills', default=40, type=int, help='how often to kill the command')
    args = parser.parse_args(argv)
    rng, killed_at = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, 'whole'), Path(folder, 'killed')
        start = time.monotonic()
        finish(index(args, whole))
        seconds, same = time.monotonic() - start, True
        while len(killed_at) < args.kills:
            process = index(args, killed)
            if rng.random() < 0.5:
                wait_for_write(process, killed)
                time.sleep(rng.uniform(0, 0.03))
            else:
                sleep(process, rng.uniform(0.3, 1.1) * seconds)
            if kill(process):
                killed_at.append(count(killed))
            else:
                finish(process)
                same &= equal(Gallery.open(whole), Gallery.open(killed))
                shutil.rmtree(killed)
        finish(index(args, killed))
        same &= equal(Gallery.open(whole), Gallery.open(killed))
    print(f'{len(killed_at)} kills in runs of {seconds:.1f} s, with these numbers of rows on disk: {sorted(killed_at)}')
    print('the same rows as without kills' if same else 'ROWS DIFFER')
    return 0 if same else 1


def index(args: argparse.Namespace, gallery: Path) -> subprocess.Popen:
    """Start to index into `gallery`."""
    command = [sys.executable, str(ROOT / 'main.py'), '--mode=index', f'--workdir={args.workdir}']
    command += [f'--images={args.images}', f'--gallery={gallery}']
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill(process: subprocess.Popen) -> bool:
    """Kill the process, unless it has ended; whether it was killed."""
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def sleep(process: subprocess.Popen, seconds: float) -> None:
    """Wait, but not longer than the process lives."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def wait_for_write(process: subprocess.Popen, gallery: Path) -> None:
    """Wait until a file appears in the gallery, or the process ends."""
    table = gallery / 'photos.lance'
    before = set(table.rglob('*'))
    while process.poll() is None and not any(path.is_file() for path in set(table.rglob('*')) - before):
        time.sleep(0.002)


def finish(process: subprocess.Popen) -> None:
    """Wait for the command; raises CalledProcessError if it failed."""
    if status := process.wait():
        raise subprocess.CalledProcessError(status, process.args)


def count(folder: Path) -> int:
    """The rows of a gallery that may not have been made yet."""
    try:
        return len(Gallery.open(folder))
    except InputError:
        return 0


def equal(one: Gallery, other: Gallery) -> bool:
    """Whether two galleries have the same rows, their vectors to 1e-6."""
    tables = [gallery.table.search().to_arrow().sort_by('path') for gallery in (one, other)]
    vectors = [VECTOR.format(number) for number in range(len(one.attributes))]
    if not tables[0].drop_columns(vectors).equals(tables[1].drop_columns(vectors)):
        return False
    pairs = ([table.column(name).combine_chunks().flatten().to_numpy() for table in tables] for name in vectors)
    return all(np.allclose(ours, theirs, rtol=0, atol=1e-6) for ours, theirs in pairs)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
