"""Time our train step and evaluation beside the same network in PyTorch.

    pip install torch
    python benchmarks/step.py [--network asen_v2] [--batch 8] [--size 224] [--repeats 5] [--device cpu] [--output FILE.json]

Each side runs in a process of its own, as its users start it, and the sides take turns. All have the same weights and the same
photos (uint8, already on the device), and nothing is timed until loss, gradient norm, and vectors agree in float32. PyTorch
passes the three roles one after the other, as the original does; ours folds them into one pass that keeps batch statistics per
role. What no side can beat is the time that the products of the convolutions and matrices take at the speed of the device's
best matrix product.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import numpy as np
import torch_asen
from timing import Work, fastest, report, take_turns
from torch_asen import NUM_ATTRIBUTES, Batch

from main import HUGE_PAGES

OURS, PLAIN, BEST = 'asen_jax', 'PyTorch', 'PyTorch at its best'
# Largest accepted differences; that of the norm is relative, and gradients.py shows why it is so large.
SAME_LOSS, SAME_VECTORS, SAME_NORM = 1e-5, 1e-5, 1e-2
GPU_MEMORY = '0.3'  # of a GPU, which several processes share


def main(argv: list[str]) -> int:
    """Measure; returns 0 on success, 1 if the two sides do not agree."""
    args = parse(argv)
    if args.device == 'cpu':
        os.environ['JAX_PLATFORMS'] = 'cpu'
    batch = noise(args.batch, args.size)
    exact = args.precision == 'float32'
    theirs = Side(torch_side, args, batch)
    ours = Side(our_side, args, batch, 'float32', theirs('weights'), environment=HUGE_PAGES)
    if not check_same(theirs, ours):
        return 1
    if not exact:
        ours.end()
        ours = Side(our_side, args, batch, args.precision, theirs('weights'), environment=HUGE_PAGES)
    sides = {OURS: ours}
    if args.device == 'cpu':
        sides[f'{OURS}, 2 CPU devices'] = Side(
            our_side, args, batch, args.precision, theirs('weights'), 2, environment=HUGE_PAGES
        )
    sides |= {PLAIN: theirs, BEST: Side(torch_side, args, batch, True, environment=HUGE_PAGES)}
    peak = ours('peak')
    rows = []
    for name, call, unit, items in (
        ('train step', 'train_step', 'triplets', args.batch),
        ('evaluation', 'embed', 'photos', 3 * args.batch),
    ):
        calls = {side: (lambda each=each, call=call: each(call)) for side, each in sides.items()}
        rows.append(take_turns(Work(name, unit, items, calls, theirs(f'{call}_flops') / peak), args.repeats))
    for side in sides.values():
        side.end()
    what = f'{args.network}, {args.batch} triplets of {args.size} px, {args.precision}'
    report(f'{what}; the best matrix product: {peak / 1e9:,.0f} GFLOP/s', rows, args.output)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=('asen', 'asen_v2'), default='asen_v2')
    parser.add_argument('--batch', type=int, default=8, help='triplets per step')
    parser.add_argument('--size', type=int, default=224, help='side of the photos in pixels')
    parser.add_argument('--repeats', type=int, default=5, help='timed calls per side')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--precision',
        choices=('float32', 'tensorfloat32', 'bfloat16'),
        default='float32',
        help='of asen_jax, and of PyTorch at its best; plain PyTorch on a GPU has TF32 in convolutions and float32 in products',
    )
    parser.add_argument('--output', type=Path, help='where to write the figures as JSON')
    args = parser.parse_args(argv[1:])
    if args.batch < 1 or args.repeats < 1 or args.size < 32:
        parser.error('--batch and --repeats must be at least 1, and --size at least 32.')
    return args


def noise(count: int, size: int) -> Batch:
    """Triplets of random pixels."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, size, size, 3), np.uint8)
    return Batch(images, np.arange(count) % NUM_ATTRIBUTES)


class Side:
    """A process that holds one framework's calls, and makes the one that it is asked for."""

    def __init__(self, make: Callable[..., dict[str, Callable]], *arguments: Any, environment: dict | None = None):
        before = dict(os.environ)
        os.environ.update(environment or {})
        spawn = multiprocessing.get_context('spawn')
        self.pipe, end = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(end, make, *arguments), daemon=True)
        self.process.start()
        os.environ.clear()
        os.environ.update(before)

    def __call__(self, name: str) -> Any:
        self.pipe.send(name)
        result = self.pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """Stop the process, which gives its memory back."""
        self.process.kill()
        self.process.join()


