"""`--mode embed`: one complete .npz of all photos, whatever breaks or is killed on the way, in little memory."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from asen_jax.data.batches import eval_batches
from asen_jax.data.prepared import open_records
from asen_jax.embedder import Embedder
from asen_jax.errors import InputError
from asen_jax.evaluation.vectors import collect_vectors
from asen_jax.files import lock
from asen_jax.search.embed_files import embed_files
from asen_jax.sharding import make_mesh
from data_builders import prepare
from tests.conftest import ROOT, tiny_config
from tests.search.conftest import ATTRIBUTES, save_network
from tests.search.fake_embedder import FakeEmbedder

COUNT, CHUNK_SIZE = 11, 4
NAMES = [f'{number:02}.png' for number in range(COUNT)]


@pytest.fixture
def shop(tmp_path):
    """A folder of photos, which only FakeEmbedder can read."""
    (tmp_path / 'shop').mkdir()
    for name in NAMES:
        (tmp_path / 'shop' / name).write_text(f'photo {name}')
    return tmp_path / 'shop'


def embed(images, output, embedder=None, **options):
    return embed_files(embedder or FakeEmbedder(), images, output, chunk_size=CHUNK_SIZE, **options)


def stop(images, output, at, **options):
    with pytest.raises(KeyboardInterrupt):
        embed(images, output, FakeEmbedder(stop_at=at), **options)


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def outputs(folder):
    """What lies beside the photos."""
    return sorted(path.name for path in folder.iterdir() if path.name != 'shop')


def test_the_mode_writes_what_numpy_would_of_the_embedders_vectors(network, workdir, photos, tmp_path, capsys):
    output, paths = tmp_path / 'new' / 'F.npz', []
    for number, photo in enumerate(photos):
        paths.append(str(tmp_path / f'{number:02}.png'))
        Image.fromarray(photo).save(paths[-1])
    command = [
        'main.py',
        '--mode=embed',
        f'--workdir={workdir}',
        f'--images={tmp_path}',
        f'--output={output}',
        '--heatmaps',
    ]
    assert main.run([*command, '--config.data.image_size=64']) == 0
    arrays = read(output)
    assert list(arrays) == ['paths', 'attributes', 'embeddings', 'heatmaps']
    assert arrays['paths'].tolist() == paths
    assert arrays['attributes'].tolist() == list(ATTRIBUTES)
    assert arrays['embeddings'].dtype == arrays['heatmaps'].dtype == np.float32
    np.testing.assert_allclose(arrays['embeddings'], network.embed(paths), atol=1e-6)
    np.testing.assert_allclose(arrays['heatmaps'], network.heatmaps(paths), atol=1e-6)
    np.savez(tmp_path / 'numpy.npz', **arrays)
    assert output.read_bytes() == (tmp_path / 'numpy.npz').read_bytes()
    *notices, summary, last = capsys.readouterr().out.splitlines()
    assert 'config.data.image_size is 32, as the checkpoint was trained' in notices
    assert summary.startswith('11 photos under 3 attributes, 32 numbers each; 11 photos in ')
    assert last == f'wrote {output}'
    assert main.run([*command, '--checkpoint=latest']) == 2
    assert "no checkpoint 'latest'" in capsys.readouterr().err


@pytest.mark.parametrize('crop_to_bbox', [True, False])
def test_vectors_are_those_of_evaluation(tmp_path, crop_to_bbox, capsys):
    """Networks trained on garments cropped to their boxes were given whole photos."""
    rng, rows = np.random.default_rng(0), ['path,split,color,x1,y1,x2,y2']
    boxes = [None, (3, 5, 30, 40), (10.5, 1, 41, 20.25), (1, 1, 33, 50)]  # the third overhangs by a pixel
    for split in ('train', 'valid', 'test'):
        for number in range(8):
            name, box = f'{split}{number}.png', boxes[number % 4]
            Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)).save(tmp_path / name)
            rows.append(f'{name},{split},{"ab"[number % 2]},{",".join(map(str, box)) if box else ",,,"}')
    (tmp_path / 'labels.csv').write_text('\n'.join(rows))
    config = tiny_config()
    config.data.name, config.data.manual_dir, config.data.dir = 'catalog', str(tmp_path), str(tmp_path / 'records')
    config.data.crop_to_bbox, config.data.fit = crop_to_bbox, 'pad'
    records = open_records(prepare.prepare(config))
    embedder = Embedder.load(save_network(tmp_path / 'workdir', config, records.attributes), batch_size=16)
    every = np.arange(8)
    evaluated = collect_vectors(
        embedder.network.embed_on(make_mesh()), eval_batches(records, 'test', every, config), np.ones((8, 1), bool), ''
    )
    capsys.readouterr()

    embed_files(embedder, tmp_path / 'labels.csv', tmp_path / 'F.npz')
    written = dict(zip(*(read(tmp_path / 'F.npz')[name] for name in ('paths', 'embeddings')), strict=True))
    paths = [f'{tmp_path}/test{number}.png' for number in range(8)]
    np.testing.assert_allclose([written[path][0] for path in paths], evaluated.of(every, 0), atol=1e-6)
    half_open = [box and (box[0] - 1, box[1] - 1, *box[2:]) for box in boxes] * 2
    np.testing.assert_allclose(embedder.embed(paths, boxes=half_open)[:, 0], evaluated.of(every, 0), atol=1e-6)
    assert capsys.readouterr().out == ''

    whole = embedder.embed(paths, boxes=[None] * 8)
    assert np.allclose(whole[:, 0], evaluated.of(every, 0), atol=1e-4) != crop_to_bbox
    (tmp_path / 'list.txt').write_text('\n'.join(paths))
    embed_files(embedder, tmp_path / 'list.txt', tmp_path / 'F.npz')
    np.testing.assert_allclose(read(tmp_path / 'F.npz')['embeddings'], whole, atol=1e-6)
    assert ('list.txt has no boxes: photos are used whole' in capsys.readouterr().out) == crop_to_bbox


@pytest.mark.parametrize('chunk_size', [1, 9, 1024])
def test_broken_photos_are_skipped_and_listed_whatever_the_chunk_size(shop, tmp_path, chunk_size):
    output, kept = tmp_path / 'F.npz', [number for number in range(COUNT) if number not in (1, 9)]
    embed(shop, tmp_path / 'whole.npz')
    for name in (NAMES[1], NAMES[9]):  # in the first and in the last batch
        (shop / name).write_text('broken')
    summary, whole = embed_files(FakeEmbedder(), shop, output, chunk_size=chunk_size), read(tmp_path / 'whole.npz')
    for name in ('paths', 'embeddings'):
        np.testing.assert_array_equal(read(output)[name], whole[name][kept])
    assert summary.skipped == [f'{shop}/{name}\tnot a photo' for name in (NAMES[1], NAMES[9])]
    assert (tmp_path / 'F.npz.skipped.txt').read_text().splitlines() == summary.skipped
    assert f'skipped 2 photos, listed in {output}.skipped.txt' in str(summary) and 'left out' not in str(summary)
    embed(shop / NAMES[0], output)
    assert outputs(tmp_path) == ['F.npz', 'whole.npz']  # and not an earlier run's list


def test_strict_names_the_photo_and_resumes_once_it_is_fixed(shop, tmp_path, capsys):
    output = tmp_path / 'F.npz'
    embed(shop, output)
    before, good = output.read_bytes(), (shop / NAMES[6]).read_bytes()
    (shop / NAMES[6]).write_text('broken')
    for _ in range(2):  # the second time in a part of the first
        with pytest.raises(
            InputError, match=r'06\.png: not a photo; fix it, or leave out --strict to skip such photos'
        ):
            embed(shop, output, strict=True)
    assert output.read_bytes() == before
    (shop / NAMES[6]).write_bytes(good)
    embed(shop, output, strict=True)
    assert capsys.readouterr().out.splitlines()[-1] == 'resuming after 4 of 11 photos'
    assert output.read_bytes() == before
    assert outputs(tmp_path) == ['F.npz']


def test_a_resumed_run_reads_changed_photos_again_and_leaves_the_users_files(shop, tmp_path):
    output, parts = tmp_path / 'F.npz', tmp_path / 'F.npz.parts'
    embed(shop, tmp_path / 'whole.npz')
    stop(shop, output, at=NAMES[9])
    os.utime(shop / NAMES[1])
    (parts / 'album').mkdir()
    (parts / 'notes.txt').write_text('mine')
    resumed = FakeEmbedder()
    assert embed(shop, output, resumed).num_reused == 4
    assert resumed.read == NAMES[:4] + NAMES[8:]
    assert output.read_bytes() == (tmp_path / 'whole.npz').read_bytes()
    assert sorted(path.name for path in parts.iterdir()) == ['album', 'notes.txt']


def test_unusable_input_is_refused_and_nothing_is_harmed(shop, tmp_path, monkeypatch):
    output = tmp_path / 'F.npz'
    for path in shop.iterdir():
        path.write_text('broken')
    with pytest.raises(InputError, match=r'None of the 11 photos of .*shop can be used; .*00\.png: not a photo'):
        embed(shop, output)
    with pytest.raises(InputError, match='nowhere does not exist'):
        embed(tmp_path / 'nowhere', output)
    with pytest.raises(InputError, match=r'shop is a folder; name a file like .*shop/output\.npz'):
        embed(shop, shop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r'00\.png does not end in \.npz; name another --output'):
        embed('shop', shop / NAMES[0])
    (tmp_path / 'link.npz').symlink_to(shop / NAMES[0])
    (tmp_path / 'a.npz.skipped.txt').write_text(f'shop/{NAMES[1]}')
    for images, name in (('shop', 'link.npz'), ('link.npz', 'link.npz'), ('a.npz.skipped.txt', 'a.npz')):
        with pytest.raises(InputError, match='is one of the inputs; name another --output'):
            embed(images, name)
    assert (shop / NAMES[0]).read_text() == 'broken'
    assert outputs(tmp_path) == ['a.npz.skipped.txt', 'link.npz']


def test_the_summary_counts_the_files_that_are_no_photos(shop, tmp_path):
    (shop / 'a.HEIC').touch()
    assert 'left out files whose suffix is not that of a photo (.heic 1)' in str(embed(shop, tmp_path / 'F.npz'))


def test_the_parts_of_another_run_are_refused(shop, tmp_path):
    output, parts = tmp_path / 'F.npz', tmp_path / 'F.npz.parts'
    labels = tmp_path / 'labels.csv'
    labels.write_text('\n'.join(['path,x1,y1,x2,y2', *(f'shop/{name},1,1,9,9' for name in NAMES)]))
    stop(shop, output, at=NAMES[9])
    before = sorted(parts.iterdir())
    for images, embedder, options, changed in (
        (shop, FakeEmbedder(), {'heatmaps': True}, 'heatmaps'),
        (labels, FakeEmbedder(crop_to_bbox=True), {}, 'boxes'),
        (shop / NAMES[0], FakeEmbedder(fingerprint='other'), {}, 'checkpoint, photos'),
    ):
        with pytest.raises(InputError, match=rf'F\.npz\.parts holds parts of a run with other {changed}, which only'):
            embed(images, output, embedder, **options)
    assert sorted(parts.iterdir()) == before


def test_a_damaged_part_is_named(shop, tmp_path):
    stop(shop, tmp_path / 'F.npz', at=NAMES[9])
    _, damaged = sorted((tmp_path / 'F.npz.parts').glob('part-*'))
    data = bytearray(damaged.read_bytes())
    data[200] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r'part-000001-\w+\.npz is damaged \(.*\); delete it and run the same command'):
        embed(shop, tmp_path / 'F.npz')
    damaged.unlink()
    assert embed(shop, tmp_path / 'F.npz').num_reused == 7


@pytest.mark.parametrize('name', ['notes.txt', 'request.json', 'part-000000-0123456789abcdef.npz', 'whole.npz'])
def test_a_folder_of_the_users_is_left_alone(shop, tmp_path, name):
    """Everything in `<output>.parts` was deleted, whoever had put it there."""
    parts = tmp_path / 'F.npz.parts'
    parts.mkdir()
    (parts / name).write_text('{"mine": true}')
    with pytest.raises(
        InputError, match=rf'F\.npz\.parts has files that we did not write, such as {name}; name another'
    ):
        embed(shop, tmp_path / 'F.npz')
    assert [(path.name, path.read_text()) for path in parts.iterdir()] == [(name, '{"mine": true}')]


def test_two_processes_do_not_write_one_output(shop, tmp_path):
    (tmp_path / 'F.npz.parts').mkdir()
    with (
        lock(tmp_path / 'F.npz.parts' / '.lock', ''),
        pytest.raises(InputError, match=r'Another process is using .*F\.npz\.parts; wait for it, or name another'),
    ):
        embed(shop, tmp_path / 'F.npz')
    embed(shop, tmp_path / 'F.npz')
    assert outputs(tmp_path) == ['F.npz']


KILLED_AT = {  # the call at which a process is killed -> the number of parts that it leaves
    'fsync 1': 0,  # before the request is there
    'replace 3': 1,
    'fsync 6': 3,  # before the assembled file is complete, and named
    'replace 7': 3,
    'unlink 9': 1,  # while it deletes the parts
    'rmdir 1': 0,
}
RUN_AND_KILL = """
import os, signal, sys
from pathlib import Path
from asen_jax.search.embed_files import embed_files
from tests.search.fake_embedder import FakeEmbedder

