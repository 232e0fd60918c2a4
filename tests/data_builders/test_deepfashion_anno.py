"""DeepFashion's own annotation files: train rebuilt from them, names of values, boxes, and errors."""

import pytest

from asen_jax.errors import InputError
from data_builders.checks import check_photos
from data_builders.deepfashion import deepfashion_dataset_builder as deepfashion
from tests.data_builders import deepfashion_tree as tree
from tests.data_builders.deepfashion_tree import data, folder

__all__ = ['data', 'folder']  # fixtures

FAULTS = [
    ('label_valid.txt', '1 0 x', "'1 0 x'; expected"),
    ('label_valid.txt', '1 0', "'1 0'; expected \"index attribute value"),
    ('label_valid.txt', '6 0 0', 'index 6, but the last in the list of file names is 5'),
    ('label_valid.txt', '1 -1 0', "'1 -1 0'; expected"),
    ('label_valid.txt', '1 0 9999999999', 'numbers of up to 9 digits'),
    ('label_valid.txt', '1 6 0', 'attribute 6, but the last in meta.json is 4'),
    ('label_valid.txt', '1 0 3', 'value 3, but the last of that attribute in meta.json is 2'),
    ('label_test.txt', '1\t5\t12', 'value 12, but the last id in meta.json is 11'),
    ('label_test.txt', '1\t5\t0', 'id 0 is under attribute 5 here but under 3 in '),
    ('Anno/list_attr_cloth.txt', 'abstract  6', "'abstract  6'; expected a name and a type 1-5"),
    ('Anno/list_attr_img.txt', 'img/A_Dress/x.jpg 1 0', '2 entries after the path; expected 12'),
    ('Anno/list_attr_img.txt', 'img/x.jpg' + 11 * ' -1' + ' 2', 'in list_attr_cloth.txt, all of them -1, 0 or 1'),
    ('Anno/list_attr_img.txt', '../x.jpg' + 12 * ' 1', "'../x.jpg' is not the path of a file"),
    ('Anno/list_attr_img.txt', b'img/\xff.jpg' + 12 * b' 1', 'not UTF-8'),
    ('Anno/list_bbox.txt', 'img/x.jpg 1 2 3', 'expected a path and four whole numbers'),
    ('Anno/list_bbox.txt', 'img/x.jpg 1 2 3 y', "the box is '1,2,3,y'"),
    ('Anno/list_bbox.txt', f'img/x.jpg 1 2 3 {"9" * 400}', "the box is '1,2,3,99"),
    ('Anno/list_bbox.txt', 'img/x.jpg 5 2 4 9', "the box is '5,2,4,9'"),
]


@pytest.mark.parametrize(
    ('place', 'gone'),
    [
        ('Anno', 'label_train.txt'),
        ('Anno_coarse', 'filenames_train.txt'),
        ('Eval', 'label_train.txt'),
        ('.', 'filenames_train.txt'),
    ],
)
def test_train_is_rebuilt_from_the_anno_files(data, folder, place, gone):
    (folder / gone).unlink()
    tree.write_anno(folder / place)
    raw = deepfashion.read(data)
    assert [photo.image_id for photo in raw.photos['train']] == tree.NAMES_OF['train']
    assert tree.labels_of(raw.photos['train']) == tree.expected(tree.TRAIN)
    assert raw.photos['train'][0].where.startswith(f'{folder / place / "list_attr_img.txt"}, line 10')
    assert raw.values['texture-related'] == ('abstract', 'abstract floral', 'striped')
    assert raw.photos['train'][0].bbox == (2, 0, 11, 16) and raw.photos['valid'][5].bbox is None  # see the next test
    note = next(note for note in raw.notes if note.startswith('train: rebuilt from list_attr_img.txt'))
    assert '21 photos; left out are the 11 photos of valid and test, and 1 without any attribute' in note


def test_a_photo_with_two_boxes_has_none_and_a_repeated_box_is_one(data, folder):
    tree.write_anno(folder / 'Anno')
    raw = deepfashion.read(data)
    note = next(note for note in raw.notes if note.startswith('list_bbox.txt'))
    assert note.startswith('list_bbox.txt: boxes for 31 photos; 2 have none, so the whole photo is used; 1 of these')
    assert f'({tree.TWICE}, lines 31 and 36)' in note
    assert check_photos(raw).photos['valid'][0].bbox == (0, 0, 12, 16)
    tree.write(folder / 'Anno/list_bbox.txt', ['2', 'image_name x_1 y_1 x_2 y_2', *2 * [f'{tree.TWICE} 2 3 4 5']])
    assert [photo.bbox for photo in deepfashion.read(data).photos['valid']] == [(1, 2, 4, 5), *4 * [None], (1, 2, 4, 5)]


