"""The drawn garments: labels, boxes and pixels are as data_builders/synthetic/README.md promises."""

import io
import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asen_jax.search.listing import list_photos
from configs import common
from data_builders.synthetic import garments
from data_builders.synthetic import synthetic_dataset_builder as synthetic
from data_builders.synthetic.garments import ATTRIBUTES, draw_garment

SIZE = 48


@pytest.fixture(scope='module')
def drawn():
    return [draw_garment(0, index, SIZE) for index in range(400)]


@pytest.mark.parametrize('size', [33, 96])
def test_seed_and_index_determine_the_photo(size):
    one, again = draw_garment(3, 5, size), draw_garment(3, 5, size)
    assert one.image.mode == 'RGB' and one.image.size == (size, size)
    assert one.image.tobytes() == again.image.tobytes()
    assert (one.labels, one.boxes) == (again.labels, again.boxes)
    for other in (draw_garment(3, 6, size), draw_garment(4, 5, size)):
        assert one.image.tobytes() != other.image.tobytes()


def test_labels_are_those_that_the_garment_shows(drawn):
    lengths = {'skirt_length', 'pant_length', 'coat_length'}
    for garment in drawn:
        names = set(garment.labels)
        assert 'sleeve_length' in names and len(names & lengths) == 1
        assert len(names & {'neckline_design', 'collar_design'}) == 1
        assert not {'coat_length', 'neckline_design'} <= names, 'a coat hides the neckline'
        assert all(value in ATTRIBUTES[name] for name, value in garment.labels.items())


def test_boxes_lie_in_the_photo(drawn):
    for garment in drawn:
        assert garment.boxes.keys() == garment.labels.keys()
        for left, top, right, bottom in garment.boxes.values():
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            assert right - left > SIZE / 8 and bottom - top > SIZE / 8


def test_values_are_uniform_and_independent():
    rng = np.random.default_rng(0)
    kinds = rng.choice(tuple(garments.KINDS), p=tuple(garments.KINDS.values()), size=6000)
    labels = [garments.draw_labels(rng, str(kind)) for kind in kinds]
    for name, values in ATTRIBUTES.items():
        counts = Counter(each[name] for each in labels if name in each)
        expected = counts.total() / len(values)
        assert all(abs(counts[value] - expected) < 5 * expected**0.5 for value in values), counts
    pairs = Counter((each['sleeve_length'], each['pant_length']) for each in labels if 'pant_length' in each)
    expected = pairs.total() / len(garments.SLEEVE_ENDS) / len(garments.HEMS['pant_length'])
    assert len(pairs) == len(garments.SLEEVE_ENDS) * len(garments.HEMS['pant_length'])
    assert all(abs(count - expected) < 5 * expected**0.5 for count in pairs.values())


