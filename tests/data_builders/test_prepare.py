"""Preparing: what is written, when records are reused or rebuilt, and that they are never incomplete."""

import contextlib
import json
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from asen_jax import files
from asen_jax.data.images import read_file
from asen_jax.data.prepared import open_records, read_records
from asen_jax.errors import InputError
from configs import common
from data_builders import records, report
from data_builders.prepare import build_records, prepare, prepared_path, read_source
from tests.conftest import tiny_config


def make_config(root):
    """A catalog of 60 photos of noise, 40 of them in train."""
    folder = root / 'shop'
    (folder / 'img').mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ['path,split,color,fit,x1,y1,x2,y2']
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (12, 10, 3), np.uint8)).save(folder / f'img/{i}.jpg')
        split = 'train' if i < 40 else 'valid' if i < 50 else 'test'
        lines.append(f'img/{i}.jpg,{split},{"ab"[i % 2]},{"cde"[i % 3]},1,1,10,12')
    (folder / 'labels.csv').write_text('\n'.join(lines))
    config = common.get_config()
    config.data.name, config.data.manual_dir, config.data.dir = 'catalog', str(folder), str(root / 'records')
    return config


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Records that no test changes; the photos are in `shop` beside them."""
    return prepare(make_config(tmp_path_factory.mktemp('prepared')))


def read(prepared, split):
    source = tfds.builder_from_directory(prepared).as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    return [source[i] for i in range(len(source))]


def leftovers(prepared):
    return sorted(
        path.name for path in prepared.parent.iterdir() if path.name not in ('.lock', '.reading', prepared.name)
    )


@contextlib.contextmanager
def file_size_limit(size):
    """A disk on which no file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_records_hold_the_original_bytes_and_labels(prepared):
    folder = prepared.parents[3] / 'shop'
    for split, start, count in (('train', 0, 40), ('valid', 40, 10), ('test', 50, 10)):
        rows = read(prepared, split)
        assert len(rows) == count
        for index, record in enumerate(rows):
            number = start + index
            assert record['image_id'].decode() == f'img/{number}.jpg'
            assert record['image'] == (folder / f'img/{number}.jpg').read_bytes()
            assert record['index'] == index
            assert record['attributes'].tolist() == [0, 1] and record['values'].tolist() == [number % 2, number % 3]
            assert record['bbox'].tolist() == [0, 0, 10, 12]
    metadata = tfds.builder_from_directory(prepared).info.metadata
    assert metadata['attributes'] == ['color', 'fit'] and metadata['values']['fit'] == ['c', 'd', 'e']


def test_arrays_repeat_the_labels_and_lists_of_the_records(prepared):
    with np.load(prepared / 'arrays.npz') as file:
        arrays = dict(file)
    numbers = np.arange(40, 50)
    assert arrays['valid_photo'].tolist() == np.repeat(np.arange(10), 2).tolist()
    assert arrays['valid_attribute'].tolist() == [0, 1] * 10
    assert arrays['valid_value'].tolist() == np.stack([numbers % 2, numbers % 3], axis=1).ravel().tolist()
    roles = ('anchor', 'positive', 'negative', 'attribute')
    for name, fields in (('test_query', ('index', 'attribute', 'value')), ('valid_triplets', roles)):
        assert arrays[name].tolist() == [[row[field] for field in fields] for row in read(prepared, name)]
    assert len(arrays['train_triplets']) == 800
    for anchor, positive, negative, attribute in arrays['train_triplets'].tolist():
        num_values = (2, 3)[attribute]
        assert anchor % num_values == positive % num_values != negative % num_values


def test_prepare_json_and_its_summary_describe_the_splits(prepared):
    content = json.loads((prepared / 'prepare.json').read_text())
    assert content['dataset'] == 'catalog' and content['skipped'] == []
    test = content['splits']['test']
    assert content['splits']['train'].keys() == test.keys() and content['splits']['train']['chance_map'] is None
    facts = {'photos': 10, 'labels': 20, 'values': {'color': 2, 'fit': 3}, 'queries': 4, 'candidates': 16}
    assert facts.items() <= test.items() and test['unanswered'] == 0 and test['triplets'] == 200
    assert set(test['chance_map']) == {'overall', 'macro', 'per_attribute'} and 0 < test['chance_map']['overall'] < 1
    text = report.summary(prepared)
    assert f'{100 * test["chance_map"]["overall"]:.2f}' in text
    assert 'attributes: color (2 values), fit (3 values)' in text and 'skipped: 0 photos' in text


