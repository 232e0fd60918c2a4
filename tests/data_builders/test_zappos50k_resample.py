"""Zappos50k with triplet lists resampled from UT-Zappos50K's own table."""

import json

import numpy as np
import pytest

from asen_jax.data.batches import make_train_index
from asen_jax.data.prepared import open_records
from asen_jax.errors import InputError
from data_builders import prepare as preparing
from data_builders import report
from data_builders.zappos50k import resample
from data_builders.zappos50k import zappos50k_dataset_builder as zappos
from tests.data_builders import zappos50k_tree as tree
from tests.data_builders.zappos50k_tree import config, folder

__all__ = ['config', 'folder']  # fixtures


NUM_DRAWN = {'train': 600, 'valid': 200, 'test': 400}  # per attribute
NUM_USED = {'train': 1200, 'valid': 800, 'test': 1600}  # over all four


@pytest.fixture
def table(config, folder, monkeypatch):
    """The path of the table that `config` resamples from."""
    monkeypatch.setattr(resample, 'NUM_TRIPLETS', NUM_DRAWN)
    monkeypatch.setattr(zappos, 'NUM_TRIPLETS', NUM_USED)
    config.data.zappos50k.resample_triplets = True
    return tree.write_table(folder)


def test_records_of_resampled_lists_carry_labels_and_the_caveat(config, table):
    prepared = preparing.prepare(config)
    content = json.loads((prepared / 'prepare.json').read_text())
    assert content['caveat'] == zappos.CAVEAT == report.summary(prepared).splitlines()[-1]
    assert [content['splits'][split]['triplets'] for split in tree.RANGES] == list(NUM_USED.values())
    assert content['splits']['train']['values'] == {'class': 3, 'closure': 4, 'gender': 2, 'heel': 5}
    records = open_records(prepared)
    assert records.caveat == zappos.CAVEAT and prepared.parent.name == 'resampled' and len(records.values[3]) == 7
    assert records.values[1] == ('Lace up', 'Slip On', 'Hook and Loop', 'Zipper')
    assert len(make_train_index(records).attributes) == 4  # data.triplets=fresh needs labels


def test_every_resampled_triplet_obeys_the_rules(config, table):
    raw = zappos.read(config.data)
    assert tree.counts(raw) == list(NUM_USED.values())
    for split, rows in tree.triples(raw).items():
        assert all(tree.is_rightly_ordered(*row) for row in rows)
        if split != 'train':
            assert [sum(row[0] == name for row in rows) for name in raw.attributes] == [len(rows) / 4] * 4
    photos = {split: {photo.image_id for photo in raw.photos[split]} for split in tree.RANGES}
    assert [len(photos[split]) for split in tree.RANGES] == [84, 12, 24]
    assert len(set().union(*photos.values())) == tree.NUM_PHOTOS
    for photo in raw.photos['train']:
        i = tree.NAMES.index(photo.image_id)
        wanted = {(number, value(i)) for number, value in enumerate(tree.VALUE_OF.values())}
        wanted = wanted - {(1, None), (3, None)} | ({(1, 1), (1, 3)} if (1, None) in wanted else set())
        assert set(zip(photo.attributes, photo.values, strict=True)) == wanted
    assert 'meta-data-bin.csv: HeelHeight High.heel is not a known height; it is left out' in raw.notes
    assert 'closure: triplets come from the 108 photos with one value; 12 have several, 0 none' in raw.notes


def test_anchors_positives_and_negatives_are_uniform():
    values = np.array([0, 0, 0, 1, 2, 2, 0, 3])  # 1 and 3 have no second photo
    rows = resample.draw(values, 1, 60_000, np.random.default_rng(0))
    others = rows[rows[:, 0] == 0, 1:].T
    shares = [np.bincount(column, minlength=8) / len(column) for column in (rows[:, 0], *others)]
    wanted = np.array([[2, 2, 2, 0, 2, 2, 2, 0], [0, 4, 4, 0, 0, 0, 4, 0], [0, 0, 0, 3, 3, 3, 0, 3]]) / 12
    np.testing.assert_allclose(shares, wanted, atol=0.02)
    assert len(resample.draw(np.array([0, 0, 1]), 2, 5, np.random.default_rng(0))) == 0


