"""Read weights from PyTorch (.pth, .pt, .pth.tar) and .safetensors files without torch; no code in a file is ever run."""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from asen_jax.errors import InputError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles in a file from before PyTorch 1.6
MAX_PICKLE_BYTES = 16 << 20  # enough for 100,000 tensors
FLOATS = {'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16'}
COMPLEX = {'ComplexFloat': 'complex64', 'ComplexDouble': 'complex128'}
INTEGERS = {'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8', 'Bool': 'bool'}
STORAGES = {**FLOATS, **COMPLEX, **INTEGERS, 'Untyped': 'uint8'}
DTYPES = {name: np.dtype(name) for name in {*STORAGES.values(), 'uint16', 'uint32', 'uint64'} - {'bfloat16'}}
DTYPES['bfloat16'] = np.dtype(ml_dtypes.bfloat16)
SAFETENSORS = {f'{dtype.kind.upper()}{8 * dtype.itemsize}': dtype for dtype in DTYPES.values()}  # such as F32 and I64
SAFETENSORS |= {'BF16': DTYPES['bfloat16'], 'BOOL': DTYPES['bool']}
IGNORED = re.compile(  # what checkpoints hold beside weights
    r'argparse\.Namespace|collections\.(Counter|deque)|torch\.device|_codecs\.encode|pathlib\.(Posix|Windows)?Path'
    r'|numpy\.(dtype|ndarray|_?core\.(multiarray\.scalar|multiarray\._reconstruct|numeric\._frombuffer))'
    r'|(builtins|__builtin__)\.(object|set|frozenset|list|dict|bytes|bytearray|complex|slice|range)'
    r'|copy_?reg\._reconstructor'
)


class RefusedError(Exception):
    """A file that cannot be used; the message continues a sentence that starts with the file's name."""


class Ignored:
    """Takes the place of anything that is not a tensor.

    `__setstate__` keeps a pickle from setting attributes, of this class (where it is called as a function) or of an instance.
    """

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(*_: Any) -> None:
        pass

    append = extend = add = __setitem__ = __setstate__


class Unwrapped(Ignored):
    """Its first argument: the tensor of a Parameter, the tuple of a torch.Size."""

    def __new__(cls, value: Any, *_: Any) -> Any:
        return value


class Dict(dict):
    """Takes the place of an OrderedDict, which Python 2 pickled with a list of [key, value] pairs."""

    __setstate__ = Ignored.__setstate__

    def __init__(self, pairs: Any = None, *_: Any):
        if type(pairs) is list:
            super().__init__(pairs)
            pairs.clear()  # so that a malicious pickle cannot copy one long list many times


class Storage(NamedTuple):
    """`size` numbers, from number `start` of what the file stores under `key`."""

    dtype: str
    key: str
    start: int
    size: int


