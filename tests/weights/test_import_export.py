"""Weights in and out: checkpoints of the PyTorch originals, trunks, exports; against the originals' figures."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from asen_jax.errors import InputError
from asen_jax.models import build_shapes
from asen_jax.search.embedder import Embedder
from asen_jax.training.loop import train_and_evaluate
from asen_jax.weights import importing, torch_names
from asen_jax.weights.export import export
from asen_jax.weights.tensor_files import read_tensors, write_state_dict
from configs import fashionai
from data_builders.prepare import prepare
from data_builders.synthetic.garments import ATTRIBUTES
from tests.conftest import ROOT
from tests.golden import recipe
from tests.models.test_parity import GOLDEN, MASKS, SHAPES

NUM_SYNTHETIC = len(ATTRIBUTES)
README = (ROOT / 'README.md').read_text()


def original(case):
    """The reference's state dict of seed 1, under its own names."""
    network = 'csn' if case in MASKS else case
    tensors = {name: recipe.make_tensor(1, name, tuple(shape)) for name, shape in SHAPES[network].items()}
    if case in ('csn_prein', 'csn_fixed'):
        masks = torch_names.section_masks(8, 1024, outside=0.1 if case == 'csn_prein' else 0.0)
        tensors['embeddingnet.masks.weight'] = np.asarray(masks)
    return tensors


def small(network='asen', **fields):
    """A small network's config, and its weights as the original would name them."""
    config = fashionai.get_config(network)
    config.model.trunk, config.model.trunk_width, config.model.embed_dim = 'resnet18', 8, 16
    config.data.image_size, config.data.name = 32, 'synthetic'
    config.update_from_flattened_dict(fields)
    rng = np.random.default_rng(0)
    _, *shapes = build_shapes(config, 3)
    trees = jax.tree.map(lambda shape: rng.uniform(0.1, 1, shape.shape).astype(np.float32), shapes)
    return config, torch_names.to_torch(network, *trees, 3)


@pytest.mark.parametrize('case', [
    'asen', *(pytest.param(case, marks=pytest.mark.heavy) for case in ('asen_v2', *MASKS))
])  # fmt: skip
def test_a_checkpoint_of_the_original_comes_in_and_goes_out_again(case, tmp_path):
    """Import, embed photos from files, export and run in a process without asen_jax, and back to PyTorch bit for bit."""
    source, file = original(case), tmp_path / 'model_best.pth.tar'
    write_state_dict(file, {f'module.{name}': array for name, array in source.items()}, {'epoch': 3, 'prec': 0.5})
    images, paths = recipe.make_images(1, 4), [tmp_path / f'{number}.png' for number in range(4)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    importing.import_checkpoint(fashionai.get_config(), tmp_path / 'run', file)
    with np.load(GOLDEN / f'{case}.npz') as golden:
        embedder = Embedder.load(tmp_path / 'run')
        np.testing.assert_allclose(embedder.embed(paths), golden['embeddings'], rtol=0, atol=2e-6)
        result = run_export(tmp_path, images)
        np.testing.assert_allclose(result['embeddings'], golden['embeddings'], rtol=0, atol=2e-6)
        if 'heatmaps' in golden:
            np.testing.assert_allclose(embedder.heatmaps(paths), golden['heatmaps'], rtol=0, atol=2e-6)
            np.testing.assert_allclose(result['heatmaps'], golden['heatmaps'], rtol=0, atol=2e-6)
        else:
            assert 'heatmaps' not in result
    export(tmp_path / 'run', 'best', 'float32', tmp_path / 'torch', 'torch')
    assert_same_but_for_unused(read_tensors(tmp_path / 'torch' / 'model_best.pth.tar'), source)


def run_export(folder, images):
    """The README's own lines, in a process that cannot import asen_jax."""
    export(folder / 'run', 'latest', 'float32', folder / 'export', 'jax')
    lines = README.partition('<!-- export example -->\n```python\n')[2].partition('```')[0]
    guard = 'import sys; sys.modules["asen_jax"] = None\n'
    (folder / 'example.py').write_text(guard + lines)
    np.save(folder / 'photos.npy', images)
    command = [sys.executable, 'example.py', 'export', 'photos.npy', 'out.npz']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / 'out.npz') as result:
        return dict(result)


