"""A small DeepFashion in the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import deepfashion

ATTRIBUTES = ('texture-related', 'fabric-related', 'shape-related', 'part-related', 'style-related')
COUNTS = (3, 2, 3, 2, 2)
TYPES = (3, 1, 1, 2, 3, 1, 4, 5, 2, 4, 5, 3)  # by global id
LOCAL = [(2, 0), (0, 0), (0, 1), (1, 0), (2, 1), (0, 2), (3, 0), (4, 0), (1, 1), (3, 1), (4, 1), (2, 2)]  # by global id
NAMES = 'a-line,abstract,abstract floral,cotton,maxi,striped,v neck,boho,denim,zip up,los angeles,midi'
ALONE = 10  # only one train photo has this id
TRAIN = [[(7 * i) % 10, (i % 3) * 4, 1 + 4 * (i % 2)] for i in range(20)] + [[ALONE, 11]]
VALID = [[1, 2, 3], [4, 0], [6, 7], [2, 5], [8, 9, 10], [11, 3]]
TEST = [[5, 3], [0, 2], [6, 8], [7, 5], [9, 10], [11, 4]]
TWICE = 'img/A_Dress/valid_0.jpg'  # with different labels, as in the published valid list
NAMES_OF = {
    'train': [f'img/A_Dress/train_{i}.jpg' for i in range(len(TRAIN))],
    'valid': [TWICE, *(f'img/A_Blouse/valid_{i}.jpg' for i in range(1, 5)), TWICE],
    'test': [f'img/A_Blouse/test_{i}.jpg' for i in range(len(TEST))],
}
IDS_OF = {'train': TRAIN, 'valid': VALID, 'test': TEST}
LISTED = {'valid': ['3 0 1', '4 4 1', '0 0 1', '1 2 1', '2 3 0', '5 1 0'], 'test': ['0 0 2', '1 2 0', '3 0 2', '5 2 1']}


def local_lines(many):
    return [' '.join(map(str, [i, *sum((LOCAL[id_] for id_ in ids), ())])) for i, ids in enumerate(many)]


def global_lines(many):
    """As published: tabs, some of them trailing."""
    return ['\t'.join(map(str, [i, *sum(((TYPES[j], j) for j in ids), ())])) + 8 * '\t' for i, ids in enumerate(many)]


def write(path, lines):
    """CR LF, and the last line without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes('\r\n'.join(lines).encode())


def write_anno(folder, rows=None):
    """DeepFashion's own files, which mix the photos of all splits and one without attributes."""
    rows = rows or [
        ('img/A_Dress/bare.jpg', []),
        *(pair for split in ('test', 'train', 'valid') for pair in zip(NAMES_OF[split], IDS_OF[split], strict=True)),
    ]
    header = [str(len(rows)), 'image_name attribute_labels']
    entries = [' '.join('1' if i in ids else ('-1', '0')[i % 2] for i in range(12)) for _, ids in rows]
    write(
        folder / 'list_attr_img.txt', [*header, *(f'{name}   {e}' for (name, _), e in zip(rows, entries, strict=True))]
    )
    names = [f'{name:30}{kind}' for name, kind in zip(NAMES.split(','), TYPES, strict=True)]
    write(folder / 'list_attr_cloth.txt', ['12', 'attribute_name  attribute_type', *names])
    boxes = [f'{name}    3 1 {8 + i % 4:03} 016' for i, (name, _) in enumerate(rows)]
    write(folder / 'list_bbox.txt', [str(len(rows)), 'image_name  x_1  y_1  x_2  y_2', *boxes])


def write_tree(root):
    """Train in the local dialect, valid and test in the global one, no Anno. Returns the config's `data`."""
    folder = root / 'DeepFashion'
    rng = np.random.default_rng(0)
    for split, names in NAMES_OF.items():
        write(folder / f'filenames_{split}.txt', names)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 12, 3), np.uint8)).save(folder / name)
    for split, lines in LISTED.items():
        write(folder / f'query_{split}.txt', lines[:2])
        write(folder / f'candidate_{split}.txt', lines[2:])
        write(folder / f'label_{split}.txt', global_lines(IDS_OF[split]))
    write(folder / 'label_train.txt', local_lines(TRAIN))
    counts = dict(zip(ATTRIBUTES, COUNTS, strict=True))
    meta = {'DeepFashion': {'ATTRIBUTES': ATTRIBUTES, 'ATTRIBUTES_NUM': counts}}
    (root / 'meta.json').write_text(json.dumps(meta))
    data = deepfashion.get_config().data
    data.manual_dir = str(root)
    return data


def labels_of(photos):
    return [set(zip(photo.attributes, photo.values, strict=True)) for photo in photos]


def expected(many):
    return [{LOCAL[id_] for id_ in ids} for ids in many]


@pytest.fixture
def data(tmp_path):
    """The config of a fresh tree."""
    return write_tree(tmp_path)


@pytest.fixture
def folder(data):
    """Its folder of lists and photos."""
    return Path(data.manual_dir) / 'DeepFashion'