class Tensor(Ignored):
    """The arguments of torch._utils._rebuild_tensor_v2, or of _v3, which adds a dtype; unchecked."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride
        self.dtype = next((option for option in rest if type(option) is str), None)
        if any(type(option) is dict and option for option in rest[2:]):
            raise RefusedError('has a conjugated or negated view; save it with .resolve_conj().resolve_neg()')


STAND_INS = {
    **{f'torch.{kind}Storage': name for kind, name in STORAGES.items()},
    **{f'torch.{name}': name for name in DTYPES},
    'torch.storage.UntypedStorage': 'uint8',
    'torch.Size': Unwrapped,
    'torch._utils._rebuild_parameter': Unwrapped,
    'torch._utils._rebuild_parameter_with_state': Unwrapped,
    'torch._utils._rebuild_tensor': Tensor,
    'torch._utils._rebuild_tensor_v2': Tensor,
    'torch._utils._rebuild_tensor_v3': Tensor,
    'collections.OrderedDict': Dict,
    'collections.defaultdict': Dict,
}


class Unpickler(pickle.Unpickler):
    """Builds plain Python values and the stand-ins above; `storages` collects the storages that the pickle refers to."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, encoding='latin1')  # decodes any byte string of Python 2
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What takes the place of `module.name`: a class above or the name of a dtype; nothing is imported."""
        path = f'{module}.{name}'
        if path not in STAND_INS and not IGNORED.fullmatch(path):
            raise RefusedError(
                f'asks for {_shown(path)}, which weights never need: it may be malicious and was not read; if you trust it, '
                'load it with PyTorch and save only its state_dict()'
            )
        return STAND_INS.get(path, Ignored)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that `pid` describes; in the old format, it can be a view of another."""
        kind, dtype, key, _, whole_size, *view = pid
        _, start, size = view[0] if any(view) else (None, 0, whole_size)
        valid = kind == 'storage' and type(key) is type(dtype) is str and dtype in DTYPES
        if not valid or not _are_counts(start, size, whole_size) or start + size > whole_size:
            raise RefusedError('refers to data in a way that PyTorch never does; it is damaged or malicious')
        self.storages.setdefault(key, Storage(dtype, key, 0, whole_size))
        return Storage(dtype, key, start, size)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The state dict in a file, whose format is inferred from its content; bfloat16 becomes float32.

    Raises InputError if the file is missing or damaged, holds no weights, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        problem = 'is not a file' if path.exists() else 'is missing'
        raise InputError(f'{path} {problem}; name a .pth, .pt, .pth.tar or .safetensors file.')
    try:
        with path.open('rb') as file:
            return _read(file, path.stat().st_size)
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error.strerror}); check its permissions and its disk.') from error
    except RefusedError as error:
        raise InputError(f'{path} {error}.') from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make zipfile and pickle raise almost anything
        raise InputError(f'{path} is damaged or cut short ({type(error).__name__}); download it again.') from error


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    head = file.read(512)
    file.seek(0)
    if head.startswith(b'PK\x03\x04'):
        return _read_zip(file, size)
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= size:
        return _read_safetensors(file.read())
    if head.startswith(b'\x80'):
        return _read_legacy(file.read())
    if not head:
        raise RefusedError('is empty; download it again')
    if head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'):
        raise RefusedError('is a web page with a message from the server, not weights; download it again in a browser')
    if head.startswith(b'version https://git-lfs'):
        raise RefusedError('is a Git LFS pointer, not weights; fetch the file with git lfs pull')
    raise RefusedError('is not a PyTorch or safetensors file, or is damaged; download it again, or unpack an archive')


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, entry in safetensors.deserialize(content):
        if entry['dtype'] not in SAFETENSORS:
            raise RefusedError(
                f'has {_shown(name)!r} in {entry["dtype"]}, which is not supported; convert it to float32'
            )
        arrays[name] = _widen(np.frombuffer(entry['data'], SAFETENSORS[entry['dtype']]).reshape(entry['shape']))
    return arrays


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """PyTorch's format since 1.6: an archive with one pickle, and one file per storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            raise RefusedError('is a TorchScript archive; load it with torch.jit.load and save its state_dict()')
        pickles = [name for name in names if re.fullmatch(r'([^/]*/)?data\.pkl', name)]
        if len(pickles) != 1:
            raise RefusedError("is a zip archive without PyTorch's data.pkl; unpack it and name the weights inside")
        folder = pickles[0].removesuffix('data.pkl')

        def read(name: str) -> bytes:
            entry = archive.getinfo(folder + name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise RefusedError('is compressed, as PyTorch never does; unpack it and name the weights inside')
            return archive.read(entry)

        root, _ = _unpickle(io.BytesIO(read('data.pkl')))
        big_endian = folder + 'byteorder' in names and read('byteorder') == b'big'
        return _make_arrays(root, lambda key: read(f'data/{key}'), size, big_endian)


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic number, protocol, system, checkpoint, keys), then each storage after its size in 8 bytes."""
    stream = io.BytesIO(content)
    if _unpickle(stream)[0] != MAGIC or _unpickle(stream)[0] != PROTOCOL:
        raise RefusedError(
            'is a pickle, but PyTorch did not write it; load it with the program that did, and save a state_dict()'
        )
    _unpickle(stream)  # its little_endian is ignored, as PyTorch does: the numbers are always little-endian
    (root, storages), (keys, _) = _unpickle(stream), _unpickle(stream)
    contents = {}
    for key in keys:
        storage = storages[key]
        num_bytes = storage.size * DTYPES[storage.dtype].itemsize
        if int.from_bytes(stream.read(8), 'little') != storage.size or stream.tell() + num_bytes > len(content):
            raise ValueError('a storage is cut short, or its two sizes differ')
        contents[key] = memoryview(content)[stream.tell() : stream.tell() + num_bytes]
        stream.seek(num_bytes, io.SEEK_CUR)
    return _make_arrays(root, contents.__getitem__, len(content), big_endian=False)


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """The object of the next pickle in `stream`, and the storages that it refers to."""
    start = stream.tell()
    # checked first, since the C implementation allocates whatever a length or a place in its memo asks for
    for opcode, argument, _ in pickletools.genops(stream):
        num_bytes = stream.tell() - start
        if num_bytes > MAX_PICKLE_BYTES:
            raise RefusedError('has more structure than weights need; save only the state_dict() of the model')
        if opcode.name.startswith('EXT') or (opcode.name.endswith('PUT') and (argument or 0) > num_bytes):
            raise ValueError('an opcode that PyTorch never writes')
    stream.seek(start)
    unpickler = Unpickler(stream)
    return unpickler.load(), unpickler.storages


