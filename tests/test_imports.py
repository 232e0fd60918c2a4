"""Imports go one way (DESIGN.md): a module imports only from rooms before its own."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    {'errors', 'torch_pickle'},
    {
        'models',
        'losses',
        'metrics',
        'data.images',
        'data.triplets',
        'sharding',
        'tracking',
        'draw',
        'torch_file',
        'model_card',
    },
    {'data.pipeline', 'data.listing', 'optim', 'pretrained', 'state', 'pieces'},
    {'checkpoint', 'trunks'},
    {'embed'},
    {'evaluate', 'embedder', 'importing'},
    {'train', 'embed_files', 'export'},
]
NUMPY_LEAVES = {'errors', 'metrics', 'data.triplets', 'data.images'}  # all that builders may import


def imports_of(path):
    """Names of the modules that a file imports, `from a import b` as a.b and a."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room_of(name):
    """'data.pipeline' of 'asen_jax.data.pipeline.Records'; None outside asen_jax's rooms."""
    rooms = [room for level in ROOMS for room in level]
    inner = name.removeprefix('asen_jax.')
    return next((room for room in rooms if inner == room or inner.startswith(room + '.')), None)


def test_asen_jax_imports_only_earlier_rooms():
    level_of = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
    found = set()
    for path in (ROOT / 'asen_jax').rglob('*.py'):
        own = room_of('.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'))
        for name in imports_of(path):
            assert name.split('.')[0] not in ('configs', 'data_builders', 'tensorflow'), f'{path} imports {name}'
            assert not name.startswith('absl.flags') and name != 'absl.flags', f'{path} imports {name}'
            if name.startswith('asen_jax') and own != room_of(name):
                assert room_of(name), f'{path} imports {name}, which has no room here'
                assert level_of[room_of(name)] < level_of[own], f'{path} imports {name}'
        found.add(own)
    assert found >= set(level_of)


def test_builders_import_only_the_numpy_leaves():
    for path in (ROOT / 'data_builders').rglob('*.py'):
        for name in imports_of(path):
            assert name.split('.')[0] not in ('jax', 'flax', 'configs', 'tensorflow', 'grain'), f'{path} imports {name}'
            assert not name.startswith('asen_jax') or room_of(name) in NUMPY_LEAVES, f'{path} imports {name}'


def test_importing_asen_jax_and_the_builders_is_light():
    code = 'import sys, asen_jax, data_builders.prepare; print(*(m for m in ("jax", "tensorflow") if m in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
