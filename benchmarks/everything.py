"""Run the benchmarks of steps, rankings, loading, and growth one after the other, and keep their tables in a folder.

pip install torch matplotlib
python benchmarks/everything.py FOLDER [--device cuda]    # about half an hour on two CPU cores
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ANYWHERE = {
    'retrieval': 'retrieval.py',
    'million': 'retrieval.py --million --repeats 3',
    'loading': 'loading.py',
}
ON_A_CPU = {'step': 'step.py --network asen --batch 4', 'scaling': 'scaling.py'}
ON_A_GPU = {
    f'step-{precision}': f'step.py --network asen --batch 64 --repeats 20 --device cuda --precision {precision}'
    for precision in ('bfloat16', 'tensorfloat32', 'float32')
}


def main(argv: list[str]) -> int:
    """Run the commands; returns 0 if all succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='where to put NAME.txt and NAME.json')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    args = parser.parse_args(argv[1:])
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, command in {**(ON_A_CPU if args.device == 'cpu' else ON_A_GPU), **ANYWHERE}.items():
        program, *flags = command.split()
        output = args.folder / (f'{name}.svg' if name == 'scaling' else f'{name}.json')
        print(f'{command} ...', flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / program), *flags, '--output', str(output)], capture_output=True, text=True
        )
        (args.folder / f'{name}.txt').write_text(done.stdout + done.stderr)
        print(done.stdout if done.returncode == 0 else done.stderr, flush=True)
        failed += [name] if done.returncode else []
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main(sys.argv))
