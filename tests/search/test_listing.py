"""What --images may name, and that each way gives the same photos."""

import os

import pytest
from PIL import Image

from asen_jax.errors import InputError
from asen_jax.search.listing import list_photos, readable_suffixes

NAMES = ('2.jpg', 'a b.PNG', 'deep/er/1.webp', 'deep/3.jpeg', 'ärmel.gif')


@pytest.fixture
def shop(tmp_path):
    """A folder of photos among other files."""
    folder = tmp_path / 'shop'
    for name in (*NAMES, '.hidden.jpg', '.thumbs/1.jpg', 'labels.txt', 'clip.mpg', 'table.h5', 'deep/._2.jpg'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def expected(folder):
    return sorted(str(folder / name) for name in NAMES)


def test_folder_pattern_list_and_table_name_the_same(shop, monkeypatch):
    listed, table = shop / 'labels.txt', shop.parent / 'labels.CSV'
    listed.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join([*sorted(NAMES), '', '  ']).encode())
    table.write_text('color,path\r\n"a, ""b""",' + '\r\n,'.join(f'shop/{name}' for name in sorted(NAMES)) + '\r\n,\r\n')
    assert list_photos(shop) == expected(shop)
    assert list_photos(str(listed)) == list_photos(table) == expected(shop)
    assert list_photos(f'{shop}/**/*.*[gGpf]') == sorted([*expected(shop), f'{shop}/clip.mpg'])  # as written
    monkeypatch.chdir(shop.parent)
    assert list_photos('shop/') == [os.path.relpath(path) for path in expected(shop)]
    assert list_photos('shop/deep') == ['shop/deep/3.jpeg', 'shop/deep/er/1.webp']
    monkeypatch.setenv('HOME', str(shop.parent))
    assert list_photos('~/shop/*.jpg') == list_photos('~/shop/2.jpg') == [str(shop / '2.jpg')]


def test_a_list_is_taken_as_it_stands(shop):
    listed = shop / 'labels.txt'
    listed.write_text(f'deep/3.jpeg\n{shop}/2.jpg\ngone.jpg\ndeep/3.jpeg\n')
    assert list_photos(listed) == [f'{shop}/{name}' for name in ('deep/3.jpeg', '2.jpg', 'gone.jpg', 'deep/3.jpeg')]


def test_links_are_followed_once(shop):
    (shop / 'deep' / 'loop').symlink_to(shop)
    other = shop.parent / 'other'
    (other / 'in').mkdir(parents=True)
    (other / 'in' / '9.jpg').touch()
    (shop / 'x').symlink_to(other)
    (shop / 'y').symlink_to(other / 'in')
    assert list_photos(shop) == sorted([*expected(shop), f'{shop}/x/in/9.jpg'])
    (shop.parent / 'shop [2]').symlink_to(shop)  # a folder whose name looks like a pattern
    assert len(list_photos(shop.parent / 'shop [2]')) == 6


def test_nothing_found_says_what_to_give(shop):
    (shop / 'none').mkdir()
    (shop / 'labels.txt').write_text('\n\r\n')
    for images, words in (
        (shop / 'none', 'none holds no photos; --images takes a photo, a folder, a pattern in quotes'),
        (shop / 'nowhere', 'nowhere does not exist; --images takes'),
        (f'{shop}/*.bmp', r'\*\.bmp matches no file; --images takes'),
        (shop / 'labels.txt', 'labels.txt holds no photos; --images takes'),
    ):
        with pytest.raises(InputError, match=words):
            list_photos(images)


def test_a_list_that_is_none_is_named_with_its_line(shop):
    table = shop / 'labels.csv'
    for text, words in (
        (b'file,color\na.jpg,red\n', r"labels\.csv, line 1: no column is named path \(it reads 'file,color'\)"),
        (b'path,color\na.jpg,red\n,blue\n', r'labels\.csv, line 3: the path is empty'),
        (b'color,path\nred,a.jpg\nblue\n', r'labels\.csv, line 3: the path is empty'),
        (b'path\n"a.jpg"b\n', r'labels\.csv, line 2: .*expected.*; put a cell'),
        (b'path\n\xff\xfe.jpg\n', r'labels\.csv is neither a photo nor UTF-8 text'),
    ):
        table.write_bytes(text)
        with pytest.raises(InputError, match=words):
            list_photos(table)
    image = shop / 'photo.unknown'
    Image.new('RGB', (9, 9)).save(image, 'PNG')
    with pytest.raises(InputError, match='neither a photo nor UTF-8 text'):
        list_photos(image)


def test_suffixes_are_those_that_pillow_reads():
    assert {'.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff'} <= readable_suffixes()
    assert not {'.pdf', '.h5', '.mpg', '.txt', '.csv', '.npz', ''} & readable_suffixes()
