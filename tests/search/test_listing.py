"""What --images may name, and that each way gives the same photos."""

import os

import pytest

from asen_jax.errors import InputError
from asen_jax.search.listing import SUFFIXES, list_photos

NAMES = ('2.jpg', 'a b.PNG', 'deep/er/1.webp', 'deep/3.jpeg', 'ärmel.gif')


@pytest.fixture
def shop(tmp_path):
    """A folder of photos among other files."""
    folder = tmp_path / 'shop'
    for name in (*NAMES, '.hidden.jpg', '.thumbs/1.jpg', 'labels.txt', 'clip.mpg', 'table.h5', 'deep/._2.jpg'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def paths(images):
    return [photo.path for photo in list_photos(images)[0]]


def expected(folder):
    return sorted(str(folder / name) for name in NAMES)


def test_folder_pattern_list_and_table_name_the_same(shop, monkeypatch):
    listed, table = shop / 'labels.txt', shop.parent / 'labels.CSV'
    listed.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join([*sorted(NAMES), '', '  ']).encode())
    table.write_text('color,path\r\n"a, ""b""",' + '\r\n,'.join(f'shop/{name}' for name in sorted(NAMES)) + '\r\n,\r\n')
    assert paths(shop) == expected(shop)
    assert paths(str(listed)) == paths(table) == expected(shop)
    assert paths(f'{shop}/**/*.*[gGpf]') == sorted(
        [*expected(shop), f'{shop}/clip.mpg']
    )  # a pattern is taken literally
    monkeypatch.chdir(shop.parent)
    assert paths('shop/') == [os.path.relpath(path) for path in expected(shop)]
    assert paths('shop/deep') == ['shop/deep/3.jpeg', 'shop/deep/er/1.webp']
    monkeypatch.setenv('HOME', str(shop.parent))
    assert paths('~/shop/*.jpg') == paths('~/shop/2.jpg') == [str(shop / '2.jpg')]


def test_a_list_keeps_its_order_and_repeats_and_missing_photos(shop):
    listed = shop / 'labels.txt'
    listed.write_text(f'deep/3.jpeg\n{shop}/2.jpg\ngone.jpg\ndeep/3.jpeg\n')
    assert paths(listed) == [f'{shop}/{name}' for name in ('deep/3.jpeg', '2.jpg', 'gone.jpg', 'deep/3.jpeg')]


def test_links_are_followed_once(shop):
    (shop / 'deep' / 'loop').symlink_to(shop)
    other = shop.parent / 'other'
    (other / 'in').mkdir(parents=True)
    (other / 'in' / '9.jpg').touch()
    (shop / 'x').symlink_to(other)
    (shop / 'y').symlink_to(other / 'in')
    assert paths(shop) == sorted([*expected(shop), f'{shop}/x/in/9.jpg'])
    (shop.parent / 'shop [2]').symlink_to(shop)  # a folder whose name looks like a pattern
    assert len(paths(shop.parent / 'shop [2]')) == 6


def test_files_that_are_left_out_by_their_suffix_are_counted(shop):
    for name in ('1.HEIC', 'deep/2.heic', 'noname', 'photos.lance/data/1.lance', 'v.npz', '.DS_Store'):
        (shop / name).parent.mkdir(parents=True, exist_ok=True)
        (shop / name).touch()
    left_out = list_photos(shop)[1]
    assert left_out.startswith('left out files whose suffix is not that of a photo (.heic 2, ')
    assert all(f'{suffix} 1' in left_out for suffix in ('.mpg', '.h5', 'none'))
    assert list_photos(shop / 'deep/er')[1] == list_photos(shop / '2.jpg')[1] == ''


def test_boxes_of_a_table_are_0_based_and_half_open(shop):
    table = shop / 'labels.csv'
    table.write_text('x1,y1,path,x2,y2\n1,2.5,2.jpg,10,20\n,,a b.PNG,,\n')
    assert [photo.box for photo in list_photos(table, with_boxes=True)[0]] == [(0, 1.5, 10, 20), None]
    assert [photo.box for photo in list_photos(table)[0]] == [None] * 2


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('none', 'none holds no photos; --images takes a photo, a folder, a pattern in quotes'),
        ('nowhere', 'nowhere does not exist; --images takes'),
        ('*.bmp', r'\*\.bmp matches no file; --images takes'),
        ('labels.txt', 'labels.txt holds no photos; --images takes'),
        ('raw', r'raw holds no photos \(left out files .*\(.cr2 1\)\); --images takes'),
        ('pipe', 'pipe is not a regular file; --images takes'),
    ],
)
def test_nothing_found_says_what_to_give(shop, name, reason):
    for folder in ('none', 'raw'):
        (shop / folder).mkdir()
    (shop / 'raw' / '1.CR2').touch()
    os.mkfifo(shop / 'pipe')
    (shop / 'labels.txt').write_text('\n\r\n')
    with pytest.raises(InputError, match=reason):
        list_photos(shop / name)


@pytest.mark.parametrize(
    ('name', 'content', 'reason'),
    [
        ('a.csv', b'file,color\na.jpg,red\n', r'a\.csv, line 1: no column is named path; the first line'),
        ('a.csv', b'color,path\nred,a.jpg\nblue,\n', r'a\.csv, line 3: the path is empty'),
        (
            'a.csv',
            b'path,x1,y2\na.jpg,1,2\n',
            r'a\.csv, line 1: a box needs x1, y1, x2, y2, but there is only x1, y2',
        ),
        ('photo.unknown', b'\x89PNG\r\n\x1a\n\xff', 'neither a photo nor UTF-8 text'),
    ],
)
def test_an_unreadable_list_is_named_with_its_line(shop, name, content, reason):
    (shop / name).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        list_photos(shop / name, with_boxes=True)


def test_suffixes_are_those_of_photos():
    assert {'.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff'} <= SUFFIXES
    assert not {'.pdf', '.eps', '.h5', '.mpg', '.txt', '.csv', '.npz', ''} & SUFFIXES
