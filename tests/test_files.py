"""Files appear atomically, and one process at a time holds a lock."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from asen_jax import files
from asen_jax.errors import InputError
from tests.conftest import ROOT


def test_a_file_is_unchanged_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / 'a.json'
    files.write_json(path, {'old': 1})
    with pytest.raises(ValueError, match='stop'), files.write_atomically(path) as file:
        file.write(b'half')
        raise ValueError('stop')
    assert path.read_text() == '{\n  "old": 1\n}\n'
    files.write_text(path, 'neu: ü')
    assert (
        path.read_bytes() == 'neu: ü'.encode() and files.sha256(path) == hashlib.sha256('neu: ü'.encode()).hexdigest()
    )
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_is_never_an_input(tmp_path, monkeypatch):
    photo = tmp_path / 'a.jpg'
    photo.write_text('photo')
    (tmp_path / 'hard.jpg').hardlink_to(photo)
    (tmp_path / 'soft.JPG').symlink_to(photo)
    monkeypatch.chdir(tmp_path)
    for output in ('a.jpg', '../' + tmp_path.name + '/a.jpg', tmp_path / 'hard.jpg', 'soft.JPG'):
        with pytest.raises(InputError, match='is one of the inputs'):
            files.check_output(output, ['.jpg'], ['gone.jpg', photo])
    for output in ('b.jpg', 'a.jpg'):
        files.check_output(output, ['.jpg'], ['gone.jpg', 'b.jpg'])


def test_an_error_of_the_disk_names_the_file(tmp_path):
    path = tmp_path / ('長' * 60 + '.npz')
    with pytest.raises(OSError) as caught, files.write_atomically(path):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert caught.value.filename == str(path)
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError) as caught:
        files.write_text(tmp_path / 'file' / 'a.txt', '')
    assert caught.value.filename == str(tmp_path / 'file' / 'a.txt')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


@pytest.mark.parametrize('shared', [False, True])
def test_a_lock_is_refused_while_another_process_holds_it_and_free_once_that_is_killed(tmp_path, shared):
    made = f'files.lock({str(tmp_path / "lock")!r}, "", shared={shared})'
    code = f'from asen_jax import files; lock = {made}; lock.__enter__(); print(1); input()'
    with subprocess.Popen(
        [sys.executable, '-uc', code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match='in use'), files.lock(tmp_path / 'lock', 'in use'):
            pass
        process.kill()
    with files.lock(tmp_path / 'lock', 'in use'):
        pass


def test_many_hold_a_shared_lock_even_where_there_can_be_none(tmp_path, caplog):
    for path in (tmp_path / 'lock', tmp_path / 'missing' / 'lock'):
        with files.lock(path, 'busy', shared=True), files.lock(path, 'busy', shared=True):
            pass
    assert 'busy' not in caplog.text


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, 'flock', refuse)
    with files.lock(tmp_path / 'lock', 'busy'):
        assert f'{tmp_path} has no file locks' in caplog.text
