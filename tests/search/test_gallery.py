"""A gallery follows its list of photos, survives what interrupts it, and ranks as the vectors say."""

import csv
import hashlib
import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from asen_jax.errors import InputError
from asen_jax.files import lock
from asen_jax.search import engine, indexing
from asen_jax.search.gallery import Gallery, check_weights, parse_weights
from asen_jax.search.indexing import index_photos
from asen_jax.search.location import DamageError
from asen_jax.search.searching import search_gallery
from tests.conftest import ROOT
from tests.search.conftest import ATTRIBUTES

COLORS = ('red', 'blue', 'red|white', 'blue', '', 'red')


@pytest.fixture
def listed(tmp_path, photos):
    """A CSV of six photos with their color and shop."""
    rows = []
    for number, color in enumerate(COLORS):
        Image.fromarray(photos[number]).save(tmp_path / f'{number}.png')
        rows.append({'path': f'{number}.png', 'color': color, 'shop': f"Ann's {number % 2}"})
    return write(tmp_path / 'list.csv', rows)


def write(path, rows):
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def content(folder):
    """Every row, by the photo's name."""
    gallery = Gallery.open(folder)
    rows = gallery.table.search().to_arrow().to_pylist()
    found = {Path(row['path']).name: row for row in rows}
    assert len(found) == len(rows)
    return found


def counts(changes):
    return changes.added, changes.updated, changes.relabeled, changes.deleted


def test_a_gallery_holds_the_embedders_vectors_the_columns_and_a_thumbnail(network, listed, tmp_path):
    changes = index_photos(network, listed, tmp_path / 'gallery')
    assert (changes.total, *counts(changes)) == (6, 6, 0, 0, 0)
    rows = content(tmp_path / 'gallery')
    for number, color in enumerate(COLORS):
        row, path = rows[f'{number}.png'], tmp_path / f'{number}.png'
        assert (row['path'], row['color'], row['shop']) == (str(path), color or None, f"Ann's {number % 2}")
        assert row['gallery_id'] == hashlib.sha256(str(path).encode()).hexdigest()[:16]
        np.testing.assert_allclose(
            Gallery.open(tmp_path / 'gallery').vectors_of(row), network.embed([path])[0], atol=1e-6
        )
        assert row['gallery_thumbnail'].startswith(b'\xff\xd8')


def test_only_what_changed_is_embedded_again(network, listed, tmp_path, photos, monkeypatch):
    folder, rows = tmp_path / 'gallery', read(listed)
    index_photos(network, listed, folder)
    before = content(folder)
    rows[0]['color'] = 'green'
    Image.fromarray(photos[9]).save(tmp_path / '1.png')
    del rows[2]
    Image.fromarray(photos[8]).save(tmp_path / 'new.png')
    write(listed, [*rows, {'path': 'new.png', 'color': 'black', 'shop': ''}])
    embedded = []
    monkeypatch.setattr(engine, 'make_thumbnail', lambda image: embedded.append(image) or b'')
    assert counts(index_photos(network, listed, folder)) == (1, 1, 1, 1)
    assert len(embedded) == 2
    after = content(folder)
    assert after.keys() == before.keys() - {'2.png'} | {'new.png'}
    assert after['0.png'] == before['0.png'] | {'color': 'green'}
    assert all(after[name] == before[name] for name in ('3.png', '4.png', '5.png'))
    np.testing.assert_allclose(
        Gallery.open(folder).vectors_of(after['1.png']), network.embed([tmp_path / '1.png'])[0], atol=1e-6
    )
    assert counts(index_photos(network, listed, folder)) == (0, 0, 0, 0)


