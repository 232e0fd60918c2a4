"""Cached photos are those that would be decoded, are made once, and appear atomically."""

import contextlib
import itertools
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from asen_jax import files, sharding
from asen_jax.data import batches, cache, prepared
from asen_jax.errors import InputError, StoppedError
from asen_jax.signals import StopRequest


@pytest.fixture
def own(records, config, tmp_path):
    """A copy of the tiny records, which a test may fill, and a config that asks for the cache."""
    others = shutil.ignore_patterns(cache.FOLDER)  # which another test may have filled
    shutil.copytree(records.directory, tmp_path / 'records', ignore=others)
    config.data.cache = 'disk'
    return prepared.open_records(tmp_path / 'records'), config


def take(iterator, count):
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def test_batches_from_the_cache_are_those_of_decoded_photos(own):
    records, config = own
    found = {}
    for kind in ('none', 'disk'):
        config.data.cache = kind
        config.eval.batch_size = 32  # 80 photos do not fill three batches
        train = take(batches.train_batches(records, config, 1), 3)
        found[kind] = train + take(batches.eval_batches(records, 'test', np.arange(6), config), 1)
    assert 'boxes' in found['disk'][-1]
    for decoded, cached in zip(*found.values(), strict=True):
        assert decoded.keys() == cached.keys()
        for name in decoded:
            np.testing.assert_array_equal(decoded[name], cached[name])


def test_photos_are_decoded_once(own, monkeypatch):
    records, config = own
    photos = batches.open_photos(records, 'test', config)
    assert isinstance(photos, cache.CachedPhotos)
    assert isinstance(photos.images, np.memmap)
    folder = Path(records.directory) / cache.FOLDER
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    monkeypatch.setattr(batches, 'read_record', None)
    again = batches.open_photos(records, 'test', config)
    np.testing.assert_array_equal(again.images, photos.images)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before
    prepared.open_records(records.directory)  # which the cache does not damage


@pytest.mark.parametrize('field,value', [('image_size', 48), ('fit', 'pad'), ('crop_to_bbox', True)])
def test_other_pixels_have_another_file(own, field, value):
    records, config = own
    first = cache.cache_path(records, 'train', prepared.LoadOptions.from_config(config))
    config.data[field] = value
    options = prepared.LoadOptions.from_config(config)
    others = [
        cache.cache_path(records, 'train', options),
        cache.cache_path(records, 'test', options),
        cache.cache_path(records._replace(fingerprint='other'), 'train', options),
    ]
    assert len({first, *others}) == 4


def test_a_full_disk_is_one_sentence_and_leaves_nothing(own, monkeypatch):
    records, config = own

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(InputError, match=r'cache cannot be written \(No space left on device\); make room'):
        batches.open_photos(records, 'test', config)
    assert [path.name for path in (Path(records.directory) / cache.FOLDER).iterdir()] == ['.lock']


def test_an_error_of_the_records_is_not_one_of_the_cache(own, monkeypatch):
    def read(*_):
        raise PermissionError(13, 'Permission denied', 'records')

    monkeypatch.setattr(batches, 'read_record', read)
    with pytest.raises(PermissionError, match='records'):
        batches.open_photos(*own[:1], 'test', own[1])


def test_a_signal_stops_the_filling_and_leaves_nothing(own):
    records, config = own
    with StopRequest() as stop, pytest.raises(StoppedError, match='Stopped by SIGTERM while photos were being cached'):
        os.kill(os.getpid(), signal.SIGTERM)
        batches.open_photos(records, 'test', config, stop)
    assert [path.name for path in (Path(records.directory) / cache.FOLDER).iterdir()] == ['.lock']


def test_a_killed_run_leaves_nothing_for_long(own):
    records, config = own
    folder = Path(records.directory) / cache.FOLDER
    folder.mkdir()
    (folder / '.train-0.npy.1-2.tmp').touch()
    batches.open_photos(records, 'test', config)
    assert not list(folder.glob('*.tmp'))


def test_another_process_waits_and_then_finds_the_cache(own, monkeypatch):
    records, config = own
    lock = files.lock

    @contextlib.contextmanager
    def late(path, busy, wait):
        config.data.cache = 'disk'
        monkeypatch.setattr(files, 'lock', lock)
        batches.open_photos(records, 'test', config)  # as the process that had the lock
        monkeypatch.setattr(batches, 'read_record', None)
        with lock(path, busy, wait):
            yield

    monkeypatch.setattr(files, 'lock', late)
    assert len(batches.open_photos(records, 'test', config).images) == records.splits['test']


def test_a_damaged_cache_is_named(own):
    records, config = own
    batches.open_photos(records, 'test', config)
    path = cache.cache_path(records, 'test', prepared.LoadOptions.from_config(config))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf'{path.name} is damaged; delete'):
        batches.open_photos(records, 'test', config)


@pytest.mark.parametrize('devices', [1, 8])
def test_photos_are_divided_over_the_devices(devices):
    photos = np.arange(13 * 12, dtype=np.uint8).reshape(13, 2, 2, 3)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    placed = cache.put_on_devices(photos, mesh)
    np.testing.assert_array_equal(placed[:13], photos)
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {13 if devices == 1 else 2}


def test_photos_that_do_not_fit_the_device_are_refused():
    class Small:
        def memory_stats(self):
            return {'bytes_limit': 100, 'bytes_in_use': 65}

    cache.check_memory(10, [Small()])
    cache.check_memory(10**12, jax.devices()[:1])  # a CPU has no limit
    with pytest.raises(InputError, match=r'has 0\.0 GB for them; set --config\.data\.cache=disk'):
        cache.check_memory(11, [Small()])
