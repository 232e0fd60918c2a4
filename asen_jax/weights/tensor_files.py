"""Weight files of PyTorch (.pth, .pt, .pth.tar) and .safetensors, read and written without torch; no code of them runs."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

from asen_jax.errors import InputError
from asen_jax.weights.torch_pickle import (
    MAX_BYTES,
    MAX_COUNT,
    STORAGES,
    Dtype,
    RefusedError,
    Scalar,
    Storage,
    Tensor,
    Unpickler,
    is_count,
    pickle_state_dict,
    shown,
)

UNDER = ('state_dict', 'model_state_dict', 'model')  # where checkpoints keep the state dict, beside other things
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # at the head of files from before PyTorch 1.6
MAX_DIMS = 64  # numpy's
ALIGNMENT = 64  # of each storage in a file that we write, as PyTorch's
CHUNK = 1 << 20
AGAIN = 'download it again'  # the remedies
OURS = 'convert it to float32 with PyTorch and save its state_dict()'
SAFETENSORS = {
    'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'BOOL': 'bool',
    'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8',
    'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16', 'U8': 'uint8',
}  # fmt: skip

Read = Callable[[str], np.ndarray]  # a storage's key -> its bytes


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The state dict in `path`, told by content: PyTorch's zip, its format before 1.6, or safetensors; bfloat16 becomes float32.

    Raises InputError, naming the file and the remedy, where it is none, is damaged, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        kind = 'is no file' if path.exists() else 'is missing'
        raise InputError(f'{path} {kind}; name a .pth, .pt, .pth.tar or .safetensors file.')
    try:
        with path.open('rb') as file:
            return _read(file, file.seek(0, io.SEEK_END))
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error.strerror}); check its permissions and its disk.') from error
    except RefusedError as error:
        raise InputError(f'{path} {error}.') from error
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes zipfile and pickle raise anything, struct.error and KeyError among it
        raise InputError(f'{path} is damaged or cut short ({type(error).__name__}); {AGAIN}.') from error


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    if head.startswith(b'PK\x03\x04'):
        return _read_zip(file, size)
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= size:
        return _read_safetensors(file)
    if head.startswith(b'\x80'):
        return _read_legacy(file, size)
    if not head:
        raise RefusedError(f'is empty; {AGAIN}')
    if head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'):
        raise RefusedError(f'is a web page, not weights: the server answered with a message; {AGAIN}, in a browser')
    if head.startswith(b'version https://git-lfs'):
        raise RefusedError('is a pointer of Git LFS, not weights; fetch the file with git lfs pull')
    raise RefusedError(
        f'is neither of PyTorch nor safetensors, or is damaged; {AGAIN}, and unpack it if it is an archive'
    )


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    entries, arrays = dict(safetensors.deserialize(file.read())), {}
    for name in sorted(entries):
        entry = entries.pop(name)  # so that its bytes can go once they are converted
        if entry['dtype'] not in SAFETENSORS:
            raise RefusedError(f'has {shown(name)!r} in {entry["dtype"]}, which is not read; {OURS}')
        dtype = SAFETENSORS[entry['dtype']]
        raw = np.frombuffer(entry['data'], _stored(dtype)).reshape(entry['shape'])
        arrays[name] = _native(raw, dtype)
    return arrays


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            raise RefusedError(
                'is a TorchScript archive, a program with its weights; load it with torch.jit.load and save its state_dict()'
            )
        pickles = [name for name in names if re.fullmatch(r'([^/]*/)?data\.pkl', name)]
        if len(pickles) != 1:
            raise RefusedError("is a zip archive without PyTorch's data.pkl; unpack it and name the weights inside")
        folder = pickles[0].removesuffix('data.pkl')
        unpickler = Unpickler(io.BytesIO(_read_entry(archive, pickles[0], size, at_most=MAX_BYTES).tobytes()))
        order = '<'
        if folder + 'byteorder' in names:
            order = '>' if _read_entry(archive, folder + 'byteorder', size, at_most=16).tobytes() == b'big' else '<'

        def read(key: str) -> np.ndarray:
            return _read_entry(archive, f'{folder}data/{key}', size)

        return _arrays(_state_dict(unpickler.load()), read, size, order)


def _read_entry(archive: zipfile.ZipFile, name: str, size: int, at_most: int | None = None) -> np.ndarray:
    """The bytes of an entry, with its checksum checked; no memory is taken before the file is known to hold them."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise RefusedError(f'lacks its part {shown(name)!r}; {AGAIN}') from None
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise RefusedError('is compressed inside, as PyTorch never does; unpack it and name the weights in it')
    if info.header_offset + info.compress_size > size:
        raise RefusedError(f'is too short for its part {shown(name)!r}; {AGAIN}')
    if at_most is not None and info.file_size > at_most:
        raise RefusedError(f'has {info.file_size:,} bytes in its part {shown(name)!r}, more than weights need; {OURS}')
    data = np.empty(info.file_size, np.uint8)
    with archive.open(info) as entry:
        for start in range(0, info.file_size, CHUNK):
            data[start : start + CHUNK] = np.frombuffer(entry.read(CHUNK), np.uint8)
    return data


