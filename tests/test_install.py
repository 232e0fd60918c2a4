"""`pip install .` installs a library that works from any folder, without the rest of the repository."""

import subprocess
import venv

import pytest

from tests.conftest import ROOT

CODE = """
import importlib.metadata, importlib.util, pathlib, asen_jax
print(asen_jax.Embedder.__name__, importlib.metadata.version('asen_jax'))
print((pathlib.Path(asen_jax.__file__).parent / 'py.typed').exists())
print(*(name for name in ('configs', 'data_builders', 'tests', 'pytest') if importlib.util.find_spec(name)))
"""


@pytest.mark.heavy  # downloads the dependencies
def test_the_installed_library_works_from_another_folder(tmp_path):
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv' / 'bin' / 'python'
    subprocess.run(['git', 'clone', '-q', ROOT, tmp_path / 'source'], check=True)  # the build writes into its source
    subprocess.run([python, '-m', 'pip', 'install', '-q', tmp_path / 'source'], check=True)
    done = subprocess.run([python, '-c', CODE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['Embedder 0.2.0', 'True', '']
