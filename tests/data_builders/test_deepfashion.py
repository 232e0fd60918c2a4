"""DeepFashion's raw layout: two ways to write labels, the files read, a run; and the published lists."""

import json
from pathlib import Path

import numpy as np
import pytest

from asen_jax.data.batches import open_records
from asen_jax.errors import InputError
from asen_jax.evaluation.metrics import chance_map
from asen_jax.training import loop
from configs import deepfashion as deepfashion_config
from data_builders import annotations, asen_lists, prepare
from data_builders.deepfashion import deepfashion_dataset_builder as deepfashion
from data_builders.deepfashion import labels
from tests.data_builders import deepfashion_tree as tree
from tests.conftest import tiny_config, unpack_published
from tests.data_builders.deepfashion_tree import data, folder

__all__ = ['data', 'folder']  # fixtures

README = Path(deepfashion.__file__).with_name('README.md')
CHANCE = (6.69, 2.69, 3.23, 2.55, 1.97)  # REFERENCE.md, DeepFashion's test lists


@pytest.mark.parametrize('write_lines', [tree.local_lines, tree.global_lines])
@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_both_ways_of_writing_say_the_same(data, folder, split, write_lines):
    tree.write(folder / f'label_{split}.txt', write_lines(tree.IDS_OF[split]))
    if split != 'train':  # the ids that only this file may have had
        tree.write(
            folder / 'Anno/list_attr_cloth.txt',
            ['12', 'attribute_name attribute_type', *(f'n {t}' for t in tree.TYPES)],
        )
    raw = deepfashion.read(data)
    for name, many in tree.IDS_OF.items():
        assert tree.labels_of(raw.photos[name]) == tree.expected(many)
        assert [photo.image_id for photo in raw.photos[name]] == tree.NAMES_OF[name]
    way = '0, values are numbered' if write_lines is tree.local_lines else "1, values are DeepFashion's ids"
    assert any(note.startswith(f'label_{split}.txt: attributes count from {way}') for note in raw.notes)
    assert raw.queries['valid'].tolist() == [[3, 0, 1], [4, 4, 1]] and len(raw.candidates['test']) == 2


@pytest.mark.parametrize(
    ('line', 'is_global'),
    [('0 0 0 1 1', False), ('0 5 0', True), ('0 1 1 2 3', True), ('0 1 1 2 2', False), ('0\t1\t1\t2\t2\t', True)],
)
def test_attributes_then_values_then_tabs_tell_the_way(folder, line, is_global):
    source = asen_lists.Source(folder, annotations.read_meta(folder.parent / 'meta.json', 'DeepFashion'))
    tree.write(folder / 'some.txt', [line])
    rows = labels.read_rows(folder / 'some.txt', 1, source.meta)
    assert rows.is_global == is_global and rows.note


def test_attributes_0_and_5_in_one_file_are_refused_with_their_lines(data, folder):
    tree.write(folder / 'label_test.txt', ['0 1 1', '1 5 1', '2 1 1', '3 0 1'])
    with pytest.raises(InputError, match=r'label_test\.txt: line 4 has attribute 0.* line 2 has attribute 5'):
        deepfashion.read(data)


def test_ids_that_cannot_be_ranked_are_refused(data, folder):
    tree.write(
        folder / 'label_test.txt', tree.global_lines([[id_ for id_ in ids if id_ not in (8, 10)] for ids in tree.TEST])
    )
    tree.write(folder / 'label_valid.txt', tree.global_lines([[id_ for id_ in ids if id_ != 8] for ids in tree.VALID]))
    with pytest.raises(InputError) as caught:
        deepfashion.read(data)
    message = str(caught.value)
    assert f'{folder}/label_valid.txt, {folder}/label_test.txt: 1 ids of fabric-related' in message
    assert 'meta.json has 2' in message and f"put DeepFashion's list_attr_cloth.txt into {folder}/Anno" in message
    tree.write_anno(folder / 'Anno')  # the remedy
    assert tree.labels_of(deepfashion.read(data).photos['test'])[4] == {(3, 1)}


def test_an_id_of_two_attributes_is_refused(data, folder):
    tree.write(folder / 'label_test.txt', [*tree.global_lines(tree.TEST)[:3], '3\t5\t7\t2\t5'])
    with pytest.raises(InputError, match=r'label_test\.txt, line 4: id 5 is under attribute 2 here and under 1 on an'):
        deepfashion.read(data)


def test_label_files_of_valid_and_test_are_optional_and_the_lists_add_to_them(data, folder):
    tree.write(
        folder / 'label_valid.txt', [*tree.global_lines(tree.VALID)[:3], '3\t1\t5', *tree.global_lines(tree.VALID)[4:]]
    )
    raw = deepfashion.read(data)
    assert tree.labels_of(raw.photos['valid'])[3] == {(0, 2), (0, 1)}
    assert 'valid: 1 labels of its query and candidate lists, not in label_valid.txt, were added' in raw.notes
    for split in ('valid', 'test'):
        (folder / f'label_{split}.txt').unlink()
    raw = deepfashion.read(data)
    assert tree.labels_of(raw.photos['valid']) == [{(0, 1)}, {(2, 1)}, {(3, 0)}, {(0, 1)}, {(4, 1)}, {(1, 0)}]
    assert raw.values['part-related'] == ('0', '1')