def assert_same_but_for_unused(back, source):
    assert back.keys() == source.keys()
    for name, array in source.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
        expected = np.zeros_like(array) if torch_names.UNUSED.search(name) else array
        np.testing.assert_array_equal(back[name], expected, err_msg=name)


def test_the_example_has_at_most_twenty_lines():
    lines = README.partition('<!-- export example -->\n```python\n')[2].partition('```')[0]
    assert 0 < len(lines.strip().splitlines()) <= 20


@pytest.mark.parametrize('network,fields', [
    ('asen', {}), ('asen', {'model.spatial_attention': False}), ('asen', {'model.channel_attention': False}),
    ('asen_v2', {'model.trunk': 'resnet34'}), ('csn', {}), ('csn', {'model.masks': 'fixed', 'model.embed_dim': 24}),
])  # fmt: skip
@pytest.mark.parametrize('rename', [
    lambda name: name, lambda name: f'module.{name}', lambda name: name.removeprefix('embeddingnet.'),
])  # fmt: skip
def test_networks_are_told_from_their_names_and_shapes(network, fields, rename):
    config, tensors = small(network, **fields)
    named = torch_names.canonical_names({rename(name): array for name, array in tensors.items()}, 'F')
    assert named.keys() == tensors.keys()
    found, num_attributes = torch_names.recognize(named, 'F')
    assert num_attributes == 3 and found['model.name'] == network and found['model.trunk'] == config.model.trunk
    told = fashionai.get_config('csn')
    told.update_from_flattened_dict(found)
    for field in ('trunk_width', 'normalize', 'spatial_attention', 'channel_attention', 'masks'):
        if network == 'csn' or field != 'masks':
            assert told.model[field] == config.model[field] or (network == 'csn' and 'attention' in field)
    _, *shapes = build_shapes(told, 3)
    params, stats = torch_names.fill_from_torch(network, *shapes, named)
    assert_same_but_for_unused(torch_names.to_torch(network, params, stats, 3), tensors)


def test_csn_by_its_own_authors_is_told_by_its_last_layer():
    _, tensors = small('csn', **{'model.embed_dim': 24})
    tensors = {
        name.replace('embeddingnet.embed_fc', 'embeddingnet.embeddingnet.fc_embed'): a for name, a in tensors.items()
    }
    found, _ = torch_names.recognize(torch_names.canonical_names(tensors, 'F'), 'F')
    assert (
        found['train.distance'] == 'euclidean' and found['model.normalize'] is False and found['model.embed_dim'] == 24
    )
    config, _ = small('csn', **found)
    _, *shapes = build_shapes(config, 3)
    params, _ = torch_names.fill_from_torch('csn', *shapes, tensors)
    np.testing.assert_array_equal(params['head']['fc']['bias'], tensors['embeddingnet.embeddingnet.fc_embed.bias'])
    tensors['embeddingnet.embed_fc.bias'] = params['head']['fc']['bias']
    with pytest.raises(InputError, match=r"'embeddingnet\.embed_fc\.bias' has the place of another"):
        torch_names.fill_from_torch('csn', *shapes, tensors)


def test_csn_by_its_own_authors_goes_out_as_it_came(tmp_path):
    _, tensors = small('csn', **{'model.embed_dim': 24})
    tensors = {name.replace(torch_names.EMBED_FC, torch_names.OWN_FC): array for name, array in tensors.items()}
    tensors = {name: array for name, array in tensors.items() if '.embeddingnet.fc.' not in name}  # theirs has none
    write_state_dict(tmp_path / 'm.pth', tensors)
    importing.import_checkpoint(fashionai.get_config(), tmp_path / 'run', tmp_path / 'm.pth')
    (file, _) = export(tmp_path / 'run', 'best', 'float32', tmp_path / 'out', 'torch')
    back = read_tensors(file)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