@pytest.mark.parametrize('attribute', ATTRIBUTES)
def test_a_value_shows_only_in_its_box(attribute, monkeypatch):
    """If all else is the same, photos of two values differ inside the attribute's box and nowhere outside it."""
    draw_labels = garments.draw_labels
    monkeypatch.setattr(garments, 'add_noise', lambda picture, rng: picture)
    indices = [index for index in range(60) if attribute in draw_garment(0, index, 32).labels]
    assert len(indices) >= 8
    for index in indices[:8]:
        pictures = []
        for value in ATTRIBUTES[attribute]:
            relabel = {attribute: value}
            monkeypatch.setattr(garments, 'draw_labels', lambda *args, new=relabel: draw_labels(*args) | new)
            garment = draw_garment(0, index, SIZE)
            pictures.append(np.asarray(garment.image, np.int32))
        left, top, right, bottom = garment.boxes[attribute]
        inside = np.zeros((SIZE, SIZE), bool)
        inside[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
        for one, other in itertools.pairwise(pictures):
            differs = np.abs(one - other).max(axis=2)
            assert (differs[inside] > 24).sum() >= 9, f'photo {index}: no visible difference'
            assert not differs[~inside].any(), f'photo {index}: it differs outside the box {garment.boxes[attribute]}'


@pytest.mark.parametrize('attribute', ATTRIBUTES)
def test_overall_color_does_not_reveal_a_value(drawn, attribute):
    """A linear classifier on 2 x 2 thumbnails stays near chance on photos it was not fitted to."""
    shown = [garment for garment in drawn if attribute in garment.labels]
    values = np.array([ATTRIBUTES[attribute].index(garment.labels[attribute]) for garment in shown])
    thumbnails = [np.asarray(garment.image.resize((2, 2), Image.Resampling.BOX)).ravel() / 255 for garment in shown]
    features = np.column_stack([thumbnails, np.ones(len(shown))])
    targets, half = np.eye(len(ATTRIBUTES[attribute]))[values], len(shown) // 2
    weights = np.linalg.lstsq(features[:half], targets[:half], rcond=None)[0]
    accuracy = np.mean((features[half:] @ weights).argmax(axis=1) == values[half:])
    assert accuracy < 1 / targets.shape[1] + 0.2


@pytest.fixture
def data(drawn, monkeypatch, tmp_path):
    """The config of 100 photos; those of the fixture `drawn` stand in for them."""

    def draw_garment(seed, index, size):
        assert (seed, size) == (synthetic.SEED, 64)
        return drawn[index]

    monkeypatch.setattr(synthetic, 'draw_garment', draw_garment)
    data = common.get_config().data
    data.synthetic.num_photos, data.synthetic.photo_size, data.dir = 100, 64, str(tmp_path)
    return data


def labels_of(photos):
    return [(i, *pair) for i, p in enumerate(photos) for pair in zip(p.attributes, p.values, strict=True)]


def test_builder_reads_every_photo_with_its_labels_and_boxes(data, drawn):
    raw = synthetic.read(data)
    photos = [photo for split in ('train', 'valid', 'test') for photo in raw.photos[split]]
    assert len({photo.image_id for photo in photos}) == 100
    for photo, garment in zip(photos, drawn, strict=False):
        names = [raw.attributes[attribute] for attribute in photo.attributes]
        values = [raw.values[name][value] for name, value in zip(names, photo.values, strict=True)]
        assert dict(zip(names, values, strict=True)) == garment.labels
        assert dict(zip(names, photo.attribute_boxes, strict=True)) == garment.boxes
        assert Image.open(io.BytesIO(photo.read())).size == garment.image.size


def test_photos_of_valid_and_test_are_written_as_a_catalog(data, tmp_path):
    raw = synthetic.read(data)
    expected = {photo.image_id: photo for split in ('valid', 'test') for photo in raw.photos[split]}
    listed = list_photos(tmp_path / 'synthetic/photos/labels.csv')[0]
    assert [Path(photo.path).name for photo in listed] == list(expected)
    for photo in listed:
        original = expected[Path(photo.path).name]
        assert Path(photo.path).read_bytes() == original.read()
        labels = zip(original.attributes, original.values, strict=True)
        assert photo.metadata == {raw.attributes[a]: raw.values[raw.attributes[a]][v] for a, v in labels}


def test_builder_splits_photos_and_lists_every_label_once(data):
    raw = synthetic.read(data)
    assert {split: len(photos) for split, photos in raw.photos.items()} == {'train': 80, 'valid': 10, 'test': 10}
    for split in ('valid', 'test'):
        lists = raw.lists[f'{split}_query'], raw.lists[f'{split}_candidate']
        assert [sorted(set(rows[:, 0].tolist())) for rows in lists] == [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]
        assert sorted(map(tuple, np.concatenate(lists).tolist())) == sorted(labels_of(raw.photos[split]))


def test_builder_keeps_the_chosen_attributes(data):
    every = synthetic.config_name(data)
    data.attributes = ('collar_design', 'coat_length')
    raw = synthetic.read(data)
    assert raw.attributes == ('coat_length', 'collar_design')
    assert all(photo.attributes for photos in raw.photos.values() for photo in photos)
    assert synthetic.config_name(data) != every


def test_photos_drawn_in_several_processes_are_those_of_one(monkeypatch, tmp_path):
    data, drawn = common.get_config().data, []
    data.synthetic.num_photos, data.synthetic.photo_size, data.dir = 100, 32, str(tmp_path)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    for photos_per_process in (50, 51):
        monkeypatch.setattr(synthetic, 'PHOTOS_PER_PROCESS', photos_per_process)
        drawn.append([photo.read() for photos in synthetic.read(data).photos.values() for photo in photos])
    assert drawn[0] == drawn[1]
