"""Export a checkpoint as a frozen program that runs without this code base, or as a state dict of the PyTorch original."""

import contextlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from asen_jax.files import write_atomically
from asen_jax.models.apply import embed_all
from asen_jax.network import TrainedNetwork, check_finite, load_network
from asen_jax.sharding import make_mesh
from asen_jax.weights.model_card import known_dataset, make_card, read_figures
from asen_jax.weights.torch_names import flatten, to_torch, unflatten

PLATFORMS = ('cpu', 'cuda')
CARD = 'model_card.md'
TORCH_WEIGHTS, TORCH_CHECKPOINT = 'model.safetensors', 'model_best.pth.tar'
RESIZE = {
    'crop': 'shorter side to image_size, longer side to int(image_size * long / short), then a center crop to a square',
    'pad': 'longer side to image_size, then padded to a square with the color of the edge',
    'stretch': 'to image_size x image_size',
}


def export(workdir: Path, which: str, precision: str, output: Path, target: str) -> list[Path]:
    """The files written to the folder `output` for a checkpoint of `workdir`; `target` is 'jax' or 'torch'.

    Raises InputError if there is no such checkpoint, or if the original has no such network and `target` is 'torch', and
    NumericsError if the network has diverged.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    network = load_network(workdir, which, precision, mesh)
    size = network.meta['config']['data']['image_size']
    check_finite(np.asarray(network.embed_on(mesh)(np.zeros((1, size, size, 3), np.uint8)).embedding))
    card = make_card(network.meta, read_figures(network.meta, Path(workdir)), target)
    written = _write_torch(network, output) if target == 'torch' else _write_jax(network, output)
    return [*written, _write(output / CARD, card.encode())]


def _write_jax(network: TrainedNetwork, output: Path) -> list[Path]:
    weights = flatten({'params': network.params, 'batch_stats': network.batch_stats})
    weights = {name: np.asarray(array) for name, array in weights.items()}
    description = describe(network)
    program = make_program(network, weights)
    description['outputs'] = {
        name: [str(size) for size in spec.shape]
        for name, spec in jax.tree.unflatten(program.out_tree, program.out_avals).items()
    }
    contents = {
        'program.jax': bytes(program.serialize()),
        'weights.safetensors': save(weights),
        'model.json': json.dumps(description, indent=2).encode() + b'\n',
    }
    return [_write(output / name, content) for name, content in contents.items()]


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(content)
    return path


def make_program(network: TrainedNetwork, weights: Mapping[str, np.ndarray]) -> jax.export.Exported:
    """A program: (weights by name, uint8 photos [batch, size, size, 3]) -> embeddings and, with attention, heatmaps.

    The batch size is symbolic, and the program is lowered for CPU and CUDA.
    """
    size = network.meta['config']['data']['image_size']

    def run(weights, images):
        trees = {'params': network.params, 'batch_stats': network.batch_stats}
        filled = unflatten(trees, weights)
        output = embed_all(network.graphdef, filled['params'], filled['batch_stats'], images)
        return {'embeddings': output.embedding} | ({} if output.heatmap is None else {'heatmaps': output.heatmap})

    batch = jax.export.symbolic_shape('batch')
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    images = jax.ShapeDtypeStruct((*batch, size, size, 3), np.uint8)
    return jax.export.export(jax.jit(run), platforms=PLATFORMS)(specs, images)


def describe(network: TrainedNetwork) -> dict:
    """The content of model.json: what the program expects and returns."""
    meta, config = network.meta, network.meta['config']
    data, size = config['data'], config['data']['image_size']
    return {
        'format': 1,
        'name': config['name'],
        'network': config['model'],
        'checkpoint_step': meta['step'],
        'dataset': known_dataset(meta),
        'attributes': meta['attributes'],
        'values': dict(zip(meta['attributes'], meta['values'], strict=True)),
        'image_size': size,
        'input': ['batch', size, size, 3],
        'preprocessing': {
            'pixels': 'uint8 RGB, upright; the program normalizes them',
            'fit': data['fit'],
            'resize': RESIZE[data['fit']],
            'resampling': 'bilinear, antialiased (PIL)',
            'crop_to_bbox': data['crop_to_bbox'],
        },
        'unit_vectors': config['model']['normalize'],
        'distance': config['train']['distance'],
        'platforms': list(PLATFORMS),
        'precision': config['precision'],
        'jax': importlib.metadata.version('jax'),
    }


def _write_torch(network: TrainedNetwork, output: Path) -> list[Path]:
    """Write the weights under the original's names and, where torch is installed, the checkpoint that its --resume reads."""
    model, count = ConfigDict(network.meta['config']['model']), len(network.meta['attributes'])
    state = to_torch(model, jax.device_get(network.params), jax.device_get(network.batch_stats), count)
    written = [_write(output / TORCH_WEIGHTS, save(state, {'format': 'pt'}))]
    with contextlib.suppress(ImportError):
        written.append(write_torch_checkpoint(output / TORCH_CHECKPOINT, state, float(network.meta['score'] or 0.0)))
    return written


def write_torch_checkpoint(path: Path, state: Mapping[str, np.ndarray], score: float) -> Path:
    """`path`, to which torch.save has written the state dict and what else the original's --resume reads."""
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    with write_atomically(path) as file:
        torch.save({'state_dict': tensors, 'epoch': 0, 'prec': score}, file)
    return path
