"""`asen_jax.Embedder`: vectors of photos from anywhere, in any format."""

import io
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

import asen_jax
from asen_jax import network as networks
from asen_jax.data import images as pictures
from asen_jax.embedder import Embedder
from asen_jax.errors import InputError
from asen_jax.search.embed_files import embed_files
from asen_jax.sharding import make_mesh
from configs import variants
from tests.conftest import tiny_config
from tests.search.conftest import ATTRIBUTES, save_network


def test_batch_size_and_neighbors_change_nothing(network, photos):
    expected, maps = network.embed(photos), network.heatmaps(photos)
    assert expected.shape == (11, 3, 32)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, rtol=1e-5)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.01  # the attribute matters
    assert np.abs(expected[0] - expected[1:]).max() > 0.01  # and so does the photo
    np.testing.assert_allclose(network.embed(photos[::-1]), expected[::-1], atol=1e-6)
    np.testing.assert_allclose(network.embed(photos[:1]), expected[:1], atol=1e-6)
    arrays = {name: jax.device_get(getattr(network.network, name)) for name in ('params', 'batch_stats')}
    other = Embedder(network.network._replace(**arrays), make_mesh(devices=jax.devices()[:1]), batch_size=5)
    np.testing.assert_allclose(other.embed(photos), expected, atol=1e-6)
    np.testing.assert_allclose(other.heatmaps(photos), maps, atol=1e-6)


def retrained(network, group='data', **fields):
    """The network as if it had been trained with other fields of a group of the config."""
    config = network.network.meta['config']
    meta = network.network.meta | {'config': config | {group: config[group] | fields}}
    return Embedder(network.network._replace(meta=meta), make_mesh(), batch_size=8)


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
def test_photos_become_squares_as_in_training(network, photos, fit):
    other = retrained(network, fit=fit)
    squares = [pictures.fit_square(Image.fromarray(photo), 32, fit) for photo in photos[-3:]]
    np.testing.assert_array_equal(other.embed(photos[-3:]), other.embed(squares))
    assert (other.fingerprint == network.fingerprint) == (fit == 'crop')


def test_photos_are_cropped_to_their_boxes_if_the_network_was_trained_so(network, photos, tmp_path):
    cropping, photo = retrained(network, crop_to_bbox=True), photos[10]
    Image.fromarray(photo).save(tmp_path / 'a.png')
    images, boxes = (
        [photo, Image.fromarray(photo), tmp_path / 'a.png', photo],
        [np.array([2.5, 3, 30, 20.5])] * 3 + [None],
    )
    garment = photo[3:21, 2:30]
    expected = cropping.embed([garment] * 3 + [photo], boxes=[None] * 4)
    np.testing.assert_array_equal(cropping.embed(images, boxes=boxes), expected)
    maps = cropping.heatmaps(images, 'color', boxes=boxes)
    np.testing.assert_array_equal(maps, cropping.heatmaps([garment] * 3 + [photo], 'color', boxes=[None] * 4))
    np.testing.assert_array_equal(network.embed(images, boxes=boxes), network.embed(images))
    with pytest.warns(UserWarning, match='No boxes were given: photos are used whole'):
        np.testing.assert_array_equal(cropping.embed([photo]), expected[-1:])
    assert cropping.fingerprint != network.fingerprint
    for box, reason in (
        (
            (0, 0, 40, 20),
            r'images\[1\]: the box left 0, .*, right 40, .* reaches beyond the photo, which is 33 x 50 pix',
        ),
        ((9, 9, 9, 20), 'the box left 9, top 9, right 9, .* is empty'),
        ((0, 0, 9, np.nan), r'the box \(0\.0, 0\.0, 9\.0, nan\) is not four numbers: left, top, right, bottom'),
        ((1, 2), r'the box \(1\.0, 2\.0\) is not four numbers'),
    ):
        with pytest.raises(InputError, match=reason):
            cropping.embed([photo, photo], boxes=[None, box])
    with pytest.raises(InputError, match='images has 2 photos but boxes has 1; give one box or None per photo'):
        cropping.embed([photo, photo], boxes=[None])