def test_an_imported_checkpoint_says_what_it_is_and_keeps_an_older_run(tmp_path):
    config, tensors = small()
    write_state_dict(tmp_path / 'm.pth', tensors)
    config.data.attributes = ('a', 'b', 'c')
    meta = importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.pth')
    assert meta['attributes'] == ['a', 'b', 'c'] and meta['imported']['file'] == 'm.pth'
    assert json.loads((tmp_path / 'run/config.json').read_text())['model']['trunk_width'] == 8
    with pytest.raises(InputError, match='run holds a run already; name another --workdir'):
        importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.pth')
    config.data.attributes = ('a', 'a', 'b')
    with pytest.raises(InputError, match='has a name twice: a, a, b'):
        importing.import_checkpoint(config, tmp_path / 'other', tmp_path / 'm.pth')
    config.data.attributes = ('a', 'b')
    nameless = importing.import_checkpoint(config, tmp_path / 'other', tmp_path / 'm.pth')
    assert nameless['attributes'] == ['attribute_0', 'attribute_1', 'attribute_2']
    assert '--config.data.attributes=' in importing.summary(nameless, tmp_path / 'other')


@pytest.mark.parametrize('change,says', [
    (lambda t: t.pop('embeddingnet.backbonenet.layer2.0.conv1.weight'), "lacks what a network asen has as 'trunk.layer2.0.conv1"),
    (lambda t: t.update({'embeddingnet.extra.weight': np.zeros(3, np.float32)}), "'embeddingnet.extra.weight' has no place"),
    (lambda t: t.update({'embeddingnet.fc1.weight': t['embeddingnet.fc1.weight'].T}), "'embeddingnet.fc1.weight' is"),
    (lambda t: t['embeddingnet.fc1.weight'].fill(np.nan), "'embeddingnet.fc1.weight' has numbers that are not finite"),
    (lambda t: t.update({'embeddingnet.mask_fc1.extra': t['embeddingnet.mask_fc1.weight']}), "'embeddingnet.mask_fc1.extra' has no place"),
    (lambda t: t.update({'embeddingnet.embeddingnet.bn1.bias': t['embeddingnet.backbonenet.bn1.bias']}), "'embeddingnet.embeddingnet.bn1.bias' has no"),
    (lambda t: t.update({'module.embeddingnet.fc1.bias': t['embeddingnet.fc1.bias']}), "the tensor 'embeddingnet.fc1.bias' twice"),
    (lambda t: t.update({'embeddingnet.mask_fc1.weight': np.zeros((8, 0), np.float32)}), "'mask_fc1.weight' of no size"),
    (lambda t: t.update({'embeddingnet.feature_fc.weight': np.float32(1)}), "'embeddingnet.feature_fc.weight' is"),
    (lambda t: t.update({'embeddingnet.fc1.bias': np.zeros(16, np.int64)}), "'embeddingnet.fc1.bias' has the type int64"),
    (lambda t: [t.pop(f'embeddingnet.mask_fc{i}.weight') for i in (1, 2)], 'is no checkpoint of ASEN, ASEN v2 or CSN'),
    (lambda t: [t.pop(name) for name in list(t) if 'layer3' in name], 'has no ResNet-18, 34 or 50'),
    (lambda t: t.update({'choices.global.attrnet.attr_embedding.weight': np.zeros((3, 4), np.float32)}), 'ASEN\\+\\+'),
])  # fmt: skip
def test_a_wrong_checkpoint_is_refused_by_name_and_leaves_nothing(change, says, tmp_path):
    config, tensors = small()
    change(tensors)
    write_state_dict(tmp_path / 'm.pth', tensors)
    with pytest.raises(InputError, match=says) as caught:
        importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.pth')
    assert str(tmp_path / 'm.pth') in str(caught.value) and not (tmp_path / 'run').exists()


