"""Batches do not depend on the number of workers or the starting step, and the last one is padded and masked."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from multiprocessing.context import SpawnProcess

import numpy as np
import pytest
from PIL import Image

from asen_jax import sharding
from asen_jax.data import batches, images, prepared
from asen_jax.data.workers import map_in_processes
from asen_jax.errors import InputError
from asen_jax.signals import STOP_SIGNALS
from asen_jax.training import loop
from data_builders.prepare import prepare
from tests.conftest import ROOT, read_split

KILLED = r'draws photos was killed, .*lower --config\.data\.num_workers'


def take(iterator, count):
    """The first `count` batches; closes the iterator."""
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for batch, other in zip(actual, expected, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_have_the_documented_shapes(records, config):
    batch = take(batches.train_batches(records, config, with_labels=True), 1)[0]
    assert batch['images'].shape == (8, 3, 32, 32, 3)
    assert batch['images'].dtype == np.uint8
    assert batch['attribute'].shape == (8,)
    assert batch['attribute'].dtype == np.int32
    assert batch['labels'].shape == (8, 3, 6, 5)
    assert batch['photo'].shape == (8, 3)


def test_a_batch_holds_the_photos_and_labels_of_its_triplets(records, config):
    config.data.flip = False
    batch = take(batches.train_batches(records, config, with_labels=True), 1)[0]
    source = batches.TripletSource(records, config, range(8))
    photos = read_split(records.directory, 'train')
    for row, table in enumerate(source.table(0)[:8].tolist()):
        for role, index in enumerate(table[:3]):
            expected = images.fit_square(images.decode(photos[index]['image']), 32)
            np.testing.assert_array_equal(batch['images'][row, role], expected)
            for attribute, value in zip(photos[index]['attributes'], photos[index]['values'], strict=True):
                assert batch['labels'][row, role, attribute, value] == 1
        assert batch['attribute'][row] == table[3]
        assert batch['photo'][row].tolist() == table[:3]
        assert (batch['labels'][row, 0, table[3]] & batch['labels'][row, 1, table[3]]).any()


def test_training_can_start_at_any_step(records, config):
    whole = take(batches.train_batches(records, config), 8)
    assert_same(take(batches.train_batches(records, config, 3), 5), whole[3:])


def test_processes_load_their_own_rows(records, config, monkeypatch):
    whole = take(batches.train_batches(records, config, 2), 3)
    photos = take(batches.eval_batches(records, 'train', np.arange(12), config), 1)[0]
    assert 'boxes' in photos
    for rows in (range(3), range(3, 8)):
        monkeypatch.setattr(sharding, 'local_rows', lambda batch_size, rows=rows: rows)
        part = take(batches.train_batches(records, config, 2), 3)
        assert_same(part, [{name: all_rows[rows] for name, all_rows in batch.items()} for batch in whole])
        loaded = take(batches.eval_batches(records, 'train', np.arange(12), config), 1)[0]
        others = np.setdiff1d(np.arange(16), rows)
        for name, blank in (('image', 0), ('boxes', np.nan)):
            np.testing.assert_array_equal(loaded[name][rows], photos[name][rows])
            assert np.isin(loaded[name][others], blank).all() or np.isnan(loaded[name][others]).all()
        assert_same(
            [{name: loaded[name] for name in ('index', 'mask')}], [{name: photos[name] for name in ('index', 'mask')}]
        )


def test_batches_do_not_depend_on_the_number_of_workers(records, config):
    alone = take(batches.train_batches(records, config), 4)
    config.data.num_workers = 2
    assert_same(take(batches.train_batches(records, config), 4), alone)
    assert not multiprocessing.active_children()


def test_workers_ignore_signals_that_stop_the_run_but_a_killed_one_is_reported(records, config):
    config.data.num_workers, config.data.num_triplets, config.data.image_size = 3, 320, 128  # more than a pipe holds
    with contextlib.closing(batches.train_batches(records, config)) as iterator:
        next(iterator)
        workers = multiprocessing.active_children()
        for worker, number in itertools.product(workers, STOP_SIGNALS):
            os.kill(worker.pid, number)
        for _ in range(10):
            next(iterator)
        assert all(worker.is_alive() for worker in workers)
        time.sleep(0.2)  # all have begun to send their next batch
        workers[1].kill()
        with pytest.raises(InputError, match=KILLED):
            list(iterator)
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_while_it_starts_is_reported(monkeypatch):
    def start_and_kill(worker):
        start(worker)
        worker.kill()

    start = SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, 'start', start_and_kill)
    with pytest.raises(InputError, match=KILLED):
        next(map_in_processes(bytes(1_000_000).__getitem__, 4, 2))  # a pipe does not hold so much, either


OPEN_BATCHES = """
import multiprocessing, os, sys
import numpy as np
from asen_jax.data import batches, prepared
from tests.conftest import tiny_config
if __name__ == '__main__':
    config = tiny_config()
    config.data.num_workers, config.data.image_size, config.eval.batch_size = 2, 128, 16
    opened = batches.eval_batches(prepared.open_records(sys.argv[1]), 'train', np.arange(80), config)
    next(opened)
    print(len(multiprocessing.active_children()), 'workers', flush=True)
    if sys.argv[2] == 'killed':
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(('ending', 'status'), [('exits', 0), ('killed', -9)])
def test_workers_end_silently_with_a_trainer_that_did_not_stop_them(records, ending, status):
    command = [sys.executable, '-c', OPEN_BATCHES, records.directory, ending]
    # returns when the workers, too, have closed stderr
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, '2 workers\n', '')


