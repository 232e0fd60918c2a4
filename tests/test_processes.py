"""Two processes train and embed like one, and one that survives the other ends with a sentence."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from asen_jax import sharding
from asen_jax.errors import InputError
from asen_jax.models import build_shapes
from asen_jax.network import make_embedder
from tests.conftest import ROOT, make_step
from tests.test_sharding import make_batch, small_config

BATCH_SIZE = 16


def run_on(mesh):
    """The losses of two steps and the sum of each photo's vectors after them."""
    config, rows = small_config(), sharding.local_rows(BATCH_SIZE)
    structure, *shapes = build_shapes(config, 4)
    rng = np.random.default_rng(0)  # JAX would compile a program for each array
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes[0])
    stats = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), shapes[1])
    step, state = make_step(config, structure, params, stats, mesh, steps_per_epoch=100)
    losses = []
    for number in range(2):
        batch = {name: part[rows] for name, part in make_batch(number).items()}
        state, metrics = step(state, sharding.put_rows(mesh, batch, BATCH_SIZE))
        losses.append(float(metrics['loss']))
    photos = make_batch(9)['images'][:, 0]
    vectors, _ = make_embedder(structure, mesh)(state.params, state.batch_stats)(photos)
    return {'losses': losses, 'vectors': np.asarray(vectors).sum(axis=(1, 2)).tolist()}


def process(port, number):
    """What each of the two processes does; the second one then kills itself."""
    with pytest.raises(InputError, match='cannot be started'):
        sharding.start_processes()  # no cluster to detect
    sharding.HEARTBEAT_SECONDS = 2
    sharding.start_processes(f'localhost:{port}', 2, number)
    mesh = sharding.make_mesh(2, [device for device in jax.devices() if device.id % 2048 == 0])
    found = {'writer': sharding.is_writer(), 'agreed': sharding.agree(7 * number)}
    print(json.dumps(found | run_on(mesh)), flush=True)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            sharding.agree(1)
    except Exception:
        sharding.await_peer_error()
        os._exit(1)


@pytest.fixture
def pair():
    """Two processes of a run."""
    with socket.socket() as sock:
        sock.bind(('localhost', 0))
        port = str(sock.getsockname()[1])
    command = [sys.executable, '-m', 'tests.test_processes', port]
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': ROOT}
    processes = [subprocess.Popen([*command, str(number)], **options) for number in range(2)]
    yield processes
    for one in processes:
        one.kill()
        one.communicate()


def test_two_processes_work_like_one_and_a_survivor_ends_with_a_sentence(pair):
    expected = run_on(sharding.make_mesh(devices=jax.devices()[:1]))
    for number, one in enumerate(pair):
        output, errors = one.communicate(timeout=300)
        found = json.loads(output.splitlines()[-1])
        assert found['writer'] == (number == 0) and found['agreed'] == 7
        np.testing.assert_allclose(found['losses'], expected['losses'], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found['vectors'], expected['vectors'], rtol=0, atol=1e-4)
        assert one.returncode == (4, -signal.SIGKILL)[number]
        if number == 0:
            assert errors.endswith('another process of this run has ended; run the same command again to resume.\n')


def test_a_coordinator_that_cannot_be_used_is_refused():
    with pytest.raises(InputError, match=r"'somewhere' is not the HOST:PORT"):
        sharding.start_processes('somewhere', 2, 0)
    with socket.create_server(('', 0)) as taken, pytest.raises(InputError, match='choose another port'):
        sharding.start_processes(f'localhost:{taken.getsockname()[1]}', 2, 0)


def test_one_process_agrees_with_itself_writes_and_exits_as_usual():
    assert sharding.agree(7) == 7 and sharding.is_writer()
    sharding.await_peer_error()
    with pytest.raises(SystemExit, match='3'):
        sharding.end_process(3)


if __name__ == '__main__':
    process(sys.argv[1], int(sys.argv[2]))
