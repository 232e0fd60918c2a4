"""A tiny network with random weights, and photos."""

import jax
import numpy as np
import pytest

from asen_jax.checkpoint import Checkpoints
from asen_jax.embedder import Embedder
from asen_jax.models.build import build_shapes
from tests.conftest import tiny_config

ATTRIBUTES = ('sleeve_length', 'neckline', 'color')
VALUES = (('short', 'long'), ('v', 'round'), ('red', 'green', 'blue'))


def save_network(workdir, config=None, attributes=ATTRIBUTES):
    """Save a network of `config` with random weights as the best checkpoint of `workdir`."""
    config, rng = config or tiny_config(), np.random.default_rng(0)
    _, params, batch_stats = build_shapes(config, len(attributes))  # build_model would compile for ten seconds

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(leaf.dtype)

    params = jax.tree.map(draw, params)
    batch_stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), batch_stats)
    meta = {
        'step': 0,
        'score': 0.5,
        'config': config.to_dict(),
        'attributes': list(attributes),
        'values': VALUES,
        'dataset': 'synthetic',
        'fingerprint': '',
    }
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save('best', {'params': params, 'batch_stats': batch_stats}, meta)
    return workdir


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp('workdir'))


@pytest.fixture(scope='session')
def network(workdir):
    return Embedder.load(workdir, batch_size=8)


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + i, 33, 3), np.uint8) for i in range(11)]
