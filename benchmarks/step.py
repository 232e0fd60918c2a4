"""Time our train step and evaluation against the same network in PyTorch, in one process.

    pip install torch
    python benchmarks/step.py [--network asen_v2] [--batch 8] [--size 224] [--steps 5] [--device cpu]
    python benchmarks/step.py --compare-gradients    # no timing: compare float32 gradients with float64 ones

Both start from the same weights and the same photos (uint8, already on the device), and nothing is timed until loss,
gradient norm, and vectors agree. PyTorch runs the three roles one after the other, as the original does; ours folds them
into one pass that keeps batch statistics per role.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45')  # of a GPU; PyTorch shares it

import jax
import numpy as np

try:
    import torch
except ImportError:
    torch = None
else:
    import torch_asen

from asen_jax import sharding
from asen_jax.errors import InputError
from asen_jax.models import build_model, embed_triplets
from asen_jax.network import make_embedder
from asen_jax.training import losses
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.step import create_state, make_train_step
from asen_jax.weights.torch_names import fill_from_torch, flatten, our_path
from configs import fashionai
from tests.golden import recipe

NUM_ATTRIBUTES = 8  # FashionAI's
GOLDEN = Path(recipe.__file__).parent  # figures of the original
GOLDEN_SIZE = 224  # side of the photos behind them, in pixels
# Largest accepted differences; that of the norm is relative, and --compare-gradients shows why it is so large.
SAME_LOSS, SAME_VECTORS, SAME_NORM = 1e-5, 1e-5, 1e-2


class Side(NamedTuple):
    """One framework's two timed calls, which return when the device is done, and the gradient norm to check."""

    train_step: Callable[[], Any]  # -> loss
    embed: Callable[[], Any]  # -> vectors of all photos under every attribute
    gradient_norm: Callable[[], float]  # of the last step


class Batch(NamedTuple):
    """Triplets in host memory."""

    images: np.ndarray  # uint8 [b, 3, h, w, 3]
    attribute: np.ndarray  # [b]


def main(argv: list[str]) -> int:
    """Measure or compare; returns 0 on success, 1 if the two sides do not agree, 2 if it cannot run here."""
    args = parse(argv)
    try:
        check_devices(args.device)
    except InputError as error:
        print(f'step.py: {error}', file=sys.stderr)
        return error.exit_status
    config = fashionai.get_config(args.network)
    config.precision = args.precision
    print(describe(args))
    if args.compare_gradients:
        compare_gradients(args, config)
        return 0
    return measure(args, config)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=('asen', 'asen_v2'), default='asen_v2')
    parser.add_argument('--batch', type=int, default=8, help='triplets per step')
    parser.add_argument('--size', type=int, default=224, help='side of the photos in pixels')
    parser.add_argument('--steps', type=int, default=5, help='timed calls per framework')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--precision',
        choices=('float32', 'tensorfloat32'),
        default='float32',
        help='of asen_jax; PyTorch keeps its default, which on a GPU is TF32 in convolutions and float32 in matrix products',
    )
    parser.add_argument('--channels-last', action='store_true', help='use the channels_last memory layout in PyTorch')
    parser.add_argument('--compare-gradients', action='store_true', help='compare gradients instead of timing')
    args = parser.parse_args(argv[1:])
    if args.batch < 1 or args.steps < 1 or args.size < 32:
        parser.error('--batch and --steps must be at least 1, and --size at least 32.')
    if args.compare_gradients and args.size % 7:
        parser.error('--compare-gradients draws photos of 7 x 7 blocks; --size must be a multiple of 7.')
    return args


def check_devices(device: str) -> None:
    """Raises InputError unless PyTorch is installed and both frameworks see the device."""
    if torch is None:
        raise InputError('PyTorch, which this command compares with, is not installed: pip install torch')
    if device == 'cpu':
        jax.config.update('jax_platforms', 'cpu')
    elif not torch.cuda.is_available():
        raise InputError('--device is cuda, but PyTorch sees no GPU; install its CUDA build, or use --device cpu.')
    elif jax.default_backend() != 'gpu':
        raise InputError('--device is cuda, but JAX sees no GPU; install its CUDA build, or use --device cpu.')


def describe(args: argparse.Namespace) -> str:
    """The network, the hardware, and the versions."""
    if args.device == 'cuda':
        hardware = torch.cuda.get_device_name(0)
    else:
        path = Path('/proc/cpuinfo')
        found = re.search(r'model name\s*:\s*(.*)', path.read_text()) if path.exists() else None
        name = found[1] if found else platform.processor()
        hardware = f'{name}, {os.cpu_count()} cores, {torch.get_num_threads()} PyTorch threads'
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('torch', 'jax', 'jaxlib', 'flax'))
    layout = 'channels_last' if args.channels_last else 'contiguous'
    what = f'{args.network}, photos of {args.size} px, ours {args.precision}, PyTorch {layout}'
    return f'{what}\n{hardware}\nPython {platform.python_version()}, {versions}'


