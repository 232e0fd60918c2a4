"""FashionAI's raw files: the lists, the folders of photos, and the challenge's tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asen_jax.errors import InputError
from configs import common
from data_builders import prepare
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
TRAIN1, TRAIN2 = (f'fashionAI_attributes_train{i}/Annotations/label.csv' for i in (1, 2))
TABLES = {
    TRAIN1: [
        'Images/a/0.jpg,neck_labels,my',
        'Images/a/1.jpg,neck_labels,yn',
        'Images/a/0.jpg,neck_labels,ny',
        'Images/a/1.jpg,sleeve_labels,mmy',
        'Images/neck_labels/v1.jpg,neck_labels,yn',
    ],
    TRAIN2: ['Images/v0.jpg,neck_labels,ny', 'Images/neck_labels/7.jpg,sleeve_labels,nym'],
    'label.csv': [
        'fashionAI_attributes_train1/Images/a/2.jpg,sleeve_labels,ynn',
        'Images/a/3.jpg,neck_labels,ny',
        'Images/sleeve_labels/8.jpg,sleeve_labels,nny',
        'Images/t1.jpg,sleeve_labels,nny',
        'Images/gone/9.jpg,neck_labels,yn',
    ],
}
META = {'FashionAI': {'ATTRIBUTES': ['neck', 'sleeve'], 'ATTRIBUTES_NUM': {'neck': 2, 'sleeve': 3}}}


@pytest.fixture
def config(tmp_path):
    """The config of raw files like the real ones, with CR LF and a last line without its newline."""
    folder = tmp_path / 'FashionAI'
    for name, lines in LISTS.items():
        write(folder / name, lines)
        for line in lines if name.startswith('filenames') else ():
            write_photo(folder / line)
    (tmp_path / 'meta.json').write_text(json.dumps(META))
    config = common.get_config()
    config.data.name, config.data.manual_dir, config.data.dir = 'fashionai', str(tmp_path), str(tmp_path / 'records')
    return config


@pytest.fixture
def data(config):
    return config.data


@pytest.fixture
def folder(data):
    return Path(data.manual_dir) / 'FashionAI'


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes('\r\n'.join(lines).encode())


def write_photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(path)


@pytest.fixture
def write_tables(folder):
    """Replaces the published train lists by tables of the challenge."""

    def write_tables(tables):
        (folder / 'label_train.txt').unlink(missing_ok=True)
        for name, lines in tables.items():
            write(folder / name, lines)

    return write_tables


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
    assert raw.lists['valid_query'].tolist() == [[2, 0, 1]]
    assert raw.lists['test_candidate'].tolist() == [[1, 1, 2]]


def test_chosen_attributes_need_only_their_own_photos(data, folder):
    (folder / 'fashionAI_attributes_train1/Images/a/0.jpg').unlink()
    data.attributes = ('sleeve',)
    raw = check_photos(fashionai.read(data))
    assert [(p.image_id[-5:], p.values) for p in raw.photos['train']] == [('1.jpg', (2,)), ('2.jpg', (1,))]
    assert len(raw.lists['valid_query']) == 0
    assert fashionai.config_name(data) != 'all'


@pytest.mark.parametrize('name', ['meta.json', *(f'FashionAI/{name}' for name in LISTS)])
def test_a_missing_list_is_an_error_that_says_what_to_do(data, name):
    (Path(data.manual_dir) / name).unlink()
    with pytest.raises(InputError) as caught:
        fashionai.read(data)
    assert str(caught.value).startswith(f'{data.manual_dir}/{name} is missing: data_builders/fashionai/README.md')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('gone', ['filenames_train.txt', 'label_train.txt'])
def test_train_is_rebuilt_from_the_challenges_tables(data, folder, gone):
    before = fashionai.list_files(data)
    for name, lines in TABLES.items():
        write(folder / name, lines)
    write_photo(folder / 'fashionAI_attributes_train2/Images/sleeve_labels/8.jpg')  # only train2 has it
    assert fashionai.list_files(data) == before and fashionai.read(data).notes == ()  # the published lists win
    (folder / gone).unlink()
    raw = fashionai.read(data)
    train = [(p.image_id.removeprefix('fashionAI_attributes_'), p.attributes, p.values) for p in raw.photos['train']]
    assert train == [
        ('train1/Images/a/0.jpg', (0,), (1,)),
        ('train1/Images/a/1.jpg', (0, 1), (0, 2)),
        ('train2/Images/neck_labels/7.jpg', (1,), (1,)),
        ('train1/Images/a/2.jpg', (1,), (0,)),
        ('train1/Images/a/3.jpg', (0,), (1,)),
        ('train2/Images/sleeve_labels/8.jpg', (1,), (2,)),
        ('train1/Images/gone/9.jpg', (0,), (0,)),
    ]
    tables = [folder / name for name in TABLES]
    assert [path for path in fashionai.list_files(data) if path not in before] == tables
    assert raw.photos['train'][1].where == f'{tables[0]}, line 2'
    assert raw.notes == (
        f'train: rebuilt from {TRAIN1} and {TRAIN2} and label.csv, because the published train lists are missing: '
        '7 photos; 3 of the 5 photos of valid and test were found and left out (2 by path, 1 by file name)',
    )


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('Images/a/0.jpg,neck_labels,yy', "neck_labels,yy'; expected"),
        (
            'Images/a/0.jpg,neck_labels,nm',
            'neck_labels (2 letters), sleeve_labels (3 letters), each n, m or y, and exactly one y',
        ),
        ('Images/a/0.jpg,neck_labels,nyn', "neck_labels,nyn'; expected"),
        ('Images/a/0.jpg,sleeve_labels,xyn', "sleeve_labels,xyn'; expected"),
        ('Images/a/0.jpg,lapel_labels,ny', "lapel_labels,ny'; expected"),
        ('Images/a/0.jpg,neck,ny', "neck,ny'; expected"),
        ('Images/a/0.jpg,neck_labels', '; expected "path,attribute_labels,nnynn"'),
        ('', "''; expected"),
        ('../0.jpg,neck_labels,ny', "'../0.jpg' is not the path of a file"),
        ('Images/a/1.jpg,neck_labels,ny', 'has value 1 of neck, but value 0 on '),
    ],
)
def test_a_bad_line_of_a_table_is_named(data, folder, write_tables, line, says):
    write_tables({TRAIN1: ['Images/a/1.jpg,neck_labels,yn', line, 'Images/a/v1.jpg,neck_labels,ny']})
    with pytest.raises(InputError) as caught:
        fashionai.read(data)
    assert str(caught.value).startswith(f'{folder}/{TRAIN1}, line 2: ') and says in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        (
            'Images/a/0.jpg,neck_labels,yn',
            'none of the 5 photos of valid and test is in fashionAI_attributes_train1/Ann',
        ),
        ('Images/a/v1.jpg,neck_labels,yn', 'only photos of valid and test; none is left for train'),
    ],
)
def test_train_must_be_kept_apart_from_valid_and_test(data, write_tables, line, says):
    write_tables({TRAIN1: [line]})
    with pytest.raises(InputError, match=says):
        fashionai.read(data)


def test_odd_lists_are_prepared(config, folder, write_tables):
    """A rebuilt train, a path twice in a list, a missing photo, and a value with one photo (sleeve 2)."""
    write_tables({TRAIN1: [*TABLES[TRAIN1], 'Images/a/2.jpg,sleeve_labels,nyn', 'Images/a/3.jpg,sleeve_labels,nyn']})
    names = LISTS['filenames_valid.txt']
    write(folder / 'filenames_valid.txt', [*names, names[0], 'test/Images/gone.jpg'])
    write(folder / 'query_valid.txt', ['2 0 1', '4 0 0', '3 1 0'])
    config.data.missing = 'skip'
    prepared = prepare.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert [facts['photos'] for facts in content['splits'].values()] == [4, 4, 2]
    assert content['splits']['train']['values'] == {'neck': 2, 'sleeve': 2}
    assert content['splits']['train']['triplets'] > 0
    assert content['splits']['valid']['queries'] == 2
    assert [entry['image_id'] for entry in content['skipped']] == ['test/Images/gone.jpg']
    assert content['notes'][0].startswith(f'train: rebuilt from {TRAIN1}, because')
    assert any('train: ' in note and 'sleeve=2 (1)' in note for note in content['notes'])
    with np.load(prepared / 'arrays.npz') as arrays:
        assert arrays['valid_query'].tolist() == [[2, 0, 1], [3, 1, 0]]


def test_the_readme_shows_every_file_that_is_read(data):
    readme = README.read_text()
    for path in TRAIN1, TRAIN2:
        assert f'\n    {path}\n' in readme
    for path in fashionai.list_files(data):
        assert f'\n    {path.name}\n' in readme or f'\n  {path.name}\n' in readme
    for folder in ('fashionAI_attributes_train1/Images/', 'fashionAI_attributes_train2/Images/'):
        assert f'\n    {folder}' in readme