class Unpicklable(Exception):
    """An exception that can be pickled, but not unpickled."""

    def __init__(self, *, why):
        super().__init__(why)


ERRORS = (InputError('too large'), PermissionError(13, 'no'), Unpicklable(why='the disk is on fire'))


def square_or_fail(kind, number):
    if kind < len(ERRORS):
        raise ERRORS[kind]
    return number**2


def test_results_of_processes_come_in_order_and_any_exception_is_raised():
    assert list(map_in_processes(functools.partial(square_or_fail, len(ERRORS)), 3, 2)) == [0, 1, 4]
    expected = ((InputError, 'too large'), (PermissionError, 'no'), (RuntimeError, r'(?s)In another.*disk is on fire'))
    for kind, (error, message) in enumerate(expected):
        with pytest.raises(error, match=message):
            list(map_in_processes(functools.partial(square_or_fail, kind), 1, 1))


def test_each_epoch_and_seed_draws_different_triplets(records, config):
    source = batches.TripletSource(records, config, range(8))
    assert not np.array_equal(source.table(0), source.table(1))
    config.seed = 1
    assert not np.array_equal(source.table(0), batches.TripletSource(records, config, range(8)).table(0))


def test_a_fixed_list_is_reshuffled_each_epoch_but_not_redrawn(records, config):
    config.data.triplets = 'fixed'
    config.data.num_triplets = records.splits['train_triplets']
    steps = batches.steps_per_epoch(records, config)
    listed = prepared.read_rows(records, 'train_triplets')
    source = batches.TripletSource(records, config, range(8))
    for epoch in (0, 1):
        table = source.table(epoch)
        assert len(table) == steps * 8
        assert set(map(tuple, table.tolist())) <= set(map(tuple, listed.tolist()))
    assert not np.array_equal(source.table(0), source.table(1))


def test_each_photo_is_flipped_independently(records, config):
    batch = take(batches.train_batches(records, config), 1)[0]
    assert {len(set(row)) for row in batch['flip'].tolist()} == {1, 2}
    config.data.flip = False
    plain = take(batches.train_batches(records, config), 1)[0]
    np.testing.assert_array_equal(plain['images'], batch['images'])  # the step mirrors them
    assert not plain['flip'].any()


def test_evaluation_pads_the_last_batch_and_masks_it(records, config):
    config.eval.batch_size = 4
    first, last = take(batches.eval_batches(records, 'test', np.arange(6), config), 2)
    np.testing.assert_array_equal(np.concatenate([b['index'][b['mask']] for b in (first, last)]), np.arange(6))
    assert last['image'].shape[0] == 4
    assert not last['mask'][2:].any()


def test_a_split_of_few_photos_is_not_padded_to_a_large_batch(records, config):
    config.eval.batch_size = 10_000
    assert records.splits['test'] < 64 < records.splits['train'] < 128
    for split, padded in (('test', 64), ('train', 128)):
        batch = take(batches.eval_batches(records, split, np.arange(2), config), 1)[0]
        assert batch['image'].shape[0] == padded == batches.eval_batch_size(records, split, config)
        assert batch['mask'].sum() == 2


def test_attribute_boxes_are_in_pixels_of_the_resized_photo(records, config):
    batch = take(batches.eval_batches(records, 'test', np.arange(4), config), 1)[0]
    record = read_split(records.directory, 'test')[0]
    for attribute, box in zip(record['attributes'], record['attribute_boxes'], strict=True):
        np.testing.assert_allclose(batch['boxes'][0, attribute], box, atol=1e-4)  # photos of 32 pixels are not resized
    assert np.isnan(batch['boxes'][0]).all(axis=1).sum() == 6 - len(record['attributes'])


def test_labels_match_the_records(records):
    labels = prepared.read_labels(records, 'train')
    expected = [
        (index, attribute, value)
        for index, record in enumerate(read_split(records.directory, 'train'))
        for attribute, value in zip(record['attributes'], record['values'], strict=True)
    ]
    assert sorted(zip(*map(np.ndarray.tolist, labels), strict=True)) == sorted(expected)


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(InputError, match='holds no prepared records; run --mode prepare first'):
        prepared.open_records(tmp_path)


def test_an_epoch_smaller_than_a_batch_is_rejected(records, config):
    config.data.num_triplets = 7
    with pytest.raises(InputError, match=r'fewer than config\.train\.batch_size \(8\)'):
        batches.steps_per_epoch(records, config)


@pytest.mark.parametrize('field,value', [('train.precompute_features', True), ('data.cache', 'device')])
def test_a_dataset_without_train_photos_is_refused_before_they_are_read(config, tmp_path, field, value):
    photo = tmp_path / '0.jpg'
    Image.new('RGB', (32, 32)).save(photo)
    for name in '123':
        shutil.copy(photo, tmp_path / f'{name}.jpg')
    (tmp_path / 'labels.csv').write_text('path,split,color\n0.jpg,valid,a\n1.jpg,valid,b\n2.jpg,test,a\n3.jpg,test,b\n')
    config.data.name, config.data.manual_dir, config.data.dir = 'catalog', str(tmp_path), str(tmp_path / 'records')
    config.optim.groups, config.model.trunk_bn = ('trunk:0',), 'running'
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=r'has no train photos; prepare\.json there says which photos were read'):
        loop.train_and_evaluate(config, tmp_path / 'run', prepare(config))
