"""Imports go one way, as the contracts in pyproject.toml say; the light parts of the library need no JAX."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_the_import_contracts_hold():
    lint_imports = Path(sys.executable).with_name('lint-imports')
    done = subprocess.run([lint_imports, '--no-cache'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    'module,heavy',
    [
        ('asen_jax', ('jax', 'tensorflow')),
        ('data_builders.prepare', ('jax', 'tensorflow')),
        ('asen_jax.search.searching', ('jax', 'tensorflow_datasets')),
        ('asen_jax.search.embed_files', ('tensorflow_datasets', 'grain', 'tensorboardX')),
    ],
)
def test_a_module_does_not_load_what_it_can_do_without(module, heavy):
    code = f'import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
