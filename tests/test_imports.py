"""Imports go one way, as the contracts in pyproject.toml say; the light parts of the library need no JAX."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_the_import_contracts_hold():
    lint_imports = Path(sys.executable).with_name('lint-imports')
    done = subprocess.run([lint_imports, '--no-cache'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_importing_asen_jax_and_the_builders_is_light():
    code = 'import sys, asen_jax, data_builders.prepare; print(*(m for m in ("jax", "tensorflow") if m in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''