def test_photos_of_another_list_stay_and_bring_their_own_columns(network, listed, tmp_path, photos):
    index_photos(network, listed, tmp_path / 'gallery')
    Image.fromarray(photos[7]).save(tmp_path / 'other.png')
    other = write(tmp_path / 'other.csv', [{'path': 'other.png', 'price in euro': '12'}])
    assert counts(index_photos(network, other, tmp_path / 'gallery')) == (1, 0, 0, 0)
    rows = content(tmp_path / 'gallery')
    assert len(rows) == 7
    assert (rows['other.png']['price in euro'], rows['other.png']['color']) == ('12', None)
    assert rows['0.png']['price in euro'] is None
    found = Gallery.open(tmp_path / 'gallery').search(
        network.embed([tmp_path / '0.png'])[0], {ATTRIBUTES[0]: 1.0}, 9, 'try_cast(`price in euro` as float) > 11'
    )
    assert [Path(match.path).name for match in found] == ['other.png']


def test_a_stopped_run_continues_without_losing_or_doubling_a_photo(network, listed, tmp_path, monkeypatch):
    folder = tmp_path / 'gallery'
    (folder / 'photos.lance/data').mkdir(parents=True)  # of a first commit that was killed
    (folder / 'photos.lance/data/torn.lance').write_bytes(b'torn')
    monkeypatch.setattr(indexing, 'COMMIT_SIZE', 2)

    def stop_after_five(photos):
        yield from itertools.islice(engine.embed_here(network, photos), 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_photos(network, listed, folder, embed=stop_after_five)
    assert content(folder).keys() == {'0.png', '1.png', '2.png', '3.png'}
    assert counts(index_photos(network, listed, folder)) == (2, 0, 0, 0)
    assert len(content(folder)) == 6


def test_an_unreadable_photo_is_left_out_and_its_old_vectors_go(network, listed, tmp_path):
    folder = tmp_path / 'gallery'
    index_photos(network, listed, folder)
    (tmp_path / '3.png').write_bytes(b'broken')
    (tmp_path / '4.png').unlink()
    changes = index_photos(network, listed, folder)
    assert counts(changes) == (0, 0, 0, 1)
    lines = (folder / 'skipped.txt').read_text().splitlines()
    assert sorted(Path(line.partition('\t')[0]).name for line in lines) == ['3.png', '4.png']
    assert content(folder).keys() == {
        '0.png',
        '1.png',
        '2.png',
        '4.png',
        '5.png',
    }  # 4 may be on a drive that is not mounted
    (tmp_path / '4.png').write_bytes(b'broken')
    with pytest.raises(InputError, match=r'3\.png: not a readable picture .*; fix it, or leave out --strict'):
        index_photos(network, listed, folder, strict=True)


def test_rankings_are_those_of_the_vectors(network, listed, tmp_path):
    index_photos(network, listed, tmp_path / 'gallery')
    gallery, paths = Gallery.open(tmp_path / 'gallery'), [tmp_path / f'{number}.png' for number in range(6)]
    vectors = network.embed(paths)
    cosines = np.einsum('nad,ad->na', vectors, vectors[0])
    first, _, third = ATTRIBUTES
    for weights, scores in (
        ({first: 1.0}, cosines[:, 0]),
        ({first: 2.0, third: 1.0}, (2 * cosines[:, 0] + cosines[:, 2]) / 3),
    ):
        matches = gallery.search(vectors[0], weights, 4, without=str(paths[0]))
        order = [number for number in np.argsort(-scores) if number][:4]
        assert [match.path for match in matches] == [str(paths[number]) for number in order]
        np.testing.assert_allclose([match.score for match in matches], scores[order], atol=1e-5)
        some = gallery.search(vectors[0], weights, 9, "color = 'blue'")
        assert {Path(match.path).name for match in some} == {'1.png', '3.png'}


def test_neighbors_vote_on_the_value_of_a_column_named_like_an_attribute(network, listed, tmp_path):
    rows = [{'path': row['path'], ATTRIBUTES[1]: row['color']} for row in read(listed)]
    index_photos(network, write(listed, rows), tmp_path / 'gallery')
    query = network.embed([tmp_path / '4.png'])[0]
    guesses = Gallery.open(tmp_path / 'gallery').guess(query, without=str(tmp_path / '1.png'))
    assert guesses == {ATTRIBUTES[1]: ('red', 0.75, 4)}  # 0, 2 and 5 of 0, 2, 3, 5


def test_the_search_prints_a_table_or_json_and_draws_a_sheet(network, workdir, listed, tmp_path, capsys):
    folder = tmp_path / 'gallery'
    index_photos(network, listed, folder)
    search_gallery(folder, str(tmp_path / '0.png'), ATTRIBUTES[0], k=3)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6 and table[-2].startswith('likely values, judging by the nearest photos: color ')
    assert table[-1] == f'wrote {folder / "search.jpg"}'
    with Image.open(folder / 'search.jpg') as sheet:
        assert sheet.format == 'JPEG'
    query = tmp_path / 'query.png'
    Image.open(tmp_path / '0.png').save(query)
    search_gallery(
        folder, str(query), f'{ATTRIBUTES[0]}:3,{ATTRIBUTES[1]}', k=2, as_json=True, output=tmp_path / 's.jpg'
    )
    found = json.loads(capsys.readouterr().out)
    assert [*found[0]] == ['path', 'score', 'color', 'shop'] and len(found) == 2
    assert found[0]['path'] == str(tmp_path / '0.png')
    assert found[0]['score'] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('where', ['colour = 1', 'color =', '1', 'color between 1 and true', '?'])
def test_an_invalid_condition_is_answered_with_the_columns(network, listed, tmp_path, where):
    index_photos(network, listed, tmp_path / 'gallery')
    gallery = Gallery.open(tmp_path / 'gallery')
    for weights in ({ATTRIBUTES[0]: 1.0}, {ATTRIBUTES[0]: 1.0, ATTRIBUTES[1]: 1.0}):
        with pytest.raises(
            InputError,
            match=r'The condition .* does not work \(.*\); write a condition .* on the columns path, color, shop\.$',
        ):
            gallery.search(np.ones((3, 32), np.float32), weights, 2, where)


def test_an_attribute_may_have_a_comma_or_a_colon_in_its_name():
    assert parse_weights('size: EU, men', ['size: EU, men']) == {'size: EU, men': 1.0}
    assert parse_weights('a:2, b', ['a', 'b']) == {'a': 2.0, 'b': 1.0}


def test_photos_that_change_during_a_search_are_left_out(network, listed, tmp_path, monkeypatch):
    index_photos(network, listed, tmp_path / 'gallery')
    gallery, query = Gallery.open(tmp_path / 'gallery'), network.embed([tmp_path / '0.png'])[0]
    rows = Gallery.rows

    def change_and_read(*args):
        gallery.table.delete(f"path = '{tmp_path / '0.png'}'")
        gallery.table.update(f"path = '{tmp_path / '1.png'}'", {'color': None})
        return rows(*args)

    monkeypatch.setattr(Gallery, 'rows', change_and_read)
    assert len(gallery.search(query, {'color': 1.0}, 6)) == 5
    assert gallery.guess(query)['color'].num_voters == 3


def test_a_gallery_that_was_made_again_is_not_searched_as_the_old_one(network, listed, tmp_path):
    index_photos(network, listed, tmp_path / 'gallery')
    gallery, query = Gallery.open(tmp_path / 'gallery'), network.embed([tmp_path / '0.png'])[0]
    Gallery.create(tmp_path / 'gallery', gallery.network_info | {'attributes': ATTRIBUTES[::-1]}, network.dim)
    with pytest.raises(DamageError, match='was rebuilt since it was opened'):
        gallery.search(query, {'color': 1.0}, 6)


def test_weights_are_checked():
    with pytest.raises(InputError, match=f"no attribute 'collr'; it has {', '.join(ATTRIBUTES)}"):
        check_weights({'collr': 1.0}, ATTRIBUTES)
    with pytest.raises(InputError, match='must be positive'):
        check_weights({ATTRIBUTES[0]: 0.0}, ATTRIBUTES)
    with pytest.raises(
        InputError, match=r"The attribute 'a:b' has no number as its weight; write NAME, or NAME:WEIGHT"
    ):
        parse_weights('a:b', ATTRIBUTES)


def test_after_a_power_cut_the_version_before_counts(network, listed, tmp_path, capsys):
    folder = tmp_path / 'gallery'
    index_photos(network, listed, folder)
    Gallery.open(folder).table.delete("color = 'blue'")
    last = min((folder / 'photos.lance/_versions').glob('*.manifest'))  # the newest has the lowest name
    assert len(content(folder)) == 4
    last.write_bytes(b'')
    assert len(content(folder)) == 6
    assert 'is empty, probably after a power cut; using the previous version' in capsys.readouterr().err
    write(listed, read(listed)[:-1])
    index_photos(network, listed, folder)
    assert len(content(folder)) == 5


def test_what_is_not_this_networks_gallery_is_refused(network, listed, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'none is not a gallery; make one with --mode index'):
        Gallery.open(tmp_path / 'none')
    folder = tmp_path / 'gallery'
    index_photos(network, listed, folder)
    with lock(folder / '.lock', 'busy'), pytest.raises(InputError, match='Another process is changing'):
        index_photos(network, listed, folder)
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            InputError, match=r'was made with another network, or with an earlier checkpoint of .*; choose another'
        ),
    ):
        patch.setattr(network, 'fingerprint', 'another')
        index_photos(network, listed, folder)
    write(listed, [{'path': '0.png', 'score': '1'}])
    with pytest.raises(InputError, match="column 'score', a name that galleries cannot use"):
        index_photos(network, listed, folder)


