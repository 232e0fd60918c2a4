"""What several processes and a divided state cost: the time of a training step of a small ASEN v2 on two CPU devices.

The devices belong to one process or to two, and each holds the whole state or, with `mesh.model=2`, half of it. The processes are
started here:

    python benchmarks/processes.py
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(JAX_PLATFORMS='cpu', TF_CPP_MIN_LOG_LEVEL='2')

import jax
import numpy as np

from asen_jax import processes, sharding
from asen_jax.models.build import build_model
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.step import create_state, make_train_step
from configs import fashionai

BATCH_SIZE, SIZE, STEPS = 32, 64, 40


def measure(model_axis: int) -> float:
    """The shortest time of a step in milliseconds."""
    config = fashionai.get_config('asen_v2')
    config.model.trunk, config.model.resnet.width = 'resnet18', 16
    graphdef, *arrays = build_model(config, 8)
    mesh, optimizer = sharding.make_mesh(model_axis), make_optimizer(config, make_schedule(config, 100), arrays[0])
    state = create_state(*arrays, optimizer)
    places = sharding.state_shardings(state, mesh)
    state = jax.device_put(state, places)
    step = make_train_step(graphdef, optimizer, config.train, places, mesh, seed=0)
    rng = np.random.default_rng(0)
    batch = {'images': rng.integers(0, 256, (BATCH_SIZE, 3, SIZE, SIZE, 3), np.uint8)}
    batch['attribute'] = rng.integers(0, 8, BATCH_SIZE, np.int32)
    rows, times = sharding.local_rows(BATCH_SIZE), []
    for _ in range(STEPS):
        begin = time.perf_counter()
        placed = sharding.put_rows(mesh, {name: part[rows] for name, part in batch.items()}, BATCH_SIZE)
        state, metrics = step(state, placed)
        float(metrics['loss'])
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)  # other programs disturb the median


def work(num_processes: int, model_axis: int, port: int, number: int) -> None:
    """Be one process of a measurement; the first one prints the time."""
    sharding.set_up_cpu(2 // num_processes)
    if num_processes > 1:
        processes.start_processes(f'localhost:{port}', num_processes, number)
    milliseconds = measure(model_axis)
    if processes.is_writer():
        print(milliseconds)
    processes.end_process(0)


def run(*setting: int) -> float:
    """The time of a step with (num_processes, model_axis)."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, *map(str, setting), str(port)]
    started = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(setting[0])]
    first, *_ = [process.communicate()[0] for process in started]
    return float(first.split()[-1])


if __name__ == '__main__':
    if len(sys.argv) > 1:
        work(*map(int, sys.argv[1:]))
    else:
        for setting in ((1, 1), (1, 2), (2, 1), (2, 2)):
            print('processes {}, mesh.model {}:'.format(*setting), f'{run(*setting):.1f} ms a step', flush=True)
