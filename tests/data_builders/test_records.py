"""What all builders share: checking, leaving out and renumbering photos, and drawing triplets."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from asen_jax.errors import InputError
from data_builders.checks import check_photos
from data_builders.records import Photo, RawDataset, choose_attributes, labels_of, with_triplets

WIDTH, HEIGHT = 8, 6


def encode(shade=0):
    file = io.BytesIO()
    Image.new('RGB', (WIDTH, HEIGHT), (shade, 40, 90)).save(file, 'PNG')
    return file.getvalue()


def missing():
    raise FileNotFoundError


def truncated():
    return encode()[:-30]


def make_raw(reads=None, bboxes=None):
    """Six photos per split: photo i has attribute 0 with value i % 2, and if i is odd also attribute 1 with value 0."""
    photos = {}
    for split in ('train', 'valid', 'test'):
        photos[split] = [
            Photo(f'{split}/{i}.png', partial(encode, i), (0, 1) if i % 2 else (0,), (i % 2, 0) if i % 2 else (i % 2,))
            for i in range(6)
        ]
    for index, read in (reads or {}).items():
        photos['valid'][index] = photos['valid'][index]._replace(read=read, where='list.txt, line 9')
    for index, box in (bboxes or {}).items():
        photos['valid'][index] = photos['valid'][index]._replace(bbox=box, where='list.txt, line 9')
    queries = np.array([[0, 0, 0], [1, 0, 1], [3, 1, 0]])
    candidates = np.array([[2, 0, 0], [2, 0, 1], [5, 1, 0], [4, 0, 0], [5, 0, 1]])
    lists = {'valid_query': queries, 'valid_candidate': candidates, 'test_query': queries, 'test_candidate': candidates}
    values = {'neck': ('a', 'b'), 'hem': ('c',)}
    return RawDataset('synthetic', ('neck', 'hem'), values, photos, lists)


@pytest.mark.parametrize(('read', 'kind'), [(missing, 'missing'), (truncated, 'broken')])
def test_an_unusable_photo_is_an_error(read, kind):
    with pytest.raises(InputError) as caught:
        check_photos(make_raw({3: read}))
    assert 'valid/3.png (list.txt, line 9) is ' + kind in str(caught.value)
    assert f'--config.data.{kind}=skip' in str(caught.value) and '\n' not in str(caught.value)
    with pytest.raises(InputError):  # the other policy does not apply
        check_photos(make_raw({3: read}), **{'broken' if kind == 'missing' else 'missing': 'skip'})


@pytest.mark.parametrize(('read', 'kind'), [(missing, 'missing'), (truncated, 'broken')])
def test_skipped_photos_are_counted_and_lists_renumbered(read, kind):
    raw = check_photos(make_raw({0: read, 2: read}), **{kind: 'skip'})
    assert [p.image_id for p in raw.photos['valid']] == ['valid/1.png', 'valid/3.png', 'valid/4.png', 'valid/5.png']
    assert raw.lists['valid_query'].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert raw.lists['valid_candidate'].tolist() == [[3, 1, 0], [2, 0, 0], [3, 0, 1]]
    assert raw.dropped == {'valid': {'queries': 1, 'candidates': 1}, 'test': {'queries': 0, 'candidates': 0}}
    assert [entry['image_id'] for entry in raw.skipped] == ['valid/0.png', 'valid/2.png']
    assert all(entry['why'].startswith(kind) for entry in raw.skipped)
    assert raw.lists['test_query'].tolist() == make_raw().lists['test_query'].tolist()


def test_published_triplets_go_with_their_photos():
    raw = make_raw({2: missing})._replace(lists={'valid_triplets': np.array([[0, 2, 1, 0], [3, 4, 5, 0]])})
    assert check_photos(raw, missing='skip').lists['valid_triplets'].tolist() == [[2, 3, 4, 0]]


def test_skipping_every_photo_is_an_error():
    raw = make_raw()
    photos = {split: [p._replace(read=missing) for p in many] for split, many in raw.photos.items()}
    with pytest.raises(InputError, match='None of 18 photos can be used'):
        check_photos(raw._replace(photos=photos), missing='skip')


def test_missing_files_are_counted_before_any_photo_is_decoded(tmp_path):
    def decoded():
        raise AssertionError('decoded a photo')

    photos = [Photo(f'{i}.png', decoded, (0,), (0,), path=tmp_path / f'{i}.png') for i in range(5)]
    photos[0].path.write_bytes(encode())
    raw = make_raw()._replace(photos={'train': photos}, lists={})
    with pytest.raises(InputError, match=r'1\.png is missing \(4 of 5 photos are\)'):
        check_photos(raw)


@pytest.mark.parametrize(
    ('box', 'says'),
    [
        ((2, 2, 2, 4), 'is empty'),
        ((0, 0, WIDTH + 2, 3), 'reaches beyond the photo, which is 8 x 6'),
        ((-3, 0, 4, 4), 'beyond'),
    ],
)
def test_a_box_outside_its_photo_is_an_error(box, says):
    with pytest.raises(InputError, match=says) as caught:
        check_photos(make_raw(bboxes={1: box}))
    assert 'list.txt, line 9' in str(caught.value)


def test_boxes_are_clipped_to_the_photo_and_default_to_all_of_it():
    raw = check_photos(make_raw(bboxes={1: (1, 2, WIDTH + 1, 5)}))
    assert raw.photos['valid'][1].bbox == (1, 2, WIDTH, 5)
    assert raw.photos['train'][0].bbox == (0, 0, WIDTH, HEIGHT)
    assert check_photos(make_raw()).photos['train'][0].bbox is None


def test_choosing_attributes_renumbers_and_leaves_out_other_photos():
    raw = choose_attributes(make_raw(), ('hem',))
    assert [p.image_id for p in raw.photos['train']] == ['train/1.png', 'train/3.png', 'train/5.png']
    assert raw.attributes == ('hem',) and raw.values == {'hem': ('c',)}
    assert all((p.attributes, p.values) == ((0,), (0,)) for p in raw.photos['train'])
    assert raw.lists['valid_query'].tolist() == [[1, 0, 0]] and raw.lists['valid_candidate'].tolist() == [[2, 0, 0]]
    assert '9 photos without a label of hem are left out' in raw.notes


def test_triplets_are_the_same_each_time_and_follow_the_labels():
    raw = with_triplets(make_raw())
    rows = raw.lists['train_triplets']
    assert len(rows) == 10 * len(labels_of(raw.photos['train']).photo)
    assert np.array_equal(rows, with_triplets(make_raw()).lists['train_triplets'])
    for anchor, positive, negative, attribute in rows:
        assert attribute == 0 and anchor != positive  # attribute 1 has only one value
        assert anchor % 2 == positive % 2 != negative % 2
    assert any('1 values give no triplets' in note and 'hem=c (3)' in note for note in raw.notes)


def test_a_split_without_triplets_has_none_and_says_so():
    raw = make_raw()
    raw = with_triplets(raw._replace(photos={**raw.photos, 'test': raw.photos['test'][:1]}))
    assert 'test_triplets' not in raw.lists and any(note.startswith('test: No triplet') for note in raw.notes)
