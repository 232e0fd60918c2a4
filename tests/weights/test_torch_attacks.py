"""No weight file gets code run."""

import copy
import copyreg
import pickle
from argparse import Namespace

import pytest

from asen_jax.weights import torch_pickle
from asen_jax.weights.tensor_files import read_tensors
from tests.weights.torch_files import (
    Code,
    call,
    known,
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


# --- nothing of a file is run


def attacks(marker):
    """name -> (opcodes that leave `marker` when pickle itself reads them, the global that has to be refused)."""
    command = f'touch {marker}'
    namespace = Code(known('argparse.Namespace') + b')\x81')
    system = known('os.system')
    return {
        'reduce': (call('os.system', command), 'os.system'),
        'stack global': (Code(op('posix') + op('system') + b'\x93' + op((command,)) + b'R'), 'posix.system'),
        'eval': (call('builtins.eval', f'__import__("os").system("{command}")'), 'builtins.eval'),
        'getattr': (Code(call('builtins.getattr', call('builtins.__import__', 'os'), 'system') + op((command,)) + b'R'),
                    'builtins.getattr'),
        'inst': (Code(b'(' + op(command) + b'ios\nsystem\n'), 'os.system'),
        'obj': (Code(b'(' + system + op(command) + b'o'), 'os.system'),
        'new': (Code(known('subprocess.Popen') + op((['touch', str(marker)],)) + b'\x81'), 'subprocess.Popen'),
        'new with keywords': (Code(known('subprocess.Popen') + b')' + op({'args': ['touch', str(marker)]}) + b'\x92'),
                              'subprocess.Popen'),
        'build': (Code(namespace + op({'__setstate__': system}) + b'b' + op(command) + b'b'), 'os.system'),
        'hub': (call('torch.hub.load', 'someone/repository', 'model'), 'torch.hub.load'),
        'class': (Code(known('torch.nn.modules.linear.Linear') + b')\x81'), 'torch.nn.modules.linear.Linear'),
        'near': (call('torch._utils._import_dotted_name', 'os'), 'torch._utils._import_dotted_name'),
        'dotted': (Code(op('torch') + op('serialization.os.system') + b'\x93'), 'torch.serialization.os.system'),
    }  # fmt: skip


ATTACKS = sorted(attacks(''))
HARMLESS = ('hub', 'class', 'near', 'dotted', 'new', 'new with keywords')  # refused all the same


@pytest.mark.parametrize('name', [name for name in ATTACKS if name not in HARMLESS])
def test_the_attacks_work_on_pickle_itself(tmp_path, name):
    """So that the tests below prove something."""
    pickle.loads(pickled(attacks(tmp_path / 'ran')[name][0]))
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('place', ['zip', 'legacy', 'bare', 'keys', 'optimizer', 'key', 'size', 'storage'])
def test_no_code_of_a_file_runs(path, name, place):
    code, named = attacks(path.parent / 'ran')[name]
    state = {'state_dict': {'w': tensor()}}
    if place == 'bare':
        path.write_bytes(pickled(code))
    elif place == 'keys':
        write_legacy(path, state, keys=code)
    elif place == 'zip':
        write_zip(path, code)
    elif place == 'legacy':
        write_legacy(path, code)
    elif place == 'optimizer':
        write_zip(path, {**state, 'optimizer': {'state': {0: {'step': [1, (2, code)]}}, 'param_groups': []}})
    elif place == 'key':
        write_legacy(path, {**state, code: 1})
    elif place == 'size':
        write_zip(path, {'w': tensor(size=code)})
    else:
        write_zip(path, {'w': tensor(Code(op(('storage', code, '0', 'cpu', 6)) + b'Q'))})
    assert f'asks for {named}, which no weights need: it may be malicious and was not read' in refusal(path)
    assert not (path.parent / 'ran').exists()


def test_names_that_would_garble_a_terminal_are_shown_plainly(write):
    code = Code(op('os\n\x1b[2J') + op('\ud800\u202e' + 'x' * 9999) + b'\x93')
    told = refusal(write({'w': tensor(), 'x': code}))
    assert 'asks for os??[2J.??xxx' in told and len(told) < 600
    assert len(refusal(write({'w\x1b' + 'x' * 9999: tensor(offset=9)}))) < 600


def test_objects_of_this_process_are_out_of_reach(path):
    """pickle's registry of extensions is asked with numbers, not names."""
    copyreg.add_extension('os', 'system', 0x7F)
    try:
        code = Code(b'\x82\x7f' + op((f'touch {path.parent / "ran"}',)) + b'R')
        for _ in range(2):
            pickle.loads(pickled(code))  # pickle keeps what it found
        (path.parent / 'ran').unlink()
        for hidden in (code, Code(code[:2])):
            refusal(write_zip(path, {'state_dict': {'w': tensor()}, 'x': hidden}))
        assert not (path.parent / 'ran').exists()
    finally:
        copyreg.remove_extension('os', 'system', 0x7F)
        copyreg.clear_extension_cache()


def test_no_attribute_of_anything_is_set(write):
    """BUILD sets attributes; on classes and functions they would stay for the next file."""
    before = copy.copy(torch_pickle.GLOBALS)
    targets = ['argparse.Namespace', 'collections.OrderedDict', 'torch._utils._rebuild_parameter', 'torch.FloatStorage']
    states = [{'call': 1, 'items': 2, '__setstate__': 3}, (None, {'call': 1, 'items': 2, '__defaults__': (3,)})]
    made = [*map(known, targets), call('collections.OrderedDict'), tensor(), storage()]
    built = [Code(code + op(state) + b'b') for code in made for state in states]
    ordered = (
        call('collections.OrderedDict') + b'(' + op('w') + tensor() + b'u' + op({'items': 1, '_metadata': {}}) + b'b'
    )
    assert list(read_tensors(write({'beside': built, 'state_dict': Code(ordered)}))) == ['w']
    assert before == torch_pickle.GLOBALS and not hasattr(Namespace, 'call')
    assert torch_pickle._first.__defaults__ is None and not vars(torch_pickle._first).get('call')
    assert list(read_tensors(write({'w': tensor()}))) == ['w']


def test_what_is_no_function_is_not_called(write):
    for code in (known('torch.FloatStorage'), known('torch.float32'), tensor(), op(3), op('os.system')):
        assert 'is damaged' in refusal(write({'w': tensor(), 'x': Code(code + op((1,)) + b'R')}))


FLOATS = known('torch.FloatStorage')


@pytest.mark.parametrize(
    'pid',
    [
        3, 'storage', None, ('storage',), ('module', 'x', 'y', 'z'), ('module', FLOATS, '0', 'cpu', 6), [1, 2],
        (('storage',), FLOATS, '0', 'cpu', 6), ('storage', 'FloatStorage', '0', 'cpu', 6), ('storage', FLOATS, 0, 'cpu', 6),
        ('storage', FLOATS, ('0',), 'cpu', 6), ('storage', FLOATS, '0', 'cpu', -6), ('storage', FLOATS, '0', 'cpu', 6.0),
        ('storage', FLOATS, '0', 'cpu', 2**70), ('storage', FLOATS, '0', 'cpu', True), ('storage', FLOATS, '0', 'cpu', 6, 7),
        ('storage', FLOATS, '0', 'cpu', 6, ()), ('storage', FLOATS, '0', 'cpu', 6, ('1', -1, 2)),
        ('storage', known('collections.OrderedDict'), '0', 'cpu', 6),
    ],
)  # fmt: skip
def test_odd_persistent_ids_are_refused(write, pid):
    assert 'damaged or malicious' in refusal(write({'w': tensor(Code(op(pid) + b'Q'))}))


def test_a_persistent_id_of_text_is_refused(write):
    assert 'damaged or malicious' in refusal(write({'w': tensor(), 'x': Code(b'Pstorage\n')}))
