"""DARN: from raw lists, some of whose photos are missing, to records of the photos that are left."""

import json
from pathlib import Path

import pytest
from PIL import Image

from asen_jax.data.prepared import open_records
from asen_jax.errors import InputError
from configs import darn as darn_config
from data_builders.checks import check_photos
from data_builders.darn import darn_dataset_builder as darn
from data_builders.prepare import prepare
from data_builders.report import summary
from tests.conftest import read_split

README = Path(darn.__file__).with_name('README.md')
VALUES = {
    'clothes category': 20,
    'clothes button': 13,
    'clothes color': 55,
    'clothes length': 7,
    'clothes pattern': 28,
    'clothes shape': 11,
    'collar shape': 26,
    'sleeve length': 8,
    'sleeve shape': 17,
}
NUM_TRAIN = 24
LISTS = {
    'filenames_train.txt': [f'pic/51586095/{i}_47_1.jpg' for i in range(NUM_TRAIN)],
    # two values of category, three of color, and the last value of sleeve shape on one photo alone
    'label_train.txt': [f'{i} 0 {i % 2} 2 {54 - i % 3}' + (' 8 16' if i == 5 else '') for i in range(NUM_TRAIN)],
    'filenames_valid.txt': [f'pic/50064676/{name}.jpg' for name in ('5460_36_2', '1_1_1', '5460_36_2', '2_2_2')],
    'query_valid.txt': ['3 0 1'],
    'candidate_valid.txt': ['0 0 1', '1 0 0', '2 0 1'],
    # without photos 0 and 4: one query of category is answered by all that is left, one by nothing
    'filenames_test.txt': [f'pic/51606006/{i}_02_3.jpg' for i in range(8)],
    'query_test.txt': ['4 0 3', '5 0 3', '6 0 7', '7 8 2'],
    'candidate_test.txt': ['0 0 7', '1 0 3', '2 0 3', '3 8 2'],
}
MISSING = ['pic/51586095/3_47_1.jpg', 'pic/51606006/0_02_3.jpg', 'pic/51606006/4_02_3.jpg']


@pytest.fixture
def config(tmp_path):
    """The config of a raw tree in the published layout; one list has CR LF, others lack their last newline."""
    folder = tmp_path / 'data' / 'DARN'
    for name, lines in LISTS.items():
        for line in lines if name.startswith('filenames') else ():
            (folder / line).parent.mkdir(parents=True, exist_ok=True)
            if line not in MISSING:
                Image.effect_noise((32, 40), 99).save(folder / line)
        separator = '\r\n' if name == 'query_test.txt' else '\n'
        (folder / name).write_bytes(separator.join(lines).encode())
    meta = {'DARN': {'ATTRIBUTES': list(VALUES), 'ATTRIBUTES_NUM': VALUES}, 'FashionAI': {}}
    (tmp_path / 'data' / 'meta.json').write_text(json.dumps(meta, indent=1))
    config = darn_config.get_config()
    config.data.manual_dir, config.data.dir = str(tmp_path / 'data'), str(tmp_path / 'records')
    return config


def test_figures_cover_the_photos_that_are_left(config, tmp_path):
    prepared, folder = prepare(config), tmp_path / 'data' / 'DARN'
    content = json.loads((prepared / 'prepare.json').read_text())
    splits = content['splits']
    assert content['skipped'] == [{'image_id': n, 'why': 'missing', 'path': str(folder / n)} for n in MISSING]
    assert (prepared / 'skipped.txt').read_text() == ''.join(f'{name}\tmissing\n' for name in MISSING)
    assert {split: splits[split]['photos'] for split in splits} == {'train': 23, 'valid': 4, 'test': 6}
    seen = {'clothes category': 2, 'clothes color': 3, 'sleeve shape': 1}
    assert splits['train']['values'] == dict.fromkeys(VALUES, 0) | seen
    assert [splits[split]['unanswered'] for split in ('valid', 'test')] == [0, 1]
    assert splits['test']['chance_map']['overall'] == pytest.approx(2 / 3)
    assert all(f'test: 1 {kind} were dropped' in summary(prepared) for kind in ('queries', 'candidates'))
    # of the two queries of clothes category that are left, all candidates answer one and none the other
    chance = splits['test']['chance_map']['per_attribute']
    assert {name: chance[name] for name in seen if name in chance} == {'clothes category': 0.5, 'sleeve shape': 1.0}
    assert open_records(prepared).dropped['test'] == {'queries': 1, 'candidates': 1}


