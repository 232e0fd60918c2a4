"""The web page's API answers as the library does, and refuses what could harm it."""

import io
import itertools
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from asen_jax.embedder import Embedder
from asen_jax.errors import InputError
from asen_jax.search import serve
from asen_jax.search.finder import Finder, check_condition
from asen_jax.search.gallery import Gallery
from asen_jax.search.indexing import index_photos
from configs import variants
from tests.conftest import ROOT, tiny_config
from tests.search.conftest import ATTRIBUTES, save_network

COLORS = ('red', 'blue', 'red|white', 'blue', '', 'red')


@pytest.fixture(scope='module')
def shop(network, tmp_path_factory):
    """A gallery of six photos with their colors."""
    folder, rng, lines = tmp_path_factory.mktemp('shop'), np.random.default_rng(0), ['path,color']
    for number, color in enumerate(COLORS):
        Image.fromarray(rng.integers(0, 256, (40, 33, 3), np.uint8)).save(folder / f'{number}.png')
        lines.append(f'{number}.png,{color}')
    (folder / 'list.csv').write_text('\n'.join(lines))
    index_photos(network, folder / 'list.csv', folder / 'gallery')
    return folder


@pytest.fixture(scope='module')
def finder(network, shop):
    return Finder(Gallery.open(shop / 'gallery'), network)


@pytest.fixture
def client(finder):
    with TestClient(serve.create_app(finder, ['testserver'])) as client:
        yield client


def post(client, path, data, **fields):
    return client.post(path, files={'photo': ('photo.jpg', data)}, data=fields)


def test_embed_returns_the_embedders_vectors(client, network, shop):
    answer = post(client, '/embed', (shop / '0.png').read_bytes())
    assert answer.json()['attributes'] == list(ATTRIBUTES)
    np.testing.assert_allclose(answer.json()['embeddings'], network.embed([shop / '0.png'])[0], atol=1e-6)


def test_a_search_with_a_photo_ranks_as_the_gallery_does_and_shows_where_the_network_looks(client, network, shop):
    answer = post(client, '/search', (shop / '0.png').read_bytes(), attribute='color', k=3).json()
    matches = Gallery.open(shop / 'gallery').search(network.embed([shop / '0.png'])[0], {'color': 1.0}, 3)
    assert [result['path'] for result in answer['results']] == [match.path for match in matches]
    assert [result['score'] for result in answer['results']] == pytest.approx([m.score for m in matches], abs=1e-5)
    assert answer['results'][0]['color'] == 'red'
    guess = Gallery.open(shop / 'gallery').guess(network.embed([shop / '0.png'])[0])['color']
    assert answer['likely'] == {'color': {'value': guess.value, 'share': pytest.approx(guess.share)}}
    np.testing.assert_allclose(answer['heatmap'], network.heatmaps([shop / '0.png'], 'color')[0, 0], atol=1e-5)


def test_several_attributes_are_weighted_in_the_ranking_and_in_the_heatmap(client, network, shop):
    answer = post(client, '/search', (shop / '0.png').read_bytes(), attribute='color:3,neckline', k=6).json()
    vectors = network.embed([shop / '0.png'])[0]
    matches = Gallery.open(shop / 'gallery').search(vectors, {'color': 3.0, 'neckline': 1.0}, 6)
    assert [result['path'] for result in answer['results']] == [match.path for match in matches]
    heatmaps = network.heatmaps([shop / '0.png'], ['color', 'neckline'])[0]
    np.testing.assert_allclose(answer['heatmap'], 0.75 * heatmaps[0] + 0.25 * heatmaps[1], atol=1e-5)


def test_a_search_from_a_photo_of_the_gallery_leaves_it_out_and_works_without_its_file(client, shop, tmp_path):
    first = post(client, '/search', (shop / '0.png').read_bytes(), attribute='color').json()['results'][0]
    url = f'/photos/{first["gallery_id"]}/similar'
    answer = client.get(url, params={'attribute': 'color', 'where': "color like '%red%'"}).json()
    assert {result['color'] for result in answer['results']} == {'red', 'red|white'}
    assert first['path'] not in {result['path'] for result in answer['results']}
    assert len(answer['heatmap']) == 2
    (shop / '0.png').rename(tmp_path / '0.png')
    try:
        gone = client.get(url, params={'attribute': 'color', 'where': "color like '%red%'"}).json()
    finally:
        (tmp_path / '0.png').rename(shop / '0.png')
    assert gone == answer | {'heatmap': None}