@pytest.mark.parametrize('distance,normalize', [('euclidean', True), ('cosine', False)])
def test_vectors_are_compared_as_in_training(network, listed, tmp_path, monkeypatch, distance, normalize):
    config = json.loads(json.dumps(network.network.meta['config']))
    config['train']['distance'], config['model']['normalize'] = distance, normalize
    meta = network.network.meta | {'config': config}
    monkeypatch.setattr(network, 'network', network.network._replace(meta=meta))
    monkeypatch.setattr(
        network, 'stream', lambda *args, **options: scaled(type(network).stream(network, *args, **options))
    )
    index_photos(network, listed, tmp_path / 'gallery')
    gallery, rows = Gallery.open(tmp_path / 'gallery'), content(tmp_path / 'gallery')
    vectors = np.stack([gallery.vectors_of(rows[f'{number}.png']) for number in range(6)])
    if distance == 'euclidean':
        scores = -np.linalg.norm(vectors - vectors[0], axis=2)
    else:
        lengths = np.linalg.norm(vectors, axis=2)
        scores = np.einsum('nad,ad->na', vectors, vectors[0]) / (lengths * lengths[0])
    for attributes in ([0], [0, 1]):
        expected = scores[:, attributes].mean(axis=1)
        matches = gallery.search(vectors[0], {ATTRIBUTES[number]: 1.0 for number in attributes}, 6)
        assert [match.path for match in matches] == [str(tmp_path / f'{n}.png') for n in np.argsort(-expected)]
        np.testing.assert_allclose([match.score for match in matches], np.sort(expected)[::-1], atol=1e-4)