def _make_arrays(root: Any, read: Callable[[str], Any], size: int, big_endian: bool) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint's state dict; the file's `size` bounds the memory for all of them."""
    arrays, contents = {}, {}
    # the file itself, and four times as much: bfloat16 becomes twice as wide, weights can be tied
    room = 5 * size + (1 << 20)
    for name, tensor in _find_state_dict(root).items():
        storage, offset, shape, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
        dtype, stored_dtype = DTYPES[tensor.dtype or storage.dtype], DTYPES[storage.dtype]
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        fits = not all(shape) or (last + 1) * dtype.itemsize <= storage.size * stored_dtype.itemsize
        if not _are_counts(offset, *shape, *stride) or not fits:
            raise RefusedError(f'has {_shown(name)!r}, which extends beyond its storage; download it again')
        if storage.key not in contents:
            contents[storage.key] = read(storage.key)
            room -= len(contents[storage.key])
        room -= math.prod(shape) * _widened(dtype).itemsize
        if room < 0:
            raise RefusedError(f'has {size:,} bytes, but tensors of over four times that; save them .contiguous()')
        start = storage.start * stored_dtype.itemsize + offset * dtype.itemsize
        strides = [step * dtype.itemsize for step in stride]
        array = np.ndarray(shape, dtype, contents[storage.key], start, strides)
        arrays[name] = _widen(array.byteswap() if big_endian else array)
    return arrays


def _find_state_dict(root: Any) -> dict[str, Tensor]:
    """The tensors in the dict that the checkpoint is, or that it holds under a usual name."""
    whole = root if isinstance(root, dict) else {}
    for held in (*map(whole.get, ('state_dict', 'model_state_dict', 'model')), whole):
        items = held.items() if isinstance(held, dict) else ()
        if tensors := {name: value for name, value in items if type(name) is str and type(value) is Tensor}:
            return tensors
    keys = ', '.join(repr(_shown(key)) for key in list(whole)[:5] if type(key) is str) or 'no names'
    raise RefusedError(
        f"holds no tensors under 'state_dict' or at its top level (which has {keys}); save a model's state_dict() with PyTorch"
    )


def _widen(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, _widened(array.dtype), order='C')


def _widened(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == ml_dtypes.bfloat16 else dtype


def _are_counts(*numbers: Any) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)


def _shown(name: str) -> str:
    """A name in a file as part of a message: short, and without characters that would garble a terminal."""
    return ''.join(letter if letter.isprintable() else '?' for letter in name[:160])
