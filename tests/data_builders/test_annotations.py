"""The parsers of the annotation files: line endings, ranges, and errors that name the file and the line."""

import json

import numpy as np
import pytest

from asen_jax.errors import InputError
from data_builders import annotations
from data_builders.annotations import Meta

META = Meta(('neck', 'sleeve'), {'neck': ('0', '1'), 'sleeve': ('0', '1', '2')})


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
def test_line_endings_do_not_matter(write, content):
    assert annotations.read_filenames(write(content)) == ['a/1.jpg', 'b.jpg']


def test_label_train_has_one_entry_per_label(write):
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
        ('1 x 0', "'1 x 0'; expected \"index attribute value"),
        ('1 1.0 0', 'all whole numbers of up to 9 digits'),
        ('1 0', "'1 0'; expected"),
        ('1 0 0 1', "'1 0 0 1'; expected"),
        ('', "''; expected"),
        ('3 0 0', 'index 3, but the last in the list of file names is 2'),
        ('-1 0 0', "'-1 0 0'; expected"),
        ('9999999999 0 0', 'of up to 9 digits'),
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
        (b'a.jpg\n../b.jpg\n', "line 2: '../b.jpg' is not the path of a file in the folder"),
        (b'a.jpg\nb/' + 'ü'.encode() * 130, 'line 2: .* in at most 4,000 characters and 255 bytes between two slashes'),
        pytest.param(b'a/' * 2001, 'line 1: .* is not the path of a file in the folder', id='long'),
        (b'a.jpg\n/b.jpg\n', "line 2: '/b.jpg' is not the path of a file in the folder"),
        (b'a.jpg\n\xff\xfe\n', 'line 2: not UTF-8'),
        (b'\r\n', 'is empty'),
    ],
)
def test_a_bad_list_of_files_is_named(write, content, says):
    with pytest.raises(InputError, match=says):
        annotations.read_filenames(write(content))


def test_meta_names_the_values_of_attributes_that_list_them(write):
    part = {'ATTRIBUTES': ['neck', 'sleeve'], 'ATTRIBUTES_NUM': {'neck': 2, 'sleeve': 3}}
    part['ATTRIBUTES_VALUES'] = {'neck': ['Invisible', 'Low']}
    meta = annotations.read_meta(write(json.dumps({'FashionAI': part})), 'FashionAI')
    assert meta == Meta(('neck', 'sleeve'), {'neck': ('Invisible', 'Low'), 'sleeve': ('0', '1', '2')})


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('{"FashionAI":\n oops}', 'line 2: not JSON'),
        ('[]', 'FashionAI needs ATTRIBUTES'),
        ('{"FashionAI": {"ATTRIBUTES": ["a"], "ATTRIBUTES_NUM": {"a": "x"}}}', 'needs ATTRIBUTES'),
        ('{"FashionAI": {"ATTRIBUTES": ["a"], "ATTRIBUTES_NUM": {}}}', 'needs ATTRIBUTES'),
        ('{"FashionAI": {"ATTRIBUTES": 5, "ATTRIBUTES_NUM": {}}}', 'needs ATTRIBUTES'),
        ('{"FashionAI": {"ATTRIBUTES": [["a"]], "ATTRIBUTES_NUM": {}}}', 'needs ATTRIBUTES'),
        ('{"FashionAI": {"ATTRIBUTES": ["a", "a"], "ATTRIBUTES_NUM": {"a": 2}}}', 'needs ATTRIBUTES'),
        (
            '{"FashionAI": {"ATTRIBUTES": ["a"], "ATTRIBUTES_NUM": {"a": 2}, "ATTRIBUTES_VALUES": {"a": ["one"]}}}',
            'needs',
        ),
    ],
)
def test_a_bad_meta_is_named(write, content, says):
    with pytest.raises(InputError, match=says):
        annotations.read_meta(write(content), 'FashionAI')


def test_attributes_are_picked_in_the_order_of_the_dataset():
    known = ['neck', 'sleeve', 'coat']
    assert annotations.pick_attributes(('coat', 'neck'), known, 'x') == ('neck', 'coat')
    assert annotations.pick_attributes((), known, 'x') == tuple(known)
    with pytest.raises(
        InputError, match=r"no attribute 'slevee' in x \(did you mean 'sleeve'\?\); it has neck, sleeve, coat"
    ):
        annotations.pick_attributes(('slevee',), known, 'x')