def scaled(results):
    """Each photo's vectors, scaled by another number."""
    for number, result in enumerate(results):
        yield result._replace(vectors=result.vectors * np.float32(1 + number))


def test_a_large_gallery_gets_an_index_for_each_attribute_even_after_a_kill(network, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, 'EXACT_UP_TO', 5)
    index_photos(network, listed, tmp_path / 'gallery')
    gallery = Gallery.open(tmp_path / 'gallery')
    gallery.table.drop_index(next(i.name for i in gallery.table.list_indices() if i.columns == ['gallery_vector_1']))
    index_photos(network, listed, tmp_path / 'gallery')
    gallery = Gallery.open(tmp_path / 'gallery')
    indexed = sorted(column for index in gallery.table.list_indices() for column in index.columns)
    assert indexed == ['gallery_id', 'gallery_vector_0', 'gallery_vector_1', 'gallery_vector_2', 'path']
    query = network.embed([tmp_path / '0.png'])[0]
    assert gallery.search(query, {ATTRIBUTES[2]: 1.0}, 10**12)[0].path == str(tmp_path / '0.png')


def test_with_an_index_a_condition_that_few_photos_meet_finds_them(tmp_path):
    network_info = {'fingerprint': '', 'attributes': ['color'], 'metric': 'l2'}
    gallery, vectors = Gallery.create(tmp_path, network_info, 8), np.random.default_rng(0).normal(size=(2000, 8))
    rows = [{'path': str(number), 'gallery_vector_0': vector} for number, vector in enumerate(vectors.tolist())]
    gallery.table.add(rows)
    gallery.table.create_index('gallery_vector_0', config=indexing.IvfFlat('l2', num_partitions=200))
    farthest = np.argsort(-np.linalg.norm(vectors - vectors[0], axis=1))[:3]
    condition = f'path in ({", ".join(repr(str(number)) for number in farthest)})'
    found = gallery.search(vectors[:1].astype(np.float32), {'color': 1.0}, 5, condition)
    assert [match.path for match in found] == [str(number) for number in farthest[::-1]]