def test_complete_records_are_reused_even_without_the_raw_files(config):
    prepared = prepare(config)
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    config.seed, config.data.broken = 7, 'skip'
    assert prepare(config) == prepared
    shutil.rmtree(config.data.manual_dir)
    assert prepare(config) == prepared
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    (prepared / 'arrays.npz').unlink()
    with pytest.raises(InputError, match='does not exist'):
        prepare(config)


def test_records_are_rebuilt_when_their_description_changes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    prepared = prepare(config)
    table = Path(config.data.manual_dir) / 'labels.csv'
    table.write_text(table.read_text().replace('img/50.jpg,test,a', 'img/50.jpg,test,b'))
    assert prepare(config) == prepared
    assert read(prepared, 'test')[0]['values'].tolist() == [1, 50 % 3]
    assert leftovers(prepared) == [] and sorted(path.name for path in tmp_path.iterdir()) == ['records', 'shop']


def test_incomplete_records_are_rebuilt(config):
    prepared = prepare(config)
    for damage in (
        lambda: [path.unlink() for path in prepared.iterdir()],
        lambda: next(prepared.glob('*test_query*')).unlink(),
        lambda: next(prepared.glob('*test_query*')).write_bytes(b''),
        lambda: (prepared / 'prepare.json').write_text('{'),
        lambda: (prepared / 'features.json').write_bytes((prepared / 'features.json').read_bytes().swapcase()),
    ):
        damage()
        assert len(read(prepare(config), 'test_query')) == 4


def test_records_that_are_being_read_are_not_replaced(config):
    prepared = prepare(config)
    table = Path(config.data.manual_dir) / 'labels.csv'
    with read_records(prepared) as opened, read_records(prepared):
        assert prepare(config) == prepared  # they can be used as they are
        table.write_text(table.read_text().replace('img/50.jpg,test,a', 'img/50.jpg,test,b'))
        with pytest.raises(InputError, match='a training run or an evaluation is reading it; wait until it ends'):
            prepare(config)
        assert open_records(prepared) == opened and leftovers(prepared) == []
    assert open_records(prepare(config)).fingerprint != opened.fingerprint


def test_a_full_disk_is_reported_and_leaves_earlier_records_intact(config):
    prepared = prepare(config)
    opened = open_records(prepared)
    table = Path(config.data.manual_dir) / 'labels.csv'
    table.write_text(table.read_text() + '\n')
    with (
        file_size_limit(20_000),
        pytest.raises(InputError, match=r'shop-\w+ cannot be written \(File too large\); make room'),
    ):
        prepare(config)
    assert open_records(prepared) == opened and leftovers(prepared) == []
    assert open_records(prepare(config)).fingerprint != opened.fingerprint


def test_drawn_photos_that_do_not_fit_on_the_disk_are_reported(tmp_path):
    config = tiny_config()
    config.data.dir = str(tmp_path)
    with file_size_limit(1000), pytest.raises(InputError, match=r'synthetic/100-photos-32px cannot be written'):
        prepare(config)
    assert list((tmp_path / 'synthetic').rglob('*')) == [tmp_path / 'synthetic' / 'photos']
    assert len(read(prepare(config), 'train')) == 80


def test_a_failed_rebuild_keeps_the_old_records(config):
    prepared = prepare(config)
    (Path(config.data.manual_dir) / 'img/55.jpg').unlink()
    table = Path(config.data.manual_dir) / 'labels.csv'
    table.write_text(table.read_text() + '\n')
    with pytest.raises(InputError, match=r'img/55\.jpg .*labels\.csv, line 57.* is missing'):
        prepare(config)
    assert len(read(prepared, 'test')) == 10 and leftovers(prepared) == []


