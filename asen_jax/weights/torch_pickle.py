"""The pickles inside PyTorch's weight files, read and written without torch: nothing that a file names is imported or called."""

import io
import numbers
import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_BYTES = 16 << 20  # of pickled structure: 100,000 tensors fit, and a hostile file cannot fill memory with objects
MAX_COUNT = 1 << 48  # no size, stride or offset in a file is larger
MAX_ARGS = 16  # more would let a file copy one long tuple many times
ABSENT = {op[0] for op in (pickle.EXT1, pickle.EXT2, pickle.EXT4)}  # opcodes for objects registered in this process

# torch's storage classes -> what they hold, by PyTorch's name for it
STORAGES = {
    'DoubleStorage': 'float64',
    'FloatStorage': 'float32',
    'HalfStorage': 'float16',
    'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64',
    'IntStorage': 'int32',
    'ShortStorage': 'int16',
    'CharStorage': 'int8',
    'ByteStorage': 'uint8',
    'BoolStorage': 'bool',
    'ComplexFloatStorage': 'complex64',
    'ComplexDoubleStorage': 'complex128',
    'UntypedStorage': 'uint8',
}
INERT = {  # what checkpoints hold beside weights; nothing of it is made
    'argparse.Namespace', 'collections.Counter', 'collections.deque', 'torch.device', '_codecs.encode',
    *(f'pathlib.{name}' for name in ('Path', 'PosixPath', 'WindowsPath')),
    *(f'{copyreg}._reconstructor' for copyreg in ('copyreg', 'copy_reg')),
    *(
        f'{module}.{name}' for module in ('builtins', '__builtin__')
        for name in ('object', 'set', 'frozenset', 'list', 'dict', 'bytes', 'bytearray', 'complex', 'slice', 'range')
    ),
    'numpy.dtype', 'numpy.ndarray',
    *(
        f'numpy.{core}.{name}' for core in ('core', '_core')
        for name in ('multiarray.scalar', 'multiarray._reconstruct', 'numeric._frombuffer')
    ),
}  # fmt: skip
DTYPES = {*STORAGES.values(), 'uint16', 'uint32', 'uint64'}

Scalar = int | float | str


class RefusedError(Exception):
    """What the file holds is not read; the message goes on from the file's name and says why and what to do."""


class Dtype(NamedTuple):
    """torch.float32, or the class of its storages."""

    name: str


class Storage(NamedTuple):
    """A run of `count` numbers of type `dtype` under the file's `key`, `start` numbers after that key's first."""

    dtype: str
    key: str
    count: int
    start: int = 0


