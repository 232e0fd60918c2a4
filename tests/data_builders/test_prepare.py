"""Preparing: what is written, that it is skipped when done, redone on change, and never half-done."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from asen_jax.errors import InputError
from configs import common
from data_builders import prepare as preparing

NUM_PHOTOS = 60


@pytest.fixture
def config(tmp_path):
    """A catalog of noise, two thirds of it in train."""
    folder = tmp_path / 'shop'
    (folder / 'img').mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ['path,split,color,fit,x1,y1,x2,y2']
    for i in range(NUM_PHOTOS):
        Image.fromarray(rng.integers(0, 255, (12, 10, 3), np.uint8)).save(folder / f'img/{i}.jpg')
        split = 'train' if i < 40 else 'valid' if i < 50 else 'test'
        lines.append(f'img/{i}.jpg,{split},{"ab"[i % 2]},{"cde"[i % 3]},1,1,10,12')
    (folder / 'labels.csv').write_text('\n'.join(lines))
    config = common.get_config()
    config.name = config.data.name = 'catalog'
    config.data.manual_dir, config.data.dir = str(folder), str(tmp_path / 'records')
    return config


def read(prepared, split):
    source = tfds.builder_from_directory(prepared).as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    return [source[i] for i in range(len(source))]


def leftovers(prepared):
    return sorted(path.name for path in prepared.parent.iterdir() if path.name not in ('.lock', prepared.name))


def test_records_hold_the_original_bytes_and_labels(config):
    prepared = preparing.prepare(config)
    folder = Path(config.data.manual_dir)
    arrays = np.load(prepared / 'arrays.npz')
    for split, start, count in (('train', 0, 40), ('valid', 40, 10), ('test', 50, 10)):
        records = read(prepared, split)
        assert len(records) == count
        for index, record in enumerate(records):
            number = start + index
            assert record['image_id'].decode() == f'img/{number}.jpg'
            assert record['image'] == (folder / f'img/{number}.jpg').read_bytes()
            assert record['index'] == index
            assert record['attributes'].tolist() == [0, 1] and record['values'].tolist() == [number % 2, number % 3]
            assert record['bbox'].tolist() == [0, 0, 10, 12]
            mine = arrays[f'{split}_photo'] == index
            assert arrays[f'{split}_attribute'][mine].tolist() == [0, 1]
            assert arrays[f'{split}_value'][mine].tolist() == [number % 2, number % 3]
    for name, fields in (
        ('test_query', ('index', 'attribute', 'value')),
        ('valid_triplets', ('anchor', 'positive', 'negative', 'attribute')),
    ):
        assert arrays[name].tolist() == [[row[field] for field in fields] for row in read(prepared, name)]
    metadata = tfds.builder_from_directory(prepared).info.metadata
    assert metadata['attributes'] == ['color', 'fit'] and metadata['values']['fit'] == ['c', 'd', 'e']
    triplets = read(prepared, 'train_triplets')
    assert len(triplets) == 800
    period = {0: 2, 1: 3}
    for row in triplets:
        many = period[row['attribute']]
        assert row['anchor'] % many == row['positive'] % many != row['negative'] % many


def test_prepare_json_says_what_was_read(config):
    prepared = preparing.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert content['dataset'] == 'catalog' and content['skipped'] == []
    assert content['splits']['train'] == {
        'photos': 40, 'labels': 80, 'values': {'color': 2, 'fit': 3}, 'queries': 0, 'candidates': 0, 'unanswered': 0,
        'triplets': 800, 'chance_map': None,
    }  # fmt: skip
    test = content['splits']['test']
    assert (
        (test['queries'], test['candidates'])
        == (4, 16)
        == tuple(len(read(prepared, f'test_{k}')) for k in ('query', 'candidate'))
    )
    assert set(test['chance_map']) == {'overall', 'macro', 'per_attribute'} and 0 < test['chance_map']['overall'] < 1
    text = preparing.summary(prepared)
    assert 'chance MAP' in text and 'attributes: color (2 values), fit (3 values)' in text and 'skipped: 0' in text


def test_done_records_are_left_alone_and_serve_without_the_raw_files(config):
    prepared = preparing.prepare(config)
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    config.seed = 7
    config.data.broken = 'skip'
    assert preparing.prepare(config) == prepared
    shutil.rmtree(config.data.manual_dir)
    assert preparing.prepare(config) == prepared
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    (prepared / 'arrays.npz').unlink()
    with pytest.raises(InputError, match='does not exist'):
        preparing.prepare(config)


def test_records_follow_their_description(config):
    prepared = preparing.prepare(config)
    table = Path(config.data.manual_dir) / 'labels.csv'
    table.write_text(table.read_text().replace('img/50.jpg,test,a', 'img/50.jpg,test,b'))
    assert preparing.prepare(config) == prepared
    assert read(prepared, 'test')[0]['values'].tolist() == [1, 50 % 3]
    assert leftovers(prepared) == []
    shutil.rmtree(prepared)
    prepared.mkdir()  # as a broken copy leaves it
    assert len(read(preparing.prepare(config), 'test')) == 10
    next(prepared.glob('*test_query*')).unlink()
    assert len(read(preparing.prepare(config), 'test_query')) == 4
    next(prepared.glob('*test_query*')).write_bytes(b'')
    assert len(read(preparing.prepare(config), 'test_query')) == 4


def test_a_failing_rebuild_harms_nothing(config):
    prepared = preparing.prepare(config)
    (Path(config.data.manual_dir) / 'img/55.jpg').unlink()
    table = Path(config.data.manual_dir) / 'labels.csv'
    table.write_text(table.read_text() + '\n')
    with pytest.raises(InputError, match=r'img/55\.jpg .*labels\.csv, line 57.* is missing'):
        preparing.prepare(config)
    assert len(read(prepared, 'test')) == 10 and leftovers(prepared) == []


def test_skipped_photos_are_listed_and_an_error_again_without_skip(config):
    photo = Path(config.data.manual_dir) / 'img/52.jpg'
    photo.write_bytes(photo.read_bytes()[:-200])
    (photo.parent / '3.jpg').unlink()
    with pytest.raises(InputError, match=r'data\.missing=skip'):
        preparing.prepare(config)
    config.data.missing = 'skip'
    with pytest.raises(InputError, match=r'img/52\.jpg .* is broken: .*--config\.data\.broken=skip'):
        preparing.prepare(config)
    config.data.broken = 'skip'
    prepared = preparing.prepare(config)
    skipped = json.loads((prepared / 'prepare.json').read_text())['skipped']
    assert [entry['image_id'] for entry in skipped] == ['img/3.jpg', 'img/52.jpg']
    assert skipped[0]['why'] == 'missing' and skipped[1]['why'].startswith('broken: ')
    assert len(read(prepared, 'train')) == 39
    dropped = tfds.builder_from_directory(prepared).info.metadata['dropped']
    entries = sum(len(read(prepared, f'test_{kind}')) for kind in ('query', 'candidate'))
    assert sum(dropped['test'].values()) == 2 and entries == 18
    ids = [record['image_id'] for record in read(prepared, 'test')]
    for kind in ('query', 'candidate'):
        for row in read(prepared, f'test_{kind}'):
            number = int(ids[row['index']].decode()[4:-4])
            assert row['value'] == number % (2, 3)[row['attribute']]
    config.data.missing = 'error'
    with pytest.raises(InputError, match='is missing'):
        preparing.prepare(config)


def test_skipped_photos_that_came_or_were_mended_are_taken_in(config):
    photo = Path(config.data.manual_dir) / 'img/52.jpg'
    whole, config.data.missing, config.data.broken = photo.read_bytes(), 'skip', 'skip'
    photo.write_bytes(whole[:-200])
    (photo.parent / '3.jpg').unlink()
    built = preparing.prepare(config) / 'prepare.json'
    before = built.stat().st_mtime_ns
    preparing.prepare(config)
    assert built.stat().st_mtime_ns == before
    (photo.parent / '3.jpg').write_bytes(whole)
    assert len(read(preparing.prepare(config), 'train')) == 40
    photo.write_bytes(whole)
    os.utime(photo, ns=(built.stat().st_mtime_ns + 1_000_000,) * 2)  # a coarse clock may call both times the same
    assert len(read(preparing.prepare(config), 'test')) == 10
    assert json.loads(built.read_text())['skipped'] == []


def stop_in_the_middle(config):
    """Prepare in a process that kills itself as the second split is written."""
    from data_builders import records

    fields = records._photo_fields

    def kill(index, photo):
        if photo.image_id == 'img/45.jpg':
            os.kill(os.getpid(), signal.SIGKILL)
        return fields(index, photo)

    records._photo_fields = kill
    preparing.prepare(config)


def test_an_interrupted_build_is_not_taken_for_done(config):
    process = multiprocessing.get_context('spawn').Process(target=stop_in_the_middle, args=(config,))
    process.start()
    process.join()
    target = preparing.prepared_path(config)
    assert process.exitcode == -signal.SIGKILL and not target.exists() and leftovers(target)
    assert len(read(preparing.prepare(config), 'test')) == 10
    assert leftovers(target) == []


def test_an_interrupted_exchange_brings_the_old_records_back(config):
    prepared = preparing.prepare(config)
    before = (prepared / 'prepare.json').stat().st_mtime_ns
    prepared.rename(prepared.parent / 'replaced')
    assert preparing.prepare(config) == prepared
    assert (prepared / 'prepare.json').stat().st_mtime_ns == before and leftovers(prepared) == []


def test_two_processes_build_once(config):
    context = multiprocessing.get_context('spawn')
    processes = [context.Process(target=preparing.prepare, args=(config,)) for _ in range(2)]
    for process in processes:
        process.start()
        time.sleep(0.1)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(read(preparing.prepared_path(config), 'test')) == 10 and leftovers(preparing.prepared_path(config)) == []


def test_names(config, tmp_path):
    name = preparing.default_workdir_name(config)
    assert name.startswith('catalog-shop-') and preparing.prepared_path(config).parent.name == name.removeprefix(
        'catalog-'
    )
    config.name = 'catalog_csn'  # a variant of configs/catalog.py
    assert preparing.default_workdir_name(config) == name.replace('catalog-', 'catalog_csn-')
    config.name = 'mine'
    assert preparing.default_workdir_name(config) == 'mine'
    config.data.name = 'fashonai'
    with pytest.raises(InputError, match=r"data\.name is 'fashonai'; write one of fashionai, darn, "):
        preparing.prepare(config)
    config.data.name, config.data.missing = 'catalog', 'ignore'
    with pytest.raises(InputError, match=r"data\.missing is 'ignore'; write error or skip"):
        preparing.prepare(config)
    (tmp_path / 'file').touch()
    config.data.dir = str(tmp_path / 'file')
    with pytest.raises(InputError, match='cannot be written'):
        preparing.prepare(config)
