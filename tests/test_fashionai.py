"""FashionAI's raw layout: lists, folders of photos, labels of valid and test from their two lists."""

import json
from pathlib import Path

import pytest
from PIL import Image

from asen_jax.errors import InputError
from configs import common
from data_builders.checks import check_photos
from data_builders.fashionai import fashionai_dataset_builder as fashionai

README = Path(fashionai.__file__).with_name('README.md')
LISTS = {
    'filenames_train.txt': [f'fashionAI_attributes_train1/Images/a/{i}.jpg' for i in range(4)],
    'label_train.txt': ['0 0 1', '1 0 0 1 2', '2 1 1', '3 0 1'],
    'filenames_valid.txt': ['fashionAI_attributes_train2/Images/v0.jpg', 'test/Images/v1.jpg', 'test/Images/v2.jpg'],
    'query_valid.txt': ['2 0 1'],
    'candidate_valid.txt': ['0 0 1', '1 1 0'],
    'filenames_test.txt': ['fashionAI_attributes_train2/Images/t0.jpg', 'fashionAI_attributes_train2/Images/t1.jpg'],
    'query_test.txt': ['0 1 2'],
    'candidate_test.txt': ['1 1 2'],
}
META = {'FashionAI': {'ATTRIBUTES': ['neck', 'sleeve'], 'ATTRIBUTES_NUM': {'neck': 2, 'sleeve': 3}}}


@pytest.fixture
def data(tmp_path):
    """The config of a raw tree like the real one, with CR LF and a last line without its newline."""
    folder = tmp_path / 'FashionAI'
    for name, lines in LISTS.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes('\r\n'.join(lines).encode())
        for line in lines if name.startswith('filenames') else ():
            (folder / line).parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8)).save(folder / line)
    (tmp_path / 'meta.json').write_text(json.dumps(META))
    config = common.get_config().data
    config.manual_dir = str(tmp_path)
    return config


def test_reads_the_lists(data):
    raw = check_photos(fashionai.read(data))
    assert raw.attributes == ('neck', 'sleeve')
    train = [(p.attributes, p.values) for p in raw.photos['train']]
    assert train == [((0,), (1,)), ((0, 1), (0, 2)), ((1,), (1,)), ((0,), (1,))]
    assert [(p.image_id, p.attributes, p.values) for p in raw.photos['valid']] == [
        ('fashionAI_attributes_train2/Images/v0.jpg', (0,), (1,)),
        ('test/Images/v1.jpg', (1,), (0,)),
        ('test/Images/v2.jpg', (0,), (1,)),
    ]
    assert raw.queries['valid'].tolist() == [[2, 0, 1]]
    assert raw.candidates['test'].tolist() == [[1, 1, 2]]


def test_a_missing_photo_is_named_with_its_line(data):
    root = Path(data.manual_dir) / 'FashionAI'
    (root / 'test/Images/v1.jpg').unlink()
    with pytest.raises(InputError) as caught:
        check_photos(fashionai.read(data))
    message = str(caught.value)
    assert f'{root}/test/Images/v1.jpg ({root}/filenames_valid.txt, line 2) is missing' in message
    assert 'data_builders/fashionai/README.md' in message and '--config.data.missing=skip' in message


def test_a_skipped_photo_takes_its_entries_along(data):
    (Path(data.manual_dir) / 'FashionAI/fashionAI_attributes_train2/Images/v0.jpg').write_bytes(b'\xff\xd8\xff broken')
    raw = check_photos(fashionai.read(data), broken='skip')
    assert raw.queries['valid'].tolist() == [[1, 0, 1]]
    assert raw.candidates['valid'].tolist() == [[0, 1, 0]]
    assert raw.dropped['valid'] == {'queries': 0, 'candidates': 1}


def test_chosen_attributes_need_only_their_own_photos(data):
    (Path(data.manual_dir) / 'FashionAI/fashionAI_attributes_train1/Images/a/0.jpg').unlink()
    data.attributes = ('sleeve',)
    raw = check_photos(fashionai.read(data))
    assert [p.image_id[-5:] for p in raw.photos['train']] == ['1.jpg', '2.jpg']
    assert [p.values for p in raw.photos['train']] == [(2,), (1,)]
    assert len(raw.queries['valid']) == 0
    assert fashionai.config_name(data) != 'all'
    data.attributes = ('sleve',)
    with pytest.raises(InputError, match=r"no attribute 'sleve' .*did you mean 'sleeve'"):
        fashionai.read(data)


@pytest.mark.parametrize('name', ['meta.json', *(f'FashionAI/{name}' for name in LISTS)])
def test_a_missing_list_is_an_error_that_says_what_to_do(data, name):
    (Path(data.manual_dir) / name).unlink()
    with pytest.raises(InputError) as caught:
        fashionai.read(data)
    assert str(caught.value).startswith(f'{data.manual_dir}/{name} is missing: data_builders/fashionai/README.md')
    assert '\n' not in str(caught.value)


def test_a_letter_in_a_label_line_is_named(data):
    path = Path(data.manual_dir) / 'FashionAI/label_train.txt'
    path.write_text('0 0 1\n1 0 x\n')
    with pytest.raises(InputError, match=r"label_train\.txt, line 2: 'x' is not a whole number"):
        fashionai.read(data)


def test_the_readmes_tree_is_the_codes(data):
    readme = README.read_text()
    for path in fashionai.list_files(data):
        assert f'\n    {path.name}\n' in readme or f'\n  {path.name}\n' in readme
    for folder in ('fashionAI_attributes_train1/Images/', 'fashionAI_attributes_train2/Images/'):
        assert f'\n    {folder}' in readme
