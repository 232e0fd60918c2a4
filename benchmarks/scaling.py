"""Measure and draw how time and memory grow with photos, attributes, batch, image size, embedding size, and devices.

    pip install matplotlib
    python benchmarks/scaling.py [--trunk resnet50] [--output docs/scaling.svg]    # about ten minutes on two CPU cores

Each figure changes one quantity of an ASEN training step (4 triplets of 224 px, 8 attributes, 1,024 dimensions), of its
evaluation, or of a ranking by 100 queries. Times are medians. Memory is what XLA plans for the program on each device,
arguments included; for a ranking, it is the largest amount that NumPy holds beyond the vectors. The CPU is split into 8 devices,
which share its cores: with more of them, a step cannot become faster, but each holds less.
"""

import argparse
import dataclasses
import functools
import gc
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
import matplotlib.pyplot as plt
import numpy as np
from timing import hardware

from asen_jax import files, sharding
from asen_jax.evaluation import metrics
from asen_jax.models.apply import embed_all
from asen_jax.models.build import build_model
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.step import create_state, make_train_step
from configs import fashionai

NUM_DEVICES, REPEATS, NUM_QUERIES = 8, 3, 100


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a figure changes one field of."""

    trunk: str
    batch: int = 4
    size: int = 224
    attributes: int = 8
    embed_dim: int = 1024
    devices: int = 1
    photos: int = 0  # ranked candidates


# title, field, values, what is measured
FIGURES = (
    ('Ranking: candidates', 'photos', (1_000, 10_000, 100_000, 1_000_000), 'rank'),
    ('Evaluation: attributes', 'attributes', (1, 2, 4, 8, 16, 32, 64), 'evaluate'),
    ('Training step: triplets', 'batch', (1, 2, 4, 8), 'train'),
    ('Training step: side of the photo (px)', 'size', (64, 112, 224, 336), 'train'),
    ('Training step: embedding dimensions', 'embed_dim', (64, 256, 1024, 4096), 'train'),
    ('Training step of 8 triplets: devices', 'devices', (1, 2, 4, 8), 'train'),
)


def main(argv: list[str]) -> None:
    """Measure, and write the drawing and the figures behind it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trunk', choices=('resnet18', 'resnet50'), default='resnet50')
    parser.add_argument('--output', type=Path, default=Path('scaling.svg'), help='drawing; the figures go beside it')
    args = parser.parse_args(argv[1:])
    sharding.set_up_cpu(NUM_DEVICES)
    measured = {}
    for title, field, values, what in FIGURES:
        rows = []
        for value in values:
            setting = Setting(args.trunk, batch=8 if field == 'devices' else 4)
            seconds, memory = MEASURES[what](dataclasses.replace(setting, **{field: value}))
            print(f'{title} = {value:,}: {seconds:.4g} s, {memory / 1e6:,.0f} MB', flush=True)
            rows.append({'value': value, 'seconds': seconds, 'bytes': memory})
        measured[title] = rows
    files.write_json(args.output.with_suffix('.json'), {**hardware(), 'trunk': args.trunk, 'figures': measured})
    draw(measured, args.output)


def rank(setting: Setting) -> tuple[float, float]:
    """Seconds and memory of a ranking by NUM_QUERIES queries, with vectors of 128 dimensions."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((NUM_QUERIES + setting.photos, 128), np.float32)
    values = rng.integers(0, 10, len(vectors))
    split = (vectors[:NUM_QUERIES], vectors[NUM_QUERIES:], values[:NUM_QUERIES], values[NUM_QUERIES:, None])
    call = functools.partial(metrics.rank_candidates, *split)
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return time_calls(call), peak


def train(setting: Setting) -> tuple[float, float]:
    """Seconds and memory per device of a training step."""
    config, mesh = make_config(setting), sharding.make_mesh(devices=jax.devices()[: setting.devices])
    graphdef, params, stats = build_model(config, setting.attributes)
    optimizer = make_optimizer(config, make_schedule(config, steps_per_epoch=1000), params)
    state = create_state(params, stats, optimizer)
    places = sharding.state_shardings(state, mesh)
    state = jax.device_put(state, places)
    images = np.random.default_rng(0).integers(0, 256, (setting.batch, 3, setting.size, setting.size, 3), np.uint8)
    batch = {'images': images, 'attribute': np.arange(setting.batch, dtype=np.int32) % setting.attributes}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = make_train_step(graphdef, optimizer, config.train, places, mesh, config.seed).lower(state, batch).compile()

    def call() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, batch))

    return time_calls(call), planned_memory(step)


def evaluate(setting: Setting) -> tuple[float, float]:
    """Seconds and memory of the vectors of 12 photos under all attributes."""
    graphdef, params, stats = build_model(make_config(setting), setting.attributes)
    images = np.zeros((12, setting.size, setting.size, 3), np.uint8)
    compiled = jax.jit(functools.partial(embed_all, graphdef)).lower(params, stats, images).compile()
    return time_calls(lambda: jax.block_until_ready(compiled(params, stats, images))), planned_memory(compiled)


MEASURES: dict[str, Callable[[Setting], tuple[float, float]]] = {'rank': rank, 'train': train, 'evaluate': evaluate}


def make_config(setting: Setting) -> Any:
    config = fashionai.get_config('asen')
    config.model.trunk, config.model.embed_dim = setting.trunk, setting.embed_dim
    return config


def time_calls(call: Callable[[], Any]) -> float:
    """The median of REPEATS calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    gc.collect()
    return statistics.median(seconds)


def planned_memory(compiled: Any) -> float:
    """Bytes on each device: arguments, results that are not written over them, and everything in between."""
    plan = compiled.memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes


def draw(measured: dict[str, Sequence[dict]], output: Path) -> None:
    """Time and memory against each quantity, as small multiples."""
    plt.rcParams.update({'svg.fonttype': 'none', 'font.size': 9, 'axes.spines.top': False, 'svg.hashsalt': 'scaling'})
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout='constrained')
    for axis, (title, rows) in zip(axes.flat, measured.items(), strict=True):
        values, seconds, sizes = ([row[name] for row in rows] for name in ('value', 'seconds', 'bytes'))
        axis.set_title(title, fontsize=9)
        axis.set(xscale='log', xticks=values, xticklabels=[f'{value:,}' for value in values])
        axis.minorticks_off()
        draw_line(axis, values, seconds, 'seconds', 'o-', 'tab:blue')
        draw_line(axis.twinx(), values, [size / 1e6 for size in sizes], 'MB', 's--', 'tab:orange')
    with files.write_atomically(output) as file:
        figure.savefig(file, format=output.suffix[1:], metadata={'Date': None})
    print(f'wrote {output} and {output.with_suffix(".json")}')


def draw_line(axis: Any, x: Sequence[float], y: Sequence[float], label: str, style: str, color: str) -> None:
    """One line on its own axis, which begins at 0 unless the values differ by orders of magnitude."""
    axis.plot(x, y, style, color=color)
    axis.set_ylabel(label, color=color)
    if max(y) > 100 * min(y):
        axis.set_yscale('log')
    else:
        axis.set_ylim(0, 1.1 * max(y))


if __name__ == '__main__':
    main(sys.argv)
