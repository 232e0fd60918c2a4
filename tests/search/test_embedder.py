"""`asen_jax.Embedder`: the vectors of evaluation for photos from anywhere, in any format."""

import io
import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

import asen_jax
from asen_jax.checkpoint import Checkpoints
from asen_jax.data import batches
from asen_jax.data import images as pictures
from asen_jax.errors import InputError
from asen_jax.evaluation import vectors
from asen_jax.models import build_model
from asen_jax.search import embedder
from asen_jax.search.embedder import Embedder
from asen_jax.sharding import make_mesh
from asen_jax.training.optimizer import make_optimizer
from asen_jax.training.step import create_state
from tests.conftest import tiny_config

ATTRIBUTES = ('sleeve_length', 'neckline', 'color')
ARRAYS = ('params', 'batch_stats')
VALUES = (('short', 'long'), ('v', 'round'), ('red', 'green', 'blue'))


def save_network(workdir, attributes=ATTRIBUTES, seed=0, **model):
    """A workdir with the checkpoint of an untrained tiny network."""
    config = tiny_config()
    config.seed = seed
    config.model.update(model)
    state = create_state(*build_model(config, len(attributes))[1:], make_optimizer(config, 1))
    meta = {'step': 0, 'score': 0.5, 'config': json.loads(config.to_json()), 'attributes': list(attributes)}
    meta |= {'values': VALUES, 'dataset': 'synthetic', 'fingerprint': ''}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save('best', state, meta, 0.5)
        checkpoints.wait()
    return workdir


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp('workdir'))


@pytest.fixture(scope='module')
def network(workdir):
    return Embedder.load(workdir, batch_size=8)


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + i, 33, 3), np.uint8) for i in range(11)]


