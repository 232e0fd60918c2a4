"""Catalogs: labels.csv, attributes, splits, queries, boxes, and an error for each way to get it wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from asen_jax.data.prepared import open_records
from asen_jax.errors import InputError
from asen_jax.evaluation.evaluate import evaluate, rank_examples
from asen_jax.models.interfaces import Output
from configs import common
from data_builders import prepare
from data_builders.catalog import catalog_dataset_builder as catalog

COLORS = {'red': (255, 0, 0), 'green': (0, 255, 0)}


@pytest.fixture
def config(tmp_path):
    config = common.get_config()
    config.data.name, config.data.manual_dir, config.data.dir = 'catalog', str(tmp_path), str(tmp_path / 'records')
    return config


@pytest.fixture
def read(config, tmp_path):
    """Reads a catalog whose labels.csv has the given content, without its photos."""

    def read(content, attributes=()):
        (tmp_path / 'labels.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
        config.data.attributes = attributes
        return catalog.read(config.data)

    return read


def many(columns, rows):
    return '\n'.join([columns, *rows]) + '\n'


def test_columns_with_2_to_100_values_are_attributes(read):
    rows = [f'{i}.jpg,{"ab"[i % 2]},one,{i}' for i in range(150)]
    raw = read(many('path,color,brand,sku', rows))
    assert raw.attributes == ('color',)
    assert raw.values == {'color': ('a', 'b')}
    assert raw.notes[:2] == ('attributes: color (2 values)', 'metadata only: brand (1 values), sku (150 values)')
    assert read(many('path,color,brand,sku', rows), attributes=('sku',)).attributes == ('sku',)


def test_cells_may_be_empty_or_hold_two_values(read):
    raw = read('\ufeffpath,color,fit\r\n"a,1.jpg",red | blue,\r\nb.jpg,,loose\r\nc.jpg,blue,tight\r\n,,\r\n')
    photos = {p.image_id: (p.attributes, p.values) for photos in raw.photos.values() for p in photos}
    assert photos == {'a,1.jpg': ((0, 0), (1, 0)), 'b.jpg': ((1,), (0,)), 'c.jpg': ((0, 1), (0, 1))}


def test_boxes_become_0_based_and_half_open(read):
    rows = ['a.jpg,train,red,1,2,10,20', 'b.jpg,train,blue,,,,', 'c.jpg,train,red,3,3,3,3']
    raw = read(many('path,split,color,x1,y1,x2,y2', rows))
    assert [p.bbox for p in raw.photos['train']] == [(0, 1, 10, 20), None, (2, 2, 3, 3)]


def test_splits_by_hash_are_8_1_1_and_stay_when_photos_are_added(read):
    rows = [f'{i}.jpg,{"ab"[i % 2]}' for i in range(3000)]
    raw = read(many('path,color', rows))
    for split, share in (('train', 0.8), ('valid', 0.1), ('test', 0.1)):
        assert len(raw.photos[split]) / 3000 == pytest.approx(share, abs=0.02)
    where = {p.image_id: split for split, photos in raw.photos.items() for p in photos}
    more = read(many('path,color', [f'new{i}.jpg,a' for i in range(50)] + rows[::-1]))
    assert where.items() <= {p.image_id: split for split, photos in more.photos.items() for p in photos}.items()


@pytest.mark.parametrize('split', ['', ',test'])
def test_views_of_a_product_stay_together(read, split):
    rows = [f'{i}.jpg,p{i // 4},{"ab"[i % 2]}{split}' for i in range(1200)]
    raw = read(many('path,group,color' + (',split' if split else ''), rows))
    product = {f'{i}.jpg': i // 4 for i in range(1200)}
    roles = {}
    for name, photos in raw.photos.items():
        asking = set(raw.lists[f'{name}_query'][:, 0].tolist()) if name != 'train' else set()
        for index, photo in enumerate(photos):
            roles.setdefault(product[photo.image_id], set()).add((name, index in asking))
    assert all(len(role) == 1 for role in roles.values())


def test_a_fifth_of_the_photos_are_queries_and_the_others_candidates(read):
    rows = [f'{i}.jpg,test,{"ab"[i % 2]},{"cd"[i % 3 > 0]}' for i in range(100)]
    raw = read(many('path,split,color,fit', rows))
    queries, candidates = set(raw.lists['test_query'][:, 0].tolist()), set(raw.lists['test_candidate'][:, 0].tolist())
    assert (len(queries), len(candidates), len(queries & candidates)) == (20, 80, 0)
    assert (len(raw.lists['test_query']), len(raw.lists['test_candidate'])) == (40, 160)
    assert 'no photo is in train' in raw.notes and 'no photo is in valid' in raw.notes


def test_two_products_are_enough_for_queries_and_one_is_not(read):
    raw = read('path,split,group,color\na.jpg,test,p,red\nb.jpg,test,p,red\nc.jpg,test,q,blue\nd.jpg,test,q,red\n')
    assert len(raw.lists['test_query']) == 2 and len(raw.lists['test_candidate']) == 2
    raw = read('path,split,color\na.jpg,test,red\nb.jpg,train,blue\n')
    assert len(raw.lists['test_query']) == 0 and len(raw.lists['test_candidate']) == 1


def embed_colors(images):
    """A perfect network: the vector of a photo is its mean color, of unit length."""
    vectors = np.asarray(images, np.float32).mean(axis=(1, 2))[:, None]
    return Output(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6))


def test_a_photo_with_two_values_is_one_candidate(read, config, tmp_path):
    """A perfect network scores 1, and the contact sheet shows each photo once."""
    kinds = ['red', 'red|green', 'green|red', 'red|green', 'green']
    columns, paths = 'path,split,color', [f'{i}.png' for i in range(6)]
    (query,) = read(many(columns, [f'{path},test,{"rg"[i % 2]}' for i, path in enumerate(paths)])).lists['test_query'][
        :, 0
    ]
    kinds.insert(query, 'red')
    (tmp_path / 'labels.csv').write_text(many(columns, [f'{p},test,{k}' for p, k in zip(paths, kinds, strict=True)]))
    for path, kind in zip(paths, kinds, strict=True):
        color = np.sum([COLORS[value] for value in kind.split('|')], axis=0)
        Image.new('RGB', (8, 8), tuple(color.tolist())).save(tmp_path / path)
    prepared = prepare.prepare(config)
    assert json.loads((prepared / 'prepare.json').read_text())['splits']['test']['candidates'] == 5
    config.data.image_size, config.data.num_workers, config.eval.batch_size = 8, 0, 8
    records = open_records(prepared)
    evaluation = evaluate(config, records, 'test', embed_colors, step=0)
    result = evaluation.result
    assert (result['map']['overall'], result['num_candidates']) == (1, 5)
    (ranking,) = rank_examples(config, records, embed_colors, evaluation)
    assert ranking.relevant == [True, True, True, True, False]


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('\n', 'no column is named path; the first line names the columns'),
        ('path,color\n', 'lists no photos'),
        ('file,color\na.jpg,red\n', 'line 1: no column is named path'),
        ('Path,color\na.jpg,red\n', r"no column is named path \('Path' is close\)"),
        ('path;color\na.jpg;red\n', 'line 1: columns are separated by semicolons'),
        ('path\tcolor\na.jpg\tred\n', 'separated by tabs'),
        ('path,color,\na.jpg,red,\n', "column 3 is named ''; give it a name"),
        ('path,color,color\na.jpg,red,red\n', "column 3 is named 'color'; give it a name of its own"),
        ('path,color,x1,y1\na.jpg,red,1,1\n', 'a box needs x1, y1, x2, y2, but there is only x1, y1'),
        ('path,color\na.jpg,red\nb.jpg\n', 'line 3: 1 cells, but the first line names 2 columns'),
        ('path,color\na.jpg,red,blue\n', 'line 2: 3 cells'),
        ('path,color\n,red\n', 'line 2: the path is empty'),
        ('path,color\na.jpg,red\n./a.jpg,blue\n', "line 3: './a.jpg' is already on line 2"),
        ('path,color\n../a.jpg,red\n', 'line 2: .* is not the path of a file in the folder'),
        pytest.param('path\n' + 140_000 * 'x', 'line 2: field larger .* keep it below 131,072 char', id='long'),
        ('path,color\nC:/a.jpg,red\n', 'line 2: .* is not the path of a file in the folder'),
        ('path,color\na.jpg,"red\n', 'line 2: .*quotes'),
        ('path,color\na.jpg,r\xe9\n'.encode('latin-1'), 'line 2: not UTF-8'),
        ('path,split,color\na.jpg,train,red\nb.jpg,val,blue\n', r"line 3: .*'val' .*'valid'"),
        ('path,split,color\na.jpg,,red\n', "line 2: the split is ''"),
        ('path,split,group,color\na.jpg,train,p,red\nb.jpg,test,p,blue\n', "'p' is in test here and in train on"),
        ('path,color,x1,y1,x2,y2\na.jpg,red,1,1,9,9\nb.jpg,blue,1,1,nine,9\n', "line 3: the box is '1,1,nine,9'"),
        ('path,color,x1,y1,x2,y2\na.jpg,red,1,1,nan,9\nb.jpg,blue,1,1,9,9\n', "line 2: the box is '1,1,nan,9'"),
        ('path,color,x1,y1,x2,y2\na.jpg,red,1,1,,\nb.jpg,blue,1,1,9,9\n', "line 2: the box is '1,1,,'"),
        (
            'path,color,x1,y1,x2,y2\na.jpg,red,5,1,4,9\nb.jpg,blue,1,1,9,9\n',
            "line 2: the box is '5,1,4,9'; x1,y1 is its top left",
        ),
        (
            'path,color\na.jpg,red\nb.jpg,red\n',
            r'no column can serve as an attribute, which needs 2 to 100 values \(color has 1\)',
        ),
        ('path\na.jpg\n', 'there is no other column'),
    ],
)
def test_a_bad_table_is_named(read, content, says):
    with pytest.raises(InputError, match=says) as caught:
        read(content)
    assert 'labels.csv' in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'says'), [('colr', "did you mean 'color'"), ('split', "no attribute 'split'"), ('one', 'too few')]
)
def test_an_unknown_attribute_is_named(read, name, says):
    with pytest.raises(InputError, match=says):
        read('path,split,color,one\na.jpg,train,red,x\nb.jpg,test,blue,x\n', attributes=(name,))


@pytest.mark.parametrize('name', ['', 'no', 'a.jpg'])
def test_a_folder_without_a_table_is_named(config, tmp_path, name):
    (tmp_path / 'a.jpg').touch()
    config.data.manual_dir = str(tmp_path / name)
    with pytest.raises(
        InputError, match=r'labels\.csv does not exist; set .*, in which the first line names the columns'
    ):
        catalog.read(config.data)


def test_each_folder_and_choice_of_attributes_has_a_name_of_its_own(config, tmp_path):
    names = []
    for folder in ('a/shop', 'b/shop', 'b/Ladengeschäft 1'):
        for attributes in ((), ('color',), ('color', 'fit'), ('fit', 'color')):
            config.data.manual_dir, config.data.attributes = str(tmp_path / folder), attributes
            names.append(catalog.config_name(config.data))
    assert len(set(names)) == 9 and names[2] == names[3]
    assert all(name.isascii() and ' ' not in name for name in names)
