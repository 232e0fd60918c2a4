"""Zappos50k: triplet lists drawn anew from UT-Zappos50K's own table."""

import json

import numpy as np
import pytest

from asen_jax.data.batches import make_train_index, open_records
from asen_jax.errors import InputError
from asen_jax.evaluation import evaluate
from asen_jax.training import loop
from data_builders import prepare as preparing
from data_builders.zappos50k import resample
from data_builders.zappos50k import zappos50k_dataset_builder as zappos
from tests.data_builders import zappos50k_tree as tree
from tests.data_builders.zappos50k_tree import config, folder

__all__ = ['config', 'folder']  # fixtures


@pytest.fixture
def table(config, folder):
    """The table's path, and a config that draws from it."""
    config.data.resample_triplets = True
    return tree.write_table(folder)


def test_training_on_resampled_lists_carries_the_caveat(config, table, monkeypatch, tmp_path):
    monkeypatch.setattr(resample, 'NUM_TRIPLETS', {'train': 60, 'valid': 30, 'test': 40})
    monkeypatch.setattr(zappos, 'NUM_TRIPLETS', {'train': 100, 'valid': 120, 'test': 160})
    prepared = preparing.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert content['caveat'] == zappos.CAVEAT == preparing.summary(prepared).splitlines()[-1]
    assert [content['splits'][split]['triplets'] for split in tree.RANGES] == [100, 120, 160]
    assert content['splits']['train']['values'] == {'class': 3, 'closure': 4, 'gender': 2, 'heel': 5}
    records = open_records(prepared)
    assert prepared.parent.name == 'resampled' and len(records.values[3]) == 7
    assert records.values[1] == ('Lace up', 'Slip On', 'Hook and Loop', 'Zipper')
    assert len(make_train_index(records).attributes) == 4  # data.triplets=fresh needs labels
    result = loop.train_and_evaluate(config, tmp_path / 'run', prepared)
    read = json.loads((tmp_path / 'run/eval_test.json').read_text())
    assert read['caveat'] == zappos.CAVEAT and zappos.CAVEAT in evaluate.format_table(result)


def test_every_resampled_triplet_holds_its_rule(config, table):
    raw = zappos.read(config.data)
    assert tree.counts(raw) == list(zappos.NUM_TRIPLETS.values()) and raw.caveat == zappos.CAVEAT
    for split, rows in tree.triples(raw).items():
        assert all(tree.is_rightly_ordered(*row) for row in set(rows))
        if split != 'train':
            assert [sum(row[0] == name for row in rows) for name in raw.attributes] == [len(rows) / 4] * 4
    photos = {split: {photo.image_id for photo in raw.photos[split]} for split in tree.RANGES}
    assert [len(photos[split]) for split in tree.RANGES] == [84, 12, 24] and len(
        set().union(*photos.values())
    ) == tree.NUM_PHOTOS
    for photo in raw.photos['train']:
        i = tree.NAMES.index(photo.image_id)
        wanted = {(number, value(i)) for number, value in enumerate(tree.VALUE_OF.values())}
        wanted = wanted - {(1, None), (3, None)} | ({(1, 1), (1, 3)} if (1, None) in wanted else set())
        assert set(zip(photo.attributes, photo.values, strict=True)) == wanted
    assert 'meta-data-bin.csv: HeelHeight High.heel is no known height; it is left out' in raw.notes
    assert 'closure: triplets come from the 108 photos with one value; 12 have several, 0 none' in raw.notes


def test_anchors_positives_and_negatives_are_uniform():
    values = np.array([0, 0, 0, 1, 2, 2, 0, 3])  # 1 and 3 have no second photo
    rows = resample.draw(values, 1, 60_000, np.random.default_rng(0))
    others = rows[rows[:, 0] == 0, 1:].T
    shares = [np.bincount(column, minlength=8) / len(column) for column in (rows[:, 0], *others)]
    wanted = np.array([[2, 2, 2, 0, 2, 2, 2, 0], [0, 4, 4, 0, 0, 0, 4, 0], [0, 0, 0, 3, 3, 3, 0, 3]]) / 12
    np.testing.assert_allclose(shares, wanted, atol=0.02)
    assert len(resample.draw(np.array([0, 0, 1]), 2, 5, np.random.default_rng(0))) == 0


