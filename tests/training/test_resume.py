"""Imported weights are a start, not a run: what they fix, and what they leave open."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError
from asen_jax.models.build import build_model
from asen_jax.training import loop
from asen_jax.weights import torch_names
from asen_jax.weights.importing import import_checkpoint
from data_builders import prepare


@pytest.fixture
def imported(config, records, tmp_path):
    """A workdir with an import of an untrained network, without the names of its attributes."""
    _, *arrays = build_model(config, len(records.attributes))
    tensors = torch_names.to_torch(config.model, *jax.device_get(arrays), len(records.attributes))
    save_file(tensors, tmp_path / 'weights.safetensors')
    import_checkpoint(config, tmp_path / 'run', tmp_path / 'weights.safetensors')
    return tmp_path / 'run'


CHANGES = {
    'seed': 6,
    'data.num_triplets': 64,
    'train.loss': 'contrastive',  # the best score would compare
    'train.distance': 'euclidean',  # different rankings
    'init.trunk': 'imagenet',  # the next checkpoint would claim
    'init.workdir': 'other',  # another origin
}


def test_seed_batch_size_and_data_may_differ_from_the_import(imported, config):
    config.seed, config.train.batch_size, config.data.num_triplets, config.train.num_epochs = 5, 16, 48, 1
    config.train.loss = 'triplet'
    loop.train_and_evaluate(config, imported, prepare.prepare(config))
    assert json.loads((imported / 'config.json').read_text())['seed'] == 5
    with Checkpoints(imported, read_only=True) as checkpoints:
        assert checkpoints.read_meta('latest')['step'] == 3
        assert checkpoints.read_meta('latest')['imported']['file'] == 'weights.safetensors'
    for field, value in CHANGES.items():  # now it is a run
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: value})
        with pytest.raises(InputError, match=rf'was trained with config\.{field}=.*, not {value!r}'):
            loop.train_and_evaluate(changed, imported, prepare.prepare(config))


def test_the_network_must_be_that_of_the_import(imported, config):
    config.model.asen.spatial_attention = False
    with pytest.raises(InputError, match=r'was imported with config\.model\.asen\.spatial_attention=True, not False'):
        loop.train_and_evaluate(config, imported, prepare.prepare(config))


def test_attributes_in_another_order_are_refused(imported, config, records):
    config.data.attributes = records.attributes[::-1]
    with pytest.raises(
        InputError, match=f'has the attributes {", ".join(records.attributes[::-1])}, in this order, but'
    ):
        loop.train_and_evaluate(config, imported, Path(records.directory))


def test_training_starts_from_the_imported_weights(imported, config):
    config.optim.learning_rate = 1e-12
    config.train.num_epochs = 1
    with Checkpoints(imported, read_only=True) as checkpoints:
        before = checkpoints.restore('latest', {'params': None})['params']
    loop.train_and_evaluate(config, imported, prepare.prepare(config))
    with Checkpoints(imported, read_only=True) as checkpoints:
        after = checkpoints.restore('latest', {'params': None})['params']
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after)
