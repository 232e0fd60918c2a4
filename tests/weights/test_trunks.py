"""Where a trunk's first weights come from, and what is refused."""

import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from asen_jax.errors import InputError
from asen_jax.models import build_shapes
from asen_jax.training import loop
from asen_jax.weights import torch_names, trunks
from asen_jax.weights.tensor_files import write_state_dict
from configs import fashionai
from tests.training.test_csn_original import trunk_shapes


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config():
    config = fashionai.get_config()
    config.model.trunk = 'resnet18'
    return config


@pytest.fixture
def tensors():
    """A ResNet-18 with torchvision's names and shapes, up to its classifier."""
    rng = np.random.default_rng(0)
    shapes = trunk_shapes() | {'layer4.0.conv1.weight': (512, 256, 3, 3), 'fc.weight': (1000, 512), 'fc.bias': (1000,)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {'bn1.num_batches_tracked': np.zeros((), np.int64)}


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_file_with_torchvisions_names_fills_the_trunk_alone(config, tensors, suffix):
    save_file(tensors, 't.safetensors') if suffix == 'safetensors' else write_state_dict(Path('t.pth'), tensors)
    config.init.trunk = f't.{suffix}'
    _, params, stats = build_shapes(config, 2)
    filled, moved = trunks.load_trunk(config, params, stats)
    np.testing.assert_array_equal(filled['trunk']['conv1']['kernel'], tensors['conv1.weight'].transpose(2, 3, 1, 0))
    flat = torch_names.flatten(filled['trunk']) | torch_names.flatten(moved['trunk'])
    np.testing.assert_array_equal(flat['layer3.1.bn2.var'], tensors['layer3.1.bn2.running_var'])
    np.testing.assert_array_equal(flat['layer2.0.shortcut.bn.bias'], tensors['layer2.0.downsample.1.bias'])
    assert filled['head'] is params['head']


@pytest.mark.parametrize('change,says', [
    (lambda t: t.pop('layer3.1.conv2.weight'), r"lacks what a trunk resnet18 has as 'trunk\.layer3\.1\.conv2\.kernel'"),
    (lambda t: t.update({'layer3.9.conv1.weight': np.zeros((3, 3), np.float32)}), r"'layer3\.9\.conv1\.weight' has no place"),
    (lambda t: t.update({'layer2.0.conv1.weight': t['layer2.0.conv1.weight'].transpose(1, 0, 2, 3)}),
     r"'layer2\.0\.conv1\.weight' is \(64, 128, 3, 3\), but a trunk resnet18 has \(128, 64, 3, 3\) there"),
    (lambda t: t.update({'conv1.weight': t['conv1.weight'][:, :, 0]}), r"'conv1\.weight' is \(64, 3, 7\)"),
])  # fmt: skip
def test_a_wrong_tensor_is_refused_by_name(config, tensors, change, says):
    change(tensors)
    write_state_dict(Path('t.pth'), tensors)
    config.init.trunk = 't.pth'
    with pytest.raises(InputError, match=says) as caught:
        trunks.load_trunk(config, *build_shapes(config, 2)[1:])
    assert str(caught.value).startswith('t.pth: ')


def test_imagenet_without_its_file_says_how_to_get_it(config, tmp_path):
    with pytest.raises(InputError) as caught:
        loop.check_config(config, tmp_path)
    for part in ('data/pretrained/resnet18-f37072fd.pth is not there', 'download https://download.pytorch.org/models/resnet18-',
                 'hf://timm/resnet18.tv_in1k', '--config.init.trunk=none'):  # fmt: skip
        assert part in str(caught.value)
    assert '\n' not in str(caught.value)


def test_imagenets_file_is_found_and_its_name_is_held_against_its_bytes(config, tensors, tmp_path, monkeypatch):
    (tmp_path / 'data/pretrained').mkdir(parents=True)
    path = tmp_path / 'data/pretrained/resnet18-f37072fd.pth'
    write_state_dict(path, tensors)
    with pytest.raises(
        InputError, match=r'resnet18-f37072fd\.pth is damaged: its SHA-256 begins .*; download it again'
    ):
        trunks.load_trunk(config, *build_shapes(config, 2)[1:])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(trunks.IMAGENET, 'resnet18', (f'resnet18-{digest}.pth',))
    path.rename(path.with_name(f'resnet18-{digest}.pth'))
    trunks.load_trunk(config, *build_shapes(config, 2)[1:])
    loop.check_config(config, tmp_path / 'fresh')


def test_eight_figures_in_a_name_are_a_date(config, tensors, tmp_path):
    config.init.trunk = str(tmp_path / 'resnet18-20240115.pth')
    write_state_dict(Path(config.init.trunk), tensors)
    params, _ = trunks.load_trunk(config, *build_shapes(config, 2)[1:])
    np.testing.assert_array_equal(params['trunk']['bn1']['bias'], tensors['bn1.bias'])


def test_other_names(config, tensors, monkeypatch):
    config.init.trunk = 'none'
    shapes = build_shapes(config, 2)[1:]
    assert trunks.load_trunk(config, *shapes) == tuple(shapes)
    config.init.trunk = 'weights/none.pth'
    with pytest.raises(InputError, match=r"config\.init\.trunk is 'weights/none\.pth', which is no file"):
        trunks.load_trunk(config, *shapes)
    config.init.trunk = 'hf://timm'
    with pytest.raises(InputError, match='write hf://OWNER/NAME'):
        trunks.load_trunk(config, *shapes)


def test_the_hub_is_asked_where_it_is_there(config, tensors, monkeypatch):
    config.init.trunk = 'hf://timm/resnet18.tv_in1k'
    shapes = build_shapes(config, 2)[1:]
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match='pip install huggingface_hub; or download the file yourself'):
        trunks.load_trunk(config, *shapes)
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        if len(asked) > 1:
            raise OSError('no route to host\nmore')
        save_file(tensors, 'cached.safetensors')
        return 'cached.safetensors'

    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(hf_hub_download=download))
    trunks.load_trunk(config, *shapes)
    config.init.trunk = 'hf://timm/resnet18.tv_in1k/pytorch_model.bin'
    with pytest.raises(
        InputError, match=r'could not be fetched \(no route to host\); look at the name and the network'
    ):
        trunks.load_trunk(config, *shapes)
    assert asked == [('timm/resnet18.tv_in1k', 'model.safetensors'), ('timm/resnet18.tv_in1k', 'pytorch_model.bin')]
