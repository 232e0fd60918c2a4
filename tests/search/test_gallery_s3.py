"""A gallery on object storage has the rows and the results of one on disk."""

import csv
import logging
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

import main
from asen_jax.errors import InputError
from asen_jax.search.gallery import Gallery
from asen_jax.search.indexing import index_photos
from asen_jax.search.location import file_of, locate
from tests.search.conftest import ATTRIBUTES

SHOP = 's3://shop/galleries/dresses'


@pytest.fixture
def storage(monkeypatch, tmp_path):
    """An S3 server on loopback with the bucket `shop`, which LanceDB finds by environment variables; in an empty folder."""
    monkeypatch.setattr(logging.getLogger('werkzeug'), 'disabled', True)
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    endpoint = 'http://{}:{}'.format(*server.get_host_and_port())
    for name, value in {
        'AWS_ENDPOINT': endpoint,
        'AWS_ALLOW_HTTP': 'true',
        'AWS_ACCESS_KEY_ID': 'key',
        'AWS_SECRET_ACCESS_KEY': 'secret',
        'AWS_REGION': 'us-east-1',
    }.items():
        monkeypatch.setenv(name, value)
    for method, path in (('POST', 'moto-api/reset'), ('PUT', 'shop')):  # servers in one process share what they store
        urllib.request.urlopen(urllib.request.Request(f'{endpoint}/{path}', method=method)).close()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    yield server
    server.stop()


@pytest.fixture
def listed(tmp_path, photos):
    """A CSV of six photos with their color."""
    for number in range(6):
        Image.fromarray(photos[number]).save(tmp_path / f'{number}.png')
    return write(tmp_path / 'list.csv', [(f'{number}.png', 'red' if number % 2 else 'blue') for number in range(6)])


def write(path, rows):
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([('path', 'color'), *rows])
    return path


def rows_of(folder):
    return Gallery.open(folder).table.search().to_arrow().sort_by('path').to_pylist()


def test_rows_and_results_are_those_of_a_gallery_on_disk(network, listed, tmp_path, photos, storage):
    disk = tmp_path / 'gallery'
    for change in ('nothing', 'photo and color', 'photos deleted and broken'):
        if change == 'photo and color':
            Image.fromarray(photos[9]).save(tmp_path / '1.png')
            write(listed, [(f'{number}.png', 'green') for number in range(6)])
        elif change == 'photos deleted and broken':
            (tmp_path / '2.png').write_bytes(b'broken')
            write(listed, [(f'{number}.png', 'green') for number in range(5)])
        changes = index_photos(network, listed, disk), index_photos(network, listed, SHOP)
        assert changes[0]._replace(folder=SHOP) == changes[1], change
        assert rows_of(disk) == rows_of(SHOP), change
    assert len(rows_of(SHOP)) == 4
    assert Path('dresses-skipped.txt').read_text() == (disk / 'skipped.txt').read_text()
    query = network.embed([tmp_path / '0.png'])[0]
    for weights in ({ATTRIBUTES[0]: 1.0}, {ATTRIBUTES[0]: 1.0, ATTRIBUTES[1]: 2.0}):
        results = [Gallery.open(folder).search(query, weights, 3, "color = 'green'") for folder in (disk, SHOP)]
        assert results[0] == results[1] and len(results[0]) == 3


def test_the_commands_accept_an_address(workdir, listed, tmp_path, storage, capsys):
    search = ['main.py', '--mode=search', f'--gallery={SHOP}', f'--query={tmp_path / "0.png"}', '--attribute=color']
    assert main.run(search) == 2
    assert (
        capsys.readouterr().err == f'main.py: {SHOP} is not a gallery; make one with --mode index --gallery={SHOP}.\n'
    )
    index = ['main.py', '--mode=index', f'--workdir={workdir}', f'--images={tmp_path}', f'--gallery={SHOP}/']
    assert main.run(index) == 0
    assert capsys.readouterr().out.endswith(f'{SHOP}: 6 photos (6 added, 0 updated, 0 relabeled, 0 deleted)\n')
    assert main.run(search) == 0
    assert capsys.readouterr().out.endswith('wrote dresses-search.jpg\n')
    assert Path('dresses-search.jpg').is_file()
    assert main.run(index) == 0
    assert ': 6 photos (0 added' in capsys.readouterr().out  # not the contact sheet, which is below tmp_path


def test_two_writers_double_no_photo(network, listed, storage):
    index_photos(network, listed, SHOP)
    one, other = Gallery.open(SHOP), Gallery.open(SHOP)
    rows = one.table.search().to_arrow()
    one.table.delete('true')
    other.table.checkout_latest()
    for gallery in (one, other):  # each begins with the empty version
        gallery.table.merge_insert('path').when_matched_update_all().when_not_matched_insert_all().execute(rows)
    assert len(rows_of(SHOP)) == 6


def test_what_cannot_be_reached_ends_with_a_sentence(network, listed, storage, monkeypatch):
    with pytest.raises(InputError, match=r's3://shop does not name a gallery; write s3://BUCKET/NAME'):
        Gallery.open('s3://shop')
    for use in (Gallery.open, lambda folder: index_photos(network, listed, folder)):
        with pytest.raises(InputError, match=r'^s3://wrong/dresses cannot be used \(.*bucket does not exist\); check'):
            use('s3://wrong/dresses')
    index_photos(network, listed, SHOP)
    gallery = Gallery.open(SHOP)
    storage.stop()
    query = np.ones((3, 32), np.float32)
    sentence = rf'^{SHOP} cannot be used \([^()]*\); check the bucket and the environment variables .*'
    for use in (
        lambda: gallery.search(query, {ATTRIBUTES[0]: 1.0}, 2, "color = 'red'"),
        lambda: Gallery.open(SHOP),
    ):
        with pytest.raises(InputError, match=sentence):
            use()


def test_places_of_files(tmp_path):
    assert locate('s3://shop/dresses/') == 's3://shop/dresses'
    assert file_of('s3://shop/dresses', 'search.jpg') == Path('dresses-search.jpg')
    assert file_of(tmp_path, 'search.jpg') == tmp_path / 'search.jpg'