def serve(pipe, make: Callable[..., dict[str, Callable]], *arguments: Any) -> None:
    """In the process of a side: answer each name with the result of its call."""
    try:
        calls = make(*arguments)
        while True:
            pipe.send(calls[pipe.recv()]())
    except Exception as error:
        pipe.send(error)


def torch_side(args: argparse.Namespace, batch: Batch, best: bool = False) -> dict[str, Callable]:
    """PyTorch's calls; at its best, with channels last, compiled, and on a GPU in the precision that ours has."""
    return torch_asen.make_calls(args.network, batch, args.device, best, args.precision if best else 'float32')


def our_side(
    args: argparse.Namespace, batch: Batch, precision: str, weights: dict[str, np.ndarray], num_devices: int = 1
) -> dict[str, Callable]:
    """The library's own compiled step and embedder, with the weights of a state dict."""
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', GPU_MEMORY)
    import jax

    from asen_jax import sharding
    from asen_jax.models.build import build_model
    from asen_jax.network import make_embedder
    from asen_jax.training.optimizer import make_optimizer, make_schedule
    from asen_jax.training.step import create_state, make_train_step
    from asen_jax.weights.torch_names import fill_from_torch
    from configs import fashionai

    sharding.set_up_cpu(num_devices)
    config = fashionai.get_config(args.network)
    config.precision = precision
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    model, params, stats = build_model(config, NUM_ATTRIBUTES)
    params, stats = fill_from_torch(config.model, params, stats, weights, NUM_ATTRIBUTES)
    optimizer = make_optimizer(config, make_schedule(config, steps_per_epoch=1000), params)
    state = create_state(params, stats, optimizer)
    places = sharding.state_shardings(state, mesh)
    state = jax.device_put(state, places)
    arrays = {'images': batch.images, 'attribute': batch.attribute.astype(np.int32)}
    on_device = jax.device_put(arrays, sharding.batch_sharding(mesh))
    photos = on_device['images'].reshape(-1, *batch.images.shape[2:])
    step, bind = make_train_step(model, optimizer, config.train, places, mesh, config.seed), make_embedder(model, mesh)

    def train_step() -> dict[str, float]:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, on_device))
        return {name: float(number) for name, number in metrics.items()}

    def embed() -> None:
        jax.block_until_ready(bind(state.params, state.batch_stats)(photos))

    def vectors() -> np.ndarray:
        return np.asarray(bind(state.params, state.batch_stats)(photos).embedding)

    def peak() -> float:
        """FLOP/s of the best of three sizes of matrix products in this precision."""
        return max(time_product(size) for size in ((1024, 2048, 4096) if args.device == 'cpu' else (4096, 8192, 16384)))

    def time_product(size: int) -> float:
        like = jax.numpy.ones((size, size), 'bfloat16' if precision == 'bfloat16' else 'float32')
        level = 'highest' if precision == 'float32' else 'default'
        multiply = jax.jit(lambda x: jax.numpy.matmul(x, x, precision=level))
        return 2 * size**3 / fastest(lambda: jax.block_until_ready(multiply(like)), repeats=20)

    return {'train_step': train_step, 'embed': embed, 'vectors': vectors, 'peak': peak}


def check_same(theirs: Side, ours: Side) -> bool:
    """Whether the vectors, the first loss, and its gradient norm agree in float32; prints the differences."""
    vectors = np.abs(theirs('vectors') - ours('vectors')).max()
    first, second = theirs('exact_train_step'), ours('train_step')
    loss = abs(first['loss'] - second['loss'])
    norm = abs(second['gradient_norm'] / first['gradient_norm'] - 1)
    print(f'first loss {first["loss"]:.6f}')
    print(f'differences: loss {loss:.1e}, gradient norm {norm:.1e} (relative), vectors {vectors:.1e}\n')
    if loss <= SAME_LOSS and vectors <= SAME_VECTORS and norm <= SAME_NORM:
        return True
    print('step.py: the two sides do not agree, so nothing was timed.', file=sys.stderr)
    return False


if __name__ == '__main__':
    sys.exit(main(sys.argv))
