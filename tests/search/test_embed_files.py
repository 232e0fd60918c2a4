"""`--mode embed`: one whole .npz of all photos, whatever breaks or is killed on the way, with little memory."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asen_jax.errors import InputError
from asen_jax.search import embed_files
from asen_jax.search.embed_files import embed_workdir
from asen_jax.search.embedder import Embedded, Embedder
from tests.conftest import tiny_config
from tests.search.test_embedder import ATTRIBUTES, network, save_network, workdir

__all__ = ['network', 'workdir']  # fixtures

COUNT, CHUNK = 11, 4


@pytest.fixture
def shop(tmp_path):
    return draw_photos(tmp_path / 'shop')


def draw_photos(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40 + number, 33, 3), np.uint8)).save(folder / f'{number:02}.png')
    return folder


def embed(network, images, output, **options):
    return embed_files.embed_files(network, images, output, chunk_size=CHUNK, **options)


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def assert_same_files(one, other):
    assert one.read_bytes() == other.read_bytes()


def assert_alone(output, *others):
    """Nothing else was left beside the output."""
    assert sorted(path.name for path in output.parent.glob(f'{output.name}*')) == sorted([output.name, *others])


def test_the_file_is_what_numpy_writes_of_the_embedders_vectors(network, shop, tmp_path, capsys):
    output = tmp_path / 'new' / 'F.npz'
    summary = embed(network, shop, output, heatmaps=True)
    arrays, paths = read(output), sorted(map(str, shop.iterdir()))
    assert list(arrays) == ['paths', 'attributes', 'embeddings', 'heatmaps']
    assert arrays['paths'].tolist() == paths
    assert arrays['attributes'].tolist() == list(ATTRIBUTES)
    assert arrays['embeddings'].dtype == arrays['heatmaps'].dtype == np.float32
    np.testing.assert_allclose(arrays['embeddings'], network.embed(paths), atol=1e-6)
    np.testing.assert_allclose(arrays['heatmaps'], network.heatmaps(paths), atol=1e-6)
    np.savez(tmp_path / 'numpy.npz', **arrays)
    assert_same_files(output, tmp_path / 'numpy.npz')
    assert_alone(output)
    assert (summary.num_photos, summary.num_attributes, summary.dim, summary.skipped) == (COUNT, 3, 32, [])
    assert '11 photos under 3 attributes, 32 numbers each; 11 photos in ' in str(summary)
    assert str(summary).endswith(f'photos/s)\nwrote {output}')
    assert capsys.readouterr().out == ''


def test_each_way_to_name_photos_gives_the_same(network, shop, tmp_path):
    names = sorted(path.name for path in shop.iterdir())
    (tmp_path / 'list.txt').write_text('\r\n'.join(f'shop/{name}' for name in names))
    (shop / 'labels.csv').write_text('color,path\n' + ''.join(f'red,{name}\n' for name in names))
    for number, images in enumerate((shop, f'{shop}/*.png', tmp_path / 'list.txt', shop / 'labels.csv')):
        embed(network, images, tmp_path / f'{number}.npz')
        assert_same_files(tmp_path / f'{number}.npz', tmp_path / '0.npz')


def test_chunks_and_batches_change_nothing(network, shop, tmp_path):
    for number in (1, 9):  # one in the first batch and one in the last
        (shop / f'{number:02}.png').write_text('no photo')
    for size in (4, 1, 9, 1024):
        summary = embed_files.embed_files(network, shop, tmp_path / f'{size}.npz', chunk_size=size)
        assert [Path(line.split('\t')[0]).name for line in summary.skipped] == ['01.png', '09.png']
        arrays, expected = read(tmp_path / f'{size}.npz'), read(tmp_path / '4.npz')
        assert arrays['paths'].tolist() == expected['paths'].tolist()
        np.testing.assert_allclose(arrays['embeddings'], expected['embeddings'], atol=1e-6)


def test_broken_photos_are_skipped_and_listed(network, shop, tmp_path):
    output, listed = tmp_path / 'F.npz', tmp_path / 'list.txt'
    embed(network, shop, tmp_path / 'whole.npz')
    (shop / '05.png').write_bytes((shop / '05.png').read_bytes()[:200])
    listed.write_text('\n'.join(f'shop/{number:02}.png' for number in (*range(COUNT), 77)))
    summary = embed(network, listed, output)
    kept, whole = [number for number in range(COUNT) if number != 5], read(tmp_path / 'whole.npz')
    for name in ('paths', 'embeddings'):
        np.testing.assert_array_equal(read(output)[name], whole[name][kept])
    broken, missing = (tmp_path / 'F.npz.skipped.txt').read_text().splitlines()
    assert broken.startswith(f'{shop}/05.png\tnot a readable picture (')
    assert missing == f'{shop}/77.png\tcannot be read (No such file or directory)'
    assert summary.skipped == [broken, missing]
    assert f'skipped 2 photos, listed in {output}.skipped.txt' in str(summary)
    embed(network, shop / '00.png', output)
    assert_alone(output)  # an earlier list is not taken for this one's


def test_strict_names_the_photo_and_harms_nothing(network, shop, tmp_path, capsys):
    output = tmp_path / 'F.npz'
    embed(network, shop, output)
    before, good = output.read_bytes(), (shop / '06.png').read_bytes()
    (shop / '06.png').write_bytes(good[:200])
    with pytest.raises(InputError, match=r'06\.png: not a readable picture \(.*; mend it, or leave out --strict'):
        embed(network, shop, output, strict=True)
    assert output.read_bytes() == before
    (shop / '06.png').write_bytes(good)
    embed(network, shop, output, strict=True)
    assert 'goes on after 4 of 11 photos' in capsys.readouterr().out
    assert output.read_bytes() == before
    assert_alone(output)


def test_photos_that_changed_since_a_stop_are_read_again(network, shop, tmp_path, monkeypatch, capsys):
    output, good = tmp_path / 'F.npz', (shop / '01.png').read_bytes()
    embed(network, shop, tmp_path / 'whole.npz')
    (shop / '01.png').write_bytes(good[:200])
    for stop in ('_list_skipped', '_assemble'):  # with everything embedded
        with monkeypatch.context() as patch:
            patch.setattr(embed_files, stop, interrupt)
            with pytest.raises(KeyboardInterrupt):
                embed(network, shop, output)
        assert not output.exists()
    with pytest.raises(InputError, match=r'01\.png: not a readable'):  # a piece that lacks it is not taken as it is
        embed(network, shop, output, strict=True)
    (shop / '01.png').write_bytes(good)
    os.utime(shop / '09.png')
    capsys.readouterr()
    assert embed(network, shop, output).num_reused == 4
    assert 'goes on after 4 of 11 photos' in capsys.readouterr().out
    assert_same_files(output, tmp_path / 'whole.npz')
    assert_alone(output)


def interrupt(*_):
    raise KeyboardInterrupt


def test_nothing_usable_is_refused_and_leaves_nothing(network, shop, tmp_path):
    for path in shop.iterdir():
        path.write_text('no photo')
    output = tmp_path / 'new' / 'F.npz'
    with pytest.raises(InputError, match=r'None of the 11 photos of .*shop can be used; .*00\.png: not a readable'):
        embed(network, shop, output)
    with pytest.raises(InputError, match=r'00\.png: not a readable'):
        embed(network, shop, output, strict=True)
    with pytest.raises(InputError, match='nowhere does not exist'):
        embed(network, tmp_path / 'nowhere', output)
    with pytest.raises(InputError, match=r'shop is a folder; name a file like .*shop/embeddings\.npz'):
        embed(network, shop, shop)
    assert not list(output.parent.iterdir())


def test_heatmaps_without_attention_are_refused_before_anything_is_read(shop, tmp_path):
    loaded = Embedder.load(save_network(tmp_path / 'w', name='csn'), batch_size=8)
    with pytest.raises(InputError, match=r'\(csn\) has no spatial attention'):
        embed(loaded, tmp_path / 'nowhere', tmp_path / 'F.npz', heatmaps=True)
    embed(loaded, shop, tmp_path / 'F.npz')
    assert list(read(tmp_path / 'F.npz')) == ['paths', 'attributes', 'embeddings']


class Wide(Embedder):
    """An embedder without a network: 64 KiB of numbers a photo, none of which is computed."""

    def __init__(self):
        self.attributes, self.dim, self.heatmap_shape, self.batch_size = ATTRIBUTES[:1], 2**14, (2, 2), 8
        self.fingerprint = 'wide'

    def stream(self, batches, attributes=None, heatmaps=False):
        for number, batch in enumerate(batches):
            vectors = np.full((len(batch), 1, self.dim), number, np.float32)
            yield Embedded(vectors, None, list(range(len(batch))), {})


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    peaks = {}
    for count in (64, 512):
        listed, output = tmp_path / f'{count}.txt', tmp_path / f'{count}.npz'
        listed.write_text('\n'.join(f'{number}.jpg' for number in range(count)))
        tracemalloc.start()
        embed_files.embed_files(Wide(), listed, output, chunk_size=16)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    chunk = 16 * 2**16  # bytes
    assert peaks[512] < peaks[64] + chunk < 6 * chunk < output.stat().st_size / 5
    vectors = np.load(output)['embeddings']
    assert vectors.shape == (512, 1, 2**14)
    np.testing.assert_array_equal(vectors[:, 0, 0], np.arange(512) // 8)


def test_the_mode_loads_the_workdir_and_says_what_it_did(workdir, shop, tmp_path, capsys):
    config = tiny_config()
    config.data.image_size = 64
    embed_workdir(config, workdir, 'best', str(shop), tmp_path / 'F.npz')
    said = capsys.readouterr().out.splitlines()
    assert said[0] == 'config.data.image_size is 32, as the checkpoint was trained'
    assert said[1].startswith('11 photos under 3 attributes, 32 numbers each; 11 photos in ')
    assert said[2:] == [f'wrote {tmp_path / "F.npz"}']
    with pytest.raises(InputError, match="no checkpoint 'latest'"):
        embed_workdir(config, workdir, 'latest', str(shop), tmp_path / 'F.npz')