def test_a_photo_that_changed_since_it_was_indexed_is_embedded_anew(
    network, workdir, listed, tmp_path, photos, capsys, monkeypatch
):
    folder, attribute = tmp_path / 'gallery', ATTRIBUTES[0]
    monkeypatch.setattr(network, 'origin', {'workdir': str(tmp_path / 'gone'), 'checkpoint': 'best'})
    index_photos(network, listed, folder)
    search_gallery(folder, str(tmp_path / '0.png'), attribute, as_json=True)  # needs no network
    Image.fromarray(photos[5]).save(tmp_path / '0.png')
    with pytest.raises(InputError, match='gone'):
        search_gallery(folder, str(tmp_path / '0.png'), attribute)
    capsys.readouterr()
    search_gallery(folder, str(tmp_path / '0.png'), attribute, workdir=workdir, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found[0]['path'] == str(tmp_path / '5.png') and found[0]['score'] == pytest.approx(1, abs=1e-5)
    assert str(tmp_path / '0.png') not in [match['path'] for match in found]


def test_a_photo_of_two_lists_belongs_to_the_last(network, listed, tmp_path):
    index_photos(network, listed, tmp_path / 'gallery')
    other = write(tmp_path / 'other.csv', [{'path': '0.png', 'shop': 'B'}, {'path': '1.png', 'shop': 'B'}])
    assert counts(index_photos(network, other, tmp_path / 'gallery')) == (0, 0, 2, 0)
    write(other, [{'path': '1.png', 'shop': 'B'}])
    assert counts(index_photos(network, other, tmp_path / 'gallery')) == (0, 0, 0, 1)
    rows = content(tmp_path / 'gallery')
    assert '0.png' not in rows and (rows['1.png']['shop'], rows['1.png']['color']) == ('B', None)


def test_contact_sheets_never_replace_a_photo_and_are_not_indexed(network, listed, tmp_path):
    index_photos(network, listed, tmp_path / 'gallery')
    (tmp_path / 'link.jpg').symlink_to(tmp_path / '0.png')
    (tmp_path / 'same.jpg').hardlink_to(tmp_path / '3.png')
    for output, says in (
        ('3.png', r'does not end in \.jpg or \.jpeg'),
        ('gallery', 'is a folder'),
        ('link.jpg', 'is one of the inputs'),
        ('same.jpg', 'is one of the inputs'),
    ):
        with pytest.raises(InputError, match=f'{output} {says}; name '):
            search_gallery(tmp_path / 'gallery', str(tmp_path / '0.png'), ATTRIBUTES[0], output=tmp_path / output)
        (tmp_path / output).unlink() if output.endswith('.jpg') else None
    search_gallery(tmp_path / 'gallery', str(tmp_path / '0.png'), ATTRIBUTES[0])
    (tmp_path / '6.heic').touch()
    assert str(index_photos(network, tmp_path, tmp_path / 'gallery')).endswith('is not that of a photo (.heic 1)')
    assert not any('search' in name for name in content(tmp_path / 'gallery'))


def test_what_a_list_cannot_say_is_refused_or_skipped(network, listed, tmp_path):
    rows = read(listed)
    write(listed, [*rows, rows[0]])
    assert index_photos(network, listed, tmp_path / 'gallery').total == 6
    write(listed, [*rows, rows[0] | {'color': 'black'}])
    with pytest.raises(InputError, match=r'lists .*0\.png twice; keep one line of it'):
        index_photos(network, listed, tmp_path / 'gallery')
    odd = tmp_path / 'odd'
    odd.mkdir()
    (odd / os.fsdecode(b'caf\xe9.png')).write_bytes((tmp_path / '0.png').read_bytes())
    (odd / 'good.png').write_bytes((tmp_path / '0.png').read_bytes())
    assert index_photos(network, odd, tmp_path / 'gallery').total == 7
    assert b'caf\xe9.png\tits name is not UTF-8; rename it\n' in (tmp_path / 'gallery/skipped.txt').read_bytes()


def test_damaged_data_is_not_blamed_on_the_condition(network, listed, tmp_path):
    index_photos(network, listed, tmp_path / 'gallery')
    for file in (tmp_path / 'gallery/photos.lance/data').glob('*.lance'):
        file.write_bytes(b'')
    with pytest.raises(InputError, match=r'gallery is damaged \(.*\); delete it and run --mode index'):
        Gallery.open(tmp_path / 'gallery').search(
            np.ones((3, 32), np.float32), {ATTRIBUTES[0]: 1.0}, 2, "color = 'red'"
        )
    with pytest.raises(InputError, match='gallery is damaged'):
        index_photos(network, listed, tmp_path / 'gallery')


def test_the_commands_end_with_a_sentence(workdir, listed, tmp_path, capsys):
    folder = tmp_path / 'gallery'
    index = ['main.py', '--mode=index', f'--workdir={workdir}', f'--images={listed}', f'--gallery={folder}']
    search = ['main.py', '--mode=search', f'--gallery={folder}', f'--query={tmp_path / "0.png"}']
    assert main.run([*search, '--attribute=color']) == 2
    assert (
        capsys.readouterr().err
        == f'main.py: {folder} is not a gallery; make one with --mode index --gallery={folder}.\n'
    )
    assert main.run(index) == 0
    assert capsys.readouterr().out.endswith(f'{folder}: 6 photos (6 added, 0 updated, 0 relabeled, 0 deleted)\n')
    assert main.run([*search, '--attribute=color', '--k=2', '--json']) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main.run([*search, '--attribute=collar']) == 2
    assert "no attribute 'collar'" in capsys.readouterr().err


def test_a_full_disk_is_not_taken_for_damage(workdir, listed, tmp_path):
    command = [sys.executable, str(ROOT / 'main.py'), '--mode=index', f'--workdir={workdir}', f'--images={listed}']
    command += [f'--gallery={tmp_path / "gallery"}']
    limited = ['bash', '-c', 'ulimit -f 5; exec "$@"', 'bash', *command]  # no file above 5 KB
    full = subprocess.run(limited, capture_output=True, text=True)
    assert full.returncode == 2
    assert re.search(r'gallery cannot be written \(.*\); free space .* same command again\.$', full.stderr.strip())
    assert 'Traceback' not in full.stderr
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, ': 6 photos' in done.stdout) == (0, True)


def test_the_example_prints_the_nearest_photos(workdir, listed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    query = str(tmp_path / '0.png')
    monkeypatch.setattr('sys.argv', ['search_photos.py', str(workdir), str(listed), query, ATTRIBUTES[0]])
    runpy.run_path(str(ROOT / 'examples/search_photos.py'))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[0].startswith(f"1.000  {query}  {{'color': 'red'")
