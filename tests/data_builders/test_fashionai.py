"""FashionAI's raw layout: lists, folders of photos, labels of valid and test from their two lists."""

import json
from pathlib import Path

import pytest
from PIL import Image

from asen_jax.errors import InputError
from asen_jax.training.loop import train_and_evaluate
from configs import common
from data_builders import prepare
from data_builders.checks import check_photos
from data_builders.fashionai import fashionai_dataset_builder as fashionai
from tests.conftest import tiny_config

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
        'Images/a/0.jpg,neck_labels,my', 'Images/a/1.jpg,neck_labels,yn', 'Images/a/0.jpg,neck_labels,ny',
        'Images/a/1.jpg,sleeve_labels,mmy', 'Images/neck_labels/v1.jpg,neck_labels,yn',
    ],
    TRAIN2: ['Images/v0.jpg,neck_labels,ny', 'Images/neck_labels/7.jpg,sleeve_labels,nym'],
    'label.csv': [
        'fashionAI_attributes_train1/Images/a/2.jpg,sleeve_labels,ynn', 'Images/a/3.jpg,neck_labels,ny',
        'Images/sleeve_labels/8.jpg,sleeve_labels,nny', 'Images/t1.jpg,sleeve_labels,nny',
        'Images/gone/9.jpg,neck_labels,yn',
    ],
}  # fmt: skip
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


@pytest.fixture
def write_tables(data):
    """Write tables of the challenge, with CR LF and a last line without its newline."""
    folder = Path(data.manual_dir) / 'FashionAI'

    def write(tables):
        for name, lines in tables.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes('\r\n'.join(lines).encode())
        photo = folder / 'fashionAI_attributes_train2/Images/sleeve_labels/8.jpg'  # one that only train2 has
        photo.parent.mkdir(exist_ok=True)
        Image.new('RGB', (8, 8)).save(photo)
        return folder

    return write


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


@pytest.mark.parametrize('gone', ['filenames_train.txt', 'label_train.txt'])
def test_train_is_rebuilt_from_the_challenges_tables(data, write_tables, gone):
    folder = write_tables(TABLES)
    before = fashionai.list_files(data)
    assert not any(path.name == 'label.csv' for path in before)
    assert fashionai.read(data).notes == ()  # the published lists win
    (folder / gone).unlink()
    raw = fashionai.read(data)
    train = [(p.image_id.removeprefix('fashionAI_attributes_'), p.attributes, p.values) for p in raw.photos['train']]
    assert train == [
        ('train1/Images/a/0.jpg', (0,), (1,)), ('train1/Images/a/1.jpg', (0, 1), (0, 2)),
        ('train2/Images/neck_labels/7.jpg', (1,), (1,)), ('train1/Images/a/2.jpg', (1,), (0,)),
        ('train1/Images/a/3.jpg', (0,), (1,)), ('train2/Images/sleeve_labels/8.jpg', (1,), (2,)),
        ('train1/Images/gone/9.jpg', (0,), (0,)),
    ]  # fmt: skip
    tables = [folder / name for name in TABLES]
    assert [path for path in fashionai.list_files(data) if path not in before] == tables
    assert raw.photos['train'][1].where == f'{tables[0]}, line 2'
    (note,) = raw.notes
    assert note.startswith(
        f'train: rebuilt from {TRAIN1} and {TRAIN2} and label.csv, since the published train lists are not there: 7 photos'
    )
    assert note.endswith('left out are 3 photos of valid and test (2 by path, 1 by file name); valid and test have 5')