def test_exactly_the_files_that_are_read_describe_the_records(data, folder):
    def named():
        return [str(path.relative_to(folder.parent)) for path in deepfashion.list_files(data)]

    lists = [
        f'DeepFashion/{kind}_{split}.txt' for split in ('valid', 'test') for kind in ('filenames', 'query', 'candidate')
    ]
    published = [f'DeepFashion/{kind}_train.txt' for kind in ('filenames', 'label')]
    own = [f'DeepFashion/label_{split}.txt' for split in ('valid', 'test')]
    anno = [f'DeepFashion/Anno/list_{name}.txt' for name in ('attr_cloth', 'attr_img', 'bbox')]
    assert named() == ['meta.json', *published, *lists, *own]
    tree.write_anno(folder / 'Anno')
    assert named() == ['meta.json', *published, *lists, *own, anno[0], anno[2]]
    (folder / 'label_train.txt').unlink()
    (folder / 'label_test.txt').unlink()
    assert named() == ['meta.json', *anno[:2], *lists, own[0], anno[2]]


@pytest.mark.parametrize(
    'name', ['meta.json', *(f'DeepFashion/{kind}_valid.txt' for kind in ('filenames', 'query', 'candidate')),
             'DeepFashion/filenames_train.txt', 'DeepFashion/label_train.txt', 'DeepFashion/Anno/list_attr_cloth.txt'],
)  # fmt: skip
def test_a_missing_file_is_an_error_that_says_what_to_do(data, folder, name):
    if 'Anno' in name:
        tree.write_anno(folder / 'Anno')
        (folder / 'label_train.txt').unlink()
    (folder.parent / name).unlink()
    with pytest.raises(InputError) as caught:
        deepfashion.read(data)
    assert str(caught.value).startswith(f'{data.manual_dir}/{name} is missing: data_builders/deepfashion/README.md')


def test_the_readmes_tree_is_the_codes(data, folder):
    readme = README.read_text()
    paths = deepfashion.list_files(data)
    tree.write_anno(folder / 'Anno')
    (folder / 'label_train.txt').unlink()
    for path in {*paths, *deepfashion.list_files(data)}:
        assert any(f'\n{indent}{path.name}\n' in readme for indent in ('  ', '    ', '      ')), path.name
    assert '\n    img/' in readme


def test_prepares_trains_and_evaluates(data, folder, tmp_path):
    (folder / 'label_train.txt').unlink()
    tree.write_anno(folder / 'Anno')
    (folder / tree.NAMES_OF['train'][3]).unlink()
    (folder / tree.NAMES_OF['valid'][3]).unlink()
    published, config = deepfashion_config.get_config(), tiny_config()
    assert (published.name, deepfashion_config.get_config('csn').name) == ('deepfashion', 'deepfashion_csn')
    config.name, config.data.name = published.name, published.data.name
    config.data.manual_dir, config.data.dir = data.manual_dir, str(tmp_path / 'records')
    config.data.missing, config.data.num_triplets, config.data.crop_to_bbox = 'skip', 16, True
    config.train.num_epochs = 1
    prepared = prepare.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert [facts['photos'] for facts in content['splits'].values()] == [20, 5, 6]
    assert content['dataset'] == 'deepfashion'
    assert content['splits']['valid']['labels'] == sum(map(len, tree.VALID)) - len(tree.VALID[3])
    assert [entry['image_id'] for entry in content['skipped']] == [tree.NAMES_OF['train'][3], tree.NAMES_OF['valid'][3]]
    notes = ' '.join(content['notes'])
    assert 'valid: 1 queries and 0 candidates went' in notes and 'style-related=los angeles (1)' in notes
    records = open_records(prepared)
    assert records.values[3] == ('v neck', 'zip up')
    result = loop.train_and_evaluate(config, tmp_path / 'run', prepared)
    assert result['num_queries'] == 2 and result['map']['overall'] >= 0 and result['checkpoint_step'] == 2


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """The published lists, with two photos of nobody for train, whose lists are not public."""
    root = unpack_published(tmp_path_factory.mktemp('published'))
    tree.write(root / 'DeepFashion/filenames_train.txt', ['img/a.jpg', 'img/b.jpg'])
    tree.write(root / 'DeepFashion/label_train.txt', ['0 0 1', '1 4 229'])
    data = deepfashion_config.get_config().data
    data.manual_dir = str(root)
    return data, deepfashion.read(data)


def test_published_lists_have_the_papers_chance(published):
    _, raw = published
    assert {name: len(raw.values[name]) for name in raw.attributes} == dict(
        zip(tree.ATTRIBUTES, (156, 218, 180, 216, 230), strict=True)
    )
    for split, unanswered in (('valid', 29), ('test', 23)):
        query, candidate = raw.queries[split], raw.candidates[split]
        assert (len(raw.photos[split]), len(query), len(candidate)) == (27_625, 5_525, 22_100)
        assert prepare.count_unanswered(query, candidate) == unanswered
    chance = chance_map(raw.attributes, query, candidate)
    assert 100 * chance['overall'] == pytest.approx(3.38, abs=0.01)
    assert [100 * chance['per_attribute'][name] for name in tree.ATTRIBUTES] == pytest.approx(CHANCE, abs=0.01)


def test_both_ways_agree_on_all_published_queries_and_candidates(published):
    data, raw = published
    folder = Path(data.manual_dir) / 'DeepFashion'
    meta = annotations.read_meta(folder.parent / 'meta.json', 'DeepFashion')
    rows = [labels.read_rows(folder / f'label_{split}.txt', 27_625, meta) for split in ('valid', 'test')]
    assert all(table.is_global for table in rows)
    attribute_of_id = labels.infer_attributes(rows, meta, '')
    agreed = 0
    for split, table in zip(('valid', 'test'), rows, strict=True):
        mine = set(zip(*(column.tolist() for column in labels.to_labels(table, attribute_of_id)), strict=True))
        listed = np.concatenate([raw.queries[split], raw.candidates[split]]).tolist()
        agreed += sum(tuple(row) in mine for row in listed)
        assert sum(len(photo.values) for photo in raw.photos[split]) == len(mine)
    assert agreed == 55_250
    assert not any('were added' in note for note in raw.notes)
