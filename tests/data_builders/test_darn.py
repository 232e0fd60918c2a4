"""DARN's raw layout, from lists with photos missing to figures; and the published lists themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from asen_jax.errors import InputError
from asen_jax.evaluation.metrics import chance_map
from asen_jax.training.loop import train_and_evaluate
from configs import darn as darn_config
from data_builders import asen_lists
from data_builders.checks import check_photos
from data_builders.darn import darn_dataset_builder as darn
from data_builders.prepare import count_unanswered, prepare, summary
from tests.conftest import unpack_published

README = Path(darn.__file__).with_name('README.md')
VALUES = {
    'clothes category': 20, 'clothes button': 13, 'clothes color': 55, 'clothes length': 7, 'clothes pattern': 28,
    'clothes shape': 11, 'collar shape': 26, 'sleeve length': 8, 'sleeve shape': 17,
}  # fmt: skip
CHANCE = (5.48, 23.46, 10.55, 29.91, 43.27, 38.76, 15.22, 62.02, 54.54)  # REFERENCE.md, DARN's test lists
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
    """A small network on a raw tree like the published one; one list with CR LF, one without its last newline."""
    folder = tmp_path / 'data' / 'DARN'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, lines in LISTS.items():
        ends = '\r\n' if name == 'query_test.txt' else '\n'
        (folder / name).write_bytes((ends.join(lines) + ('' if name.startswith('filenames') else ends)).encode())
        for line in lines if name.startswith('filenames') else ():
            (folder / line).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 32, 3), np.uint8)).save(folder / line)
    for name in MISSING:
        (folder / name).unlink()
    meta = {'DARN': {'ATTRIBUTES': list(VALUES), 'ATTRIBUTES_NUM': VALUES}, 'FashionAI': {}}
    (tmp_path / 'data' / 'meta.json').write_text(json.dumps(meta, indent=1))
    config = darn_config.get_config('csn')
    config.data.manual_dir, config.data.dir = str(tmp_path / 'data'), str(tmp_path / 'records')
    config.data.image_size, config.data.num_triplets, config.data.num_workers = 32, 16, 0
    config.model.trunk, config.model.trunk_width, config.init.trunk = 'resnet18', 8, 'none'
    config.model.bn_per_role = False  # as in tiny_config: less to compile
    config.train.batch_size, config.train.num_epochs, config.eval.batch_size = 8, 1, 16
    return config


def read(prepared, split):
    source = tfds.builder_from_directory(prepared).as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    return [source[i] for i in range(len(source))]


def test_from_the_published_layout_to_figures_over_what_is_left(config, tmp_path):
    prepared = prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    folder = Path(config.data.manual_dir) / 'DARN'
    assert content['skipped'] == [{'image_id': n, 'why': 'missing', 'path': str(folder / n)} for n in MISSING]
    assert (prepared / 'skipped.txt').read_text() == ''.join(f'{name}\tmissing\n' for name in MISSING)
    assert {split: facts['photos'] for split, facts in content['splits'].items()} == {
        'train': 23,
        'valid': 4,
        'test': 6,
    }
    assert content['splits']['train']['values'] == {
        **dict.fromkeys(VALUES, 0), 'clothes category': 2, 'clothes color': 3, 'sleeve shape': 1
    }  # fmt: skip
    assert [content['splits'][split]['unanswered'] for split in ('valid', 'test')] == [0, 1]
    assert content['splits']['test']['chance_map']['overall'] == pytest.approx(2 / 3)
    assert 'sleeve shape=16 (1)' in summary(prepared) and 'test: 1 queries and 1 candidates went' in summary(prepared)

    result = train_and_evaluate(config, tmp_path / 'run', prepared)
    written = json.loads((tmp_path / 'run' / 'eval_test.json').read_text())
    assert written == json.loads(json.dumps(result)) and written['dataset'] == 'darn'
    skipped = str(prepared / 'skipped.txt')
    assert written['dropped'] == {'queries': 1, 'candidates': 1, 'list_file': skipped}
    assert (written['num_queries'], written['num_candidates']) == (3, 3)
    # whatever the network: 1, 0 and 1; had the lost query counted as 0, 1/3 and 1/2
    assert written['map']['per_attribute'] == {'clothes category': 0.5, 'sleeve shape': 1.0}
    assert written['map']['overall'] == pytest.approx(2 / 3)


def test_the_lists_point_at_the_photos_that_are_left(config):
    prepared = prepare(config)
    photos = [record['image_id'].decode() for record in read(prepared, 'test')]
    assert photos == [name for name in LISTS['filenames_test.txt'] if name not in MISSING]
    for kind, wanted in (
        ('query', [(5, 0, 3), (6, 0, 7), (7, 8, 2)]),
        ('candidate', [(1, 0, 3), (2, 0, 3), (3, 8, 2)]),
    ):
        rows = read(prepared, f'test_{kind}')
        assert [(photos[row['index']], row['attribute'], row['value']) for row in rows] == [
            (LISTS['filenames_test.txt'][index], attribute, value) for index, attribute, value in wanted
        ]
    twice = read(prepared, 'valid')
    assert twice[0]['image_id'] == twice[2]['image_id'] and twice[0]['image'] == twice[2]['image']
    assert [row['index'] for row in read(prepared, 'valid_candidate')] == [0, 1, 2]
    train = read(prepared, 'train')
    kept = [i for i in range(NUM_TRAIN) if LISTS['filenames_train.txt'][i] not in MISSING]
    assert [record['values'].tolist()[:2] for record in train] == [[i % 2, 54 - i % 3] for i in kept]
    metadata = tfds.builder_from_directory(prepared).info.metadata
    assert metadata['attributes'] == list(VALUES) and len(metadata['values']['clothes color']) == 55


def test_the_config_is_the_published_recipe_that_goes_on_without_lost_photos():
    config = darn_config.get_config()
    assert (config.name, config.data.name, config.data.missing) == ('darn', 'darn', 'skip')
    assert (config.model.name, config.train.num_epochs) == ('asen', 200)
    config = darn_config.get_config('csn')
    assert (config.name, config.model.name, config.data.missing) == ('darn_csn', 'csn', 'skip')


def test_a_missing_photo_is_an_error_where_it_is_to_be_one(config):
    with pytest.raises(InputError) as caught:
        check_photos(darn.read(config.data), missing='error')
    folder = Path(config.data.manual_dir) / 'DARN'
    assert f'{folder}/{MISSING[0]} ({folder}/filenames_train.txt, line 4) is missing (3 of 36' in str(caught.value)
    assert 'data_builders/darn/README.md' in str(caught.value)


def test_attributes_are_chosen_by_names_with_spaces(config):
    config.data.attributes = ('sleeve shape', 'clothes category')
    raw = darn.read(config.data)
    assert raw.attributes == ('clothes category', 'sleeve shape')
    assert raw.queries['test'].tolist() == [[4, 0, 3], [5, 0, 3], [6, 0, 7], [7, 1, 2]]
    config.data.attributes = ('clothes colour',)
    with pytest.raises(InputError, match=r"no attribute 'clothes colour' .*did you mean 'clothes color'"):
        darn.read(config.data)


@pytest.mark.parametrize('name', ['meta.json', *(f'DARN/{name}' for name in LISTS)])
def test_a_missing_list_is_an_error_that_says_what_to_do(config, name):
    (Path(config.data.manual_dir) / name).unlink()
    with pytest.raises(InputError) as caught:
        prepare(config)
    assert str(caught.value).startswith(f'{config.data.manual_dir}/{name} is missing: data_builders/darn/README.md')


@pytest.mark.parametrize(
    ('name', 'line', 'text', 'says'),
    [
        ('DARN/filenames_train.txt', 2, '/pic/1/a.jpg', 'is an absolute path'),
        ('DARN/filenames_valid.txt', 2, '', 'is empty, but a line is an index'),
        ('DARN/filenames_test.txt', 3, '../pic/1/a.jpg', 'leaves the folder'),
        ('DARN/label_train.txt', 4, '3 0', '2 numbers'),
        ('DARN/label_train.txt', 6, '5 8 17', 'value 17'),
        ('DARN/query_valid.txt', 1, '3 0 x', "'x' is not a whole number"),
        ('DARN/query_test.txt', 2, '8 0 3', 'index 8'),
        ('DARN/candidate_valid.txt', 3, '2 9 1', 'attribute 9'),
        ('DARN/candidate_test.txt', 4, '3 8 2 1', '4 numbers'),
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


def test_a_meta_without_darn_is_named(config):
    path = Path(config.data.manual_dir) / 'meta.json'
    path.write_text('{"FashionAI": {}}')
    with pytest.raises(InputError, match=r'meta\.json: DARN has no ATTRIBUTES'):
        prepare(config)


def test_the_readmes_tree_is_the_codes(config):
    readme = README.read_text()
    for path in darn.list_files(config.data):
        assert f'\n    {path.name}\n' in readme or f'\n  {path.name}\n' in readme
    assert '\n    pic/' in readme


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """The published lists: all but train's."""
    config = darn_config.get_config()
    config.data.manual_dir = str(unpack_published(tmp_path_factory.mktemp('published')))
    return asen_lists.open_source(config.data, darn.DATASET)


def test_the_published_lists_have_the_papers_sizes_and_chance(published):
    assert {name: len(published.meta.values[name]) for name in published.meta.attributes} == VALUES
    for split, unanswered in (('valid', 4), ('test', 3)):
        photos, query, candidate = asen_lists.read_asked(published, split)
        assert (len(photos), len(query), len(candidate)) == (21_461, 4_293, 17_168)
        assert count_unanswered(query, candidate) == unanswered
        assert all(len(photo.attributes) == 1 for photo in photos)
    chance = chance_map(published.meta.attributes, query, candidate)
    assert 100 * chance['overall'] == pytest.approx(31.26, abs=0.01)
    assert [100 * chance['per_attribute'][name] for name in VALUES] == pytest.approx(CHANCE, abs=0.01)