def test_one_table_is_enough(data, write_tables):
    folder = write_tables({TRAIN1: ['Images/a/0.jpg,neck_labels,ny', 'Images/a/v1.jpg,neck_labels,ny']})
    (folder / 'label_train.txt').unlink()
    assert [photo.image_id for photo in fashionai.read(data).photos['train']] == LISTS['filenames_train.txt'][:1]


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('Images/a/0.jpg,neck_labels,yy', "the label is 'yy'; expected 2 letters n, m or y, and one y among them"),
        ('Images/a/0.jpg,neck_labels,nm', "the label is 'nm'; expected 2 letters"),
        ('Images/a/0.jpg,neck_labels,nyn', "the label is 'nyn'; expected 2 letters"),
        ('Images/a/0.jpg,sleeve_labels,xyn', "the label is 'xyn'; expected 3 letters"),
        (
            'Images/a/0.jpg,lapel_labels,ny',
            "unknown attribute 'lapel_labels'; expected one of neck_labels, sleeve_labels",
        ),
        ('Images/a/0.jpg,neck,ny', "unknown attribute 'neck'"),
        ('Images/a/0.jpg,neck_labels', '2 cells; expected "path,attribute_labels,nnynn"'),
        ('', '1 cells; expected'),
        ('../0.jpg,neck_labels,ny', "'../0.jpg' leaves the folder"),
        ('Images/a/1.jpg,neck_labels,ny', 'has value 1 of neck, but value 0 on '),
    ],
)
def test_a_bad_line_of_a_table_is_named(data, write_tables, line, says):
    folder = write_tables({TRAIN1: ['Images/a/1.jpg,neck_labels,yn', line, 'Images/a/v1.jpg,neck_labels,ny']})
    (folder / 'label_train.txt').unlink()
    with pytest.raises(InputError) as caught:
        fashionai.read(data)
    assert str(caught.value).startswith(f'{folder}/{TRAIN1}, line 2: ') and says in str(caught.value)
    assert '\n' not in str(caught.value)


def test_train_must_be_kept_apart_from_valid_and_test(data, write_tables):
    folder = write_tables({TRAIN1: ['Images/a/0.jpg,neck_labels,yn']})
    (folder / 'label_train.txt').unlink()
    with pytest.raises(
        InputError, match=r'none of the 5 photos of valid and test is in fashionAI_attributes_train1/Ann'
    ):
        fashionai.read(data)
    write_tables({TRAIN1: ['Images/a/v1.jpg,neck_labels,yn']})
    with pytest.raises(InputError, match='only photos of valid and test; none is left for train'):
        fashionai.read(data)


def test_prepares_trains_and_evaluates(data, tmp_path):
    """A path twice in a list, a photo that is missing, a value with one photo (sleeve 2)."""
    folder = Path(data.manual_dir) / 'FashionAI'
    names = LISTS['filenames_valid.txt']
    (folder / 'filenames_valid.txt').write_bytes('\r\n'.join([*names, names[0], 'test/Images/gone.jpg']).encode())
    (folder / 'query_valid.txt').write_bytes(b'2 0 1\r\n4 0 0\r\n3 1 0')
    config = tiny_config()
    config.name = config.data.name = 'fashionai'
    config.data.manual_dir, config.data.dir = data.manual_dir, str(tmp_path / 'records')
    config.data.missing, config.data.num_triplets, config.train.num_epochs = 'skip', 16, 1
    prepared = prepare.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert [facts['photos'] for facts in content['splits'].values()] == [4, 4, 2]
    assert content['splits']['valid']['queries'] == 2 and content['splits']['train']['values'] == {
        'neck': 2,
        'sleeve': 2,
    }
    assert any('train: ' in note and 'sleeve=2 (1)' in note for note in content['notes'])
    result = train_and_evaluate(config, tmp_path / 'run', prepared)
    assert result['map'] == {'overall': 1.0, 'macro': 1.0, 'per_attribute': {'sleeve': 1.0}}  # one query, one candidate
    assert json.loads((tmp_path / 'run/eval_test.json').read_text())['num_candidates'] == 1


def test_rebuilt_train_is_prepared(data, write_tables, tmp_path):
    folder = write_tables({TRAIN1: [*TABLES[TRAIN1], 'Images/a/3.jpg,neck_labels,my']})
    (folder / 'label_train.txt').unlink()
    config = common.get_config()
    config.data = data
    config.data.dir = str(tmp_path / 'records')
    content = json.loads((prepare.prepare(config) / 'prepare.json').read_text())
    assert content['dataset'] == 'fashionai'
    assert content['splits']['train']['photos'] == 3 and content['splits']['train']['triplets'] > 0
    assert content['notes'][0].startswith(
        'train: rebuilt from fashionAI_attributes_train1/Annotations/label.csv, since'
    )


def test_the_readmes_tree_is_the_codes(data, write_tables):
    readme = README.read_text()
    for path in TRAIN1, TRAIN2:
        assert f'\n    {path}\n' in readme
    for path in fashionai.list_files(data):
        assert f'\n    {path.name}\n' in readme or f'\n  {path.name}\n' in readme
    for folder in ('fashionAI_attributes_train1/Images/', 'fashionAI_attributes_train2/Images/'):
        assert f'\n    {folder}' in readme
