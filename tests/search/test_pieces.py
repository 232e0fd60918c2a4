"""The pieces of a large .npz: one process at a time, whole or absent wherever it is killed."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asen_jax.errors import InputError
from asen_jax.search import embed_files, pieces
from asen_jax.search.embedder import Embedder
from tests.conftest import ROOT
from tests.search.test_embed_files import (
    CHUNK,
    COUNT,
    assert_alone,
    assert_same_files,
    draw_photos,
    embed,
    interrupt,
    network,
    shop,
    workdir,
)
from tests.search.test_embedder import save_network

__all__ = ['network', 'shop', 'workdir']  # fixtures


def test_the_pieces_of_another_run_are_not_taken(network, shop, tmp_path, monkeypatch):
    output = tmp_path / 'F.npz'
    with monkeypatch.context() as patch:
        patch.setattr(embed_files, '_assemble', interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(network, shop, output)
    (shop / '10.png').rename(shop / '11.png')
    other = Embedder.load(save_network(tmp_path / 'w', seed=1), batch_size=8)
    for loaded, options, words in (
        (network, {}, 'other photos'), (network, {'heatmaps': True}, 'other photos, heatmaps'),
        (other, {}, 'other checkpoint, photos'),
    ):  # fmt: skip
        with pytest.raises(
            InputError, match=rf'F\.npz\.parts holds pieces of a run with {words}, .* delete that folder'
        ):
            embed(loaded, shop, output, **options)
    assert not output.exists()
    shutil.rmtree(tmp_path / 'F.npz.parts')
    embed(other, shop, output)
    assert_alone(output)


def test_a_damaged_piece_is_made_anew(network, shop, tmp_path, monkeypatch):
    output = tmp_path / 'F.npz'
    embed(network, shop, tmp_path / 'whole.npz')
    with monkeypatch.context() as patch:
        patch.setattr(embed_files, '_assemble', interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(network, shop, output)
    first, second = (tmp_path / 'F.npz.parts' / f'piece-00000{number}.npz' for number in (0, 1))
    first.write_bytes(first.read_bytes()[:-30])
    data = bytearray(second.read_bytes())
    data[200] ^= 1  # in the vectors, which are not read before the end
    second.write_bytes(data)
    with pytest.raises(
        InputError, match=r'piece-000001\.npz is damaged \(.*\); delete it and run the same command again'
    ):
        embed(network, shop, output)
    second.unlink()
    embed(network, shop, output)
    assert_same_files(output, tmp_path / 'whole.npz')


def test_two_processes_do_not_write_one_output(network, shop, tmp_path, monkeypatch):
    output, held = tmp_path / 'F.npz', tmp_path / 'F.npz.parts'
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    held.mkdir()
    process = subprocess.Popen(
        [sys.executable, '-c', holder, held / 'lock'], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    with pytest.raises(InputError, match=r'Another process works in .*F\.npz\.parts; wait for it, or name another'):
        embed(network, shop, output)
    process.communicate(b'\n')
    embed(network, shop, output)
    assert_alone(output)


def test_a_lock_whose_folder_was_just_removed_is_not_taken(tmp_path, monkeypatch):
    """Opened before its last owner removed it, locked after: another process may hold the new one."""
    folder, original = tmp_path / 'parts', fcntl.flock

    def remove_first(file, how):
        monkeypatch.setattr(fcntl, 'flock', original)
        (folder / 'lock').unlink()
        folder.rmdir()
        original(file, how)

    monkeypatch.setattr(fcntl, 'flock', remove_first)
    with pieces.hold(folder):
        assert (folder / 'lock').exists()
    assert not folder.exists()


# the call before which a process is killed -> (pieces that it leaves, whether its output is there)
POINTS = {
    'fsync 1': (0, False), 'fsync 3': (1, False), 'replace 3': (1, False), 'fsync 5': (3, False), 'replace 5': (3, False),
    'replace 6': (3, False), 'unlink 1': (3, True), 'unlink 3': (2, True),
}  # fmt: skip
KILLED = """
import os, signal, sys
from pathlib import Path
from asen_jax.search import embed_files
from asen_jax.search.embedder import Embedder

workdir, shop, *points = sys.argv[1:]
for point in points:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, point
        continue
    name, number = point.split()
    owner, calls = (os if name == 'fsync' else Path), []
    original = getattr(owner, name)

    def kill_before(*arguments, **options):
        calls.append(arguments)
        if len(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    loaded = Embedder.load(workdir, batch_size=8)
    setattr(owner, name, kill_before)
    embed_files.embed_files(loaded, shop, f'{point}/F.npz', heatmaps=True, chunk_size=4)
"""


@pytest.fixture(scope='module')
def killed(workdir, tmp_path_factory):
    """A folder for each of POINTS, where a process that embedded `shop` ended by SIGKILL at its n-th call of that name."""
    folder = tmp_path_factory.mktemp('killed')
    (draw_photos(folder / 'shop') / '02.png').write_bytes(b'no photo')
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [sys.executable, '-c', KILLED, workdir, 'shop', *POINTS], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize('point', POINTS)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(network, killed, tmp_path, monkeypatch, point):
    pieces_left, is_whole = POINTS[point]
    monkeypatch.chdir(killed)
    embed(network, 'shop', tmp_path / 'unbroken.npz', heatmaps=True)
    output, loaded, original = Path(point) / 'F.npz', [], Embedder._load
    assert output.exists() == is_whole
    if is_whole:
        assert_same_files(output, tmp_path / 'unbroken.npz')
    assert len(list(Path(f'{output}.parts').glob('piece-*.npz'))) == pieces_left
    monkeypatch.setattr(Embedder, '_load', lambda self, photo: loaded.append(photo) or original(self, photo))
    summary = embed(network, 'shop', output, heatmaps=True)
    expected = 0 if point == 'unlink 3' else pieces_left * CHUNK  # what a removal left is nobody's
    assert summary.num_reused == min(expected, COUNT) == COUNT - len(loaded)
    assert_same_files(output, tmp_path / 'unbroken.npz')
    assert (Path(f'{output}.skipped.txt')).read_text().startswith('shop/02.png\tnot a readable')
    assert_alone(output, 'F.npz.skipped.txt')
