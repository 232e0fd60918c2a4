"""Compiled programs are kept between commands; nothing that is wrong with their folder disturbs a command."""

import os
import subprocess
import sys

import pytest

from cli import compilation_cache
from tests.conftest import ROOT

PROGRAM = """
import sys
from cli import compilation_cache
compilation_cache.use_cache(sys.argv[1] == 'on')
import jax
compiled = []
jax.monitoring.register_event_listener(lambda name, **_: compiled.append(name) if 'cache_misses' in name else None)
print(jax.jit(lambda x: 2 * x)(21), len(compiled))
"""


def run(home, cache='on', **variables):
    """What PROGRAM prints, with `home` as the folder of all caches."""
    environment = os.environ | {'XDG_CACHE_HOME': str(home), 'XLA_FLAGS': ''} | variables
    del environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS']
    if 'JAX_COMPILATION_CACHE_DIR' not in variables:
        del environment['JAX_COMPILATION_CACHE_DIR']
    command = [sys.executable, '-c', PROGRAM, cache]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.strip()


def entries(folder):
    return [path for path in folder.rglob('*') if path.is_file()]


def test_a_program_is_compiled_once_and_a_damaged_one_is_replaced(tmp_path):
    assert run(tmp_path) == '42 1'
    assert run(tmp_path) == '42 0'
    (entry,) = entries(tmp_path / 'asen_jax')
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])  # killed while it was written
    assert run(tmp_path) == '42 1'
    assert run(tmp_path) == '42 0'
    assert len(entries(tmp_path)) == 1


def test_the_flag_and_the_folder_of_the_user_win(tmp_path):
    assert run(tmp_path / 'home', 'off') == '42 0'
    run(tmp_path / 'home', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'own'))
    assert not (tmp_path / 'home').exists() and entries(tmp_path / 'own')


@pytest.mark.parametrize('inside', ['', 'asen_jax', 'asen_jax/compiled'])
def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, inside):
    path = tmp_path / 'home' / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert run(tmp_path / 'home') == '42 0'


def test_the_folder_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    for root, expected in (('', tmp_path / '.cache'), ('relative', tmp_path / '.cache'), ('/caches', '/caches')):
        monkeypatch.setenv('XDG_CACHE_HOME', root)
        assert str(compilation_cache.cache_folder()) == f'{expected}/asen_jax/compiled'


def test_what_was_used_least_recently_is_removed(tmp_path):
    for name, used in (('new', 3), ('old', 1), ('recent', 2)):
        (tmp_path / name).write_bytes(b'1234')
        os.utime(tmp_path / name, (used, 0))
    compilation_cache.remove_oldest(tmp_path, max_bytes=8)
    assert sorted(path.name for path in entries(tmp_path)) == ['new', 'recent']