def test_the_fingerprint_is_of_what_determines_vectors(network, tmp_path):
    """Every field of `config.model` was hashed, so that a new one would have made every gallery unusable."""
    for fields in (
        {'new': 'x'},
        {'resnet': {'new': 1}},
        {'dropout': 0.5},
        {'bn_per_role': False},
        {'trunk_bn': 'running'},
    ):
        assert retrained(network, 'model', **fields).fingerprint == network.fingerprint
    later = network.network._replace(meta=network.network.meta | {'step': 7})
    assert Embedder(later, make_mesh()).fingerprint == network.fingerprint
    others = [retrained(network, 'model', normalize=False)]
    for variant, masks in (('csn', 'fixed'), ('csn', 'sections'), ('triplet', 'fixed')):
        config = tiny_config()
        variants.set_network(config, variant)
        config.model.csn.masks = masks
        others.append(Embedder.load(save_network(tmp_path / f'{variant}-{masks}', config)))
    params = jax.tree.map(lambda leaf: leaf.reshape(1, *leaf.shape), network.network.params)
    others += [Embedder(network.network, make_mesh())]
    others[-1].network = network.network._replace(params=params)
    assert len({network.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_a_photo_may_be_a_path_an_image_or_an_array(network, photos, tmp_path):
    exif, path = Image.Exif(), tmp_path / 'a'  # without a suffix: the format is recognized from the bytes
    exif[0x0112] = 6  # rotated by a quarter turn
    Image.fromarray(photos[3]).save(path, 'JPEG', exif=exif)
    opened, upright = Image.open(path), pictures.decode(path.read_bytes())
    given = [path, str(path), opened, upright, np.asarray(upright), jax.numpy.asarray(upright)]
    vectors = network.embed(iter(given))
    np.testing.assert_array_equal(vectors, np.broadcast_to(vectors[-1], vectors.shape))
    assert np.abs(vectors[-1] - network.embed([np.asarray(opened)])).max() > 1e-3
    assert opened.getexif()[0x0112] == 6  # the caller's image is unchanged


def test_an_image_may_be_given_many_times(network, photos, monkeypatch):
    """Pillow loads an opened file lazily, which is not thread-safe: some threads saw a truncated file."""
    inside, most, original = [], [], pictures.upright_rgb

    def slowly(image):
        inside.append(image)
        time.sleep(0.005)
        most.append(len(inside))
        return original(inside.pop())

    monkeypatch.setattr(pictures, 'upright_rgb', slowly)
    network.embed([Image.fromarray(photos[0])] * 16)
    assert max(most) == 1


def test_rows_and_attributes_are_those_requested(network, photos):
    every = network.embed(photos)
    assert network.attributes == ATTRIBUTES
    np.testing.assert_array_equal(network.embed(photos, ['color', 'sleeve_length']), every[:, [2, 0]])
    np.testing.assert_array_equal(network.embed(photos, 'neckline'), every[:, [1]])
    maps = network.heatmaps(photos)
    assert maps.shape[:2] == (11, 3)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-4)
    np.testing.assert_array_equal(network.heatmaps(photos, ('color', 'neckline')), maps[:, [2, 1]])
    with pytest.raises(InputError, match=r"no attribute 'neck_line'; did you mean 'neckline'\? .*'color'"):
        network.embed(photos, ['color', 'neck_line'])
    with pytest.raises(InputError, match=r"no attribute 'heel'; it has 'sleeve_length', 'neckline', 'color'"):
        network.embed([], 'heel')
    assert network.embed([], 'color').shape == (0, 1, 32)
    assert network.heatmaps([]).shape == (0, 3, 2, 2)


def test_what_is_not_a_photo_is_named(network, photos, tmp_path):
    Image.fromarray(photos[0]).save(tmp_path / 'broken.jpg')
    os.truncate(tmp_path / 'broken.jpg', 300)
    (tmp_path / 'text.jpg').write_text('a shop')
    os.mkfifo(tmp_path / 'pipe.jpg')
    floats, channels = photos[0].astype(np.float32), photos[0][..., :1]
    for wrong, words in (
        (floats, r'images\[2\]: it is an array \[40, 33, 3\] of float32; give .* uint8 array \[H, W, 3\]'),
        (channels, r'images\[2\]: it is an array \[40, 33, 1\] of uint8'),
        (photos[0][:0], r'images\[2\]: it is an array \[0, 33, 3\]'),
        ({'path': 'a.jpg'}, r'images\[2\]: it is of type dict; give a path, a PIL image or'),
        (tmp_path / 'broken.jpg', r'broken\.jpg: not a readable picture \(.*[Tt]runcated'),
        (tmp_path / 'text.jpg', r'text\.jpg: not a readable picture \(none of .*JPEG.*\)'),
        (str(tmp_path / 'gone.jpg'), r'gone\.jpg: cannot be read \(No such file'),
        (str(tmp_path), 'not a regular file'),
        (tmp_path / 'pipe.jpg', 'not a regular file'),
        ('a\0b', 'null byte'),
    ):
        with pytest.raises(InputError, match=words):
            network.embed([*photos[:2], wrong, photos[3]])


def test_a_single_photo_is_not_taken_for_a_sequence_of_letters_or_rows(network, photos):
    for single in (photos[0], 'a.jpg'):
        with pytest.raises(InputError, match='a single photo; put it in a list'):
            network.embed(single)
    np.testing.assert_array_equal(network.embed(np.stack([photos[0]] * 2)), network.embed(photos[:1] * 2))


@pytest.mark.parametrize(('variant', 'name'), [('csn', 'csn'), ('no_spatial', 'asen')])
def test_without_attention_there_are_no_heatmaps(tmp_path, photos, variant, name):
    config = tiny_config()
    variants.set_network(config, variant)
    config.model.normalize = False
    loaded = Embedder.load(save_network(tmp_path, config), batch_size=8)
    embedded = loaded.embed(photos)
    assert embedded.shape == (11, 3, 16)
    assert not np.allclose(np.linalg.norm(embedded, axis=-1), 1, atol=0.01)  # model.normalize is off
    reason = rf'\({name}\) has no spatial attention'
    with pytest.raises(InputError, match=reason):
        loaded.heatmaps(photos)
    with pytest.raises(InputError, match=reason):
        embed_files(loaded, tmp_path / 'nowhere', tmp_path / 'F.npz', heatmaps=True)  # before it looks for photos


def test_one_program_serves_every_call(workdir, photos, monkeypatch):
    traced, original = [], networks.embed_all

    def count(*arguments):
        traced.append(arguments[-1].shape)
        return original(*arguments)

    monkeypatch.setattr(networks, 'embed_all', count)
    loaded = Embedder.load(workdir, batch_size=7)  # rounded up, so that each of the 8 devices gets an equal share
    for number in (1, 8, 11):
        loaded.embed(photos[:number], 'color')
        loaded.heatmaps(photos[:number])
    assert traced == [(8, 32, 32, 3)]


def test_load_finds_checkpoints_and_keeps_the_trained_precision(workdir, network, tmp_path):
    assert Embedder.load(str(workdir), 0).precision == 'float32'
    assert Embedder.load(workdir, precision='bfloat16').fingerprint != network.fingerprint
    with pytest.raises(InputError, match="no checkpoint 'latest'; it has best"):
        Embedder.load(workdir, 'latest')
    with pytest.raises(InputError, match='train first, or name another workdir'):
        Embedder.load(tmp_path / 'nothing')
    with pytest.raises(InputError, match='batch_size is 0; it must be at least 1'):
        Embedder.load(workdir, batch_size=0)


def test_the_package_exports_it_lazily():
    assert asen_jax.Embedder is Embedder
    with pytest.raises(AttributeError, match="'asen_jax' has no attribute 'Embeder'"):
        asen_jax.Embeder  # noqa: B018


def test_threads_leave_warnings_as_they_were(photos):
    """`warnings.catch_warnings` in threads that overlap left every later warning of the process off."""
    buffer, before = io.BytesIO(), list(warnings.filters)
    Image.fromarray(photos[0]).save(buffer, 'JPEG')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pictures.decode, [buffer.getvalue()] * 3000))
    assert warnings.filters == before
