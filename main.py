"""Entry point: parses the command line and calls the library. `python main.py --help` lists modes, flags and fields."""

import os
import sys
from pathlib import Path

HUGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
# and not by a program such as a notebook
STARTED = Path(__file__).resolve() in [Path(each).resolve() for each in sys.orig_argv]
if __name__ == '__main__' and STARTED and sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    # XLA allocates gigabytes for each step, and handing them out in pages of 4 KB takes the kernel a fifth of the time.
    # glibc reads its settings only when a program starts, so this one starts again, as the same process.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HUGE_PAGES)

from asen_jax.signals import handle_ctrl_c
from cli import command_line, compilation_cache, console


def run(argv: list[str]) -> int:
    """Run a command, and return its exit status."""
    return console.run(argv, dispatch)


def dispatch(arguments: command_line.Arguments) -> None:
    """Run one mode; imports are where they are needed, since JAX, TFDS, and LanceDB take up to a second each to load."""
    mode, config, workdir, flags = arguments
    workdir_override = workdir if flags.workdir else None  # for a gallery whose network is no longer where it was
    compilation_cache.use_cache(flags.compilation_cache)
    if mode not in ('prepare', 'search'):  # these often need no JAX
        start_devices(arguments)
    match mode:
        case 'train':
            from asen_jax.training.checks import check_config
            from asen_jax.training.loop import train_and_evaluate
            from data_builders import prepare, report

            source = prepare.read_source(config)
            trunks = check_config(config, workdir)  # before the photos are decoded, which may take hours
            records = prepare.build_records(source)
            print(report.summary(records), flush=True)
            train_and_evaluate(config, workdir, records, trunks)
        case 'eval' | 'report':
            from asen_jax.data.prepared import read_records
            from asen_jax.evaluation.run import evaluate_network
            from asen_jax.network import load_network
            from asen_jax.sharding import make_mesh
            from data_builders import prepare

            mesh = make_mesh(config.mesh.model)
            network = load_network(workdir, flags.checkpoint, config.precision, mesh)  # first: quick to refuse
            with read_records(prepare.prepare(config)) as records:
                evaluate_network(config, network, records, workdir, flags.split, mesh, mode == 'report')
        case 'prepare':
            from data_builders import prepare, report

            if flags.darn_urls:
                from data_builders.asen_lists import dataset_folder
                from data_builders.darn import fetch

                result = fetch.fetch(Path(flags.darn_urls), dataset_folder(config.data, 'DARN'))
                print(fetch.summary(result), flush=True)
            print(report.summary(prepare.prepare(config)))
        case 'import':
            from asen_jax.weights import importing

            imported = importing.import_checkpoint(config, workdir, Path(flags.torch_checkpoint))
            print(importing.summary(imported, workdir))
        case 'export':
            from asen_jax.weights import export

            written = export.export(workdir, flags.checkpoint, config.precision, Path(flags.output), flags.format)
            print(f'wrote {", ".join(map(str, written))}')
        case 'embed':
            from asen_jax.embedder import load_with_config
            from asen_jax.search.embed_files import embed_files

            embedder = load_with_config(config, workdir, flags.checkpoint)
            print(embed_files(embedder, flags.images, flags.output, flags.heatmaps, flags.strict), flush=True)
        case 'index':
            from asen_jax.embedder import load_with_config
            from asen_jax.search.indexing import index_photos

            engine = None
            if flags.engine == 'ray':
                from asen_jax.search import ray_engine  # early: Ray may be missing

                engine = ray_engine.make_engine(config, workdir, flags.checkpoint, flags.workers)
            embedder = load_with_config(config, workdir, flags.checkpoint)
            print(index_photos(embedder, flags.images, flags.gallery, flags.strict, engine), flush=True)
        case 'search':
            from asen_jax.search.searching import search_gallery

            output = Path(flags.output) if flags.output else None
            asked = flags.query, flags.attribute, flags.k, flags.where
            search_gallery(flags.gallery, *asked, workdir_override, flags.json, output)
        case 'serve':
            from asen_jax.search.serve import serve

            serve(flags.gallery, flags.host, flags.port, workdir_override)


def start_devices(arguments: command_line.Arguments) -> None:
    """Set up the CPU, and join the other processes of the run, before JAX counts its devices."""
    from asen_jax import processes, sharding

    config, flags = arguments.config, arguments.flags
    sharding.set_up_cpu(config.mesh.cpu_devices)
    if flags.distributed:
        processes.start_processes(flags.coordinator, flags.num_processes, flags.process_id)
        if not processes.is_writer():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # one process is enough to tell the user


if __name__ == '__main__':
    handle_ctrl_c()
    console.end(run(sys.argv))