def test_facts_and_thumbnails_are_what_the_page_needs(client):
    facts = client.get('/facts').json()
    assert facts['photos'] == client.get('/healthz').json()['photos'] == 6
    assert facts['attributes'] == list(ATTRIBUTES)
    assert facts['columns'] == {'color': ['red', 'blue', 'white']}
    assert len(facts['examples']) == len(set(facts['examples'])) == 6
    picture = client.get(f'/photos/{facts["examples"][0]}/thumbnail')
    assert Image.open(io.BytesIO(picture.content)).size == (33, 40)


def test_facts_follow_the_gallery(network, shop, tmp_path):
    (tmp_path / 'list.csv').write_text((shop / 'list.csv').read_text().replace('.png', '.jpg'))
    for number in range(6):
        Image.open(shop / f'{number}.png').save(tmp_path / f'{number}.jpg')
    index_photos(network, tmp_path / 'list.csv', tmp_path / 'gallery')
    finder = Finder(Gallery.open(tmp_path / 'gallery'), network)
    assert finder.facts()['columns'] == {'color': ['red', 'blue', 'white']}
    (tmp_path / 'list.csv').write_text('path,color,shop\n0.jpg,green|,a\n1.jpg,blue,b\n')
    index_photos(network, tmp_path / 'list.csv', tmp_path / 'gallery')
    assert finder.facts()['columns'] == {'color': ['blue', 'green'], 'shop': ['a', 'b']}
    (tmp_path / 'list.csv').write_text('path\n0.jpg\n')
    index_photos(network, tmp_path / 'list.csv', tmp_path / 'gallery')
    assert (finder.facts()['photos'], finder.facts()['columns']) == (1, {})


@pytest.mark.parametrize('change', ['euclidean', 'triplet', 'crop_to_bbox'])
def test_other_networks_are_served_too(change, shop, tmp_path):
    config = tiny_config()
    if change == 'euclidean':
        config.train.loss, config.train.distance, config.model.normalize = 'triplet', 'euclidean', False
    elif change == 'triplet':
        variants.set_network(config, 'triplet')
    config.data.crop_to_bbox = change == 'crop_to_bbox'
    network = Embedder.load(save_network(tmp_path / 'workdir', config), batch_size=8)
    (tmp_path / 'list.csv').write_text(f'path,x1,y1,x2,y2\n{shop / "0.png"},1,1,20,20\n{shop / "1.png"},,,,\n')
    index_photos(network, tmp_path / 'list.csv', tmp_path / 'gallery')
    finder = Finder(Gallery.open(tmp_path / 'gallery'), network)
    with TestClient(serve.create_app(finder, ['testserver'])) as client:
        answer = post(client, '/search', (shop / '1.png').read_bytes(), attribute='color').json()
        paths = [result['path'] for result in answer['results']]
        assert paths == [str(shop / '1.png'), str(shop / '0.png')]
        assert answer['results'][0]['score'] == pytest.approx(0 if change == 'euclidean' else 1, abs=1e-4)
        assert (answer['heatmap'] is None) == (change == 'triplet')
        similar = client.get(f'/photos/{answer["results"][1]["gallery_id"]}/similar?attribute=color').json()
        assert (similar['heatmap'] is None) == (change != 'euclidean')  # that of a box would not fit the photo
        assert 'results' in client.get(f'/photos/{answer["results"][0]["gallery_id"]}/similar?attribute=color').json()


