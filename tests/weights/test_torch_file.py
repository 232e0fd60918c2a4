"""Weight files of PyTorch are written, and read to the last bit, without torch."""

import collections
import io
import math
import pickle
import struct
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from asen_jax.errors import InputError
from asen_jax.weights import torch_pickle
from asen_jax.weights.tensor_files import read_tensors, write_state_dict
from tests.weights.torch_files import (
    SIX,
    WHOLE,
    Code,
    bits,
    call,
    known,
    odd_tensors,
    op,
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


# --- what is written is read


def test_a_round_trip_keeps_every_bit(path):
    tensors = odd_tensors()
    write_state_dict(path, tensors, {'epoch': 3})
    tensors['swapped'] = tensors['swapped'].astype('<f4')
    assert bits(read_tensors(path)) == bits(tensors)
    assert list(path.parent.iterdir()) == [path]


def test_what_is_written_is_laid_out_as_pytorch_does(path):
    extra = {'epoch': 3, 'far': 2**40, 'best': np.float64(0.5), 'name': 'ä', 'done': True}
    write_state_dict(path, odd_tensors(), extra)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[0] == 'archive/data.pkl'
        assert archive.read('archive/byteorder') == b'little' and archive.read('archive/version') == b'3\n'
        root = torch_pickle.Unpickler(io.BytesIO(archive.read('archive/data.pkl'))).load()
        names = pickle.loads(pickled([name for name in archive.namelist() if '/data/' in name]))
        for name in names:
            archive.fp.seek(archive.getinfo(name).header_offset)
            header = archive.fp.read(30)
            assert (archive.fp.tell() + sum(struct.unpack('<HH', header[26:]))) % 64 == 0
    assert names == [f'archive/data/{key}' for key in range(len(odd_tensors()))]
    assert {key: value for key, value in root.items() if key != 'state_dict'} == extra
    assert root['state_dict']['turned'][1:4] == (0, (3, 2), (2, 1)) and root['state_dict']['none'].stride == (3, 1)


def test_a_file_is_written_whole_or_not_at_all(path, monkeypatch):
    write_state_dict(path, {'kept': np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="'odd' is uint16"):
        write_state_dict(path, {'odd': np.ones(2, np.uint16)})

    def full(*_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, 'writestr', full)
        with pytest.raises(InputError, match=f'{path} cannot be written .No space'):
            write_state_dict(path, {'new': np.ones(2, np.float32)})
    assert list(read_tensors(path)) == ['kept'] and list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match='cannot be written'):
        write_state_dict(path.parent / 'none' / 'w.pth', {'new': np.ones(2, np.float32)})


# --- what PyTorch writes is read


@pytest.mark.parametrize('under', ['state_dict', 'model', 'model_state_dict', None])
def test_the_state_dict_is_found_beside_anything(write, under):
    beside = {
        'epoch': 3, 'best': call('numpy.core.multiarray.scalar', call('numpy.dtype', 'f8'), b'12345678'), 'log': [1.5, 'x'],
        'args': Code(known('argparse.Namespace') + b')\x81' + op({'lr': 0.1}) + b'b'), 'kept': call('builtins.set', [1, 2]),
        'optimizer': {'state': {0: {'exp_avg': tensor(), 'step': 1}}, 'param_groups': [{'params': [0]}]}, 7: (1, (2, 3)),
    }  # fmt: skip
    state = {'w': tensor(), '_metadata': {'version': 1}, 'count': 4}
    root = write({**beside, under: state} if under else {**beside, **state})
    np.testing.assert_array_equal(read_tensors(root).pop('w'), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert list(read_tensors(root)) == ['w']


@pytest.mark.parametrize(
    'kind, name', [(kind, name) for kind, name in torch_pickle.STORAGES.items() if name != 'bfloat16']
)
def test_each_type_of_number_keeps_its_bits(write, kind, name):
    raw = np.random.default_rng(0).integers(0, 256, 6 * np.dtype(name).itemsize, np.uint8)
    raw[:3] = 0, 1, 2
    read = read_tensors(write({'w': tensor(storage(kind))}, k0=(6, raw.tobytes())))
    assert bits(read) == bits({'w': (raw != 0 if name == 'bool' else raw.view(name)).reshape(2, 3)})


def test_bfloat16_becomes_the_float32_of_the_same_value(write):
    upper = np.array([0x3F80, 0xBFC0, 0x8000, 0x7F80, 0x7FC1, 0x0001], '<u2')  # 1, -1.5, -0, inf, a NaN, the smallest
    read = read_tensors(
        write({'w': tensor(storage('BFloat16Storage'), size=(6,), stride=(1,))}, k0=(6, upper.tobytes()))
    )
    assert read['w'].dtype == np.float32 and read['w'][:4].tolist() == [1, -1.5, 0, math.inf]
    np.testing.assert_array_equal(read['w'].view(np.uint32), upper.astype(np.uint32) << 16)


def test_strides_offsets_and_shared_storages(write):
    read = read_tensors(
        write({
            'whole': tensor(), 'turned': tensor(size=(3, 2), stride=(1, 3)), 'part': tensor(offset=1, size=(2,), stride=(3,)),
            'row': tensor(offset=3, size=(3,), stride=(1,)), 'one': tensor(offset=5, size=(), stride=()),
            'repeated': tensor(offset=2, size=(2, 2), stride=(0, 1)), 'none': tensor(size=(0, 4), stride=(4, 1)),
            'wide': tensor(offset=4, size=(1, 2), stride=(2**40, 1)),
        })
    )  # fmt: skip
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {
        'whole': whole, 'turned': whole.T, 'part': whole[:, 1], 'row': whole[1], 'one': whole[1, 2],
        'repeated': np.array([[2, 3], [2, 3]], np.float32), 'none': np.zeros((0, 4), np.float32), 'wide': whole[1:, 1:],
    }  # fmt: skip
    assert bits(read) == bits(expected)
    assert all(array.flags.c_contiguous and array.flags.writeable for array in read.values())
    assert np.shares_memory(read['whole'], read['row']) and not np.shares_memory(read['whole'], read['turned'])


def test_every_way_to_rebuild_a_tensor(write):
    hooks, size = call('collections.OrderedDict'), call('torch.Size', (2, 3))
    untyped = Code(op(('storage', known('torch.storage.UntypedStorage'), '0', 'cpu', 24)) + b'Q')
    v3 = call('torch._utils._rebuild_tensor_v3', untyped, 4, (2,), (1,), False, hooks, known('torch.uint16'))
    state = {
        'parameter': call('torch._utils._rebuild_parameter', tensor(), True, hooks),
        'old': call('torch._utils._rebuild_tensor', storage(), 0, size, (3, 1)),
        'v3': v3,
    }
    read = read_tensors(write(state))
    assert read['parameter'].tolist() == read['old'].tolist() == WHOLE
    assert read['v3'].dtype == np.uint16 and read['v3'].tobytes() == SIX[8:12]


def test_a_checkpoint_of_python_2(path):
    """It pickled an OrderedDict with its items, and numpy's scalars as bytes of no encoding."""
    state = Code(known('collections.OrderedDict') + op(([['w', tensor()], ['b', tensor()]],)) + b'R')
    scalar = call('numpy.core.multiarray.scalar', call('numpy.dtype', 'f8'), Code(b'U\x04\xff\xfe\x80\x81'))
    assert list(read_tensors(write_legacy(path, {'best': scalar, 'state_dict': state}))) == ['w', 'b']


def test_byte_orders(path):
    """The zip format tells its own; the old one was little-endian on every machine, whatever its header tells."""
    big = np.arange(6, dtype='>f4').tobytes()
    half = np.array([0x3F80, 0xBFC0], '>u2').tobytes()
    state = {'w': tensor(), 'half': tensor(storage('BFloat16Storage', '1', 2), size=(2,), stride=(1,))}
    read = read_tensors(write_zip(path, state, {'0': big, '1': half}, byteorder=b'big'))
    assert read['w'].dtype == np.float32 and read['w'].tolist() == WHOLE
    assert read['half'].tolist() == [1, -1.5]
    assert read_tensors(write_legacy(path, {'w': tensor()}, little_endian=False))['w'].tolist() == WHOLE


@pytest.mark.parametrize('folder', ['archive/', 'résnet 50/', ''])
@pytest.mark.parametrize('name', ['weights.pt', 'weights', 'weights.safetensors'])
def test_neither_folder_nor_suffix_matters(tmp_path, folder, name):
    assert list(read_tensors(write_zip(tmp_path / name, {'w': tensor()}, folder=folder, byteorder=b'little'))) == ['w']


def test_views_of_the_old_format(path):
    view = storage('FloatStorage', 'a', 6, ('b', 2, 3))
    assert read_tensors(write_legacy(path, {'w': tensor(view, 1, (2,), (1,))}, {'a': (6, SIX)}))['w'].tolist() == [3, 4]
    write_legacy(path, {'w': tensor(view, 1, (3,), (1,))}, {'a': (6, SIX)})
    assert "'w' reach beyond its storage's 3 numbers" in refusal(path)
    write_legacy(path, {'w': tensor(storage('FloatStorage', 'a', 6, ('b', 4, 3)))}, {'a': (6, SIX)})
    assert 'a view that reaches beyond' in refusal(path)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_protocol_of_pickle(path, protocol):
    """The structure without its tensor, as pickle writes it; the tensor's opcodes are put in for a mark."""
    sets = {'s': {1, 2}, 'f': frozenset({1, 2}), 'both': [frozenset()] * 2}
    beside = {**sets, 'b': bytearray(b'xy'), 'c': b'', 'n': Namespace(a=1), 'd': np.arange(3), 'z': None, 'j': 1j}
    mark, stream = 0x1234567, io.BytesIO()
    pickler = pickle._Pickler(stream, protocol)  # the one in Python: it can be kept from counting bytes in frames
    pickler.framer.start_framing = lambda: None
    pickler.dump({**beside, 'state_dict': {'w': mark}, **beside})
    root = stream.getvalue().replace(pickle.dumps(mark, 2)[2:-1], tensor())
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', root)
        archive.writestr('a/data/0', SIX)
    assert read_tensors(path)['w'].tolist() == WHOLE


# --- PyTorch itself, where it is installed


def torch_checkpoint(torch):
    """A checkpoint with what training scripts save, and its state dict's arrays."""
    base = torch.arange(30.0).reshape(6, 5) - 7
    state = collections.OrderedDict(
        base=base, turned=base.T, part=base[1:4, ::2], row=base[2], one=torch.tensor(3), none=torch.zeros(0, 4),
        flags=torch.tensor([True, False]), half=base.half(), brain=base.bfloat16(), double=base.double(),
        parameter=torch.nn.Parameter(base[:2]), bytes=torch.arange(3, dtype=torch.uint8), repeated=torch.ones(1).expand(4),
        unsigned=torch.tensor([1, 65535], dtype=torch.uint16), complex=torch.view_as_complex(base[:, :2].contiguous()),
    )  # fmt: skip
    state._metadata = {'': {'version': 1}}
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    beside = {
        'epoch': 3, 'best': np.float64(0.5), 'args': Namespace(a=1, path=Path('x')), 'optimizer': optimizer.state_dict(),
        'scheduler': scheduler.state_dict(), 'numpy': np.random.default_rng(0).bit_generator.state, 'seen': {1, 2},
        'log': [1.0, 'x', b'', b'\xff', 1j], 'table': np.arange(4), 'rng': torch.get_rng_state(), 'size': torch.Size([2]),
        'device': torch.device('cpu'), 'dtype': torch.float32, 'counts': collections.defaultdict(list, {'a': [1]}),
    }  # fmt: skip
    expected = {name: value.detach() for name, value in state.items()}
    expected['brain'] = expected['brain'].float()
    return {**beside, 'state_dict': state}, {name: value.numpy() for name, value in expected.items()}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('as_zip', [True, False])
def test_what_pytorch_saves_is_read(path, protocol, as_zip):
    torch = pytest.importorskip('torch')
    checkpoint, expected = torch_checkpoint(torch)
    for root in (checkpoint, checkpoint['state_dict']):
        torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
        assert bits(read_tensors(path)) == bits(expected)


@pytest.mark.parametrize(
    'options', [{'weights_only': True}, {'weights_only': False}, {'weights_only': True, 'mmap': True}]
)
def test_what_is_written_pytorch_loads(path, options):
    torch = pytest.importorskip('torch')
    tensors = odd_tensors()
    write_state_dict(path, tensors, {'epoch': 3, 'best': 0.5, 'name': 'ä', 'far': 2**40, 'done': False})
    loaded = torch.load(path, **options)
    state = loaded.pop('state_dict')
    assert loaded == {'epoch': 3, 'best': 0.5, 'name': 'ä', 'far': 2**40, 'done': False}
    tensors['swapped'] = tensors['swapped'].astype('<f4')
    assert type(state) is collections.OrderedDict and bits(
        {name: value.numpy() for name, value in state.items()}
    ) == bits(tensors)
    assert all(value.is_contiguous() and not value.requires_grad for value in state.values())


def test_a_module_of_pytorch_takes_what_is_written(path):
    torch = pytest.importorskip('torch')
    made, other = (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)) for _ in range(2))
    write_state_dict(path, {name: value.numpy() for name, value in made.state_dict().items()})
    other.load_state_dict(torch.load(path, weights_only=True)['state_dict'], strict=True)
    for name, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