class Tensor(NamedTuple):
    """A tensor as the file tells it: nothing here is checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any


class Known(NamedTuple):
    """What stands for a global of the table; it can be called by a pickle, never changed."""

    call: Any


def is_count(number: Any) -> bool:
    """Whether `number` is an int that can be a size, a stride or an offset."""
    return type(number) is int and 0 <= number < MAX_COUNT


def shown(name: str) -> str:
    """`name` of a file for a message: short, and without what could garble a terminal."""
    return ''.join(letter if letter.isprintable() else '?' for letter in name[:80])


def _nothing(*_: Any) -> None:
    """Stands for objects beside the weights: argparse.Namespace, numpy scalars, sets."""


def _first(value: Any, *_: Any) -> Any:
    return value


def _dict(pairs: Any = None, *_: Any) -> dict:
    """An OrderedDict; Python 2 pickled its items with it, as a list of [key, value]."""
    made = {}
    if type(pairs) is list:
        items, pairs[:] = list(pairs), []  # emptied: a hostile file cannot have the same long list copied many times
        for item in items:
            if type(item) in (list, tuple) and len(item) == 2 and type(item[0]) is str:
                made[item[0]] = item[1]
    return made


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: Any = None) -> Tensor:
    if len(rest) > 2 and rest[2]:
        raise RefusedError(
            'holds a tensor that PyTorch keeps conjugated or negated; save it with .resolve_conj().resolve_neg()'
        )
    return Tensor(storage, offset, size, stride, dtype)


def _tensor_v3(*args: Any) -> Tensor:  # the type is the seventh
    return _tensor(*args[:6], *args[7:], dtype=args[6])


GLOBALS = {
    'collections.OrderedDict': _dict,
    'collections.defaultdict': _dict,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _first,
    'torch._utils._rebuild_parameter_with_state': _first,
    'torch.Size': _first,
    **dict.fromkeys(INERT, _nothing),
}


class Unpickler(pickle._Unpickler):
    """Reads one pickle of `stream` into dicts of str keys, lists, numbers and Tensors; `storages` holds the named ones by key.

    On pickle's reader in Python, not the one in C: here each opcode that acts on objects can be replaced, and is.
    Raises RefusedError at any global outside GLOBALS, STORAGES and DTYPES, and anything at all on damaged bytes.
    """

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, encoding='latin1')  # Python 2's strings are bytes: this decodes any, and ASCII exactly
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Known | Dtype:
        """Our stand-in for `module.name`."""
        if name in STORAGES and module in ('torch', 'torch.storage'):
            return Dtype(STORAGES[name])
        if module == 'torch' and name in DTYPES:
            return Dtype(name)
        call = GLOBALS.get(f'{module}.{name}')
        if call is None:
            raise RefusedError(
                f'asks for {shown(module)}.{shown(name)}, which no weights need: it may be malicious and was not read; '
                'if you trust it, load it with PyTorch and save only its state_dict()'
            )
        return Known(call)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id tells; the sixth part is the old format's view: key, start, count."""
        if not (type(pid) is tuple and len(pid) in (5, 6) and type(pid[0]) is str and pid[0] == 'storage'):
            raise RefusedError('refers to data in a way that PyTorch never writes; it is damaged or malicious')
        dtype, key, count = pid[1], pid[2], pid[4]
        if type(dtype) is not Dtype or type(key) is not str or not is_count(count):
            raise RefusedError('has a storage without type, key or size; it is damaged or malicious')
        whole = self.storages.setdefault(key, Storage(dtype.name, key, count))
        view = pid[5] if len(pid) == 6 else None
        if view is None:
            return Storage(dtype.name, key, count)
        if not (type(view) is tuple and len(view) == 3 and is_count(view[1]) and is_count(view[2])):
            raise RefusedError('has a view of a storage without start or size; it is damaged or malicious')
        if view[1] + view[2] > whole.count:
            raise RefusedError(f"has a view that reaches beyond its storage's {whole.count} numbers; download it again")
        return Storage(dtype.name, key, view[2], view[1])

    def _make(self, known: Any, args: Any) -> Any:
        if type(known) is not Known or type(args) is not tuple:
            raise pickle.UnpicklingError('a call of what is no function')
        return known.call(*args[:MAX_ARGS])

    def _instantiate(self, klass: Any, args: Sequence) -> None:  # of the opcodes INST and OBJ
        self.append(self._make(klass, tuple(args)))

    def _reduce(self) -> None:  # of the opcodes REDUCE and NEWOBJ
        args = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keywords: none of our stand-ins takes any
        self._reduce()

    def _build(self) -> None:  # attributes are dropped: no object gets any, and no class can be changed
        self.stack.pop()

    def _set(self, items: Sequence) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            # other keys name no tensors; and a key of nested tuples could take years to hash
            target.update(pair for pair in zip(items[::2], items[1::2], strict=True) if type(pair[0]) is str)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self.pop_mark())

    def _new_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _append(self) -> None:
        value = self.stack.pop()
        if type(self.stack[-1]) is list:
            self.stack[-1].append(value)

    def _appends(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def _new_set(self) -> None:  # a list will do: nothing is hashed
        self.append([])

    def _frozen_set(self) -> None:
        items = self.pop_mark()  # which changes self.append
        self.append(items)

    dispatch = {op: load for op, load in pickle._Unpickler.dispatch.items() if op not in ABSENT} | {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _new_dict,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.EMPTY_SET[0]: _new_set,
        pickle.ADDITEMS[0]: _appends,
        pickle.FROZENSET[0]: _frozen_set,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,  # its own allocates before it reads
    }


def pickle_state_dict(tensors: Mapping[str, tuple[str, tuple]], extra: Mapping[str, Scalar]) -> bytes:
    """The pickle that PyTorch writes for {**extra, 'state_dict': tensors}, from each one's PyTorch type and shape.

    The tensor at place k is contiguous, in a storage of its own with the key str(k).
    """
    ordered_dict = _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = [
        _string(name) + _tensor_opcodes(str(key), dtype, shape, ordered_dict)
        for key, (name, (dtype, shape)) in enumerate(tensors.items())
    ]
    state_dict = ordered_dict + pickle.MARK + b''.join(items) + pickle.SETITEMS
    beside = [_string(key) + _scalar(value) for key, value in extra.items()]
    items = b''.join([*beside, _string('state_dict'), state_dict])
    return b''.join([pickle.PROTO, b'\x02', pickle.EMPTY_DICT, pickle.MARK, items, pickle.SETITEMS, pickle.STOP])


def _tensor_opcodes(key: str, dtype: str, shape: tuple[int, ...], hooks: bytes) -> bytes:
    count, strides = 1, []
    for length in reversed(shape):
        strides.insert(0, count)
        count *= max(length, 1)
    storage = _global('torch', next(name for name, held in STORAGES.items() if held == dtype))
    place = _tuple([_string('storage'), storage, _string(key), _string('cpu'), _scalar(count if all(shape) else 0)])
    size, stride = (_tuple([_scalar(number) for number in numbers]) for numbers in (shape, strides))
    args = [place + pickle.BINPERSID, _scalar(0), size, stride, pickle.NEWFALSE, hooks]
    return _global('torch._utils', '_rebuild_tensor_v2') + _tuple(args) + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _string(text: str) -> bytes:
    data = text.encode('utf-8', 'surrogatepass')
    return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _tuple(items: Sequence[bytes]) -> bytes:
    return pickle.MARK + b''.join(items) + pickle.TUPLE


def _scalar(value: Scalar) -> bytes:
    if isinstance(value, str):
        return _string(str(value))
    if not isinstance(value, bool):  # a number of numpy would name numpy
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return pickle.dumps(value, protocol=2)[2:-1]  # without its PROTO and STOP
