"""Weight files are read to the last bit without torch; a damaged or malicious file ends in one sentence and runs nothing."""

import contextlib
import copyreg
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from asen_jax.errors import InputError
from asen_jax.weights.tensor_files import MAGIC, MAX_PICKLE_BYTES, read_tensors
from tests.conftest import ROOT

GOLDEN = ROOT / 'tests/golden/torch'  # written by PyTorch itself: see write.py there
SMALL = {'zip': GOLDEN / 'small_zip.pth', 'legacy': GOLDEN / 'small_legacy.pth'}
BASE = np.arange(30, dtype=np.float32).reshape(6, 5) - 7
STATE_DICT = {
    'base': BASE,
    'transposed': BASE.T,
    'every_second': BASE[1:4, ::2],
    'row': BASE[2],
    'repeated': np.ones(4, np.float32),
    'number': np.array(3),
    'empty': np.zeros((0, 4), np.float32),
    'flags': np.array([True, False]),
    'half': BASE.astype(np.float16),
    'brain': BASE,
    'double': BASE.astype(np.float64),
    'bytes': np.arange(3, dtype=np.uint8),
    'unsigned': np.array([1, 65535], np.uint16),
    'complex': BASE[:, 0] + 1j * BASE[:, 1],
    'parameter': BASE[:2],
}


