"""Checkpoints: damage is noticed, nothing that is not finite is saved, and a reader follows a running training."""

import json
import re

import jax
import numpy as np
import pytest

from asen_jax import files, sharding
from asen_jax.checkpoint import Checkpoints, abstract_like, checksum
from asen_jax.errors import InputError, NumericsError


def arrays(number=1.0):
    kernel = jax.numpy.arange(8 * 4, dtype=np.float32).reshape(8, 4) + number
    return {'params': {'head': {'kernel': kernel}, 'scale': jax.numpy.float32(number)}}


def save(workdir, step, kind='latest', trees=None, **meta):
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(kind, trees or arrays(step), {'step': step, **meta})


def read(workdir, which='latest', trees=None):
    trees = trees or arrays()
    like = abstract_like(trees, jax.tree.map(lambda leaf: leaf.sharding, trees))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(which, like)


def change_meta(workdir, **changes):
    for path in (workdir / 'checkpoints').rglob('meta/metadata'):
        meta = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: part for name, part in meta.items() if part is not None}))


def test_a_checksum_sees_every_word_and_no_sharding():
    tree, mesh = arrays()['params'], sharding.make_mesh()
    whole, _ = checksum(tree)
    for spec in (('data',), (None,), ('data', None)):
        placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert checksum({**tree, 'head': jax.device_put(tree['head'], placed)})[0] == whole
    kernel = np.array(tree['head']['kernel'])
    changed = set()
    for place in np.ndindex(kernel.shape):
        other = kernel.copy()
        other.view(np.uint32)[place] ^= 1 << 31
        changed.add(checksum({**tree, 'head': {'kernel': other}})[0])
    assert len(changed) == kernel.size and whole not in changed
    for other in (kernel[::-1], kernel[:, ::-1], -kernel, kernel + 1, kernel * np.where(kernel < 3, -1, 1)):
        assert checksum({**tree, 'head': {'kernel': np.float32(other)}})[0] != whole
    square = kernel[:4]
    assert checksum({'a': square}) != checksum({'a': np.ascontiguousarray(square.T)})
    assert checksum({'scale': tree['scale'], 'tail': tree['head']})[0] != whole


@pytest.mark.parametrize(
    'leaves',
    [
        {},
        {'inner': {}},
        {'scale': jax.numpy.arange(6, dtype='bfloat16')},
        {'keys': jax.random.split(jax.random.key(1), 3)},
    ],
)
def test_trees_without_arrays_bfloat16_and_random_keys_come_back_as_they_were(tmp_path, leaves):
    trees = {'params': arrays()['params'], 'batch_stats': leaves}
    save(tmp_path, 1, trees=trees)
    restored = read(tmp_path, trees=trees)
    assert jax.tree.structure(restored) == jax.tree.structure(trees)
    for ours, saved in zip(*map(jax.tree.leaves, (restored, trees)), strict=True):
        assert ours.dtype == saved.dtype and (ours == saved).all()
    with pytest.raises(InputError, match='does not fit this network'):
        read(tmp_path, trees={'batch_stats': {'mean': jax.numpy.ones(3)}})
    with pytest.raises(InputError, match='does not fit this network'):
        read(tmp_path, trees={'params': {}})


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    save(tmp_path, 1)
    broken = arrays()
    broken['params']['head']['kernel'] = broken['params']['head']['kernel'].at[3, 2].set(np.nan)
    message = 'params after step 2: head/kernel is not finite'
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(NumericsError, match=message):
        checkpoints.save('latest', broken, {'step': 2})
    np.testing.assert_array_equal(read(tmp_path)['params']['head']['kernel'], arrays(1)['params']['head']['kernel'])


@pytest.mark.parametrize('item', ['params', 'meta'])
def test_other_numbers_than_those_saved_are_refused(tmp_path, item):
    save(tmp_path, 3, score=0.5)
    save(tmp_path, 2, kind='best')
    if item == 'params':
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            meta = checkpoints.read_meta('latest')
        meta['checksums']['params'] = meta['checksums']['params'][::-1]
        change_meta(tmp_path, **meta, sha256=files.sha256_of_json(meta))
    else:
        change_meta(tmp_path, score=0.75)
    folder = tmp_path / 'checkpoints' / 'latest' / '3'
    fault = f'{folder} does not fit this network or is damaged ({item} does not match its checksum); name another'
    with pytest.raises(InputError, match=f'{re.escape(fault)}.* delete that folder to continue from best \\(step 2\\)'):
        read(tmp_path)


@pytest.mark.parametrize('other', [None, 4])
def test_a_checkpoint_of_another_version_is_refused(tmp_path, other):
    save(tmp_path, 3)
    change_meta(tmp_path, format=other)
    with pytest.raises(InputError, match=r'latest/3 was written by another version .*; train again.* or import'):
        read(tmp_path)


def test_a_reader_follows_a_training_that_replaces_the_checkpoint(tmp_path):
    save(tmp_path, 1)
    asked = []

    def load(place):
        asked.append(place.step)
        if place.step == 1:
            save(tmp_path, 2)  # and delete step 1
        return checkpoints.meta_of(place)['step']

    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.read('latest', load) == 2
        assert asked == [1, 2]
        with pytest.raises(InputError, match=r"no checkpoint '1'; it has latest \(step 2\)"):
            checkpoints.read_meta('1')


def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:

        def full(*_, **__):
            raise ValueError("Failed to write 5 bytes to file 4: No space left on device [os_error_code='28']. More.")

        monkeypatch.setattr(checkpoints.managers['latest'], 'wait_until_finished', full)
        with pytest.raises(InputError, match=r'checkpoints cannot be written \(No space left on device\); free space'):
            checkpoints.wait()
        monkeypatch.undo()


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    again = files.lock_workdir(tmp_path / 'run')
    message = r'Another process is training in .*run; wait until it ends'
    with files.lock_workdir(tmp_path / 'run'), pytest.raises(InputError, match=message), again:
        pass
    with files.lock_workdir(tmp_path / 'run'):
        pass
