"""A network of another class than ours, with two branches and a loss of its own, needs no change elsewhere."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asen_jax.errors import InputError
from asen_jax.models.apply import embed_all
from asen_jax.models.build import build_model
from asen_jax.models.conditions import AttributeConditions
from asen_jax.models.interfaces import Network, NetworkKind, Output
from asen_jax.models.layers import Conv, Table, average_pool, l2_normalize
from asen_jax.models.registry import NETWORKS
from asen_jax.sharding import make_mesh
from asen_jax.training.checks import check_config
from asen_jax.training.losses import LOSSES, Loss
from configs import synthetic
from tests.conftest import make_step


class TwoBranches(nnx.Module):
    """A branch on the photo, and one on its center, which share the conditions."""

    def __init__(self, options, num_attributes, numerics, rngs):
        self.conditions = AttributeConditions(num_attributes, rngs=rngs)
        self.convs = nnx.List([Conv(3, 8, 3, stride=2, numerics=numerics, rngs=rngs) for _ in range(2)])
        self.rows = nnx.List([Table(num_attributes, 8, rngs=rngs) for _ in range(2)])

    def __call__(self, images, conditions, mode=None):
        side, parts = images.shape[1] // 4, []
        for conv, rows, photos in zip(self.convs, self.rows, (images, images[:, side:-side, side:-side]), strict=True):
            under = jax.vmap(rows, in_axes=1, out_axes=1)(conditions)
            parts.append(l2_normalize(average_pool(conv(photos / 255))[:, None] * under))
        return Output(
            jnp.concatenate(parts, axis=-1) / 2**0.5, extras=dict(zip(('whole', 'center'), parts, strict=True))
        )


def alignment(output, batch, options):
    apart = 1 - (output.extras['whole'] * output.extras['center']).sum(axis=-1)
    return apart, {'apart': apart.max()}


@pytest.fixture
def config(monkeypatch):
    """A config of this network and its loss, which are registered."""
    module = types.ModuleType('asen_jax.models.two_branches')
    kind = NetworkKind('no paper', TwoBranches, extras=('whole', 'center'), trunks=lambda options: {})
    module.NETWORKS = {'two': kind}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(NETWORKS, 'two', 'two_branches')
    monkeypatch.setitem(LOSSES, 'alignment', Loss(alignment, extras=('whole', 'center')))
    config = synthetic.get_config()
    config.model.name, config.train.loss, config.optim.groups = 'two', 'triplet,alignment:0.1', ('convs/1:0.1',)
    return config


def test_two_branches_train_with_a_loss_of_their_own(config):
    graphdef, params, stats = build_model(config, 3)
    assert isinstance(nnx.merge(graphdef, params, stats), Network)
    step, state = make_step(config, graphdef, params, stats, make_mesh(devices=jax.devices()[:1]), 10)
    photos = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16, 3), np.uint8)
    state, metrics = step(state, {'images': photos, 'attribute': np.array([0, 1, 2, 0], np.int32)})
    total = metrics['loss_triplet'] + 0.1 * metrics['loss_alignment']
    np.testing.assert_allclose(metrics['loss'], total, rtol=1e-6)
    assert {'apart', 'triplet_accuracy', 'gradient_norm'} <= metrics.keys()
    output = embed_all(graphdef, state.params, state.batch_stats, jnp.asarray(photos[:, 0]))
    assert output.embedding.shape == (4, 3, 16) and output.heatmap is None


def test_a_network_without_a_single_trunk_is_checked_like_any_other(config, tmp_path):
    config.init.trunk = 'imagenet'  # of which it has no use
    assert check_config(config, tmp_path) == ({}, {})
    config.train.precompute_features = True
    with pytest.raises(InputError, match='needs a network with a single trunk that is frozen'):
        check_config(config, tmp_path)
