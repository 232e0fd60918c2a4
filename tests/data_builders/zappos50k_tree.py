"""A small Zappos50k in the published layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_config

NUM_PHOTOS = 120
FOLDERS = ("Shoes/Oxfords/Levi's® Kids", 'Boots/Ankle/Dr. Shoe Co.', 'Sandals/Flat/A & B')
NAMES = [f'{FOLDERS[i % 3]}/{1000 + i}.{i}.jpg' for i in range(NUM_PHOTOS)]
RANGES = {'train': range(72), 'valid': range(72, 96), 'test': range(96, NUM_PHOTOS)}  # of the published lists
LINES = {'class': 40, 'closure': 30, 'gender': 20, 'heel': 10}
COLUMNS = {
    'Category': ('Shoes', 'Boots', 'Sandals'),
    'SubCategory': ('Oxfords', 'Flat'),  # not the class
    'HeelHeight': ('Under.1in', 'Flat', '1in...1.3.4in', '2in...2.3.4in', '3in...3.3.4in', 'High.heel'),
    'Closure': ('Lace.up', 'Slip.On', 'Hook.and.Loop', 'Zipper'),
    'Gender': ('Men', 'Women'),
}
HEIGHTS = ('Flat', 'Under.1in', '1in...1.3.4in', '2in...2.3.4in', '3in...3.3.4in')


VALUE_OF = {  # the value of photo i; None if it has none or several, so that no triplet may be drawn from it
    'class': lambda i: i % 3,
    'closure': lambda i: i // 2 % 4 if i % 10 else None,
    'gender': lambda i: i // 3 % 2,
    'heel': lambda i: i // 4 % 5 if i % 10 != 1 else None,
}


def row_of(i):
    """The row of photo i in meta-data-bin.csv."""
    kind, closure, gender, heel = (value(i) for value in VALUE_OF.values())
    on = {('Category', COLUMNS['Category'][kind]), ('Gender', COLUMNS['Gender'][gender])}
    on |= {('Closure', COLUMNS['Closure'][number]) for number in ((1, 3) if closure is None else (closure,))}
    on.add(('HeelHeight', 'High.heel' if heel is None else HEIGHTS[heel]))
    return [f'"{1000 + i}-{i}"', *(str(int((family, name) in on)) for family in COLUMNS for name in COLUMNS[family])]


def is_rightly_ordered(attribute, anchor, positive, negative):
    """Whether the positive has the anchor's value and the negative another, for heel at least two bins away."""
    values = [VALUE_OF[attribute](i) for i in (anchor, positive, negative)]
    if None in values or anchor == positive:
        return False
    return values[0] == values[1] and abs(values[2] - values[0]) >= (2 if attribute == 'heel' else 1)


def write_lists(folder):
    """The published files: in each line the third photo has the value of the first, the second has another."""
    rng = np.random.default_rng(0)
    (folder / 'tripletlists').mkdir()
    for attribute, count in LINES.items():
        for split, photos in RANGES.items():
            lines = []
            while len(lines) < count:
                a, b, c = rng.choice(photos, 3, replace=False)
                if is_rightly_ordered(attribute, a, c, b):
                    lines.append(f'{a} {b} {c}')
            end = '\r\n' if attribute == 'closure' else '\n'
            path = folder / f'tripletlists/{attribute}_tripletlist_{split.replace("valid", "val")}.txt'
            path.write_bytes((end.join(lines) + end * (attribute != 'heel')).encode())
    (folder / 'filenames.json').write_text('\n'.join([*NAMES, NAMES[100]]) + '\n')


def write_table(folder, rows=None):
    """meta-data-bin.csv as R writes it: names and CIDs in quotes."""
    path = folder / 'ut-zap50k-data/meta-data-bin.csv'
    path.parent.mkdir(exist_ok=True)
    lines = [['"CID"', *(f'"{family}.{name}"' for family in COLUMNS for name in COLUMNS[family])]]
    lines += [row_of(i) for i in range(NUM_PHOTOS)] if rows is None else rows
    path.write_bytes('\r\n'.join(map(','.join, lines)).encode())
    return path


def edit(path, line, text):
    """Replace a line, counted from 1, by `text`."""
    lines = path.read_text().split('\n')
    lines[line - 1] = text
    path.write_text('\n'.join(lines))


def triples(raw):
    """(attribute, anchor, positive, negative) by split, with photos as indices into NAMES."""
    found = {}
    for split in RANGES:
        rows = raw.lists[f'{split}_triplets']
        number = [NAMES.index(photo.image_id) for photo in raw.photos[split]]
        found[split] = [(raw.attributes[row[3]], *(number[i] for i in row[:3])) for row in rows.tolist()]
    return found


def counts(raw):
    return [len(raw.lists[f'{split}_triplets']) for split in RANGES]


@pytest.fixture
def config(tmp_path):
    """A tiny CSN on a raw tree in the published layout."""
    folder = tmp_path / 'raw/Zappos50k'
    for i, name in enumerate(NAMES):
        path = folder / 'ut-zap50k-images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 14), (5 * (i % 50), 40 * (i % 5), 80 * (i % 3))).save(path)
    write_lists(folder)
    config = tiny_config()
    config.data.name, config.data.manual_dir = 'zappos50k', str(tmp_path / 'raw')
    config.data.dir = str(tmp_path / 'records')
    config.data.triplets, config.data.num_triplets, config.train.loss = 'fixed', 16, 'triplet'
    config.model.name, config.train.num_epochs = 'csn', 1
    return config


@pytest.fixture
def folder(config):
    return Path(config.data.manual_dir) / 'Zappos50k'