def test_resampling_is_independent_of_the_order_of_photos_and_of_other_attributes(config, folder, table):
    first = tree.triples(zappos.read(config.data))
    (folder / 'filenames.json').write_text('\n'.join(reversed(tree.NAMES)))
    assert tree.triples(zappos.read(config.data)) == first
    (folder / 'filenames.json').unlink()  # then the photos in the folder are used
    table.parent.rename(folder / 'ut-zap50k-images/ut-zap50k-data')
    raw = zappos.read(config.data)
    assert tree.triples(raw) == first and raw.photos['train'][0].where == ''
    assert zappos.list_files(config.data) == [folder / 'ut-zap50k-images/ut-zap50k-data/meta-data-bin.csv']
    config.data.attributes = ('heel',)
    raw = zappos.read(config.data)
    assert tree.counts(raw) == [count // 4 for count in NUM_USED.values()]
    assert sorted(tree.triples(raw)['test']) == sorted(row for row in first['test'] if row[0] == 'heel')


def test_photos_and_rows_without_a_counterpart_are_counted(config, folder, table):
    stranger = ['9-9', *tree.row_of(3)[1:]]
    tree.write_table(folder, [*(tree.row_of(i) for i in range(3, tree.NUM_PHOTOS)), stranger])
    notes = zappos.read(config.data).notes
    assert '3 photos have no row in meta-data-bin.csv; they are left out' in notes
    assert '1 rows of meta-data-bin.csv have no photo; they are left out' in notes
    assert '1 photos share a file name with another photo; they are left out' in notes
    tree.write_table(folder, [stranger])
    with pytest.raises(InputError, match='none of its 1 rows matches one of the 121 photos'):
        zappos.read(config.data)


@pytest.mark.parametrize(
    ('line', 'old', 'new', 'says'),
    [
        (1, 'CID', 'ID', 'line 1: no column is named CID'),
        (1, 'Gender.', 'Sex.', 'line 1: no column of Gender, which gender is read from'),
        (1, 'Gender.Men', 'Gender.Women', "line 1: two columns are Gender 'Women'"),
        (1, 'HeelHeight.Flat', 'Heel Height: Under 1in', "line 1: two columns are HeelHeight 'Under 1in'"),
        (4, ',1', ',2', "line 4: Category.Sandals is '2'; expected 0 or 1"),
        (4, '0,1', '0', 'line 4: 14 cells, but the first line names 18 columns'),
        (4, '1002-2', '1001-1', "line 4: CID '1001-1' is already on line 3"),
        (4, '"1002-2"', '"1002-2', """line 4: ',' expected after '"\'"""),
    ],
)
def test_an_error_about_the_table_names_the_line(config, table, line, old, new, says):
    text = table.read_text().split('\n')[line - 1]
    assert old in text
    tree.edit(table, line, text.replace(old, new))
    with pytest.raises(InputError, match=rf'meta-data-bin\.csv, .*{says}') as caught:
        zappos.read(config.data)
    assert '\n' not in str(caught.value)
    assert 'README.md' in str(caught.value) or 'quotes' in str(caught.value)


def test_resampling_without_its_files_says_what_to_do(config, folder, table):
    tree.write_table(folder, [tree.row_of(i) for i in range(6)])
    with pytest.raises(InputError, match='the 3 train photos with one value of closure allow no triplet'):
        zappos.read(config.data)
    tree.edit(table, 1, table.read_text().split('\n')[0].replace('HeelHeight.', 'Heel height ').replace('...', ' - '))
    assert resample.read_table(table, ('heel',)).flags['heel'].sum() == 5  # another release's punctuation
    tree.write_table(folder, [])
    with pytest.raises(InputError, match=r'meta-data-bin\.csv: none of its 0 rows matches'):
        zappos.read(config.data)
    (folder / 'filenames.json').unlink()
    (folder / 'ut-zap50k-images').rename(folder / 'elsewhere')
    with pytest.raises(InputError, match=r'ut-zap50k-images contains no \.jpg file: .*README\.md'):
        zappos.read(config.data)
    table.unlink()
    with pytest.raises(InputError, match=r'ut-zap50k-data/meta-data-bin\.csv is missing: .*README\.md'):
        zappos.read(config.data)
