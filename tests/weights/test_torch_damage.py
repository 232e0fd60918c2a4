"""Damaged weight files, other files, and safetensors."""

import contextlib
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from asen_jax.errors import InputError
from asen_jax.weights.tensor_files import MAGIC, read_tensors, write_state_dict
from tests.weights.torch_files import (
    SIX,
    bits,
    odd_tensors,
    path,
    pickled,
    refusal,
    storage,
    tensor,
    write,
    write_legacy,
    write_zip,
)

__all__ = ['path', 'write']  # fixtures


# --- damaged files, and others


@pytest.mark.parametrize('kind', ['written', 'zip', 'legacy', 'safetensors'])
def test_a_file_cut_anywhere_is_refused(path, kind):
    arrays = {'w': np.arange(600, dtype=np.float32), 'n': np.array(3)}
    data = {'0': (600, arrays['w'].tobytes()), '1': (1, arrays['n'].tobytes())}
    state = {'w': tensor(size=(600,), stride=(1,), held=storage(count=600))}
    state = {'state_dict': state, 'rest': tensor(storage('LongStorage', '1', 1), size=(), stride=())}
    if kind == 'written':
        write_state_dict(path, arrays, {'epoch': 3})
    elif kind == 'zip':
        write_zip(path, state, {key: content for key, (_, content) in data.items()})
    elif kind == 'legacy':
        write_legacy(path, state, data)
    else:
        safetensors.numpy.save_file(arrays, path)
    whole = path.read_bytes()
    assert bits(read_tensors(path))['w'] == bits(arrays)['w']
    for length in sorted({*range(0, len(whole), 7), *range(64), *range(len(whole) - 64, len(whole))}):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_a_changed_byte_raises_nothing_else(path, kind):
    if kind == 'safetensors':
        safetensors.numpy.save_file({'w': np.arange(6, dtype=np.float32)}, path)
    else:
        (write_zip if kind == 'zip' else write_legacy)(path, {'state_dict': {'w': tensor()}, 'epoch': 3})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in range(len(whole)):
        for value in (whole[place] ^ 1, whole[place] ^ 0x80, int(rng.integers(256))):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with contextlib.suppress(InputError):
                read_tensors(path)


def test_a_wrong_checksum_is_noticed(path):
    write_state_dict(path, {'w': np.full(3, 7, np.float32)})
    path.write_bytes(path.read_bytes().replace(np.float32(7).tobytes(), np.float32(8).tobytes()))
    assert 'damaged' in refusal(path)


@pytest.mark.parametrize(
    'content, told',
    [
        (b'', 'is empty'), (b'<!DOCTYPE html><html>', 'a web page'), (b'\n  <html>', 'a web page'), (b'\x00' * 600, 'neither of PyTorch'),
        (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'), (b'\x1f\x8b\x08', 'unpack it'), (b'\x80', 'damaged'),
        (pickle.dumps({'w': 1}, 2), 'not of PyTorch'), (pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2), 'not of PyTorch'),
        (b'PK\x03\x04', 'damaged'), (b'PK\x03\x04' + bytes(600), 'damaged'),
    ],
)  # fmt: skip
def test_what_holds_no_weights_is_told(path, content, told):
    path.write_bytes(content)
    assert told in refusal(path)


def test_what_is_no_file_is_told(tmp_path):
    assert 'is missing; name a .pth' in refusal(tmp_path / 'none.pth')
    assert 'is no file; name a .pth' in refusal(tmp_path)


def test_zip_archives_that_are_no_weights_are_told(path):
    write_zip(path, {'w': tensor()}, constants_pkl=b'x')
    assert 'TorchScript archive' in refusal(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/weights.pth', b'x')
    assert "without PyTorch's data.pkl" in refusal(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', pickled({'w': tensor()}))
    assert 'compressed' in refusal(path)
    write_zip(path, {'w': tensor()}, {'0': SIX[:-1]})
    assert "too few bytes for 'w'" in refusal(path)


@pytest.mark.parametrize(
    'root', [3, None, [], {}, {'state_dict': {}}, {'net': {'w': 1}}, {'a\nb': 1}, tensor(), [tensor()]]
)
def test_objects_without_a_state_dict_are_told(write, root):
    message = refusal(write(root))
    assert 'holds no tensors' in message
    if type(root) is dict and 'net' in root:
        assert "'net'" in message


def test_the_old_format_has_to_hold_what_it_names(path):
    assert 'nothing in it names' in refusal(write_legacy(path, {'w': tensor()}, {'0': (6, SIX), '1': (6, SIX)}))
    assert "lacks its part '0'" in refusal(write_legacy(path, {'w': tensor()}, keys=[]))
    assert 'two sizes' in refusal(write_legacy(path, {'w': tensor()}, {'0': (5, SIX)}))


# --- safetensors


def test_safetensors(path):
    arrays = {name: array for name, array in odd_tensors().items() if name not in ('turned', 'ä', 'swapped')}
    safetensors.numpy.save_file(arrays, path, {'format': 'pt'})
    assert bits(read_tensors(path)) == bits(arrays)


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
    return path


def test_safetensors_in_bfloat16(path):
    header = {'w': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}
    read = read_tensors(write_safetensors(path, header, np.array([0x3F80, 0x7FC1], '<u2').tobytes()))
    assert read['w'].dtype == np.float32 and read['w'].view(np.uint32).tolist() == [0x3F800000, 0x7FC10000]


@pytest.mark.parametrize(
    'entry',
    [{'data_offsets': [0, 400]}, {'shape': [3]}, {'shape': [2**40, 2**40]}, {'dtype': 'F9'}, {'data_offsets': [2, 1]}],
)
def test_safetensors_with_a_header_that_lies(path, entry):
    header = {'w': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4], **entry}}
    assert 'damaged' in refusal(write_safetensors(path, header, bytes(4)))


def test_safetensors_of_a_type_that_numpy_lacks(path):
    header = {'w': {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}}
    assert "'w' in F8_E4M3, which is not read" in refusal(write_safetensors(path, header, bytes(4)))
