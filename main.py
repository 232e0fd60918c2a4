"""Entry point: parses the command line and calls the library. `python main.py --help` lists modes, flags and fields."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from absl import logging as absl_logging

import command_line
from asen_jax.errors import InputError, NumericsError, StoppedError
from asen_jax.signals import end_if_interrupted, handle_ctrl_c

EXTRAS = dict.fromkeys(('lancedb', 'uvicorn', 'fastapi', 'fastapi_offline', 'limits'), 'search') | {
    'ray': 'ray'
}  # packages that only some modes need
CLOSED_OUTPUT = 128 + signal.SIGPIPE


def run(argv: list[str]) -> int:
    """Run a command; the exit status: 0 done, 2 invalid input, 3 numbers not finite, 128 + n stopped by signal n."""
    set_up_output()
    status, message = attempt(argv)
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit would fail, too
        if isinstance(error, BrokenPipeError):
            status = status or CLOSED_OUTPUT
        else:
            status, message = 2, f'the output: {error.strerror}.'
    if message:
        with contextlib.suppress(BrokenPipeError):
            print(f'{Path(argv[0]).name}: {message}', file=sys.stderr)
    return status


def attempt(argv: list[str]) -> tuple[int, str]:
    """Run a command; its exit status, and the sentence about what went wrong, or ''."""
    written = 'a file'
    try:
        arguments = command_line.parse(argv)
        if arguments is not None:
            written = arguments.written
            dispatch(arguments)
    except (InputError, NumericsError, StoppedError) as error:
        return error.exit_status, str(error)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return 2, f"this needs {error.name}; pip install '.[{EXTRAS[error.name]}]' installs it."
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        return CLOSED_OUTPUT, ''
    except OSError as error:  # for example: a folder is a file, permission denied, disk full
        return 2, f'{error.filename or f"{written} or the output"}: {error.strerror or error}.'
    except KeyboardInterrupt:
        return 130, 'interrupted; run the same command again to continue.'
    except Exception:
        if sharding := sys.modules.get('asen_jax.sharding'):
            sharding.await_peer_error()
        raise
    return 0, ''


def set_up_output() -> None:
    """Print what this project logs, and hide the messages of libraries, which users cannot act on."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA reads it when JAX is imported
    os.environ.setdefault('LANCEDB_LOG', 'error')  # it warns of every table that is new
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # Python does the like for stderr
    logging.raiseExceptions = False  # `attempt` and `run` notice a closed output, and say so once
    absl_logging.set_verbosity(absl_logging.FATAL)  # an error is also raised
    logging.getLogger('asyncio').setLevel('CRITICAL')
    threading.excepthook = lambda _: None  # of libraries' threads, whose errors are also raised
    sys.unraisablehook = end_if_interrupted
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')  # the process that cleans up after a killed run
    for name in ('asen_jax', 'data_builders'):
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.StreamHandler(sys.stdout)]
        logger.setLevel('INFO')
        logger.propagate = False


def dispatch(arguments: command_line.Arguments) -> None:
    """Run one mode; the imports are here because JAX takes a second to load, which --help should not wait for."""
    from asen_jax import sharding
    from asen_jax.data.prepared import read_records
    from asen_jax.evaluation.evaluate import evaluate_network
    from asen_jax.network import load_network
    from asen_jax.search.embed_files import embed_workdir
    from asen_jax.training.loop import check_config, train_and_evaluate
    from asen_jax.weights import export, importing
    from data_builders import prepare, report
    from data_builders.asen_lists import dataset_folder
    from data_builders.darn import fetch

    mode, config, workdir, flags = arguments
    moved = workdir if flags.workdir else None  # the network of a gallery that is no longer where it was
    sharding.split_cpu(config.mesh.cpu_devices)  # before JAX counts its devices
    if flags.distributed:
        sharding.start_processes(flags.coordinator, flags.num_processes, flags.process_id)
        if not sharding.is_writer():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # one process is enough to tell the user
    match mode:
        case 'train':
            source = prepare.read_source(config)
            trunk = check_config(config, workdir)  # before the photos are decoded, which may take hours
            records = prepare.build_records(source)
            print(report.summary(records), flush=True)
            train_and_evaluate(config, workdir, records, trunk)
        case 'eval' | 'report':
            mesh = sharding.make_mesh(config.mesh.model)
            network = load_network(workdir, flags.checkpoint, config.precision, mesh)  # first: quick to refuse
            with read_records(prepare.prepare(config)) as records:
                evaluate_network(config, network, records, workdir, flags.split, mesh, mode == 'report')
        case 'prepare':
            if flags.darn_urls:
                result = fetch.fetch(Path(flags.darn_urls), dataset_folder(config.data, 'DARN'))
                print(fetch.summary(result), flush=True)
            print(report.summary(prepare.prepare(config)))
        case 'import':
            imported = importing.import_checkpoint(config, workdir, Path(flags.torch_checkpoint))
            print(importing.summary(imported, workdir))
        case 'export':
            written = export.export(workdir, flags.checkpoint, config.precision, Path(flags.output), flags.format)
            print(f'wrote {", ".join(map(str, written))}')
        case 'embed':
            output = Path(flags.output)
            embed_workdir(config, workdir, flags.checkpoint, flags.images, output, flags.heatmaps, flags.strict)
        case 'index':
            from asen_jax.search.indexing import index_workdir

            where = (flags.images, flags.gallery, flags.strict)
            index_workdir(config, workdir, flags.checkpoint, *where, flags.engine, flags.workers)
        case 'search':
            from asen_jax.search.searching import search_gallery

            output = Path(flags.output) if flags.output else None
            search_gallery(flags.gallery, flags.query, flags.attribute, flags.k, flags.where, moved, flags.json, output)
        case 'serve':
            from asen_jax.search.serve import serve

            serve(flags.gallery, flags.host, flags.port, moved)


if __name__ == '__main__':
    handle_ctrl_c()
    status = run(sys.argv)
    if sharding := sys.modules.get('asen_jax.sharding'):
        sharding.end_process(status)
    sys.exit(status)