def encode(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_vectors_are_those_of_evaluation(records, config, tmp_path):
    loaded = Embedder.load(save_network(tmp_path / 'w', records.attributes), batch_size=24)
    source, count = batches.open_split(records.directory, 'test'), records.splits['test']
    paths = [tmp_path / f'{index}.png' for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(source[index]['image'])
    wanted = np.ones((count, len(records.attributes)), bool)
    loaded_photos = batches.eval_batches(records, 'test', np.arange(count), config)
    arrays = loaded.network.params, loaded.network.batch_stats
    expected = vectors.collect_vectors(
        vectors.make_embedder(loaded.network.model, make_mesh()), *arrays, loaded_photos, wanted, ''
    )
    np.testing.assert_allclose(
        loaded.embed(paths), expected.vectors.reshape(count, len(records.attributes), -1), atol=1e-6
    )


def test_batch_size_and_neighbors_change_nothing(network, photos):
    expected = network.embed(photos)
    assert expected.shape == (11, 3, 32)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, rtol=1e-5)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.01  # the attribute matters
    assert np.abs(expected[0] - expected[1:]).max() > 0.01  # and so does the photo
    np.testing.assert_allclose(network.embed(photos[::-1]), expected[::-1], atol=1e-6)
    np.testing.assert_allclose(np.concatenate([network.embed([photo]) for photo in photos]), expected, atol=1e-6)
    movable = network.network._replace(**jax.device_get({name: getattr(network.network, name) for name in ARRAYS}))
    for mesh, batch_size in ((make_mesh(), 16), (make_mesh(devices=jax.devices()[:1]), 5)):
        other = Embedder(movable, mesh, 'float32', batch_size)
        assert other.batch_size == batch_size
        np.testing.assert_allclose(other.embed(photos), expected, atol=1e-6)
        np.testing.assert_allclose(other.heatmaps(photos), network.heatmaps(photos), atol=1e-6)


@pytest.mark.parametrize(('fit', 'size'), [('crop', 32), ('pad', 48), ('stretch', 32)])
def test_photos_become_squares_as_in_training(network, photos, fit, size):
    config = network.network.meta['config']
    data = config['data'] | {'fit': fit, 'image_size': size}
    trained = network.network._replace(meta=network.network.meta | {'config': config | {'data': data}})
    other = Embedder(trained, make_mesh(), 'float32', 8)
    squares = [pictures.fit_square(Image.fromarray(photo), size, fit) for photo in photos[-3:]]
    np.testing.assert_array_equal(other.embed(photos[-3:]), other.embed(squares))
    assert other.fingerprint != network.fingerprint or fit == config['data']['fit']


def in_formats(photo):
    """Name -> (bytes, the RGB pixels that a person sees)."""
    image, gray = Image.fromarray(photo), photo[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its left side
    clear, white = (gray < 128)[..., None], np.full_like(photo, 255)
    palette = Image.fromarray(np.where(clear[..., 0], 0, 1 + gray // 100).astype(np.uint8), 'P')
    palette.putpalette([0, 0, 255, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    colors = np.array([[255, 255, 255], [10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    gif, cmyk = encode(image, 'GIF'), encode(image.convert('CMYK'), 'JPEG')
    alpha = np.dstack([photo, np.where(clear[..., 0], 0, 255).astype(np.uint8)])
    return {
        'turned JPEG': (
            encode(image, 'JPEG', exif=exif), np.rot90(np.asarray(Image.open(io.BytesIO(encode(image, 'JPEG')))), -1)
        ),
        'PNG with alpha': (encode(Image.fromarray(alpha)), np.where(clear, white, photo)),
        'palette': (encode(palette, transparency=0), colors[np.asarray(palette)]),
        'CMYK': (cmyk, np.asarray(Image.open(io.BytesIO(cmyk)).convert('RGB'))),
        'gray': (encode(Image.fromarray(gray)), np.dstack([gray] * 3)),
        '16-bit gray': (encode(Image.fromarray(gray.astype(np.uint16) * 257)), np.dstack([gray] * 3)),
        'WebP': (encode(image, 'WEBP', lossless=True), photo),
        'GIF': (gif, np.asarray(Image.open(io.BytesIO(gif)).convert('RGB'))),
    }  # fmt: skip


def test_every_format_as_path_image_and_array(network, photos, tmp_path):
    cases = in_formats(photos[3])
    paths = [tmp_path / str(number) for number in range(len(cases))]  # no suffix: the bytes say what they are
    for path, (data, _) in zip(paths, cases.values(), strict=True):
        path.write_bytes(data)
    expected = network.embed([np.ascontiguousarray(pixels) for _, pixels in cases.values()])
    np.testing.assert_array_equal(network.embed(paths), expected)
    np.testing.assert_array_equal(network.embed(list(map(str, paths))), expected)
    opened = [Image.open(io.BytesIO(data)) for data, _ in cases.values()]
    np.testing.assert_array_equal(network.embed(opened), expected)
    mixed = [opened[0], str(paths[1]), jax.numpy.asarray(cases['palette'][1]), *paths[3:]]
    np.testing.assert_array_equal(network.embed(iter(mixed)), expected)
    assert opened[0].getexif()[0x0112] == 6  # what was lent is given back as it was
    assert np.abs(expected[1:] - expected[:1]).max(axis=(1, 2)).min() > 1e-3


def test_an_image_may_be_given_many_times(network, photos, monkeypatch):
    """Pillow loads an opened file in a way that threads must not share: some of them saw it cut short."""
    exif, inside, most, original = Image.Exif(), [], [], pictures.upright_rgb
    exif[0x0112] = 6
    data = encode(Image.fromarray(photos[0]), 'JPEG', exif=exif)
    expected = network.embed([Image.open(io.BytesIO(data))])

    def slowly(image):
        inside.append(image)
        time.sleep(0.005)
        most.append(len(inside))
        return original(inside.pop())

    monkeypatch.setattr(pictures, 'upright_rgb', slowly)
    vectors = network.embed([Image.open(io.BytesIO(data))] * 16)
    np.testing.assert_allclose(vectors, np.broadcast_to(expected, vectors.shape), atol=1e-6)
    assert max(most) == 1


def test_attributes_come_in_the_order_asked_for(network, photos):
    every = network.embed(photos)
    assert network.attributes == ATTRIBUTES
    assert network.values == VALUES
    np.testing.assert_array_equal(network.embed(photos, ['color', 'sleeve_length']), every[:, [2, 0]])
    np.testing.assert_array_equal(network.embed(photos, 'neckline'), every[:, [1]])
    maps = network.heatmaps(photos)
    assert maps.shape[:2] == (11, 3)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-4)
    np.testing.assert_array_equal(network.heatmaps(photos, ('color', 'neckline')), maps[:, [2, 1]])
    with pytest.raises(InputError, match=r"no attribute 'neck_line'; did you mean 'neckline'\? .*'color'"):
        network.embed(photos, ['color', 'neck_line'])
    with pytest.raises(InputError, match=r"no attribute 'heel'; it knows 'sleeve_length', 'neckline', 'color'"):
        network.embed([], 'heel')


def test_no_photos_give_no_rows(network):
    assert network.embed([]).shape == (0, 3, 32)
    assert network.embed([], 'color').dtype == np.float32
    assert network.heatmaps([]).shape == (0, 3, 2, 2)


def test_what_is_no_photo_is_named(network, photos, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(encode(Image.fromarray(photos[0]), 'JPEG')[:300])
    (tmp_path / 'text.jpg').write_text('a shop')
    floats, channels = photos[0].astype(np.float32), photos[0][..., :1]
    for wrong, words in (
        (floats, r'images\[2\]: it is an array \[40, 33, 3\] of float32; give .* uint8 array \[H, W, 3\]'),
        (channels, r'images\[2\]: it is an array \[40, 33, 1\] of uint8'),
        (photos[0][:0], r'images\[2\]: it is an array \[0, 33, 3\]'),
        ({'path': 'a.jpg'}, r'images\[2\]: it is of type dict; give a path, a PIL image or'),
        (tmp_path / 'broken.jpg', r'broken\.jpg: not a readable picture \(.*[Tt]runcated'),
        (tmp_path / 'text.jpg', r'text\.jpg: not a readable picture \(of no format that Pillow knows\)'),
        (str(tmp_path / 'gone.jpg'), r'gone\.jpg: cannot be read \(No such file'),
        ('a\0b', 'null byte'),
    ):
        with pytest.raises(InputError, match=words):
            network.embed([*photos[:2], wrong, photos[3]])


def test_a_single_photo_is_no_sequence_of_letters_or_rows(network, photos, tmp_path):
    for single in (photos[0], 'a.jpg'):
        with pytest.raises(InputError, match='a single photo; put it into a list'):
            network.embed(single)
    for single in (tmp_path, Image.fromarray(photos[0])):
        with pytest.raises(InputError, match='a single photo'):
            embedder._as_list(single)
    np.testing.assert_array_equal(network.embed(np.stack([photos[0]] * 2))[:, 0], network.embed(photos[:1] * 2)[:, 0])


@pytest.mark.parametrize('model', [{'name': 'csn'}, {'name': 'triplet'}, {'name': 'asen', 'spatial_attention': False}])
def test_without_attention_there_are_no_heatmaps(tmp_path, photos, model):
    loaded = Embedder.load(save_network(tmp_path, **model, normalize=False), batch_size=8)
    embedded = loaded.embed(photos)
    assert embedded.shape == (11, 3, 16)
    assert not np.allclose(np.linalg.norm(embedded, axis=-1), 1, atol=0.01)  # model.normalize is off
    with pytest.raises(InputError, match=rf'\({model["name"]}\) has no spatial attention'):
        loaded.heatmaps(photos)


def test_one_program_serves_every_call(workdir, photos, monkeypatch):
    traced, original = [], vectors.embed_all

    def count(*arguments):
        traced.append(arguments[-1].shape)
        return original(*arguments)

    monkeypatch.setattr(vectors, 'embed_all', count)
    loaded = Embedder.load(workdir, batch_size=8)
    for number in (1, 8, 11):
        loaded.embed(photos[:number], 'color')
        loaded.heatmaps(photos[:number])
    assert traced == [(8, 32, 32, 3)]


def test_load_finds_checkpoints_and_keeps_the_trained_precision(workdir, tmp_path):
    assert Embedder.load(str(workdir), 0).precision == 'float32'
    assert Embedder.load(workdir, precision='bfloat16').fingerprint != Embedder.load(workdir).fingerprint
    with pytest.raises(InputError, match="no checkpoint 'latest'; there is best"):
        Embedder.load(workdir, 'latest')
    with pytest.raises(InputError, match='train first, or name another --workdir'):
        Embedder.load(tmp_path / 'nothing')
    with pytest.raises(InputError, match='batch_size is 0'):
        Embedder.load(workdir, batch_size=0)


def test_the_package_offers_it_lazily():
    assert asen_jax.Embedder is Embedder
    with pytest.raises(AttributeError, match="'asen_jax' has no attribute 'Embeder'"):
        asen_jax.Embeder  # noqa: B018


def test_decoding_is_begun_before_it_is_asked_for():
    taken = []
    ahead = embedder._ahead(map(taken.append, range(5)), 2)
    next(ahead)
    assert len(taken) == 3
    assert len(list(ahead)) == 4


def test_threads_leave_warnings_as_they_were(photos):
    """`warnings.catch_warnings` in threads that overlap left every later warning of the process off."""
    data, before = encode(Image.fromarray(photos[0]), 'JPEG'), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pictures.decode, [data] * 3000))
    assert warnings.filters == before