def measure(args: argparse.Namespace, config) -> int:
    """Check that the two sides agree, then print the table of timings."""
    network = torch_asen.make_network(args.network, NUM_ATTRIBUTES, args.device, args.channels_last)
    state_dict = torch_asen.numpy_state(network)
    batch = noise(args.batch, args.size)
    theirs = Side(*torch_asen.make_calls(network, *batch, config.optim.learning_rate, config.train.margin))
    exact = config.copy_and_resolve_references()
    exact.precision = 'float32'
    ours = make_our_side(exact, state_dict, batch)
    if not check_same(theirs, ours):
        return 1
    if args.precision != 'float32':
        ours = make_our_side(config, state_dict, batch)
    print(f'\n{"":<26}{"PyTorch":>10}{"asen_jax":>10}   ratio ours/PyTorch (lowest - highest of {args.steps})')
    print_row('train step, triplets/s', args.batch, time_pairs(theirs.train_step, ours.train_step, args.steps))
    print_row('evaluation, photos/s', 3 * args.batch, time_pairs(theirs.embed, ours.embed, args.steps))
    return 0


def noise(count: int, size: int) -> Batch:
    """Triplets of random pixels."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, size, size, 3), np.uint8)
    return Batch(images, np.arange(count) % NUM_ATTRIBUTES)


def make_our_side(config, state_dict: dict[str, np.ndarray], batch: Batch) -> Side:
    """The library's own compiled step and embedder on one device, with the weights in `state_dict`."""
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ('data', 'model'), axes, devices=jax.devices()[:1])
    model, params, stats = build_model(config, NUM_ATTRIBUTES)
    params, stats = fill_from_torch(config.model.name, params, stats, state_dict)
    optimizer = make_optimizer(make_schedule(config, steps_per_epoch=1000))
    state = create_state(params, stats, optimizer)
    places = sharding.state_shardings(state, mesh)
    state = jax.device_put(state, places)
    arrays = {'images': batch.images, 'attribute': batch.attribute.astype(np.int32)}
    on_device = jax.device_put(arrays, sharding.batch_sharding(mesh))
    photos = on_device['images'].reshape(-1, *batch.images.shape[2:])
    step, bind = make_train_step(model, optimizer, config.train, places, mesh, config.seed), make_embedder(model, mesh)
    metrics = {}

    def train_step():
        nonlocal state, metrics
        state, metrics = jax.block_until_ready(step(state, on_device))
        return metrics['loss']

    def embed():
        return jax.block_until_ready(bind(state.params, state.batch_stats)(photos))[0]

    return Side(train_step, embed, lambda: float(metrics['gradient_norm']))


def check_same(theirs: Side, ours: Side) -> bool:
    """Whether the vectors, the first loss, and its gradient norm agree in float32; prints the differences."""
    with torch_asen.exact_float32():
        vectors = np.abs(theirs.embed().cpu().numpy() - np.asarray(ours.embed())).max()
        their_loss, our_loss = float(theirs.train_step()), float(ours.train_step())
    loss, norm = abs(their_loss - our_loss), abs(ours.gradient_norm() / theirs.gradient_norm() - 1)
    print(f'first loss {their_loss:.6f}')
    print(f'differences: loss {loss:.1e}, gradient norm {norm:.1e} (relative), vectors {vectors:.1e}')
    if loss <= SAME_LOSS and vectors <= SAME_VECTORS and norm <= SAME_NORM:
        return True
    print('step.py: the two sides do not agree, so nothing was timed.', file=sys.stderr)
    return False


def time_pairs(theirs: Callable, ours: Callable, count: int) -> list[tuple[float, float]]:
    """Seconds of `count` pairs of calls, after one untimed pair; the two sides take turns at going first."""
    pairs = []
    for number in range(count + 1):
        seconds = {}
        for call in (theirs, ours) if number % 2 else (ours, theirs):
            start = time.perf_counter()
            call()
            seconds[call] = time.perf_counter() - start
        pairs.append((seconds[theirs], seconds[ours]))
    return pairs[1:]


