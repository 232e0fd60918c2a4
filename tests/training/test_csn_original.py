"""CSN as its authors train it (configs/zappos50k.py:csn_original) matches PyTorch; benchmarks/torch_csn.py wrote the figures."""

from pathlib import Path

import jax
import numpy as np
import pytest

from asen_jax import sharding
from asen_jax.errors import InputError
from asen_jax.models.apply import embed_all
from asen_jax.models.build import build_model
from asen_jax.models.registry import network_kind
from asen_jax.training.losses import check_losses
from asen_jax.weights.torch_names import fill_from_torch, flatten, network_names
from configs import zappos50k
from tests.conftest import make_step
from tests.golden import recipe

GOLDEN = Path(__file__).parents[1] / 'golden' / 'csn_original.npz'
ATTRIBUTES = np.arange(4, dtype=np.int32)
FC = 'embeddingnet.embeddingnet.fc_embed'
ASENS = {f'{FC}.{leaf}': f'embeddingnet.embed_fc.{leaf}' for leaf in ('weight', 'bias')}  # the names in the figures


@pytest.fixture(scope='module', params=['fixed', 'learned'])
def case(request):
    """The figures for one kind of mask, and our network with the same weights."""
    with np.load(GOLDEN) as arrays:
        golden = {name.partition('_')[2]: arrays[name] for name in arrays if name.startswith(request.param)}
    config = zappos50k.get_config('csn_original')
    config.model.csn.masks = request.param
    model, params, stats = build_model(config, num_attributes=4)
    shapes = {f'embeddingnet.embeddingnet.{name}': shape for name, shape in trunk_shapes().items()}
    shapes |= {f'{FC}.weight': (64, 256), f'{FC}.bias': (64,)}
    if request.param == 'learned':
        shapes['embeddingnet.masks.weight'] = (4, 64)
    tensors = {name: recipe.make_tensor(1, ASENS.get(name, name), shape) for name, shape in shapes.items()}
    return golden, config, model, *fill_from_torch(config.model, params, stats, tensors, 4)


def trunk_shapes():
    """The shapes of ResNet-18 up to layer3, under PyTorch's names."""
    shapes = {'conv1.weight': (64, 3, 7, 7)}
    norms, in_dim = {'bn1': 64}, 64
    for stage, dim in enumerate((64, 128, 256), 1):
        for block in range(2):
            name = f'layer{stage}.{block}'
            shapes |= {f'{name}.conv1.weight': (dim, in_dim, 3, 3), f'{name}.conv2.weight': (dim, dim, 3, 3)}
            norms |= {f'{name}.bn1': dim, f'{name}.bn2': dim}
            if in_dim != dim:
                shapes[f'{name}.downsample.0.weight'] = (dim, in_dim, 1, 1)
                norms[f'{name}.downsample.1'] = dim
            in_dim = dim
    leaves = ('weight', 'bias', 'running_mean', 'running_var')
    return shapes | {f'{name}.{leaf}': (dim,) for name, dim in norms.items() for leaf in leaves}


def photos():
    return recipe.make_images(1001, 12, 112).reshape(3, 4, 112, 112, 3)


def test_vectors_match_pytorch_and_are_not_normalized(case):
    golden, _, model, params, stats = case
    output = jax.jit(lambda p, s, x: embed_all(model, p, s, x))(params, stats, photos()[0])
    np.testing.assert_allclose(
        np.asarray(output.embedding)[range(4), ATTRIBUTES], golden['embeddings'], rtol=0, atol=2e-5
    )
    assert np.abs(golden['embeddings']).max() > 1  # not unit vectors
    assert output.heatmap is None


def test_three_steps_match_pytorch(case):
    golden, config, model, params, stats = case
    anchor, negative, positive = photos()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step, state = make_step(config, model, params, stats, mesh, steps_per_epoch=781)
    batch = {'images': np.stack([anchor, positive, negative], axis=1), 'attribute': ATTRIBUTES}
    losses = []
    for number in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics['loss']))
        if number == 0:
            moments = flatten(jax.device_get(state.opt_state[0].mu))
            gradients = {path: 10 * np.linalg.norm(moment) for path, moment in moments.items()}
    np.testing.assert_allclose(losses, golden['losses'], rtol=1e-4)
    assert len(gradients) == len(golden['grad_names'])
    names = network_names(config.model, gradients)
    path_of = {ASENS.get(name, name): path for path, name in names.items()}
    paths = [path_of[str(name)] for name in golden['grad_names']]
    ours = np.array([gradients[path] for path in paths])
    np.testing.assert_allclose(ours, golden['grad_norms'], rtol=6e-3)
    in_head = np.array([path.startswith('head.') for path in paths])
    np.testing.assert_allclose(ours[in_head], golden['grad_norms'][in_head], rtol=1e-3)


@pytest.mark.parametrize(
    'field,value,match',
    [
        ('train.loss', 'contrastive', 'contrastive .* needs config.train.distance=cosine'),
        ('model.name', 'asen', "embedding_norm needs 'unmasked', which asen lacks"),
        ('train.loss', 'triplets', "has 'triplets'; write NAME or NAME:WEIGHT, from triplet,"),
        ('train.loss', 'triplet:0', "has 'triplet:0'; write NAME"),
    ],
)
def test_an_invalid_loss_is_rejected(field, value, match):
    config = zappos50k.get_config('csn_original')
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=match):
        check(config)
    check(zappos50k.get_config('csn_original'))


def check(config):
    check_losses(config.train, config.model.name, network_kind(config.model.name).extras)