def _read_legacy(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    stream = io.BytesIO(file.read(MAX_BYTES))  # in memory, where a length that lies cannot make a read allocate it
    try:
        if Unpickler(stream).load() != MAGIC or Unpickler(stream).load() != PROTOCOL:
            raise RefusedError('is a pickle, but not of PyTorch; load it with what wrote it and save a state_dict()')
        Unpickler(
            stream
        ).load()  # sys_info; PyTorch ignores its little_endian too: it wrote little-endian on any machine
        unpickler = Unpickler(stream)
        root, keys = unpickler.load(), Unpickler(stream).load()
    except EOFError:
        if size > MAX_BYTES:
            raise RefusedError(f'has over {MAX_BYTES:,} bytes of structure, more than weights need; {OURS}') from None
        raise
    state, places = _state_dict(root), _places(file, keys, unpickler.storages, stream.tell(), size)

    def read(key: str) -> np.ndarray:
        if key not in places:
            raise RefusedError(f'lacks its part {shown(key)!r}; {AGAIN}')
        start, num_bytes = places[key]
        file.seek(start)
        return np.fromfile(file, np.uint8, num_bytes)

    return _arrays(state, read, size)


def _places(file: BinaryIO, keys: Any, storages: Mapping[str, Storage], place: int, size: int) -> dict[str, tuple]:
    """Where in the file each key's bytes begin, and how many there are: after its count, from `place` on."""
    places = {}
    for key in keys:
        if type(key) is not str or key not in storages:
            raise RefusedError(f'holds data that nothing in it names; {AGAIN}')
        num_bytes = storages[key].count * _stored(storages[key].dtype).itemsize
        file.seek(place)
        count = file.read(8)
        if len(count) < 8 or place + 8 + num_bytes > size:
            raise RefusedError(f'is cut short; {AGAIN}')
        if int.from_bytes(count, 'little') != storages[key].count:
            raise RefusedError(f'tells two sizes for one storage: it is damaged; {AGAIN}')
        places[key] = place + 8, num_bytes
        place += 8 + num_bytes
    return places


def _state_dict(root: Any) -> dict[str, Tensor]:
    """The tensors of the state dict that the file's object is, or has under one of UNDER."""
    if type(root) is dict:
        for held in (*(root.get(key) for key in UNDER), root):
            items = held.items() if type(held) is dict else ()
            tensors = {name: value for name, value in items if type(value) is Tensor}
            if tensors:
                return tensors
    keys = ', '.join(repr(shown(key)) for key in list(root)[:5]) if type(root) is dict and root else 'no names'
    raise RefusedError(
        f"holds no tensors under 'state_dict' nor at its top (which has {keys}); save a model's state_dict() with PyTorch"
    )


def _arrays(tensors: Mapping[str, Tensor], read: Read, size: int, order: str = '<') -> dict[str, np.ndarray]:
    """Each tensor from its storage; those that share one share memory. All of them are bounded by the file's `size`."""
    arrays, storages = {}, {}
    unread, room = size, 4 * size + CHUNK  # tied weights count twice; only a tensor that repeats itself passes this
    for name, tensor in tensors.items():
        dtype = _check(name, tensor)
        room -= math.prod(tensor.size) * np.dtype('float32' if dtype == 'bfloat16' else dtype).itemsize
        if room < 0:
            raise RefusedError(f'has only {size:,} bytes, but tensors over {4 * size:,}; save them with .contiguous()')
        key = tensor.storage.key
        if all(tensor.size) and key not in storages:
            storages[key] = read(key)
            unread -= len(storages[key])
            if unread < 0:
                raise RefusedError(f'has parts that overlap: it is damaged or malicious; {AGAIN}')
        arrays[name] = _array(name, tensor, dtype, storages.get(key), order)
    return arrays


def _check(name: str, tensor: Tensor) -> str:
    """What `tensor` holds; raises RefusedError where its sizes are none or reach beyond its storage."""
    storage, offset, size, stride, dtype = tensor
    parts = type(storage), type(size), type(stride), type(dtype)
    if parts not in ((Storage, tuple, tuple, type(None)), (Storage, tuple, tuple, Dtype)):
        raise RefusedError(f'has {shown(name)!r} without storage, size or stride; it is damaged or malicious')
    if len(size) != len(stride) or len(size) > MAX_DIMS or not all(map(is_count, (offset, *size, *stride))):
        raise RefusedError(f'has {shown(name)!r} with a size or stride that no tensor has; it is damaged or malicious')
    dtype = dtype.name if dtype else storage.dtype
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if all(size) else 0
    if reach * _stored(dtype).itemsize > storage.count * _stored(storage.dtype).itemsize:
        raise RefusedError(f"has {shown(name)!r} reach beyond its storage's {storage.count} numbers; {AGAIN}")
    if math.prod(length or 1 for length in size) >= MAX_COUNT:
        raise RefusedError(f'has {shown(name)!r} with a size that no tensor has; it is damaged or malicious')
    return dtype


def _array(name: str, tensor: Tensor, dtype: str, data: np.ndarray | None, order: str) -> np.ndarray:
    """`tensor` in memory order, from its storage's bytes (None for a tensor without elements)."""
    stored = _stored(dtype, order)
    if data is None:
        return _native(np.empty(tensor.size, stored), dtype)
    storage, step = tensor.storage, _stored(tensor.storage.dtype).itemsize
    if len(data) < (storage.start + storage.count) * step:
        raise RefusedError(f'has too few bytes for {shown(name)!r}: it is damaged; {AGAIN}')
    strides = [
        0 if length == 1 else one * stored.itemsize for length, one in zip(tensor.size, tensor.stride, strict=True)
    ]
    start = storage.start * step + tensor.offset * stored.itemsize
    return _native(np.ndarray(tensor.size, stored, data, start, strides), dtype)


def _stored(dtype: str, order: str = '<') -> np.dtype:
    """What numpy can read of PyTorch's `dtype`."""
    return np.dtype({'bfloat16': 'uint16', 'bool': 'uint8'}.get(dtype, dtype)).newbyteorder(order)


def _native(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == 'bfloat16':  # the upper half of a float32
        wide = raw.astype(np.uint32, order='C')
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    return np.asarray(raw, np.dtype(dtype), order='C')


def write_state_dict(path: Path, tensors: Mapping[str, np.ndarray], extra: Mapping[str, Scalar] = {}) -> None:
    """PyTorch's zip of {**extra, 'state_dict': tensors}, which torch.load(weights_only=True) reads; whole or not at all.

    Raises ValueError at an array of a type without PyTorch storage, and InputError where `path` cannot be written.
    """
    for name, array in tensors.items():
        if array.dtype.name not in STORAGES.values():
            raise ValueError(f'{name!r} is {array.dtype}; PyTorch has no storage of that type.')
    arrays = {name: np.asarray(array, array.dtype.newbyteorder('<')) for name, array in tensors.items()}
    pickled = pickle_state_dict({name: (array.dtype.name, array.shape) for name, array in arrays.items()}, extra)
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('wb') as file, zipfile.ZipFile(file, 'w') as archive:
            _add(file, archive, 'data.pkl', pickled)
            _add(file, archive, 'byteorder', b'little')
            for key, array in enumerate(arrays.values()):
                _add(file, archive, f'data/{key}', array.reshape(-1).view(np.uint8).data)  # in C order
            _add(file, archive, 'version', b'3\n')
        temporary.replace(path)
    except OSError as error:
        raise InputError(f'{path} cannot be written ({error.strerror}); name a folder with room for it.') from error
    finally:
        temporary.unlink(missing_ok=True)


def _add(file: BinaryIO, archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Store `data` on an aligned place, by a filler that PyTorch writes the same way: it can then be mapped into memory."""
    info = zipfile.ZipInfo(f'archive/{name}')
    before = file.tell() + 30 + len(info.filename) + 4  # a local header, the name, the filler's own header
    filler = -before % ALIGNMENT
    info.extra = struct.pack('<2sH', b'FB', filler) + b'Z' * filler
    archive.writestr(info, data)
