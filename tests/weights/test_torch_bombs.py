"""No weight file gets memory filled or time lost by lying about its size."""

import contextlib
import struct
import time
import tracemalloc
import zipfile
import zlib

import pytest

from asen_jax.errors import InputError
from asen_jax.weights import torch_pickle
from asen_jax.weights.tensor_files import read_tensors
from tests.weights.torch_files import Code, known, op, path, refusal, storage, tensor, write, write_legacy, write_zip

__all__ = ['path', 'write']  # fixtures


# --- what lies about its size costs nothing


@pytest.mark.parametrize(
    'args',
    [
        {'offset': 1}, {'size': (2, 4)}, {'size': (3, 3)}, {'stride': (4, 1)}, {'size': (2, 3, 2), 'stride': (1, 1, 3)},
        {'size': (7,), 'stride': (1,)}, {'offset': 6, 'size': (), 'stride': ()}, {'offset': -1}, {'stride': (-3, 1)},
        {'size': (-1, -1)}, {'size': (2, 3), 'stride': (3,)}, {'size': (2.0, 3)}, {'size': (True, True)}, {'size': 6},
        {'size': [2, 3]}, {'size': None}, {'stride': None}, {'offset': None}, {'offset': 2**70}, {'size': (2**62, 2**62)},
        {'size': (2**40, 1), 'stride': (0, 1)}, {'size': (2**30, 2**30), 'stride': (0, 0)}, {'size': (0, 2**47, 2**47), 'stride': (0, 0, 0)},
        {'size': (2**20,), 'stride': (0,)}, {'size': (1,) * 65, 'stride': (1,) * 65}, {'held': 3}, {'held': op({})},
        {'held': storage(count=2**45)}, {'held': storage(count=7)}, {'held': storage('DoubleStorage')}, {'held': storage(key='1')},
        {'held': storage(key='../../etc/passwd')}, {'held': storage(key='\n' * 99)},
    ],
)  # fmt: skip
def test_sizes_that_lie_are_refused(write, args):
    told = refusal(write({'state_dict': {'first': tensor(), 'odd': tensor(**args)}}))
    # the old format finds a lie about a storage before it comes to the tensors
    of_storage = ('lacks its part', 'cut short', 'two sizes', 'too few', 'nothing in it names')
    assert any(words in told for words in ("'odd'", 'contiguous', *of_storage * ('held' in args))), told


def test_parts_that_overlap_are_refused(path):
    """Ten storages, each inside of the one before, would take ten times the file's size."""
    blob, infos = bytes(1 << 20), []
    for key in range(9, 0, -1):
        infos.append(zipfile.ZipInfo(f'archive/data/{key}'))
        infos[-1].file_size = infos[-1].compress_size = len(blob)
        infos[-1].CRC = zlib.crc32(blob)
        blob = infos[-1].FileHeader() + blob
        infos[-1].header_offset = -len(blob)
    state = {f'w{k}': tensor(storage('ByteStorage', str(k), 1), size=(1,), stride=(1,)) for k in range(10)}
    write_zip(path, state, {'0': blob})
    with zipfile.ZipFile(path, 'a') as archive:
        for info in infos:
            info.header_offset += archive.start_dir
            archive.filelist.append(info)
        archive._didModify = True
    message = refusal(path)
    assert 'overlap' in message or 'damaged' in message


def long_use(kind, made, length):
    """A list or tuple of `length` values that 10,000 calls are given in turn."""
    calls = known(made) + b'h\x07' + (b'\x85' if kind == b'e' else b'') + b'R0'
    return (b'](' if kind == b'e' else b'(') + b'N' * length + kind + b'q\x07' + calls * 10_000


DEEP = b')' + b'2\x86' * 32  # ((), ()) of itself, again and again: its hash takes 2^32 steps
BOMBS = {
    'memo': b'K\x01r' + struct.pack('<I', 0xFFFFFFF0),
    'byte array': b'\x96' + struct.pack('<Q', 1 << 45),
    'bytes': b'\x8e' + struct.pack('<Q', 1 << 45),
    'text': b'\x8d' + struct.pack('<Q', 1 << 45),
    'frame': b'\x95' + struct.pack('<Q', 1 << 45),
    'number': b'\x8b' + struct.pack('<i', (1 << 31) - 1),
    'digits': b'L' + b'9' * 100_000 + b'L\n',
    'deep': DEEP,
    'deep key': b'}' + DEEP + b'K\x01s',
    'deep key of many': b'}(' + DEEP + b'K\x01u',
    'deep key of a mark': b'(' + DEEP + b'K\x01d',
    'deep in a set': b'\x8f(' + DEEP + b'\x90',
    'deep in a frozen set': b'(' + DEEP + b'\x91',
    'deep in a call': known('collections.Counter') + DEEP + b'\x85R',
    'deep key of a pair': known('collections.OrderedDict') + b'](](' + DEEP + b'K\x01ee\x85R',
    'deep storage': op(('storage', known('torch.FloatStorage'), Code(DEEP), 'cpu', 6)) + b'Q',
    'one list in many': long_use(b'e', 'collections.OrderedDict', 1 << 16),
    'one tuple in many': long_use(b't', 'builtins.set', 1 << 20),
}


@pytest.mark.parametrize('name', BOMBS)
@pytest.mark.parametrize('place', ['zip', 'legacy', 'keys'])
def test_bombs_take_neither_memory_nor_time(path, name, place):
    root = {'w': tensor(), 'x': Code(BOMBS[name])}
    if place == 'zip':
        write_zip(path, root)
    else:
        write_legacy(path, *([root] if place == 'legacy' else [{'w': tensor()}, None, True, [Code(BOMBS[name])]]))
    began = time.process_time()  # not the clock: other work may run beside the tests
    tracemalloc.start()
    try:
        if place == 'keys':
            refusal(path)
        else:
            with contextlib.suppress(InputError):  # some are harmless, once they are read with care
                assert list(read_tensors(path)) == ['w']
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10  # a bomb's would be hours


def test_more_structure_than_weights_need_is_refused(path):
    much = Code(b'](' + b'N' * torch_pickle.MAX_BYTES + b'e')
    write_zip(path, {'w': tensor(), 'x': much})
    assert 'more than weights need' in refusal(path)
    write_legacy(path, {'w': tensor(), 'x': much})
    assert 'more than weights need' in refusal(path)