for point in sys.argv[1:]:
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

    setattr(owner, name, kill_before)
    embed_files(FakeEmbedder(), 'shop', f'{point}/F.npz', heatmaps=True, chunk_size=4)
"""


def test_a_killed_run_resumes_and_gives_the_same_bytes(shop, tmp_path, monkeypatch):
    (shop / NAMES[2]).write_text('broken')
    command = [sys.executable, '-c', RUN_AND_KILL, *KILLED_AT]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, timeout=300, check=True)
    monkeypatch.chdir(tmp_path)
    embed('shop', 'unbroken.npz', heatmaps=True)
    unbroken = Path('unbroken.npz').read_bytes()
    for point, num_parts in KILLED_AT.items():
        output, resumed = Path(point) / 'F.npz', FakeEmbedder()
        assert len(list(output.parent.glob('F.npz.parts/part-*.npz'))) == num_parts, point
        assert not output.exists() or output.read_bytes() == unbroken, point
        summary = embed('shop', output, resumed, heatmaps=True)
        assert -(-summary.num_reused // CHUNK_SIZE) == num_parts, point
        assert summary.num_reused == COUNT - len(resumed.read), point
        assert output.read_bytes() == unbroken, point
        assert Path(f'{output}.skipped.txt').read_text() == f'shop/{NAMES[2]}\tnot a photo\n'
        assert outputs(output.parent) == ['F.npz', 'F.npz.skipped.txt'], point


def test_memory_does_not_grow_with_the_number_of_photos(shop, tmp_path):
    (shop / 'list.txt').write_text(f'{NAMES[0]}\n' * 512)
    tracemalloc.start()
    embed_files(FakeEmbedder(dim=2**14), shop / 'list.txt', tmp_path / 'F.npz', chunk_size=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / 'F.npz').stat().st_size / 4  # 32 MiB, of which a chunk is half a MiB