def read(prepared, split):
    source = read_split(prepared, split)
    return [source[i] for i in range(len(source))]


def test_the_lists_are_renumbered_to_the_photos_that_are_left(config):
    prepared = prepare(config)
    photos = [record['image_id'].decode() for record in read(prepared, 'test')]
    assert photos == [name for name in LISTS['filenames_test.txt'] if name not in MISSING]
    kept = {'query': [(5, 0, 3), (6, 0, 7), (7, 8, 2)], 'candidate': [(1, 0, 3), (2, 0, 3), (3, 8, 2)]}
    for kind, rows in kept.items():
        found = [(photos[row['index']], row['attribute'], row['value']) for row in read(prepared, f'test_{kind}')]
        assert found == [(LISTS['filenames_test.txt'][index], *label) for index, *label in rows]
    valid = read(prepared, 'valid')
    assert valid[0]['image_id'] == valid[2]['image_id'] and valid[0]['image'] == valid[2]['image']  # listed twice
    kept = [i for i in range(NUM_TRAIN) if LISTS['filenames_train.txt'][i] not in MISSING]
    assert [record['values'].tolist()[:2] for record in read(prepared, 'train')] == [[i % 2, 54 - i % 3] for i in kept]
    records = open_records(prepared)
    assert records.attributes == tuple(VALUES) and len(records.values[2]) == 55


def test_the_config_skips_missing_photos_unless_told_otherwise(config, tmp_path):
    assert [darn_config.get_config(name).data.missing for name in ('asen', 'csn')] == ['skip', 'skip']
    with pytest.raises(InputError) as caught:
        check_photos(darn.read(config.data), missing='error')
    folder = tmp_path / 'data' / 'DARN'
    assert f'{folder}/{MISSING[0]} ({folder}/filenames_train.txt, line 4) is missing (3 of 36' in str(caught.value)
    assert 'data_builders/darn/README.md' in str(caught.value)


def test_attributes_are_chosen_by_names_with_spaces(config):
    config.data.attributes = ('sleeve shape', 'clothes category')
    raw = darn.read(config.data)
    assert raw.attributes == ('clothes category', 'sleeve shape')
    assert raw.lists['test_query'].tolist() == [[4, 0, 3], [5, 0, 3], [6, 0, 7], [7, 1, 2]]
    config.data.attributes = ('clothes colour',)
    with pytest.raises(InputError, match=r"no attribute 'clothes colour' .*did you mean 'clothes color'"):
        darn.read(config.data)


@pytest.mark.parametrize('name', ['meta.json', *(f'DARN/{name}' for name in LISTS)])
def test_an_error_about_a_missing_list_says_what_to_do(config, name):
    (Path(config.data.manual_dir) / name).unlink()
    with pytest.raises(InputError) as caught:
        prepare(config)
    assert str(caught.value).startswith(f'{config.data.manual_dir}/{name} is missing: data_builders/darn/README.md')
    assert f' {Path(name).name}\n' in README.read_text()


@pytest.mark.parametrize(
    ('name', 'line', 'text', 'says'),
    [
        ('DARN/filenames_test.txt', 3, '../pic/1/a.jpg', 'is not the path of a file'),
        ('DARN/label_train.txt', 6, '5 8 17', 'value 17'),
        ('DARN/query_test.txt', 2, '8 0 3', 'index 8'),
        ('DARN/candidate_valid.txt', 3, '2 9 1', 'attribute 9'),
        ('meta.json', 3, ' "ATTRIBUTES" [', 'not JSON'),
    ],
)
def test_a_malformed_line_is_named(config, name, line, text, says):
    path = Path(config.data.manual_dir) / name
    lines = path.read_text().split('\n')
    lines[line - 1] = text
    path.write_text('\n'.join(lines))
    with pytest.raises(InputError) as caught:
        prepare(config)
    assert str(caught.value).startswith(f'{path}, line {line}') and says in str(caught.value)