def print_row(name: str, items: int, pairs: list[tuple[float, float]]) -> None:
    """Items per second of each side and the speed of ours relative to theirs, as medians over the pairs."""
    theirs, ours = (items / statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(their / our for their, our in pairs)
    spread = f'{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})'
    print(f'{name:<26}{theirs:>10.2f}{ours:>10.2f}   {spread}')


def compare_gradients(args: argparse.Namespace, config) -> None:
    """Print how far the first step's gradients in float32, of both sides, are from each other and from float64's."""
    network = torch_asen.make_network(args.network, NUM_ATTRIBUTES, args.device, args.channels_last)
    batch = golden_batch(network, args.size)
    state_dict = torch_asen.numpy_state(network)
    found, flips, count = torch_asen.gradients_of_both_types(network, *batch, config.train.margin)
    gradients = {run: in_our_names(config, state_dict | named) for run, named in found.items()}
    gradients[f'asen_jax {args.precision}'] = our_gradients(config, state_dict, batch)
    print(f'ReLU outputs above zero in only one of PyTorch float32 and float64: {flips:,} of {count:,}')
    print_gradients(gradients, stored_norms(args))


def golden_batch(network: 'torch_asen.Network', size: int) -> Batch:
    """The training batch of the golden figures; also fills `network` with their weights."""
    torch_asen.fill(network, lambda name, shape: recipe.make_tensor(1, name, shape))
    anchors, negatives, positives = recipe.make_images(1001, 12, size).reshape(3, 4, size, size, 3)
    return Batch(np.stack([anchors, positives, negatives], axis=1), np.array([0, 3, 5, 7]))


def in_our_names(config, state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict, or gradients under its names, as float64 arrays in our names and layouts."""
    params, _ = fill_from_torch(config.model.name, *build_model(config, NUM_ATTRIBUTES)[1:], state_dict)
    return {name: array.astype(np.float64) for name, array in flatten(params).items()}


def our_gradients(config, state_dict: dict[str, np.ndarray], batch: Batch) -> dict[str, np.ndarray]:
    """Our gradients of the same step."""
    model, params, stats = build_model(config, NUM_ATTRIBUTES)
    params, stats = fill_from_torch(config.model.name, params, stats, state_dict)

    def objective(params, stats, images, attribute):
        vectors = embed_triplets(model, params, stats, images, attribute, jax.random.key(0))[0].embedding
        near, far = (losses.cosine_similarity(vectors[:, 0], vectors[:, role]) for role in (1, 2))
        return losses.triplet_loss(near, far, config.train.margin).mean()

    gradients = flatten(jax.jit(jax.grad(objective))(params, stats, *batch))
    return {name: np.asarray(array, np.float64) for name, array in gradients.items()}


def stored_norms(args: argparse.Namespace) -> dict[str, float]:
    """The original's own gradient norms in our names; empty if --size is not that of the golden photos."""
    if args.size != GOLDEN_SIZE:
        return {}
    with np.load(GOLDEN / f'{args.network}.npz') as stored:
        names = [our_path(args.network, str(name))[0] for name in stored['grad_names']]
        return dict(zip(names, stored['grad_norms'], strict=True))


def print_gradients(gradients: dict[str, dict], stored: dict[str, float]) -> None:
    """Print one row per pair of runs: differences of norms and of gradients, relative to the pair's second run."""
    theirs, exact, replayed, ours = gradients
    norms = {side: {name: np.linalg.norm(g) for name, g in named.items()} for side, named in gradients.items()}
    names = [name for name, norm in norms[exact].items() if norm > 1e-6 * np.median(list(norms[exact].values()))]
    zero = sorted(norms[exact].keys() - names)
    print(
        f'{len(names)} parameters; left out because their gradient is only rounding error: {", ".join(zero) or "none"}'
    )
    print(f'\n{"relative difference of":<42}{"norms: largest":>16}{"90 %":>9}{"gradients: largest":>21}{"90 %":>9}')
    for first, second in ((theirs, exact), (ours, exact), (ours, theirs), (theirs, replayed)):
        norm = {name: abs(norms[first][name] / norms[second][name] - 1) for name in names}
        apart = [np.linalg.norm(gradients[first][n] - gradients[second][n]) / norms[second][n] for n in names]
        print_spread(f'{first}, {second}', norm, f'{max(apart):>21.1e}{np.percentile(apart, 90):>9.1e}')
    if stored:
        norm = {name: abs(stored[name] / norms[exact][name] - 1) for name in names}
        print_spread(f'the original, {exact}', norm, '')


def print_spread(pair: str, norm: dict[str, float], rest: str) -> None:
    """Print one row, which ends in the parameter whose norm differs most."""
    values = list(norm.values())
    print(f'{pair:<42}{max(values):>16.1e}{np.percentile(values, 90):>9.1e}{rest:<30}   {max(norm, key=norm.get)}')


if __name__ == '__main__':
    sys.exit(main(sys.argv))
