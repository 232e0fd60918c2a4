"""The parsers of the annotation files: line ends, ranges, errors that name file and line; and the published lists."""

import json

import numpy as np
import pytest

from asen_jax.errors import InputError
from asen_jax.evaluation.metrics import chance_map, retrieval_metrics, summarize
from data_builders import annotations
from data_builders.annotations import Meta
from tests.conftest import unpack_published

META = Meta(('neck', 'sleeve'), {'neck': ('0', '1'), 'sleeve': ('0', '1', '2')})
CHANCE = (17.20, 12.50, 13.35, 17.45, 22.36, 21.62, 11.09, 21.20)  # REFERENCE.md, FashionAI's test lists


@pytest.fixture
def write(tmp_path):
    def write(content, name='list.txt'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    'content', ['a/1.jpg\nb.jpg\n', 'a/1.jpg\r\nb.jpg\r\n\r\n', 'a/1.jpg\nb.jpg', '\ufeffa/1.jpg\nb.jpg \n\n']
)
def test_line_ends_do_not_matter(write, content):
    assert annotations.read_filenames(write(content)) == ['a/1.jpg', 'b.jpg']


def test_label_train_has_one_entry_a_label(write):
    labels = annotations.read_label_train(write('0 0 1\r\n2 1 2 0 0\r\n1 1 0'), 3, META)
    assert [column.tolist() for column in labels] == [[0, 2, 2, 1], [0, 1, 0, 1], [1, 2, 0, 0]]
    assert all(column.dtype == np.int32 for column in labels)


def test_triples_keep_the_order_of_the_list(write):
    rows = annotations.read_triples(write('2 0 1\r\n0 1 2'), 3, META)
    assert rows.tolist() == [[2, 0, 1], [0, 1, 2]] and rows.dtype == np.int32


@pytest.mark.parametrize('reader', [annotations.read_label_train, annotations.read_triples])
@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('1 x 0', "'x' is not a whole number; expected \"index attribute value"),
        ('1 1.0 0', "'1.0' is not a whole number"),
        ('1 0', '2 numbers; expected "index attribute value'),
        ('1 0 0 1', '4 numbers; expected'),
        ('', '0 numbers; expected'),
        ('3 0 0', 'index 3, but the list of file names ends at 2'),
        ('-1 0 0', 'index -1'),
        ('99999999999999999999 0 0', 'index'),
        ('1 2 0', 'attribute 2, but'),
        ('1 0 2', 'value 2, but'),
    ],
)
def test_a_bad_line_is_named(write, reader, line, says):
    path = write(f'0 0 0\n{line}\n2 1 0\n')
    with pytest.raises(InputError) as caught:
        reader(path, 3, META)
    assert f'{path}, line 2: ' in str(caught.value) and says in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'a.jpg\n\nb.jpg\n', 'line 2 is empty'),
        (b'a.jpg\n../b.jpg\n', 'line 2: \'../b.jpg\' leaves the folder'),
        (b'a.jpg\n/b.jpg\n', 'line 2: \'/b.jpg\' is an absolute path'),
        (b'a.jpg\n\xff\xfe\n', 'line 2: not UTF-8'),
        (b'\r\n', 'is empty'),
    ],
)  # fmt: skip
def test_a_bad_list_of_files_is_named(write, content, says):
    with pytest.raises(InputError, match=says):
        annotations.read_filenames(write(content))


def test_meta_names_values_where_it_can(write):
    part = {'ATTRIBUTES': ['neck', 'sleeve'], 'ATTRIBUTES_NUM': {'neck': 2, 'sleeve': 3}}
    part['ATTRIBUTES_VALUES'] = {'neck': ['Invisible', 'Low']}
    meta = annotations.read_meta(write(json.dumps({'FashionAI': part})), 'FashionAI')
    assert meta == Meta(('neck', 'sleeve'), {'neck': ('Invisible', 'Low'), 'sleeve': ('0', '1', '2')})


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('{"FashionAI":\n oops}', 'line 2: not JSON'),
        ('[]', 'has no ATTRIBUTES'),
        ('{"FashionAI": {"ATTRIBUTES": ["a"], "ATTRIBUTES_NUM": {"a": "x"}}}', "has 'x' for 'a'"),
        ('{"FashionAI": {"ATTRIBUTES": ["a"], "ATTRIBUTES_NUM": {}}}', "has None for 'a'"),
        ('{"FashionAI": {"ATTRIBUTES": 5, "ATTRIBUTES_NUM": {}}}', 'is no list of names'),
        ('{"FashionAI": {"ATTRIBUTES": [["a"]], "ATTRIBUTES_NUM": {}}}', 'is no list of names'),
        ('{"FashionAI": {"ATTRIBUTES": ["a", "a"], "ATTRIBUTES_NUM": {"a": 2}}}', 'has a name twice'),
    ],
)
def test_a_bad_meta_is_named(write, content, says):
    with pytest.raises(InputError, match=says):
        annotations.read_meta(write(content), 'FashionAI')


def test_attributes_are_picked_in_the_data_sets_order():
    known = ['neck', 'sleeve', 'coat']
    assert annotations.pick_attributes(('coat', 'neck'), known, 'x') == ('neck', 'coat')
    assert annotations.pick_attributes('coat, neck', known, 'x') == ('neck', 'coat')
    assert annotations.pick_attributes((), known, 'x') == tuple(known)
    with pytest.raises(
        InputError, match=r"no attribute 'slevee' in x \(did you mean 'sleeve'\?\); it has neck, sleeve, coat"
    ):
        annotations.pick_attributes(('slevee',), known, 'x')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    return unpack_published(tmp_path_factory.mktemp('published'))


def read_published(root, split):
    meta = annotations.read_meta(root / 'meta.json', 'FashionAI')
    count = len(annotations.read_filenames(root / 'FashionAI' / f'filenames_{split}.txt'))
    lists = [
        annotations.read_triples(root / 'FashionAI' / f'{kind}_{split}.txt', count, meta)
        for kind in ('query', 'candidate')
    ]
    return meta, count, *lists


def test_published_fashionai_lists_have_the_papers_chance(published):
    meta, count, query, candidate = read_published(published, 'test')
    assert (count, len(query), len(candidate)) == (18_000, 3_600, 14_400)
    chance = chance_map(meta.attributes, query, candidate)
    assert 100 * chance['overall'] == pytest.approx(15.79, abs=0.01)
    assert [100 * chance['per_attribute'][name] for name in meta.attributes] == pytest.approx(CHANCE, abs=0.01)
    meta, _, query, candidate = read_published(published, 'valid')
    assert 100 * chance_map(meta.attributes, query, candidate)['overall'] == pytest.approx(16.04, abs=0.01)
    labels = annotations.read_label_train(published / 'FashionAI' / 'label_train.txt', 144_335, meta)
    assert len(np.unique(labels.photo)) == 144_335


def test_random_vectors_score_chance_on_the_published_lists(published):
    meta, _, query, candidate = read_published(published, 'test')
    rng = np.random.default_rng(0)
    figures = {}
    for number, name in enumerate(meta.attributes):
        asked, offered = query[query[:, 1] == number], candidate[candidate[:, 1] == number]
        one, other = (rng.normal(size=(len(rows), 64)).astype(np.float32) for rows in (asked, offered))
        one, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (one, other))
        figures[name] = retrieval_metrics(one, other, asked[:, 2], offered[:, 2])['ap']
    assert 100 * summarize(figures)['overall'] == pytest.approx(15.79, abs=0.08)