def bits(arrays):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def refusal(path):
    """The sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f'{path} ') and message.endswith('.') and message.isprintable() and ';' in message
    return message


def repack(path, changes, compression=zipfile.ZIP_STORED):
    """A copy of the small zip file at `path`, in which `changes` maps the names of parts to their new content."""
    with zipfile.ZipFile(SMALL['zip']) as source, zipfile.ZipFile(path, 'w', compression) as target:
        parts = {name.partition('/')[2]: source.read(name) for name in source.namelist()} | changes
        for name, content in parts.items():
            target.writestr(f'archive/{name}', content)
    return path


def small_pickle():
    with zipfile.ZipFile(SMALL['zip']) as archive:
        return archive.read('small_zip/data.pkl')


def patched(kind, path, *replacements):
    """A copy of a small file at `path` with other opcodes in its pickle."""
    content = small_pickle() if kind == 'zip' else SMALL['legacy'].read_bytes()
    for old, new in replacements:
        assert content.count(old) == 1
        content = content.replace(old, new)
    if kind == 'zip':
        return repack(path, {'data.pkl': content})
    path.write_bytes(content)
    return path


def with_object(kind, path, opcodes):
    """A copy of a small file whose checkpoint also has the object that `opcodes` build."""
    return patched(kind, path, (text('state_dict'), text('other') + opcodes + b's' + text('state_dict')))


def text(content):
    return b'X' + struct.pack('<I', len(content.encode())) + content.encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.pth'


@pytest.fixture(params=['zip', 'legacy'])
def kind(request):
    return request.param


@pytest.mark.parametrize('name', ['zip.pth.tar', 'zip_protocol4.pth', 'legacy.pth.tar', 'legacy_protocol5.pth'])
def test_files_of_pytorch_are_read_bit_by_bit(name):
    arrays = read_tensors(GOLDEN / name)
    assert bits(arrays) == bits(STATE_DICT)
    assert np.shares_memory(arrays['base'], arrays['row'])


def test_offsets_strides_and_byte_order(kind, path):
    numbers = np.arange(200, dtype=np.float32)
    expected = {'w': numbers[17:182].reshape(11, 15)[:, :13]}
    assert bits(read_tensors(SMALL[kind])) == bits(expected)
    if kind == 'zip':
        repack(path, {'byteorder': b'big', 'data/0': numbers.astype('>f4').tobytes()})
        assert bits(read_tensors(path)) == bits(expected)


def test_python_2_wrote_items_as_a_list_and_strings_of_any_bytes(kind, path):
    list_of_pairs = (b')Rq\x03', b'](]('), (b'Rq\x0fss.', b'Rq\x0fee\x85Rs.')
    patched(
        kind, path, *list_of_pairs, (text('state_dict'), text('best') + b'U\x04\xff\xfe\x80\x81s' + text('state_dict'))
    )
    assert bits(read_tensors(path)) == bits(read_tensors(SMALL[kind]))


def test_a_storage_of_the_old_format_can_be_a_view(path):
    view = b'K\xc8(X\x01\x00\x00\x00vK\x05K%cttq\nQ'
    patched('legacy', path, (b'K\xc8Ntq\nQ', view.replace(b'%c', b'\xb4')))
    assert read_tensors(path)['w'][0, 0] == 17 + 5
    patched('legacy', path, (b'K\xc8Ntq\nQ', view.replace(b'%c', b'\xb3')))
    assert "'w', which extends beyond its storage" in refusal(path)
    patched('legacy', path, (b'K\xc8Ntq\nQ', view.replace(b'%c', b'\xc4')))
    assert 'in a way that PyTorch never does' in refusal(path)


LARGE = b'\x8a\x06\x00\x00\x00\x00\x00\x01'  # 2^40
OFFSET, SIZE, STRIDE, COUNT = b'K\x11', b'K\x0bK\r\x86', b'K\x0fK\x01\x86', b'K\xc8'


LIES = [
    [(OFFSET, b'K\x26')],
    [(OFFSET, b'J\xff\xff\xff\xff')],
    [(OFFSET, b'N')],
    [(SIZE, b'K\x0dK\r\x86')],
    [(SIZE, b'K\x0b\x85')],
    [(SIZE, b'N')],
    [(SIZE, b'G?\xf0\x00\x00\x00\x00\x00\x00K\r\x86')],
    [(SIZE, b'K\x00' + LARGE + LARGE + b'\x87'), (STRIDE, b'K\x00K\x00K\x00\x87')],
    [(SIZE, LARGE + b'K\r\x86'), (STRIDE, b'K\x00K\x01\x86')],
    [(STRIDE, LARGE + b'K\x01\x86')],
    [(STRIDE, b'J\xff\xff\xff\xffK\x01\x86')],
    [(COUNT, LARGE), (OFFSET, b'M\x00\x04')],
    [(b'storageq', b'modulesq')],
    [(b'FloatStorage', b'DoubleStorage')],
    [(b'(' + text('storage'), b'(K\x01' + text('storage'))],
]


@pytest.mark.parametrize('replacements', LIES)
def test_sizes_that_lie_are_refused(kind, path, replacements):
    tracemalloc.start()
    try:
        refusal(patched(kind, path, *replacements))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def attacks(marker):
    """Opcodes that run code when pickle itself reads them, and the name that has to be refused."""
    touch = text(f'touch {marker}')
    popen = b'csubprocess\nPopen\n'
    arguments = b']' + text('touch') + b'a' + text(str(marker)) + b'a'
    namespace = b'cargparse\nNamespace\n)\x81'
    return {
        'reduce': (b'cos\nsystem\n' + touch + b'\x85R', 'os.system'),
        'stack global': (text('posix') + text('system') + b'\x93' + touch + b'\x85R', 'posix.system'),
        'eval': (b'cbuiltins\neval\n' + text(f'open({str(marker)!r}, "w")') + b'\x85R', 'builtins.eval'),
        'instance': (b'(' + touch + b'ios\nsystem\n', 'os.system'),
        'object': (b'(cos\nsystem\n' + touch + b'o', 'os.system'),
        'new object': (popen + arguments + b'\x85\x81', 'subprocess.Popen'),
        'build': (namespace + b'}' + text('__setstate__') + b'cos\nsystem\nsb' + touch + b'b', 'os.system'),
        'torch': (b'ctorch.hub\nload\n' + text('owner/repository') + b'\x85R', 'torch.hub.load'),
        'submodule': (text('torch') + text('_utils.os.system') + b'\x93' + touch + b'\x85R', 'torch._utils.os.system'),
        'terminal': (text('os\n\x1b[2J') + text('x' * 9999) + b'\x93', 'os??[2J.xxx'),
    }


@pytest.mark.parametrize('name', attacks(''))
@pytest.mark.parametrize('place', ['zip', 'legacy', 'first pickle', 'keys', 'size', 'storage'])
def test_no_code_in_a_file_runs(path, name, place):
    marker = path.parent / 'ran'
    opcodes, refused = attacks(marker)[name]
    if name in ('reduce', 'stack global', 'instance', 'object', 'build'):  # the attack itself works
        pickle.loads(b'\x80\x02' + opcodes + b'.')
        marker.unlink()
    if place == 'first pickle':
        path.write_bytes(b'\x80\x02' + opcodes + b'.')
    elif place == 'keys':
        patched('legacy', path, (b'\x80\x02]q\x00', b'\x80\x02' + opcodes + b']q\x00'))
    elif place == 'size':
        patched('zip', path, (SIZE, opcodes))
    elif place == 'storage':
        patched('zip', path, (COUNT, opcodes))
    else:
        with_object(place, path, opcodes)
    message = refusal(path)
    assert f'asks for {refused}' in message and 'may be malicious and was not read' in message and len(message) < 600
    assert not marker.exists()


STAND_INS = [
    b'argparse\nNamespace\n',
    b'collections\nOrderedDict\n',
    b'torch\nSize\n',
    b'torch._utils\n_rebuild_tensor_v2\n',
]


@pytest.mark.parametrize('stand_in', STAND_INS)
@pytest.mark.parametrize('made', [b'', b')\x81'])
def test_a_file_sets_no_attribute_that_outlives_it(path, stand_in, made):
    state = b'}' + b''.join(text(name) + b'K\x01s' for name in ('__init__', '__new__', 'items', 'dtype'))
    with contextlib.suppress(InputError):
        read_tensors(with_object('zip', path, b'c' + stand_in + made + b'N' + state + b'\x86b'))
    assert bits(read_tensors(GOLDEN / 'zip.pth.tar')) == bits(STATE_DICT)


def test_extensions_registered_in_this_process_are_out_of_reach(kind, path):
    """The C implementation does not ask find_class for an extension that it has cached."""
    copyreg.add_extension('argparse', 'Namespace', 0x7F)
    try:
        pickle.loads(b'\x80\x02\x82\x7f.')
        assert 'damaged' in refusal(with_object(kind, path, b'\x82\x7f'))
    finally:
        copyreg.remove_extension('argparse', 'Namespace', 0x7F)
        copyreg.clear_extension_cache()


LONG_LIST = b'](' + b''.join(b'](M' + struct.pack('<H', number) + b'Ne' for number in range(5000)) + b'eq\x07'
BOMBS = {
    'memo': b'K\x01r' + struct.pack('<I', 0xFFFFFFF0),
    'byte array': b'\x96' + struct.pack('<Q', 1 << 45),
    'bytes': b'\x8e' + struct.pack('<Q', 1 << 45),
    'text': b'\x8d' + struct.pack('<Q', 1 << 45),
    'integer': b'\x8b' + struct.pack('<i', (1 << 31) - 1),
    'one list in many': LONG_LIST + b'0(' + b'ccollections\nOrderedDict\nh\x07\x85R' * 300 + b't',
}


@pytest.mark.parametrize('opcodes', BOMBS.values(), ids=BOMBS)
def test_a_few_bytes_do_not_fill_the_memory(kind, path, opcodes):
    with_object(kind, path, opcodes)
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_more_structure_than_weights_need_is_refused(kind, path):
    with_object(kind, path, b'X' + struct.pack('<I', MAX_PICKLE_BYTES) + bytes(MAX_PICKLE_BYTES))
    assert 'more structure than weights need' in refusal(path)


@pytest.fixture(params=[*SMALL, 'safetensors'])
def whole(request, tmp_path):
    """The bytes of an undamaged file."""
    if request.param in SMALL:
        return SMALL[request.param].read_bytes()
    return safetensors.numpy.save({'w': np.arange(200, dtype=np.float32), 'n': np.array(3)})


def test_a_file_cut_anywhere_is_refused(whole, path):
    for length in sorted({*range(0, len(whole), 19), *range(64), *range(len(whole) - 64, len(whole))}):
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_flipped_bit_raises_nothing_but_input_error(whole, path):
    for place in range(0, len(whole), 5):
        for mask in (1, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with contextlib.suppress(InputError):
                read_tensors(path)


def test_a_wrong_checksum_is_noticed(path):
    number = np.float32(123).tobytes()
    path.write_bytes(SMALL['zip'].read_bytes().replace(number, np.float32(124).tobytes()))
    assert 'is damaged or cut short' in refusal(path)


OTHER_FILES = {
    b'': 'is empty',
    b'\n <!DOCTYPE html><html>': 'is a web page',
    b'version https://git-lfs.github.com/spec/v1\noid': 'git lfs pull',
    b'\x1f\x8b\x08': 'unpack an archive',
    b'\x80': 'damaged or cut short',
    b'PK\x03\x04' + bytes(600): 'damaged or cut short',
    pickle.dumps({'w': 1}, 2): 'PyTorch did not write it',
    pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2): 'PyTorch did not write it',
}


@pytest.mark.parametrize('content', OTHER_FILES)
def test_other_files_are_recognized(path, content):
    path.write_bytes(content)
    assert OTHER_FILES[content] in refusal(path)


def test_other_archives_are_recognized(path, tmp_path):
    assert 'is missing; name a .pth' in refusal(tmp_path / 'none.pth')
    assert 'is not a file; name a .pth' in refusal(tmp_path)
    assert 'TorchScript archive' in refusal(repack(path, {'constants.pkl': b''}))
    assert 'is compressed' in refusal(repack(path, {}, zipfile.ZIP_DEFLATED))
    assert 'cut short' in refusal(repack(path, {'data/0': bytes(400)}))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('folder/weights.pth', b'')
    assert "without PyTorch's data.pkl" in refusal(path)


def test_a_checkpoint_without_tensors_says_what_it_has(path):
    roots = [
        (3, 'no names'),
        ([], 'no names'),
        ({'state_dict': {}}, "'state_dict'"),
        ({'net': {'w': 1}, 4: 5}, "'net'"),
    ]
    for root, names in roots:
        message = refusal(repack(path, {'data.pkl': pickle.dumps(root, 2)}))
        assert f"holds no tensors under 'state_dict' or at its top level (which has {names})" in message


def test_a_conjugated_view_is_refused(kind, path):
    patched(kind, path, (b'tq\x0eR', b'}' + text('conj') + b'\x88stq\x0eR'))
    assert '.resolve_conj()' in refusal(path)


def write_safetensors(path, **entry):
    header = {'w': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4], **entry}}
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(content)) + content + b'\x80\x3f\xc1\x7f')
    return path


def test_safetensors(path):
    arrays = {name: np.asarray(array, order='C') for name, array in STATE_DICT.items() if name != 'complex'}
    safetensors.numpy.save_file(arrays, path, {'format': 'pt'})
    assert bits(read_tensors(path)) == bits(arrays)
    brain = read_tensors(write_safetensors(path, dtype='BF16', shape=[2]))['w']
    assert brain.dtype == np.float32 and brain.view(np.uint32).tolist() == [0x3F800000, 0x7FC10000]
    assert "'w' in F8_E4M3, which is not supported" in refusal(write_safetensors(path, dtype='F8_E4M3', shape=[4]))


@pytest.mark.parametrize('entry', [{'data_offsets': [0, 400]}, {'shape': [2**40, 2**40]}, {'dtype': 'F9'}])
def test_a_safetensors_header_that_lies_is_refused(path, entry):
    assert 'is damaged' in refusal(write_safetensors(path, **entry))
