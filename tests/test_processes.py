"""Two processes train and embed like one, and one that survives the other ends with a sentence."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from asen_jax import processes, sharding
from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError
from asen_jax.models.build import build_shapes
from asen_jax.network import make_embedder
from tests.conftest import ROOT, make_step
from tests.test_sharding import make_batch, small_config

BATCH_SIZE = 16


def run_on(mesh):
    """The losses of two steps and the sum of each photo's vectors after them."""
    config, rows = small_config(), sharding.local_rows(BATCH_SIZE)
    graphdef, *shapes = build_shapes(config, 4)
    rng = np.random.default_rng(0)  # JAX would compile a program for each array
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes[0])
    stats = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), shapes[1])
    step, state = make_step(config, graphdef, params, stats, mesh, steps_per_epoch=100)
    losses = []
    for number in range(2):
        batch = {name: part[rows] for name, part in make_batch(number).items()}
        state, metrics = step(state, sharding.put_rows(mesh, batch, BATCH_SIZE))
        losses.append(float(metrics['loss']))
    photos = make_batch(9)['images'][:, 0]
    vectors = make_embedder(graphdef, mesh)(state.params, state.batch_stats)(photos).embedding
    return {'losses': losses, 'vectors': np.asarray(vectors).sum(axis=(1, 2)).tolist()}


def save_both(workdir):
    """Save best while latest is still being written; the checksums of what is read back."""
    whole = jax.sharding.NamedSharding(sharding.make_mesh(), jax.sharding.PartitionSpec())
    trees = [{'params': {'kernel': jax.device_put(np.ones(size, np.float32), whole)}} for size in (2**23, 8)]
    with Checkpoints(workdir) as checkpoints:
        for kind, tree in zip(('latest', 'best'), trees, strict=True):
            checkpoints.save(kind, tree, {'step': 2})
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return [checkpoints.read_meta(kind)['checksums'] for kind in ('latest', 'best')]


def process(port, number, workdir):
    """What each of the two processes does; the second one then kills itself."""
    with pytest.raises(InputError, match='cannot be started'):
        processes.start_processes()  # no cluster to detect
    processes.HEARTBEAT_SECONDS = 5  # a busy machine delays signs of life by seconds
    processes.start_processes(f'localhost:{port}', 2, number)
    mesh = sharding.make_mesh(2, [device for device in jax.devices() if device.id % 2048 == 0])
    found = {'writer': processes.is_writer(), 'agreed': processes.agree(7 * number), 'saved': save_both(Path(workdir))}
    print(json.dumps(found | run_on(mesh)), flush=True)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            processes.agree(1)
    except Exception:
        processes.await_peer_error()
        os._exit(1)


def free_port():
    with socket.socket() as sock:
        sock.bind(('localhost', 0))
        return str(sock.getsockname()[1])


@pytest.fixture
def pair(tmp_path):
    """Two processes of a run."""
    command = [sys.executable, '-m', 'tests.test_processes', free_port()]
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': ROOT}
    pair = [subprocess.Popen([*command, str(number), str(tmp_path / 'run')], **options) for number in range(2)]
    yield pair
    for one in pair:
        one.kill()
        one.communicate()


def test_two_processes_work_like_one_and_a_survivor_ends_with_a_sentence(pair, tmp_path):
    expected = run_on(sharding.make_mesh(devices=jax.devices()[:1]))
    saved = save_both(tmp_path / 'alone')
    for number, one in enumerate(pair):
        output, errors = one.communicate(timeout=300)
        assert output, errors
        found = json.loads(output.splitlines()[-1])
        assert found['writer'] == (number == 0) and found['agreed'] == 7 and found['saved'] == saved
        # rounding moves these losses by up to 1.2e-5 (jax 0.10 and 0.11); other photos would move them by 1e-3 and more
        np.testing.assert_allclose(found['losses'], expected['losses'], rtol=0, atol=5e-5)
        np.testing.assert_allclose(found['vectors'], expected['vectors'], rtol=0, atol=1e-4)
        assert one.returncode == (4, 128 + signal.SIGKILL)[number]
        if number == 0:
            assert errors.endswith(
                'another process of this run has ended, or this one has crashed (see above); run the same command again to resume.\n'
            )


START = 'import signal, sys; from asen_jax import processes; processes.START_SECONDS = 1; processes.start_processes({}, {}, 0)'
# a thread of the C library aborts, while this one keeps the GIL
ABORT = """
import ctypes
library = ctypes.PyDLL(None)
library.pthread_create(ctypes.byref(ctypes.c_void_p()), None, library.abort, None)
library.sleep(60)
"""
SIGNAL = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print('ready', flush=True)
while True:
    signal.pause()