def test_a_gallery_that_is_gone_is_not_described_to_visitors(network, shop, tmp_path, capsys):
    index_photos(network, shop / 'list.csv', tmp_path / 'gallery')
    with TestClient(serve.create_app(Finder(Gallery.open(tmp_path / 'gallery'), network), ['testserver'])) as client:
        assert client.get('/healthz').status_code == 200
        shutil.rmtree(tmp_path / 'gallery')
        for answer in (
            client.get('/healthz'),
            post(client, '/search', encode('PNG', Image.new('RGB', (20, 20))), attribute='color'),
        ):
            assert answer.status_code == 503
            assert answer.json() == {'detail': 'The gallery cannot be read; the log of the server says why.'}
    assert f'{tmp_path / "gallery"} is damaged' in capsys.readouterr().err


@pytest.mark.parametrize('path', ['/', '/docs', '/page/app.js', '/page/style.css'])
def test_pages_load_nothing_from_elsewhere(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers['x-content-type-options'] == 'nosniff'
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?:https?:)?//', answer.text)


def bad_uploads():
    """(name, content, reason) of files that are no photos, or not ones to search with."""
    scripts = (
        b'#!/bin/sh',
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'<script>alert(1)</script>',
        b'%PDF-1.7',
        b'MZ\x90\0',
    )
    for number, data in enumerate((b'', b'\xff', b'\xff\xd8\xff', b'GIF89a', *scripts)):
        yield f'no photo {number}', data, 'not a readable picture'
    rng = np.random.default_rng(0)
    for size in (10, 1000, 100_000):
        yield f'noise of {size} bytes', rng.bytes(size), 'not a readable picture'
    photo = Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8))
    for kind in ('JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'BMP', 'JPEG2000'):
        for share in (0.05, 0.5, 0.9):
            data = encode(kind, photo)
            yield f'{kind} cut at {share}', data[: int(share * len(data))], 'not a readable picture'
    for kind in ('EPS', 'PDF', 'PCX', 'ICO'):
        yield kind, encode(kind, photo), 'not a readable picture'
    for kind, size in itertools.product(('JPEG', 'PNG', 'GIF'), ((1, 1), (15, 300), (300, 3))):
        yield (
            f'{kind} of {size}',
            encode(kind, Image.new('RGB', size)),
            f'{size[0]}x{size[1]} pixels; send one of at least 16x16',
        )
    for width, height in ((10_000, 10_000), (100_000, 700), (6401, 6250)):
        yield f'{width}x{height}', png(width, height), 'pixels; send one of at most 40,000,000'
    yield 'a JPEG of many scans', many_scans(photo), 'more than 100 scans'
    yield '40 gigapixels', png(200_000, 200_000), 'not a readable picture'
    yield 'a bomb in the text', png(64, 64, text=bytes(10**8)), 'not a readable picture'


def png(width, height, text=None):
    """A black PNG that claims any size, in a few kilobytes."""

    def chunk(name, data):
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 10_000))
    comment = b'' if text is None else chunk(b'zTXt', b'note\0\0' + zlib.compress(text))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + comment + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def many_scans(photo):
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    photo.save(file, 'JPEG', progressive=True)
    data = file.getvalue()
    last = data.rindex(b'\xff\xda')
    return data[:-2] + data[last:-2] * 100 + data[-2:]


def encode(kind, image):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_uploads_that_cannot_be_used_are_refused_with_the_reason(client):
    bad = list(bad_uploads())
    assert len(bad) >= 50
    for name, data, reason in bad:
        answer = post(client, '/search', data, attribute='color')
        assert answer.status_code == 400, name
        assert reason in answer.json()['detail'], name
    assert post(client, '/embed', bad[0][1]).status_code == 400


def test_large_uploads_are_refused_before_they_are_read(client):
    assert post(client, '/embed', bytes(serve.MAX_UPLOAD)).status_code == 413
    headers = {'Content-Type': 'multipart/form-data; boundary=x'}
    assert client.post('/embed', content=itertools.repeat(bytes(2**20), 100), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ('fields', 'status'),
    [
        ({'attribute': 'sleeves'}, 400),
        ({'attribute': 'color:-1'}, 400),
        ({'attribute': ','}, 400),
        ({'attribute': 'color', 'where': 'price > 3'}, 400),
        ({'attribute': 'color', 'where': "repeat('x', 3) != color"}, 400),
        ({'attribute': 'color', 'where': 'gallery_source is not null'}, 400),
        ({'attribute': 'color', 'k': 0}, 422),
        ({'attribute': 'color', 'k': 10**6}, 422),
        ({}, 422),
    ],
)
def test_invalid_fields_are_refused(client, shop, fields, status):
    assert post(client, '/search', (shop / '0.png').read_bytes(), **fields).status_code == status
    photo = client.get('/facts').json()['examples'][0]
    assert client.get(f'/photos/{photo}/similar', params=fields).status_code == status


