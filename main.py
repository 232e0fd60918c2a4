"""Flags and dispatch: `python main.py --help` lists modes and fields; the work is in asen_jax and data_builders."""

import os
import sys
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's remarks on the machine are not for the user

from logging import StreamHandler, getLogger

from absl import logging

import command_line
from asen_jax.errors import InputError, NumericsError, StoppedError


def run(argv: list[str]) -> int:
    """Do what `argv` says; the exit status: 0 done, 2 bad input, 3 the numbers broke, 143 stopped by SIGTERM."""
    logging.set_verbosity(logging.ERROR)  # libraries' warnings say nothing that a user could act on
    say = StreamHandler(sys.stdout)
    getLogger('data_builders').handlers[:] = [say]
    getLogger('data_builders').setLevel('INFO')
    getLogger('data_builders').propagate = False
    try:
        arguments = command_line.parse(argv)
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

    config, workdir, flags = arguments.config, arguments.workdir, arguments.flags
    if arguments.mode == 'prepare':
        if flags.darn_urls:
            from data_builders.asen_lists import dataset_folder
            from data_builders.darn import fetch

            folder = dataset_folder(config.data, 'DARN')
            print(fetch.summary(fetch.fetch(Path(flags.darn_urls), folder)), flush=True)
        print(prepare.summary(prepare.prepare(config)))
        return

    from asen_jax.sharding import split_cpu

    split_cpu(config.mesh.cpu_devices)
    match arguments.mode:
        case 'train':
            from asen_jax.training.loop import check_config, train_and_evaluate

            source = prepare.read_source(config)
            trunk = check_config(config, workdir)  # before hours of decoding photos
            records = prepare.build_records(source)
            print(prepare.summary(records), flush=True)
            train_and_evaluate(config, workdir, records, trunk)
        case 'eval':
            from asen_jax.data.prepared import open_records
            from asen_jax.evaluation.evaluate import evaluate_network
            from asen_jax.network import load_network
            from asen_jax.sharding import make_mesh

            mesh = make_mesh(config.mesh.model)
            network = load_network(workdir, flags.checkpoint, config.precision, mesh)
            records = open_records(prepare.prepare(config))
            evaluate_network(config, network, records, workdir, flags.split, mesh)
        case 'import':
            from asen_jax.weights import importing

            print(
                importing.summary(importing.import_checkpoint(config, workdir, Path(flags.torch_checkpoint)), workdir)
            )
        case 'export':
            from asen_jax.weights.export import export

            written = export(workdir, flags.checkpoint, config.precision, Path(flags.output), flags.format)
            print(f'wrote {", ".join(map(str, written))}')
        case 'embed':
            from asen_jax.search.embed_files import embed_workdir

            output = Path(flags.output)
            embed_workdir(config, workdir, flags.checkpoint, flags.images, output, flags.heatmaps, flags.strict)


if __name__ == '__main__':
    sys.exit(run(sys.argv))
