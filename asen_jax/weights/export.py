"""A frozen program with its weights, which runs without this code base; or the original's own state dict."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save

from asen_jax.errors import InputError
from asen_jax.models import embed_all
from asen_jax.network import TrainedNetwork, load_network
from asen_jax.sharding import make_mesh
from asen_jax.weights.model_card import known_dataset, make_card, read_figures
from asen_jax.weights.tensor_files import write_state_dict
from asen_jax.weights.torch_names import HEADS, flatten, to_torch, unflatten

PLATFORMS = ('cpu', 'cuda')
PROGRAM, WEIGHTS, DESCRIPTION, CARD, TORCH = (
    'program.jax', 'weights.safetensors', 'model.json', 'model_card.md', 'model_best.pth.tar'
)  # fmt: skip
RESIZE = {
    'crop': 'shorter side to image_size, longer int(image_size * long / short), then the center square',
    'pad': 'longer side to image_size, then padded with the edge color to a square',
    'stretch': 'to image_size x image_size',
}


def export(workdir: Path, which: str, precision: str, output: Path, target: str) -> list[Path]:
    """Write a checkpoint of `workdir` to the folder `output`: `target` is 'jax' or 'torch'; the files written.

    Raises InputError where there is no such checkpoint, or the original has no such network.
    """
    network = load_network(workdir, which, precision, make_mesh(devices=jax.devices()[:1]))
    card = make_card(network.meta, read_figures(network.meta, Path(workdir)), target)
    output.mkdir(parents=True, exist_ok=True)
    written = _write_torch(network, output) if target == 'torch' else _write_jax(network, output)
    (output / CARD).write_text(card)
    return [*written, output / CARD]


def _write_jax(network: TrainedNetwork, output: Path) -> list[Path]:
    weights = flatten({'params': network.params, 'batch_stats': network.batch_stats})
    weights = {name: np.asarray(array) for name, array in weights.items()}
    description = describe(network)
    program = make_program(network, weights)
    description['outputs'] = {
        name: [str(size) for size in spec.shape]
        for name, spec in jax.tree.unflatten(program.out_tree, program.out_avals).items()
    }
    paths = [output / name for name in (PROGRAM, WEIGHTS, DESCRIPTION)]
    for path, write in zip(paths, (
        lambda path: path.write_bytes(program.serialize()),
        lambda path: path.write_bytes(save(weights)),
        lambda path: path.write_text(json.dumps(description, indent=2) + '\n'),
    ), strict=True):  # fmt: skip
        temporary = path.with_name(f'.{path.name}.part')
        write(temporary)
        temporary.replace(path)
    return paths


def make_program(network: TrainedNetwork, weights: Mapping[str, np.ndarray]) -> jax.export.Exported:
    """(weights by name, photos uint8 [batch, size, size, 3]) -> embeddings and, where it has attention, heatmaps.

    The batch size is symbolic, and the program is lowered for CPU and CUDA.
    """
    structure, size = network.structure, network.meta['config']['data']['image_size']

    def run(weights, images):
        trees = {'params': network.params, 'batch_stats': network.batch_stats}
        filled = unflatten(trees, weights)
        embeddings, heatmaps = embed_all(structure, filled['params'], filled['batch_stats'], images)
        return {'embeddings': embeddings} | ({} if heatmaps is None else {'heatmaps': heatmaps})

    batch = jax.export.symbolic_shape('batch')
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    images = jax.ShapeDtypeStruct((*batch, size, size, 3), np.uint8)
    return jax.export.export(jax.jit(run), platforms=PLATFORMS)(specs, images)


def describe(network: TrainedNetwork) -> dict:
    """model.json: what the program wants and gives."""
    meta, config = network.meta, network.meta['config']
    data = config['data']
    return {
        'format': 1, 'name': config['name'], 'network': config['model'], 'checkpoint_step': meta['step'],
        'dataset': known_dataset(meta), 'attributes': meta['attributes'],
        'values': dict(zip(meta['attributes'], meta['values'], strict=True)),
        'image_size': data['image_size'], 'input': ['batch', data['image_size'], data['image_size'], 3],
        'preprocessing': {
            'pixels': 'uint8 RGB, upright; the program normalizes them', 'fit': data['fit'], 'resize': RESIZE[data['fit']],
            'resampling': 'bilinear, antialiased (PIL)', 'crop_to_bbox': data['crop_to_bbox'],
        },
        'unit_vectors': config['model']['normalize'], 'distance': config['train']['distance'],
        'platforms': list(PLATFORMS), 'precision': config['precision'], 'jax': importlib.metadata.version('jax'),
    }  # fmt: skip


def _write_torch(network: TrainedNetwork, output: Path) -> list[Path]:
    config, meta = network.meta['config'], network.meta
    name = config['model']['name']
    if name not in HEADS:
        raise InputError(f'The original has no network {name}; --format=torch knows {", ".join(HEADS)}.')
    own_csn = name == 'csn' and not config['model']['normalize']
    trees = jax.device_get((network.params, network.batch_stats))
    state = to_torch(name, *trees, len(meta['attributes']), own_csn)
    path = output / TORCH
    write_state_dict(path, state, {'epoch': 0, 'prec': float(meta['score'] or 0.0)})  # what its --resume reads
    return [path]