def test_skipped_photos_are_listed_and_an_error_again_without_skip(config):
    photo = Path(config.data.manual_dir) / 'img/52.jpg'
    photo.write_bytes(photo.read_bytes()[:-200])
    (photo.parent / '3.jpg').unlink()
    with pytest.raises(InputError, match=r'data\.missing=skip'):
        prepare(config)
    config.data.missing = 'skip'
    with pytest.raises(InputError, match=r'img/52\.jpg .* is broken: .*--config\.data\.broken=skip'):
        prepare(config)
    config.data.broken = 'skip'
    prepared = prepare(config)
    skipped = json.loads((prepared / 'prepare.json').read_text())['skipped']
    assert [entry['image_id'] for entry in skipped] == ['img/3.jpg', 'img/52.jpg']
    assert (prepared / 'skipped.txt').read_text().splitlines()[0] == 'img/3.jpg\tmissing'
    assert len(read(prepared, 'train')) == 39
    dropped = tfds.builder_from_directory(prepared).info.metadata['dropped']['test']
    assert len(read(prepared, 'test_query')) + dropped['queries'] == 4
    assert len(read(prepared, 'test_candidate')) + dropped['candidates'] == 16
    config.data.missing = 'error'
    with pytest.raises(InputError, match='is missing'):
        prepare(config)


def test_skipped_photos_are_included_once_their_files_are_fixed(config):
    photo = Path(config.data.manual_dir) / 'img/52.jpg'
    whole, config.data.missing, config.data.broken = photo.read_bytes(), 'skip', 'skip'
    photo.write_bytes(whole[:-200])
    (photo.parent / '3.jpg').unlink()
    built = prepare(config) / 'prepare.json'
    before = built.stat().st_mtime_ns
    prepare(config)
    assert built.stat().st_mtime_ns == before
    (photo.parent / '3.jpg').write_bytes(whole)
    assert len(read(prepare(config), 'train')) == 40
    photo.write_bytes(whole)
    os.utime(photo, ns=(built.stat().st_mtime_ns + 1_000_000,) * 2)  # a coarse clock may give both the same time
    assert len(read(prepare(config), 'test')) == 10
    assert json.loads(built.read_text())['skipped'] == []


def test_an_interrupted_build_is_started_over(config, monkeypatch):
    reads, target = [], prepared_path(config)

    def interrupt(path):
        reads.append(path.name)
        if reads.count('45.jpg') == 2:  # the first time it is only checked, the second time written
            raise KeyboardInterrupt
        return read_file(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, 'read_file', interrupt)
        prepare(config)
    assert not target.exists() and leftovers(target) == []
    (target.parent / 'incomplete' / 'catalog').mkdir(parents=True)  # a process that is killed leaves this
    assert len(read(prepare(config), 'test')) == 10
    assert leftovers(target) == []


def test_an_interrupted_move_restores_the_old_records(config):
    prepared = prepare(config)
    before = (prepared / 'prepare.json').stat().st_mtime_ns
    prepared.rename(prepared.parent / 'replaced')
    assert prepare(config) == prepared
    assert (prepared / 'prepare.json').stat().st_mtime_ns == before and leftovers(prepared) == []


def test_a_build_waits_for_another_process_and_uses_its_records(config, caplog):
    first, second = read_source(config), read_source(config)
    first.target.parent.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with files.lock(first.target.parent / '.lock', 'the lock is free'):
            building = pool.submit(build_records, first)
            for _ in range(500):
                if 'Another process is preparing' in caplog.text:
                    break
                time.sleep(0.01)
            assert 'Another process is preparing' in caplog.text and not first.target.exists()
        prepared = building.result()
    before = (prepared / 'prepare.json').stat().st_mtime_ns
    assert build_records(second) == prepared
    assert (prepared / 'prepare.json').stat().st_mtime_ns == before and leftovers(prepared) == []


def test_a_folder_that_cannot_be_written_is_refused(config, tmp_path):
    config.data.dir = f'{tmp_path}/shop/labels.csv'
    with pytest.raises(InputError, match='cannot be written'):
        prepare(config)