def test_exports_hold_a_description_and_a_card(tmp_path):
    config, tensors = small('csn', **{'model.masks': 'fixed', 'model.embed_dim': 24})
    write_state_dict(tmp_path / 'm.pth', tensors)
    config.data.attributes = ('a', 'b', 'c')
    importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.pth')
    result = {
        'dataset': 'synthetic', 'split': 'test', 'checkpoint_step': 0, 'map': {'overall': 0.5}, 'chance_map': {'overall': 0.25},
        'triplet_accuracy': {'overall': None}, 'dropped': {'queries': 2, 'candidates': 0}, 'caveat': 'Drawn anew.',
    }  # fmt: skip
    (tmp_path / 'run/eval_test.json').write_text(json.dumps(result))
    (tmp_path / 'run/eval_valid.json').write_text(json.dumps(result | {'split': 'valid', 'checkpoint_step': 9}))
    written = export(tmp_path / 'run', 'best', 'float32', tmp_path / 'out', 'jax')
    names = ['model.json', 'model_card.md', 'program.jax', 'weights.safetensors']
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / 'out').iterdir()) == names
    described = json.loads((tmp_path / 'out/model.json').read_text())
    assert described['attributes'] == ['a', 'b', 'c'] and described['input'] == ['batch', 32, 32, 3]
    assert described['outputs'] == {'embeddings': ['batch', '3', '24']}
    card = (tmp_path / 'out/model_card.md').read_text()
    assert card.startswith('---\nlibrary_name: jax\n') and card.split('---')[1].count('\n') > 5
    for part in ('## Data', '## Recipe', '## Figures', '## Limits', '| synthetic test | 50.00 | 25.00 | - |', 'Drawn anew.',
                 '2 queries and 0 candidates', 'imported from `m.pth`'):  # fmt: skip
        assert part in card
    assert 'valid' not in card  # another step's figures
    assert described['dataset'] is None and 'not known: the weights were imported' in card
    del result['checkpoint_step']
    for damaged in ('{', '[]', '{"map": 1}', json.dumps(result)):
        (tmp_path / 'run/eval_valid.json').write_text(damaged)
        with pytest.raises(InputError, match=r'run/eval_valid\.json is damaged'):
            export(tmp_path / 'run', 'best', 'float32', tmp_path / 'new', 'jax')
    assert not (tmp_path / 'new').exists()


def test_training_goes_on_from_an_imported_checkpoint(config, tmp_path, capsys):
    """Without names its attributes are only counted; other data, and another number of attributes, are refused."""
    _, *shapes = build_shapes(config, NUM_SYNTHETIC)
    rng = np.random.default_rng(0)
    trees = jax.tree.map(lambda shape: rng.uniform(0.1, 0.2, shape.shape).astype(np.float32), shapes)
    write_state_dict(tmp_path / 'm.pth', torch_names.to_torch('asen_v2', *trees, NUM_SYNTHETIC))
    importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.pth')
    config.train.num_epochs, records = 1, prepare(config)
    result = train_and_evaluate(config, tmp_path / 'run', records)
    assert 'after step 0 of 4' in capsys.readouterr().out
    assert result['checkpoint_step'] == 4 and 'attribute_0' not in result['map']['per_attribute']
    export(tmp_path / 'run', 'best', 'float32', tmp_path / 'out', 'jax')
    card = (tmp_path / 'out/model_card.md').read_text()
    assert 'step 4; all weights imported from `m.pth`' in card and 'drawn garments' in card
    write_state_dict(tmp_path / 'm.pth', torch_names.to_torch('asen_v2', *three_attributes(trees), 3))
    importing.import_checkpoint(config, tmp_path / 'other', tmp_path / 'm.pth')
    with pytest.raises(InputError, match='was trained on the attributes attribute_0, attribute_1, attribute_2, but'):
        train_and_evaluate(config, tmp_path / 'other', records)


def three_attributes(trees):
    """The same network with the first three rows of its attribute table."""
    params, stats = trees
    head = params['head'] | {'attribute_rows': {'rows': params['head']['attribute_rows']['rows'][:3]}}
    return params | {'head': head}, stats
