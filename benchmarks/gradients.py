"""Compare the gradients of the first training step in float32, ours and PyTorch's, with those of PyTorch's float64.

pip install torch
python benchmarks/gradients.py [--network asen_v2] [--size 224]    # about a minute on two CPU cores
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
import numpy as np
import torch
import torch_asen
from torch_asen import NUM_ATTRIBUTES, Batch

from asen_jax.models.apply import embed_triplets
from asen_jax.models.build import build_model
from asen_jax.models.interfaces import Train
from asen_jax.training import losses
from asen_jax.weights.torch_names import fill_from_torch, flatten, network_names
from configs import fashionai
from tests.golden import recipe

GOLDEN = Path(recipe.__file__).parent  # figures of the original
GOLDEN_SIZE = 224  # side of the photos behind them, in pixels


def main(argv: list[str]) -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=('asen', 'asen_v2'), default='asen_v2')
    parser.add_argument('--size', type=int, default=GOLDEN_SIZE, help='side of the photos in pixels')
    args = parser.parse_args(argv[1:])
    if args.size < 35 or args.size % 7:
        parser.error('photos are drawn as 7 x 7 blocks; --size must be a multiple of 7, and at least 35.')
    jax.config.update('jax_platforms', 'cpu')
    print(f'Python {sys.version.split()[0]}, torch {torch.__version__}, jax {jax.__version__}')
    compare_gradients(args, fashionai.get_config(args.network))


def compare_gradients(args: argparse.Namespace, config) -> None:
    """Print how far the first step's gradients in float32, of both sides, are from each other and from float64's."""
    network = torch_asen.make_network(args.network)
    batch = golden_batch(network, args.size)
    state_dict = torch_asen.numpy_state(network)
    found, flips, count = torch_asen.gradients_of_both_types(network, *batch, config.train.margin)
    gradients = {run: in_our_names(config, state_dict | named) for run, named in found.items()}
    gradients['asen_jax float32'] = our_gradients(config, state_dict, batch)
    print(f'ReLU outputs above zero in only one of PyTorch float32 and float64: {flips:,} of {count:,}')
    print_gradients(gradients, stored_norms(args))


def golden_batch(network: torch_asen.Network, size: int) -> Batch:
    """The training batch of the golden figures; also fills `network` with their weights."""
    torch_asen.fill(network, lambda name, shape: recipe.make_tensor(1, name, shape))
    anchors, negatives, positives = recipe.make_images(1001, 12, size).reshape(3, 4, size, size, 3)
    return Batch(np.stack([anchors, positives, negatives], axis=1), np.array([0, 3, 5, 7]))


def in_our_names(config, state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict, or gradients under its names, as float64 arrays in our names and layouts."""
    params, _ = fill_from_torch(config.model, *build_model(config, NUM_ATTRIBUTES)[1:], state_dict, NUM_ATTRIBUTES)
    return {name: array.astype(np.float64) for name, array in flatten(params).items()}


def our_gradients(config, state_dict: dict[str, np.ndarray], batch: Batch) -> dict[str, np.ndarray]:
    """Our gradients of the same step."""
    model, params, stats = build_model(config, NUM_ATTRIBUTES)
    params, stats = fill_from_torch(config.model, params, stats, state_dict, NUM_ATTRIBUTES)

    def objective(params, stats, images, attribute):
        vectors = embed_triplets(model, params, stats, images, attribute, Train(jax.random.key(0)))[0].embedding[
            :, :, 0
        ]
        near, far = (losses.cosine_similarity(vectors[:, 0], vectors[:, role]) for role in (1, 2))
        return losses.triplet_loss(near, far, config.train.margin).mean()

    gradients = flatten(jax.jit(jax.grad(objective))(params, stats, *batch))
    return {name: np.asarray(array, np.float64) for name, array in gradients.items()}


def stored_norms(args: argparse.Namespace) -> dict[str, float]:
    """The original's own gradient norms in our names; empty if --size is not that of the golden photos."""
    if args.size != GOLDEN_SIZE:
        return {}
    with np.load(GOLDEN / f'{args.network}.npz') as stored:
        config = fashionai.get_config(args.network)
        paths = flatten(build_model(config, NUM_ATTRIBUTES)[1])
        path_of = {name: path for path, name in network_names(config.model, paths).items()}
        return {path_of[str(name)]: norm for name, norm in zip(stored['grad_names'], stored['grad_norms'], strict=True)}


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
    main(sys.argv)