def test_resampling_does_not_hang_on_the_order_of_files_or_attributes(config, folder, table):
    first = tree.triples(zappos.read(config.data))
    (folder / 'filenames.json').write_text('\n'.join(reversed(tree.NAMES)))
    assert tree.triples(zappos.read(config.data)) == first
    (folder / 'filenames.json').unlink()  # photos are then looked for in their folder
    table.parent.rename(folder / 'ut-zap50k-images/ut-zap50k-data')
    raw = zappos.read(config.data)
    assert tree.triples(raw) == first and raw.photos['train'][0].where == ''
    assert zappos.list_files(config.data) == [folder / 'ut-zap50k-images/ut-zap50k-data/meta-data-bin.csv']
    config.data.attributes = ('heel',)
    raw = zappos.read(config.data)
    assert tree.counts(raw) == [50_000, 20_000, 40_000]
    assert sorted(tree.triples(raw)['test']) == sorted(row for row in first['test'] if row[0] == 'heel')


def test_photos_and_rows_without_a_counterpart_are_counted(config, folder, table):
    stranger = ['9-9', *tree.row_of(3)[1:]]
    tree.write_table(folder, [*(tree.row_of(i) for i in range(3, tree.NUM_PHOTOS)), stranger])
    notes = zappos.read(config.data).notes
    assert '3 photos have no row in meta-data-bin.csv; they are left out' in notes
    assert '1 rows of meta-data-bin.csv have no photo; they are left out' in notes
    assert "1 photos have another's file name; they are left out" in notes  # the line that comes twice
    tree.write_table(folder, [stranger])
    with pytest.raises(InputError, match='none of its 1 rows belongs to one of 121 photos'):
        zappos.read(config.data)


@pytest.mark.parametrize(
    ('line', 'old', 'new', 'says'),
    [
        (1, 'CID', 'ID', 'line 1: no column is named CID'),
        (1, 'Gender.', 'Sex.', 'line 1: no column of Gender, from which gender comes'),
        (1, 'Gender.Men', 'Gender.Women', "line 1: two columns are Gender 'Women'"),
        (1, 'HeelHeight.Flat', 'Heel Height: Under 1in', "line 1: two columns are HeelHeight 'Under 1in'"),
        (4, ',1', ',2', "line 4: Category.Sandals is '2'; expected 0 or 1"),
        (4, '0,1', '0', 'line 4: 14 cells, but line 1 names 18'),
        (4, '1002-2', '1001-1', "line 4: CID '1001-1' is on line 3 already"),
        (4, '"1002-2"', '"1002-2', """line 4: ',' expected after '"\'"""),
    ],
)
def test_a_wrong_table_is_named(config, table, line, old, new, says):
    text = table.read_text().split('\n')[line - 1]
    assert old in text
    tree.edit(table, line, text.replace(old, new))
    with pytest.raises(InputError, match=rf'meta-data-bin\.csv, .*{says}') as caught:
        zappos.read(config.data)
    assert '\n' not in str(caught.value) and 'README.md' in str(caught.value)


def test_resampling_without_its_files_says_what_to_do(config, folder, table):
    tree.write_table(folder, [tree.row_of(i) for i in range(6)])
    with pytest.raises(InputError, match='the 3 photos of train with one value of closure give no triplet'):
        zappos.read(config.data)
    tree.edit(table, 1, table.read_text().split('\n')[0].replace('HeelHeight.', 'Heel height ').replace('...', ' - '))
    assert resample.read_table(table, ('heel',)).flags['heel'].sum() == 5  # another release's punctuation
    tree.write_table(folder, [])
    with pytest.raises(InputError, match=r'meta-data-bin\.csv has no row below its first line'):
        zappos.read(config.data)
    (folder / 'filenames.json').unlink()
    (folder / 'ut-zap50k-images').rename(folder / 'elsewhere')
    with pytest.raises(InputError, match=r'ut-zap50k-images holds no \.jpg file: .*README\.md'):
        zappos.read(config.data)
    table.unlink()
    with pytest.raises(InputError, match=r'ut-zap50k-data/meta-data-bin\.csv is missing: .*README\.md'):
        zappos.read(config.data)
