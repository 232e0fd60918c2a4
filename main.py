"""Flags and dispatch: `python main.py --help` lists modes and fields; the work is in asen_jax and data_builders."""

import os
import sys
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's remarks on the machine are not for the user

from logging import StreamHandler, getLogger

from absl import logging

from asen_jax.errors import InputError, NumericsError, StoppedError
from configs import command_line


def run(argv: list[str]) -> int:
    """Do what `argv` says; the exit status: 0 done, 2 bad input, 3 the numbers broke, 143 stopped by SIGTERM."""
    logging.set_verbosity(logging.ERROR)  # libraries' warnings say nothing that a user could act on
    say = StreamHandler(sys.stdout)
    getLogger('data_builders').handlers[:] = [say]
    getLogger('data_builders').setLevel('INFO')
    getLogger('data_builders').propagate = False
    try:
        from data_builders import prepare

        arguments = command_line.parse(argv, prepare.default_workdir_name)
        if arguments is not None:
            dispatch(arguments)
    except (InputError, NumericsError, StoppedError) as error:
        print(f'{Path(argv[0]).name}: {error}', file=sys.stderr)
        return error.exit_status
    except OSError as error:  # a folder that is a file, no permission, a full disk
        print(f'{Path(argv[0]).name}: {error.filename or "the disk"}: {error.strerror or error}.', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'{Path(argv[0]).name}: interrupted; the same command goes on.', file=sys.stderr)
        return 130
    return 0


def dispatch(arguments: command_line.Arguments) -> None:
    """One mode, one call."""
    from data_builders import prepare

    config, workdir = arguments.config, arguments.workdir
    if arguments.mode == 'prepare':
        print(prepare.summary(prepare.prepare(config)))
        return

    from asen_jax.sharding import split_cpu

    split_cpu(config.mesh.cpu_devices)
    match arguments.mode:
        case 'train':
            from asen_jax.train import check_config, train_and_evaluate

            records = prepare.prepare(config, before_building=lambda: check_config(config, workdir))
            print(prepare.summary(records), flush=True)
            train_and_evaluate(config, workdir, records)
        case 'eval':
            from asen_jax.evaluate import evaluate_workdir

            evaluate_workdir(config, workdir, prepare.prepare, arguments.checkpoint, arguments.split)


if __name__ == '__main__':
    sys.exit(run(sys.argv))
