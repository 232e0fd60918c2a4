"""DeepFashion: two dialects of labels, the files that are read, and the records."""

import json
from pathlib import Path

import pytest

from asen_jax.data.prepared import open_records
from asen_jax.errors import InputError
from configs import deepfashion as deepfashion_config
from data_builders import annotations, asen_lists, prepare
from data_builders.deepfashion import deepfashion_dataset_builder as deepfashion
from data_builders.deepfashion import labels
from tests.conftest import read_split
from tests.data_builders import deepfashion_tree as tree
from tests.data_builders.deepfashion_tree import data, folder

__all__ = ['data', 'folder']  # fixtures

README = Path(deepfashion.__file__).with_name('README.md')


@pytest.mark.parametrize('write_lines', [tree.local_lines, tree.global_lines])
@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_both_dialects_give_the_same_labels(data, folder, split, write_lines):
    tree.write(folder / f'label_{split}.txt', write_lines(tree.IDS_OF[split]))
    if split != 'train':  # ids that no other file may contain
        tree.write(
            folder / 'Anno/list_attr_cloth.txt',
            ['12', 'attribute_name attribute_type', *(f'n {t}' for t in tree.TYPES)],
        )
    raw = deepfashion.read(data)
    for name, many in tree.IDS_OF.items():
        assert tree.labels_of(raw.photos[name]) == tree.expected(many)
        assert [photo.image_id for photo in raw.photos[name]] == tree.NAMES_OF[name]
    dialect = '0, values are numbered' if write_lines is tree.local_lines else "1, values are DeepFashion's ids"
    assert any(note.startswith(f'label_{split}.txt: attributes are counted from {dialect}') for note in raw.notes)
    assert raw.lists['valid_query'].tolist() == [[3, 0, 1], [4, 4, 1]] and len(raw.lists['test_candidate']) == 2


@pytest.mark.parametrize(
    ('line', 'is_global'),
    [('0 0 0 1 1', False), ('0 5 0', True), ('0 1 1 2 3', True), ('0 1 1 2 2', False), ('0\t1\t1\t2\t2\t', True)],
)
def test_attributes_then_values_then_tabs_decide_the_dialect(folder, line, is_global):
    source = asen_lists.Source(folder, annotations.read_meta(folder.parent / 'meta.json', 'DeepFashion'))
    tree.write(folder / 'some.txt', [line])
    rows = labels.read_rows(folder / 'some.txt', 1, source.meta)
    assert rows.is_global == is_global


def test_a_file_in_both_dialects_is_refused(data, folder):
    tree.write(folder / 'label_test.txt', ['0 1 1', '1 5 1', '2 1 1', '3 0 1'])
    with pytest.raises(InputError, match=r'label_test\.txt: .* from 0 on line 4 \(attribute 0\) and from 1 on line 2'):
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
    with pytest.raises(InputError, match=r'label_test\.txt, line 4: id 5 is under attribute 2 here but under 1 on an'):
        deepfashion.read(data)


def test_label_files_of_valid_and_test_are_optional_and_the_lists_add_to_them(data, folder):
    tree.write(
        folder / 'label_valid.txt', [*tree.global_lines(tree.VALID)[:3], '3\t1\t5', *tree.global_lines(tree.VALID)[4:]]
    )
    raw = deepfashion.read(data)
    assert tree.labels_of(raw.photos['valid'])[3] == {(0, 2), (0, 1)}
    assert (
        'valid: 1 labels in its query and candidate lists are missing from label_valid.txt and were added' in raw.notes
    )
    for split in ('valid', 'test'):
        (folder / f'label_{split}.txt').unlink()
    raw = deepfashion.read(data)
    assert tree.labels_of(raw.photos['valid']) == [{(0, 1)}, {(2, 1)}, {(3, 0)}, {(0, 1)}, {(4, 1)}, {(1, 0)}]
    assert raw.values['part-related'] == ('0', '1')


def test_the_files_that_are_read_describe_the_records(data, folder):
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


OPTIONAL = ('DeepFashion/label_valid.txt', 'DeepFashion/Anno/list_attr_img.txt', 'DeepFashion/Anno/list_bbox.txt')
REQUIRED = (
    'meta.json',
    *(f'DeepFashion/{kind}_valid.txt' for kind in ('filenames', 'query', 'candidate')),
    *(f'DeepFashion/{kind}_train.txt' for kind in ('filenames', 'label')),
    'DeepFashion/Anno/list_attr_cloth.txt',
)


@pytest.mark.parametrize('name', [*OPTIONAL, *REQUIRED])
def test_the_readme_shows_where_each_file_goes(name):
    assert f' {Path(name).name}\n' in README.read_text()


@pytest.mark.parametrize('name', REQUIRED)
def test_an_error_about_a_missing_file_says_what_to_do(data, folder, name):
    if 'Anno' in name:
        tree.write_anno(folder / 'Anno')
        (folder / 'label_train.txt').unlink()
    (folder.parent / name).unlink()
    with pytest.raises(InputError) as caught:
        deepfashion.read(data)
    assert str(caught.value).startswith(f'{data.manual_dir}/{name} is missing: data_builders/deepfashion/README.md')


def test_prepares_without_the_photos_that_are_missing(data, folder, tmp_path):
    (folder / 'label_train.txt').unlink()
    tree.write_anno(folder / 'Anno')
    lost = [tree.NAMES_OF['train'][3], tree.NAMES_OF['valid'][3]]
    for name in lost:
        (folder / name).unlink()
    config = deepfashion_config.get_config()
    config.data.manual_dir, config.data.dir = data.manual_dir, str(tmp_path / 'records')
    config.data.missing = 'skip'
    prepared = prepare.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert [facts['photos'] for facts in content['splits'].values()] == [20, 5, 6]
    assert content['splits']['valid']['labels'] == sum(map(len, tree.VALID)) - len(tree.VALID[3])
    assert [entry['image_id'] for entry in content['skipped']] == lost
    notes = ' '.join(content['notes'])
    assert 'valid: 1 queries were dropped' in notes and 'style-related=los angeles (1)' in notes
    records = open_records(prepared)
    assert records.dataset == 'deepfashion' and records.values[3] == ('v neck', 'zip up')
    assert read_split(prepared, 'train')[0]['bbox'].tolist() == [2, 0, 11, 16]
