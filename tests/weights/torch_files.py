"""Writes files as PyTorch does, opcode by opcode, for the tests of their reader."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from asen_jax.errors import InputError
from asen_jax.weights.tensor_files import MAGIC, PROTOCOL, read_tensors

SIX = np.arange(6, dtype='<f4').tobytes()
WHOLE = [[0, 1, 2], [3, 4, 5]]  # what tensor() tells of SIX


class Code(bytes):
    """Opcodes of a pickle that leave one value on its stack."""


def op(value):
    """`value` as opcodes of protocol 2; Code stands for itself."""
    if isinstance(value, Code):
        return value
    if type(value) is tuple:
        return Code(b'(' + b''.join(map(op, value)) + b't')
    if type(value) is list:
        return Code(b'](' + b''.join(map(op, value)) + b'e')
    if type(value) is dict:
        return Code(b'}(' + b''.join(op(key) + op(item) for key, item in value.items()) + b'u')
    return Code(pickle.dumps(value, 2)[2:-1])


def known(dotted):
    """The opcode that asks for a global."""
    module, _, name = dotted.rpartition('.')
    return Code(f'c{module}\n{name}\n'.encode())


def call(dotted, *args):
    return Code(known(dotted) + op(args) + b'R')


def pickled(value):
    return b'\x80\x02' + op(value) + b'.'


def storage(kind='FloatStorage', key='0', count=6, *view):
    return Code(op(('storage', known(f'torch.{kind}'), key, 'cpu', count, *view)) + b'Q')


def tensor(held=None, offset=0, size=(2, 3), stride=(3, 1)):
    held = storage() if held is None else held
    return call('torch._utils._rebuild_tensor_v2', held, offset, size, stride, False, call('collections.OrderedDict'))


def write_zip(path, root, data=None, folder='archive/', **others):
    """A file as PyTorch writes it since 1.6."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{folder}data.pkl', pickled(root))
        for name, content in others.items():
            archive.writestr(folder + name.replace('_', '.'), content)
        for key, content in ({'0': SIX} if data is None else data).items():
            archive.writestr(f'{folder}data/{key}', content)
    return path


def write_legacy(path, root, data=None, little_endian=True, keys=None):
    """A file as PyTorch wrote it before 1.6; `data` has (count, bytes) by key."""
    data = {'0': (6, SIX)} if data is None else data
    heads = [MAGIC, PROTOCOL, {'protocol_version': 1001, 'little_endian': little_endian}, root]
    keys = list(data) if keys is None else keys
    blocks = (struct.pack('<q', count) + content for count, content in data.values())
    path.write_bytes(b''.join(map(pickled, [*heads, keys])) + b''.join(blocks))
    return path


def make_writer(kind, path):
    """Writes an object, and bytes by key, in one of the two formats."""

    def write(root, **data):
        if kind == 'zip':
            return write_zip(path, root, {key[1:]: content for key, (_, content) in data.items()} or None)
        return write_legacy(path, root, {key[1:]: block for key, block in data.items()} or None)

    return write


def refusal(path):
    """The one sentence that a file is refused with; it names the file."""
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith('.') and message.isprintable() and ';' in message
    slips = ('TypeCheckError', 'AttributeError', 'NameError', 'AssertionError')  # of ours, told as damage
    assert type(caught.value.__cause__).__name__ not in slips
    return message


def bits(arrays):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def odd_tensors():
    payload = np.array([0x7FC00001, 0xFF812345, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    many = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        'nan': payload, 'one': np.array(-7), 'none': np.zeros((0, 3), np.float32), 'zero': np.array(-0.0, np.float32),
        'big': np.array([2**63 - 1, -(2**63)]), 'turned': many.T, 'ä': many[:, ::2], 'half': many.astype(np.float16),
        'swapped': many.astype('>f4'), 'flags': np.array([True, False]),
    }  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.pth'


@pytest.fixture(params=['zip', 'legacy'])
def write(request, path):
    """Writes an object, and bytes by key, in one of the two formats."""
    return make_writer(request.param, path)