"""


def start_alone(code, num_processes=1):
    """A process that starts as the first of `num_processes`, and then runs `code`."""
    code = START.format(f'"localhost:{free_port()}"', num_processes) + code
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': ROOT}
    return subprocess.Popen([sys.executable, '-c', code], **options)


@pytest.mark.parametrize(
    ('num_processes', 'status', 'sentence'),
    [(1, 4, 'run the same command again to resume.'), (2, 2, 'its own number from 0 to N-1.')],
)
def test_an_abort_of_any_thread_ends_with_a_sentence(num_processes, status, sentence):
    with start_alone(ABORT, num_processes) as one:
        try:
            _, errors = one.communicate(timeout=30)
        finally:
            one.kill()
    assert one.returncode == status and errors.endswith(f'{sentence}\n')


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)])
def test_signals_reach_the_process_that_works(number, status):
    with start_alone(SIGNAL) as one:
        assert one.stdout.readline() == 'ready\n'
        one.send_signal(number)
        one.communicate(timeout=30)  # returns when nobody can write any more
    assert one.returncode == status


def test_a_coordinator_that_cannot_be_used_is_refused():
    with pytest.raises(InputError, match=r"'somewhere' is not the HOST:PORT"):
        processes.start_processes('somewhere', 2, 0)
    with socket.create_server(('', 0)) as taken, pytest.raises(InputError, match='choose another port'):
        processes.start_processes(f'localhost:{taken.getsockname()[1]}', 2, 0)


def test_one_process_agrees_with_itself_writes_and_exits_as_usual():
    assert processes.agree(7) == 7 and processes.is_writer()
    processes.await_peer_error()
    with pytest.raises(SystemExit, match='3'):
        processes.end_process(3)


SMALL = '--config.data.synthetic.num_photos=100 --config.data.synthetic.photo_size=32 --config.data.image_size=32 --config.data.num_triplets=32'
STEPS = '--config.model.resnet.width=8 --config.train.batch_size=8 --config.train.log_every_steps=1 --config.mesh.cpu_devices=1'


def train(folder, workdir, num_processes, *arguments):
    """Train with so many processes; the lines of metrics.jsonl without timings, and the figures on test."""
    command = [sys.executable, str(ROOT / 'main.py'), f'--config={ROOT}/configs/synthetic.py', f'--workdir={workdir}']
    command += [*SMALL.split(), *STEPS.split(), '--config.data.dir=records', '--config.eval.every_epochs=1', *arguments]
    if num_processes > 1:
        command += ['--distributed', f'--coordinator=localhost:{free_port()}', f'--num_processes={num_processes}']
    environment = os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'}  # compiles fast; no fake devices
    started = []
    for number in range(num_processes):
        which = [f'--process_id={number}'] * (num_processes > 1)
        started.append(subprocess.Popen([*command, *which], cwd=folder, env=environment, stdout=subprocess.PIPE))
    outputs = [one.communicate(timeout=300)[0] for one in started]
    assert [one.returncode for one in started] == [0] * num_processes
    assert [b'overall' in output for output in outputs] == [True] + [False] * (num_processes - 1)
    lines = [json.loads(line) for line in (folder / workdir / 'metrics.jsonl').read_text().splitlines()]
    timings = {'train_triplets_per_second', 'train_step_seconds', 'train_data_wait_seconds'}
    return [{name: line[name] for name in line.keys() - timings} for line in lines], json.loads(
        (folder / workdir / 'eval_test.json').read_text()
    )


@pytest.mark.heavy
def test_runs_of_several_processes_are_like_one(tmp_path):
    train(tmp_path, 'one', 1, '--config.train.num_epochs=1')
    for workdir in ('four', 'changing'):
        shutil.copytree(tmp_path / 'one', tmp_path / workdir)
    lines, figures = train(tmp_path, 'one', 1, '--config.train.num_epochs=3')
    runs = [train(tmp_path, 'four', 4, '--config.train.num_epochs=3', '--config.mesh.model=2')]
    train(tmp_path, 'changing', 2, '--config.train.num_epochs=2')
    runs.append(train(tmp_path, 'changing', 1, '--config.train.num_epochs=3'))
    for other_lines, other_figures in runs:
        for line, other in zip(lines, other_lines, strict=True):
            assert other == pytest.approx(line, rel=0, abs=1e-4)
        assert other_figures['map']['per_attribute'] == pytest.approx(figures['map']['per_attribute'], rel=0, abs=1e-6)


if __name__ == '__main__':
    process(sys.argv[1], int(sys.argv[2]), sys.argv[3])