def test_ids_that_the_gallery_does_not_have_are_not_found(client):
    for name, status in (('0' * 16, 404), ('..', 404), ('%2e%2e%2fetc%2fpasswd', 404), ("' or true --", 422)):
        assert client.get(f'/photos/{name}/thumbnail').status_code == status
        assert client.get(f'/photos/{name}/similar', params={'attribute': 'color'}).status_code == status


@pytest.mark.parametrize(
    'where',
    [
        '`repeat`(color, 9)',
        '"repeat" (color, 9)',
        'repeat/**/(color, 9)',
        "color = 'a' -- b",
        'a' * 4001,
        'color || color = 1',
        "`gallery_source` like '/%'",
        '_rowid = 1',
        'f(1) = 2',
        '?',
        'color = $1',
        "E'\\'' = repeat('x', 9)",
        "'a' = 'b",
        'color = "red"',
        'a::int = 3',
        "'a'\0",
    ],
)
def test_conditions_cannot_call_arbitrary_functions(where):
    with pytest.raises(InputError, match='condition'):
        check_condition(where)


def test_conditions_may_compare_columns(client):
    check_condition("(color = 'repeat(x) -- /*' or not (`a b` in ('it''s', 'é'))) and try_cast(price as float) < 3.5")
    where = "(color = 'repeat(x) -- /*' or not (`color` in ('it''s', 'é'))) and try_cast(color as float) is null"
    photo = client.get('/facts').json()['examples'][0]
    answer = client.get(f'/photos/{photo}/similar', params={'attribute': 'color', 'where': where}).json()
    assert {result['color'] for result in answer['results']} <= {'red', 'blue', 'red|white'}
    assert len(answer['results']) >= 4


def test_a_client_with_too_many_searches_is_told_to_wait(finder, shop, monkeypatch):
    monkeypatch.setattr(serve, 'SEARCHES_PER_MINUTE', 2)
    with TestClient(serve.create_app(finder, ['testserver'])) as limited:
        answers = [post(limited, '/embed', (shop / '0.png').read_bytes()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].headers['retry-after']


def test_other_host_names_are_refused(finder):
    with TestClient(serve.create_app(finder, serve.allowed_hosts('127.0.0.1')), 'http://evil.example') as client:
        assert client.get('/facts').status_code == 400
    assert serve.allowed_hosts('0.0.0.0') == ['*']


def test_a_used_port_is_refused(shop, workdir):
    with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(InputError, match='choose another --port'):
        serve.serve(shop / 'gallery', '127.0.0.1', taken.getsockname()[1], workdir)


def test_sigterm_lets_a_running_upload_finish(shop, workdir):
    command = [sys.executable, '-u', ROOT / 'main.py', '--mode=serve', f'--gallery={shop / "gallery"}', '--port=0']
    with subprocess.Popen([*command, f'--workdir={workdir}'], stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline().rsplit(':', 1)[1])
        request = urllib.request.Request(f'http://127.0.0.1:{port}/healthz')
        assert urllib.request.urlopen(request, timeout=60).status == 200
        body = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
        body += (shop / '0.png').read_bytes() + b'\r\n--x--\r\n'
        head = 'POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n'
        with socket.create_connection(('127.0.0.1', port), 60) as connection:
            connection.sendall(f'{head}Content-Length: {len(body)}\r\n\r\n'.encode() + body[:100])
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            connection.sendall(body[100:])
            assert connection.recv(20).startswith(b'HTTP/1.1 200')
        assert process.wait(60) == -signal.SIGTERM
