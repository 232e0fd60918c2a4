"""What is read from prepared records, that they stay the same meanwhile, and that damage is noticed."""

import io
import json
import logging
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asen_jax import files
from asen_jax.data import batches, prepared
from asen_jax.errors import InputError


def photo(width, height, bbox=None):
    file = io.BytesIO()
    Image.new('RGB', (width, height)).save(file, 'JPEG')
    record = {'image': file.getvalue()}
    return record if bbox is None else record | {'bbox': np.array(bbox, np.float32)}


@pytest.mark.parametrize(
    'photos,crop_to_bbox,size',
    [
        ([photo(60, 80)] * 3, False, 160),  # small photos are enlarged
        ([photo(30, 40)], False, 160),
        ([photo(80, 128), photo(9, 9), photo(300, 900)], False, 256),  # the median photo decides
        ([photo(600, 800)], False, 288),
        ([photo(600, 800, (10, 20, 60, 148))], True, 256),
        ([photo(600, 800, (10, 20, 60, 148))], False, 288),
    ],
)
def test_the_size_of_the_input_follows_the_median_photo(records, monkeypatch, photos, crop_to_bbox, size):
    monkeypatch.setattr(prepared, 'read_record', lambda directory, split, index: photos[index])
    assert prepared.choose_image_size(records._replace(splits={'train': len(photos)}), crop_to_bbox) == size


@pytest.fixture
def folder(records, tmp_path):
    """A copy of the records that a test can damage."""
    return Path(shutil.copytree(records.directory, tmp_path / 'home' / '1.0.0'))


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    'name', ['arrays.npz', 'dataset_info.json', 'features.json', 'metadata.json', 'prepare.json', 'test']
)
def test_a_damaged_file_is_named(folder, name):
    name = 'synthetic-test.array_record-00000-of-00001' if name == 'test' else name
    flip_a_bit(folder / name, -9)
    with pytest.raises(
        InputError, match=rf'1\.0\.0 is damaged \({name}\); delete .* and run the same command again\.$'
    ):
        prepared.open_records(folder)
    (folder / name).unlink()
    says = 'holds no prepared records' if name == 'prepare.json' else rf'damaged \({name} is missing\)'
    with pytest.raises(InputError, match=says):
        prepared.open_records(folder)


def test_records_without_checksums_count_as_damaged(folder):
    report = json.loads((folder / 'prepare.json').read_text())
    del report['checksum'], report['checksums']
    files.write_json(folder / 'prepare.json', report)
    with pytest.raises(
        InputError, match=r'1\.0\.0 is damaged \(prepare\.json\); delete .* and run the same command again'
    ):
        prepared.open_records(folder)


def test_damage_that_comes_after_opening_is_noticed(folder):
    opened = prepared.open_records(folder)
    flip_a_bit(folder / 'arrays.npz', -9)
    with pytest.raises(InputError, match=r'arrays\.npz is damaged'):
        prepared.read_labels(opened, 'train')


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_damaged_record_is_named_wherever_it_is_read(config, folder, num_workers):
    opened, config.data.num_workers = prepared.open_records(folder), num_workers
    path = folder / 'synthetic-train.array_record-00000-of-00001'
    flip_a_bit(path, 100_000)
    damaged = rf'{path} is damaged \(Corrupted .*mismatch\); delete {folder} and run the same command again\.'
    with pytest.raises(InputError, match=damaged):
        list(batches.eval_batches(opened, 'train', np.arange(opened.splits['train']), config))


def test_a_missing_file_of_records_is_damage_but_an_unreadable_one_is_not(folder):
    opened = prepared.open_records(folder)
    path = folder / 'synthetic-test.array_record-00000-of-00001'
    path.rename(folder / 'elsewhere')
    with pytest.raises(InputError, match=rf'{path} is damaged \(open\(\) failed: No such file or directory\)'):
        prepared.read_record(opened.directory, 'test', 0)
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        prepared.read_record(opened.directory, 'test', 0)


def test_replaced_records_are_read_anew_and_noticed_by_those_who_opened_the_old_ones(records, folder):
    old = prepared.open_records(folder)
    before = prepared.read_rows(old, 'test_query')
    with np.load(folder / 'arrays.npz') as arrays:
        changed = dict(arrays)
    changed['test_query'] = changed['test_query'][:-1]
    with (folder / 'arrays.npz').open('wb') as file:
        np.savez(file, **changed)
    report = json.loads((folder / 'prepare.json').read_text()) | {'fingerprint': 'another'}
    report['checksums']['arrays.npz'] = prepared.checksum(folder / 'arrays.npz')
    files.write_json(folder / 'prepare.json', report | {'checksum': prepared.checksum_of_report(report)})
    with pytest.raises(InputError, match='was replaced while it was being read; run the same command again'):
        prepared.check_unchanged(old)
    assert len(prepared.read_rows(prepared.open_records(folder), 'test_query')) == len(before) - 1


def test_a_reader_waits_while_records_are_replaced(folder, caplog):
    def read():
        with prepared.read_records(folder) as records:
            opened.append(records)

    opened, reader = [], threading.Thread(target=read)
    with files.lock(folder.parent / '.reading', 'free'), caplog.at_level(logging.WARNING):
        reader.start()
        for _ in range(500):
            if 'is replacing' in caplog.text:
                break
            time.sleep(0.01)
        assert 'Another process is replacing' in caplog.text and not opened
    reader.join()
    assert len(opened) == 1
