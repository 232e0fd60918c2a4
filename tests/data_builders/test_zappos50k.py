"""Zappos50k with CSN's published triplet lists."""

import json
from pathlib import Path

import numpy as np
import pytest

from asen_jax.data.batches import TripletSource
from asen_jax.data.prepared import open_records
from asen_jax.errors import InputError
from asen_jax.evaluation import results
from asen_jax.training import loop
from data_builders import prepare as preparing
from data_builders import report
from data_builders.checks import check_photos
from data_builders.zappos50k import zappos50k_dataset_builder as zappos
from tests.data_builders import zappos50k_tree as tree
from tests.data_builders.zappos50k_tree import config, folder

__all__ = ['config', 'folder']  # fixtures

README = Path(zappos.__file__).with_name('README.md')


def test_lines_are_read_as_anchor_negative_positive(config, folder):
    raw = check_photos(zappos.read(config.data))
    assert raw.attributes == tuple(tree.LINES) and raw.caveat == '' and raw.notes == ()
    for split, rows in tree.triples(raw).items():
        assert all(tree.is_rightly_ordered(*row) for row in rows)
        assert [sum(row[0] == name for row in rows) for name in raw.attributes] == list(tree.LINES.values())
        numbers = [tree.NAMES.index(photo.image_id) for photo in raw.photos[split]]
        assert numbers == sorted({i for row in rows for i in row[1:]}) and set(numbers) <= set(tree.RANGES[split])
    photo = raw.photos['test'][0]
    assert photo.where == f'{folder}/filenames.json, line {tree.NAMES.index(photo.image_id) + 1}'
    assert photo.path == folder / 'ut-zap50k-images' / photo.image_id and photo.attributes == ()


def test_as_many_triplets_as_csn_uses_in_proportion_to_the_attributes(config, monkeypatch):
    assert zappos.NUM_TRIPLETS == {'train': 200_000, 'valid': 80_000, 'test': 160_000}  # CSN's defaults
    monkeypatch.setattr(zappos, 'NUM_TRIPLETS', {'train': 50, 'valid': 10, 'test': 1000})
    raw = zappos.read(config.data)
    assert (
        tree.counts(raw) == [50, 10, 100] and len(np.unique(raw.lists['train_triplets'][:, 3])) == 4
    )  # shuffled, then cut
    config.data.attributes = ('heel', 'class', 'gender')
    raw = zappos.read(config.data)
    assert raw.attributes == ('class', 'gender', 'heel') and tree.counts(raw) == [37, 7, 70]
    assert all(tree.is_rightly_ordered(*row) for rows in tree.triples(raw).values() for row in rows)


def test_chosen_attributes_need_only_their_own_files(config, folder):
    used = [folder / 'filenames.json', *(folder / 'tripletlists').iterdir()]
    assert sorted(zappos.list_files(config.data)) == sorted(used) and len(used) == 13
    (folder / 'tripletlists/heel_tripletlist_val.txt').unlink()
    config.data.attributes = ('gender',)
    assert zappos.read(config.data).attributes == ('gender',)
    assert zappos.config_name(config.data).startswith('1-attributes-')
    config.data.zappos50k.resample_triplets = True
    assert zappos.config_name(config.data).startswith('resampled-1-attributes-')
    config.data.attributes = ('hel',)
    with pytest.raises(InputError, match=r"no attribute 'hel' in Zappos50k \(did you mean 'heel'"):
        zappos.read(config.data)


def test_unusual_triplets_are_kept_and_counted(config, folder):
    tree.edit(folder / 'tripletlists/class_tripletlist_train.txt', 3, '5 7 5')
    # filenames.json has tree.NAMES[100] a second time, in its last line
    tree.edit(folder / 'tripletlists/class_tripletlist_train.txt', 4, f'{tree.NUM_PHOTOS} 7 8')
    raw = zappos.read(config.data)
    assert raw.notes[0] == 'class_tripletlist_train.txt: 1 triplets name the same photo twice; they are kept'
    assert raw.notes[1] == '1 photos of train are also in valid or test'
    assert {('class', 5, 5, 7), ('class', 100, 8, 7)} <= set(tree.triples(raw)['train'])


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('tripletlists/gender_tripletlist_test.txt', '0 1', "'0 1'; expected \"a b c"),
        ('tripletlists/gender_tripletlist_test.txt', '', "''; expected"),
        ('tripletlists/gender_tripletlist_test.txt', '0 1.0 2', r"'0 1\.0 2'; expected"),
        ('tripletlists/gender_tripletlist_test.txt', '0 1 121', r'index 121, but filenames\.json ends at 120'),
        ('tripletlists/gender_tripletlist_test.txt', '-1 1 2', "'-1 1 2'; expected"),
        ('filenames.json', '../4.jpg', "'../4.jpg' is not the path of a file"),
        ('filenames.json', '', 'is empty, but every line is a photo'),
    ],
)
def test_an_error_names_its_file_and_line(config, folder, name, text, says):
    tree.edit(folder / name, 5, text)
    with pytest.raises(InputError, match=rf'{name}, line 5:? {says}'):
        zappos.read(config.data)


@pytest.mark.parametrize('name', ['filenames.json', *(f'tripletlists/{a}_tripletlist_val.txt' for a in tree.LINES)])
def test_an_error_about_a_missing_list_says_what_to_do(config, folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf'{name} is missing: .*README\.md .*resample_triplets=True'):
        zappos.read(config.data)
    assert f' {Path(name).name}\n' in README.read_text()


def test_triplets_of_a_missing_photo_are_dropped(config, folder):
    rows = tree.triples(zappos.read(config.data))['test']
    lost = rows[0][1]
    (folder / 'ut-zap50k-images' / tree.NAMES[lost]).unlink()
    with pytest.raises(InputError, match=rf'\.{lost}\.jpg \(.*filenames\.json, line {lost + 1}\) is missing'):
        preparing.prepare(config)
    config.data.missing = 'skip'
    content = json.loads((preparing.prepare(config) / 'prepare.json').read_text())
    gone = sum(lost in row for row in rows)
    assert [entry['image_id'] for entry in content['skipped']] == [tree.NAMES[lost]]
    assert content['splits']['test']['triplets'] == 100 - gone
    assert f'test: {gone} triplets were dropped with skipped photos' in content['notes']


def test_training_on_published_lists_scores_triplets(config, tmp_path):
    prepared = preparing.prepare(config)
    assert prepared.parent.name == 'all' and 'chance MAP' in report.summary(prepared)
    records = open_records(prepared)
    assert records.values == ((), (), (), ()) and records.splits['train_triplets'] == 100
    result = loop.train_and_evaluate(config, tmp_path / 'run', prepared)
    read = json.loads((tmp_path / 'run/eval_test.json').read_text())
    assert read == json.loads(json.dumps(result)) and read['map']['overall'] is None and read['caveat'] == ''
    accuracy = read['triplet_accuracy']
    assert list(accuracy['per_attribute']) == list(tree.LINES)
    weighted = sum(accuracy['per_attribute'][name] * count / 100 for name, count in tree.LINES.items())
    assert accuracy['overall'] == pytest.approx(weighted) and 0 < accuracy['overall'] < 1
    assert 'overall' in results.format_table(result)
    for triplets, with_labels in (('fresh', False), ('fixed', True)):
        config.data.triplets = triplets
        with pytest.raises(InputError, match='has triplets but no labels'):
            TripletSource(records, config, range(8), with_labels=with_labels)
