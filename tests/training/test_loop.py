"""Training through its public function: it resumes bit for bit, stops cleanly, and refuses what would mislead."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asen_jax import files
from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError, NumericsError, StoppedError
from asen_jax.evaluation import figures
from asen_jax.evaluation.run import evaluate_network
from asen_jax.network import load_network
from asen_jax.sharding import make_mesh
from asen_jax.training import loop
from benchmarks import reproduce
from data_builders import prepare
from tests.conftest import tiny_config


def run(config, workdir):
    return loop.train_and_evaluate(config, workdir, prepare.prepare(config))


def evaluate(config, workdir, which, split, records):
    mesh = make_mesh()
    return evaluate_network(config, load_network(workdir, which, None, mesh), records, workdir, split, mesh)


def stop_in_step(monkeypatch, number):
    """SIGTERM arrives while step `number` runs, once."""
    original = loop.train_batches

    def train_batches(records, config, start_step, *rest):
        for step, batch in enumerate(original(records, config, start_step, *rest), start_step + 1):
            if step == number and start_step < number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(loop, 'train_batches', train_batches)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def arrays_of(workdir, kind='latest'):
    """Every array of a checkpoint, by item and name, without a target."""
    root = workdir / 'checkpoints' / kind
    step = max(int(path.name) for path in root.iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as reader:
        read = {item: reader.restore(root / str(step) / item) for item in ('params', 'batch_stats', 'opt_state')}
    return step, {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(read)
    }


def assert_same_arrays(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope='module')
def unbroken(records_root, tmp_path_factory):
    """A complete run of two epochs of four steps."""
    config, workdir = tiny_config(), tmp_path_factory.mktemp('unbroken')
    config.data.dir = str(records_root)
    return workdir, run(config, workdir)


def test_a_run_writes_the_files_of_the_contract(unbroken):
    workdir, result = unbroken
    assert reproduce.read_result(workdir) == json.loads(json.dumps(result))
    assert len(reproduce.checkpoint_hash(workdir)) == reproduce.HASH_DIGITS
    assert json.loads((workdir / 'eval_test.json').read_text()) == json.loads(json.dumps(result))
    assert json.loads((workdir / 'config.json').read_text())['train']['batch_size'] == 8
    events = EventAccumulator(str(workdir)).Reload()
    shown = events.Images('valid_rankings')  # where the network looks, and what it finds, after each epoch
    assert [(picture.step, picture.height > 3 * figures.CELL) for picture in shown] == [(4, True), (8, True)]
    with Image.open(workdir / 'eval_test.jpg') as picture:
        assert picture.height > 3 * figures.CELL
    lines = lines_of(workdir)
    assert [line['step'] for line in lines] == [2, 4, 4, 6, 8, 8]
    wanted = {
        'loss',
        'triplet_accuracy',
        'learning_rate',
        'gradient_norm',
        'data_wait_seconds',
        'step_seconds',
        'triplets_per_second',
    }
    assert {f'train_{name}' for name in wanted} <= lines[0].keys()
    assert {'valid_map', 'valid_chance_map', 'valid_triplet_accuracy'} <= lines[2].keys()
    assert lines[0]['train_learning_rate'] == pytest.approx(1e-3)
    assert lines[-2]['train_learning_rate'] == pytest.approx(1e-3 * 0.85)


def test_best_is_kept_by_valid_map_and_names_its_values(unbroken):
    workdir, result = unbroken
    scores = {line['step']: line['valid_map'] for line in lines_of(workdir) if 'valid_map' in line}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        meta = checkpoints.read_meta('best')
        assert checkpoints.read_meta('latest')['step'] == 8
        assert checkpoints.find('8')[1] == 8
        with pytest.raises(InputError, match=r"no checkpoint '5'; it has best \(step \d\), latest \(step 8\)"):
            checkpoints.find('5')
    assert scores[meta['step']] == max(scores.values()) == meta['score']
    assert result['checkpoint_step'] == meta['step']
    assert meta['attributes'][0] == 'skirt_length'
    assert meta['values'][0][0] == 'Short Length'


# a signal is noticed with the metrics of its step, which are read when the next one has started
@pytest.mark.parametrize('signal_in,stop_after', [(2, 3), (4, 4), (6, 7)])
def test_a_stopped_run_resumes_and_ends_bit_for_bit_the_same(
    unbroken, config, tmp_path, monkeypatch, signal_in, stop_after
):
    stop_in_step(monkeypatch, signal_in)
    with pytest.raises(StoppedError, match='Stopped by SIGTERM after saving step') as caught:
        run(config, tmp_path)
    assert caught.value.exit_status == 143
    assert arrays_of(tmp_path)[0] == stop_after
    result = run(config, tmp_path)
    workdir, expected = unbroken
    step, arrays = arrays_of(tmp_path)
    assert step == 8
    assert_same_arrays(arrays, arrays_of(workdir)[1])
    assert result == expected
    timed = {'train_triplets_per_second': 0, 'train_step_seconds': 0, 'train_data_wait_seconds': 0}
    assert [{**line, **timed} for line in lines_of(tmp_path)] == [line | timed for line in lines_of(workdir)]


def test_the_same_command_on_a_finished_run_only_tests_again(unbroken, config):
    workdir, expected = unbroken
    assert run(config, workdir) == expected
    assert arrays_of(workdir)[0] == 8


def test_records_cannot_be_replaced_until_the_run_ends(unbroken, config, records, monkeypatch):
    reading = Path(records.directory).parent / '.reading'

    def replace(run):
        with pytest.raises(InputError, match='being read'), files.lock(reading, 'being read'):
            pass
        return {'map': None}

    monkeypatch.setattr(loop, 'evaluate_best', replace)
    assert run(config, unbroken[0]) == {'map': None}
    with files.lock(reading, 'being read'):
        pass


def test_a_run_without_valid_split_stopped_at_its_very_end_still_gets_a_best(config, tmp_path, monkeypatch):
    original = loop.has_targets
    monkeypatch.setattr(loop, 'has_targets', lambda records, split: split != 'valid' and original(records, split))
    stop_in_step(monkeypatch, 8)
    with pytest.raises(StoppedError):
        run(config, tmp_path)
    assert run(config, tmp_path)['checkpoint_step'] == 8


def test_eval_scores_the_checkpoint_as_training_did(unbroken, config, records):
    workdir, expected = unbroken
    assert evaluate(config, workdir, 'best', 'test', records) == expected
    result = evaluate(config, workdir, 'latest', 'valid', records)
    assert result['checkpoint_step'] == 8
    assert result['map']['overall'] == pytest.approx(lines_of(workdir)[-1]['valid_map'], abs=1e-6)


def test_a_workdir_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint 'best'; train first, or name another workdir"):
        load_network(tmp_path, 'best', None, make_mesh())


@pytest.mark.parametrize(
    'field,value', [('model.embed_dim', 8), ('data.fit', 'pad'), ('seed', 3), ('train.batch_size', 16)]
)
def test_another_model_data_or_seed_is_refused(unbroken, config, field, value):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=rf'was trained with config\.{field}=.*, not .*; use another --workdir'):
        run(config, unbroken[0])


@pytest.mark.parametrize('cache', ['disk', 'device'])
def test_a_run_that_resumes_from_cached_photos_ends_like_one_that_decodes_them(cache, unbroken, config, tmp_path):
    config.train.num_epochs = 1
    run(config, tmp_path)
    config.train.num_epochs, config.data.cache = 2, cache
    run(config, tmp_path)
    ours, theirs = arrays_of(tmp_path)[1], arrays_of(unbroken[0])[1]
    if cache == 'disk':
        assert_same_arrays(ours, theirs)
    for name in (name for name in ours if 'batch_stats' in name):  # another program, which rounds differently
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    'field,value,match',
    [
        ('data.jitter', 0.1, 'random crops are impossible'),
        ('train.precompute_features', True, 'with a single trunk that is frozen'),
    ],
)
def test_what_cannot_be_cached_is_refused(field, value, match, config, tmp_path):
    config.data.cache = 'device'
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=match):
        loop.check_config(config, tmp_path)


def test_a_batch_must_split_into_its_parts(config, tmp_path):
    config.train.loss, config.train.accumulate_steps = 'triplet', 2
    with pytest.raises(InputError, match=r'batch_size is 8, which 8 devices cannot share evenly in 2 parts'):
        loop.check_config(config, tmp_path)


def test_epochs_and_learning_rate_may_change(unbroken, config, tmp_path):
    config.train.num_epochs = 1
    run(config, tmp_path)
    config.train.num_epochs, config.optim.decay_rate = 2, 1.0
    run(config, tmp_path)
    assert arrays_of(tmp_path)[0] == 8
    assert lines_of(tmp_path)[-2]['train_learning_rate'] == pytest.approx(1e-3)


@pytest.mark.parametrize('cache', ['none', 'device'])
def test_steps_compile_once_and_transfer_nothing(cache, config, tmp_path, monkeypatch):
    original, steps = loop.make_train_step, []

    def make_train_step(*arguments):
        step = original(*arguments)
        steps.append(step)

        def guarded(state, batch):
            with jax.transfer_guard('disallow'):
                return step(state, batch)

        return guarded

    monkeypatch.setattr(loop, 'make_train_step', make_train_step)
    config.data.cache = cache
    run(config, tmp_path)
    assert [step._cache_size() for step in steps] == [1]


def test_how_gradients_are_computed_may_change(config, tmp_path):
    config.train.loss, config.train.batch_size, config.train.num_epochs = 'triplet', 16, 1
    run(config, tmp_path)
    config.train.num_epochs, config.train.remat, config.train.accumulate_steps = 2, True, 2
    run(config, tmp_path)
    assert arrays_of(tmp_path)[0] == 4


def test_a_nan_stops_with_a_sentence_and_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    original = loop.train_batches

    def poisoned(*arguments):
        def batches():
            for number, batch in enumerate(original(*arguments)):
                if number == 5:
                    batch = {**batch, 'labels': np.zeros_like(batch['labels'])}  # no positives: a mean of nothing
                yield batch

        return batches()

    monkeypatch.setattr(loop, 'train_batches', poisoned)
    with pytest.raises(NumericsError, match='loss is nan at step 6; the checkpoint of step 4 is kept') as caught:
        run(config, tmp_path)
    assert caught.value.exit_status == 3
    step, arrays = arrays_of(tmp_path)
    assert step == 4
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_vectors_that_are_not_finite_are_not_scored(config, tmp_path):
    config.optim.learning_rate, config.data.num_triplets = 1e30, 8
    with pytest.raises(
        NumericsError, match=r'vectors are not finite; the checkpoint of step 1 is kept\. Lower'
    ) as caught:
        run(config, tmp_path)
    assert str(caught.value).endswith(f'if that fails at once, delete {tmp_path}/checkpoints/latest/1 too.')
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == {'latest': 1}
    shutil.rmtree(tmp_path / 'checkpoints' / 'latest' / '1')
    config.optim.learning_rate = 1e-3
    assert run(config, tmp_path)['checkpoint_step'] in (1, 2)


def test_a_run_without_its_latest_checkpoint_resumes_from_the_best(unbroken, config, tmp_path, capsys):
    config.train.num_epochs = 1
    run(config, tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints' / 'latest' / '4')
    config.train.num_epochs = 2
    assert run(config, tmp_path) == unbroken[1]
    assert 'latest is empty: continuing from the best checkpoint' in capsys.readouterr().out
    assert_same_arrays(arrays_of(tmp_path)[1], arrays_of(unbroken[0])[1])
    shutil.rmtree(tmp_path / 'checkpoints' / 'latest' / '8')
    config.seed = 5
    with pytest.raises(InputError, match=r'was trained with config\.seed=0, not 5'):
        run(config, tmp_path)


def test_the_best_checkpoint_of_another_run_is_refused(unbroken, config, tmp_path):
    config.seed, config.train.num_epochs = 3, 1
    run(config, tmp_path)
    shutil.rmtree(tmp_path / 'checkpoints' / 'best')
    shutil.copytree(unbroken[0] / 'checkpoints' / 'best', tmp_path / 'checkpoints' / 'best')
    with pytest.raises(InputError, match=r'was trained with config\.seed=0, not 3 \(best checkpoint\)'):
        run(config, tmp_path)


def test_a_lost_best_checkpoint_is_noticed(config, tmp_path, capsys):
    run(config, tmp_path)
    for folder in (tmp_path / 'checkpoints' / 'best').iterdir():
        shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"has no checkpoint 'best'; it has latest"):
        run(config, tmp_path)
    config.train.num_epochs = 3
    assert run(config, tmp_path)['checkpoint_step'] == 12
    assert f'{tmp_path}/checkpoints/best has lost step' in capsys.readouterr().out


def test_a_published_recipe_never_starts_from_random_weights_silently(config, tmp_path):
    config.init.trunk = 'imagenet'
    with pytest.raises(InputError, match=r'--config\.init\.trunk=none'):
        run(config, tmp_path)


@pytest.mark.parametrize(
    'field,value,match',
    [
        ('train.accumulate_steps', 2, 'contrastive .* needs whole batches; set config.train.accumulate_steps=1'),
        ('data.num_triplets', 4, 'An epoch has 4 triplets, fewer than config.train.batch_size'),
    ],
)
def test_a_config_is_refused_before_any_photo_is_decoded(config, tmp_path, field, value, match):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=match):
        loop.check_config(config, tmp_path)


@pytest.mark.parametrize('field,value,steps', [('steps', 3, [3, 4, 6, 8]), ('minutes', 1e-9, [2, 3, 4, 6, 7, 8])])
def test_saves_within_an_epoch_are_due_by_steps_and_by_minutes(config, tmp_path, monkeypatch, field, value, steps):
    config.train[f'save_every_{field}'] = value
    original, saved = Checkpoints.save, []

    def save(checkpoints, kind, arrays, meta):
        saved.extend([meta['step']] * (kind == 'latest'))
        original(checkpoints, kind, arrays, meta)

    monkeypatch.setattr(Checkpoints, 'save', save)
    run(config, tmp_path)
    assert saved == steps
