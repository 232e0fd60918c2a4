"""`--mode index --engine=ray`: the workers of a Ray cluster embed the photos."""

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ml_collections import ConfigDict

from asen_jax.embedder import Embedded, Embedder
from asen_jax.errors import InputError
from asen_jax.search.engine import Engine, Outcome, embed_here
from asen_jax.search.listing import ListedPhoto, absolute

BATCHES_PER_TASK = 4  # a worker decodes the next batch while its device embeds one
OUTCOMES = pa.schema(
    {'path': pa.string(), 'vectors': pa.list_(pa.list_(pa.float32())), 'thumbnail': pa.binary(), 'why': pa.string()}
)


class Worker:
    """An actor with a network, loaded with the arguments of `Embedder.load`."""

    def __init__(self, *arguments: Any):
        self.embedder = Embedder.load(*arguments)

    def __call__(self, photos: pa.Table) -> pa.Table:
        """The outcomes of photos, a table with their `path` and `box`."""
        outcomes = embed_here(self.embedder, [ListedPhoto(**photo) for photo in photos.to_pylist()])
        rows = [
            {'path': path, 'vectors': None if vectors is None else list(vectors), 'thumbnail': thumbnail, 'why': why}
            for path, (vectors, _, thumbnail, why) in outcomes
        ]
        return pa.Table.from_pylist(rows, schema=OUTCOMES)


def make_engine(config: ConfigDict, workdir: Path, which: str, num_workers: int | None) -> Engine:
    """Workers with the checkpoint `which` of a workdir; by default one per GPU, or per machine without any.

    The engine raises InputError if RAY_ADDRESS cannot be reached.
    """
    checkpoint = absolute(workdir), which, config.precision, config.eval.batch_size

    def embed(photos: Sequence[ListedPhoto]) -> Iterator[Outcome]:
        if not photos:
            return
        with cluster(num_workers):
            num_gpus = int(ray.cluster_resources().get('GPU', 0))
            boxes = [{'path': photo.path, 'box': photo.box} for photo in photos]
            num_tasks = -(-len(photos) // (BATCHES_PER_TASK * config.eval.batch_size))
            outcomes = ray.data.from_items(boxes, override_num_blocks=num_tasks).map_batches(
                Worker,
                fn_constructor_args=checkpoint,
                batch_size=None,  # a block
                batch_format='pyarrow',
                compute=ray.data.ActorPoolStrategy(size=num_workers or num_gpus or len(ray.nodes())),
                num_gpus=min(1, num_gpus),
            )
            for table in outcomes.iter_batches(batch_size=None, batch_format='pyarrow'):
                for row in table.to_pylist():  # pyrefly: ignore[missing-attribute]
                    vectors = None if row['vectors'] is None else np.array(row['vectors'], np.float32)
                    yield row['path'], Embedded(vectors, extra=row['thumbnail'], why=row['why'])

    return embed


@contextlib.contextmanager
def cluster(num_workers: int | None) -> Iterator[None]:
    """Connect quietly to the Ray cluster at RAY_ADDRESS, or to a new one on this machine that ends with the context."""
    address = os.environ.get('RAY_ADDRESS')
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')
    os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')  # or Ray warns that this will be the default
    logging.getLogger('ray.data').setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    num_cpus = max(num_workers or 1, os.cpu_count() or 1)
    own: dict[str, Any] = {} if address else {'num_cpus': num_cpus, 'include_dashboard': False}
    host, _, port = (address or '').removeprefix('ray://').rpartition(':')
    try:
        if host:  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        with warnings.catch_warnings(), silence():
            warnings.filterwarnings('ignore', r'os\.fork\(\) was called')  # JAX's; Ray's processes do not use ours
            ray.init(address or 'local', log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError) as error:
        if not address:
            raise
        raise InputError(f'No Ray cluster answers at RAY_ADDRESS={address}; start it, or unset RAY_ADDRESS.') from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard what native code writes to stderr: Ray tells its log level there."""
    stderr = os.dup(2)
    with Path(os.devnull).open('w') as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
