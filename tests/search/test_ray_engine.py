"""The workers of a Ray cluster make the same gallery as this process."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

import main
from asen_jax.search.gallery import Gallery


@pytest.fixture
def listed(tmp_path, photos):
    """A CSV of photos with a column, one of them unreadable."""
    lines = ['path,color']
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f'{number}.png')
        lines.append(f'{number}.png,color {number}')
    (tmp_path / '5.png').write_bytes(b'broken')
    (tmp_path / 'list.csv').write_text('\n'.join(lines))
    return tmp_path / 'list.csv'


def index(workdir, listed, folder, *options):
    places = [f'--workdir={workdir}', f'--images={listed}', f'--gallery={folder}']
    return main.run(['main.py', '--mode=index', *places, '--config.eval.batch_size=1', *options])


def rows_of(folder):
    gallery = Gallery.open(folder)
    rows = gallery.table.search().to_arrow().sort_by('path')
    vectors = np.stack([gallery.vectors_of(row) for row in rows.to_pylist()])
    return rows.drop_columns(gallery.vector_columns), vectors


def test_workers_make_the_same_rows(workdir, listed, tmp_path, capfd):
    assert index(workdir, listed, tmp_path / 'local') == 0
    local = capfd.readouterr()
    assert index(workdir, listed, tmp_path / 'ray', '--engine=ray', '--workers=2') == 0
    ours = capfd.readouterr()
    assert ours.out == local.out.replace('/local', '/ray')
    assert not re.search('ray|actor|worker', ours.err.replace(f'{tmp_path}/ray', ''), re.IGNORECASE)  # LanceDB may warn
    (local, local_vectors), (ours, vectors) = rows_of(tmp_path / 'local'), rows_of(tmp_path / 'ray')
    assert ours.equals(local) and ours.num_rows == 10
    np.testing.assert_allclose(vectors, local_vectors, atol=1e-6)
    assert (tmp_path / 'ray/skipped.txt').read_text() == (tmp_path / 'local/skipped.txt').read_text()


def test_what_ray_lacks_is_said(workdir, listed, tmp_path, capsys, monkeypatch):
    options = (workdir, listed, tmp_path / 'gallery')
    assert index(*options, '--workers=2') == 2
    assert capsys.readouterr().err == 'main.py: --workers goes with --engine=ray.\n'
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')
    assert index(*options, '--engine=ray') == 2
    assert 'No Ray cluster answers at RAY_ADDRESS=127.0.0.1:1; start it, or unset' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'ray', None)
    monkeypatch.delitem(sys.modules, 'asen_jax.search.ray_engine')
    monkeypatch.delattr('asen_jax.search.ray_engine')
    assert index(*options, '--engine=ray') == 2
    assert capsys.readouterr().err == "main.py: this needs ray; pip install '.[ray]' installs it.\n"