def test_an_error_about_a_box_names_its_line(data, folder):
    tree.write(folder / 'Anno/list_bbox.txt', ['1', 'image_name x_1 y_1 x_2 y_2', 'img/A_Dress/train_2.jpg 1 1 40 10'])
    with pytest.raises(
        InputError, match=r'filenames_train\.txt, line 3; .*Anno/list_bbox\.txt, line 3\): the box left'
    ):
        check_photos(deepfashion.read(data))


def test_train_must_be_kept_apart_from_valid_and_test(data, folder):
    (folder / 'label_train.txt').unlink()
    tree.write_anno(folder / 'Anno', [('A_Dress/valid_0.jpg', [1]), ('A_Dress/train_0.jpg', [2])])
    with pytest.raises(
        InputError, match=r'list_attr_img\.txt: 11 of the 11 photos of valid and test are missing from it'
    ):
        deepfashion.read(data)
    held_out = list(dict.fromkeys(tree.NAMES_OF['valid'] + tree.NAMES_OF['test']))
    tree.write_anno(folder / 'Anno', [(name, [1]) for name in held_out[1:]])
    with pytest.raises(
        InputError, match=rf'1 of the 11 photos of valid and test are missing from it \(one is {held_out[0]}\)'
    ):
        deepfashion.read(data)
    tree.write_anno(folder / 'Anno', [(name, [1]) for name in held_out])
    with pytest.raises(InputError, match=r'list_attr_img\.txt: no photos are left for train'):
        deepfashion.read(data)


@pytest.mark.parametrize('spelling', [b'./img/', b'img//', b'img/./'])
def test_another_spelling_of_a_path_is_the_same_photo(data, folder, spelling):
    (folder / 'label_train.txt').unlink()
    tree.write_anno(folder / 'Anno')
    for name in ('list_attr_img.txt', 'list_bbox.txt'):
        path = folder / 'Anno' / name
        path.write_bytes(path.read_bytes().replace(b'img/', spelling))
    raw = deepfashion.read(data)
    assert [photo.image_id for photo in raw.photos['train']] == tree.NAMES_OF['train']
    assert raw.photos['train'][0].bbox == (2, 0, 11, 16)


@pytest.mark.parametrize(('name', 'line', 'says'), FAULTS)
def test_an_error_names_its_line(data, folder, name, line, says):
    (folder / 'filenames_train.txt').unlink()
    tree.write_anno(folder / 'Anno')
    if name == 'label_valid.txt':
        tree.write(folder / name, tree.local_lines(tree.VALID))
    lines = (folder / name).read_bytes().split(b'\r\n')
    lines[3] = line if isinstance(line, bytes) else line.encode()
    (folder / name).write_bytes(b'\r\n'.join(lines))
    with pytest.raises(InputError) as caught:
        deepfashion.read(data)
    assert str(caught.value).startswith(f'{folder / name}, line 4: ') and says in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['list_attr_cloth.txt', 'list_attr_img.txt', 'list_bbox.txt'])
def test_wrong_first_lines_are_reported(data, folder, name):
    (folder / 'filenames_train.txt').unlink()
    for number, line, says in (
        (1, b'12x', r"lines 1 and 2: '12x' and .*; expected the number of rows"),
        (1, b'9' * 5000, r'lines 1 and 2: .*; expected the number of rows'),
        (1, b'100', r'line 1: 100 rows are announced, but \d+ follow'),
        (2, b'img/A_Dress/x.jpg 1', r"lines 1 and 2: .* and 'img/A_Dress/x.jpg 1'; expected"),
    ):
        tree.write_anno(folder / 'Anno')
        lines = (folder / 'Anno' / name).read_bytes().split(b'\r\n')
        lines[number - 1] = line
        (folder / 'Anno' / name).write_bytes(b'\r\n'.join(lines))
        with pytest.raises(InputError, match=rf'Anno/{name}, {says}'):
            deepfashion.read(data)


def test_there_must_be_as_many_names_as_in_meta_json(data, folder):
    tree.write(folder / 'Anno/list_attr_cloth.txt', ['2', 'attribute_name attribute_type', 'floral 1', 'maxi dress 3'])
    with pytest.raises(InputError, match=r'list_attr_cloth\.txt: 1 names of type 1 \(texture-related\), but .* has 3'):
        deepfashion.read(data)
