"""benchmarks/reproduce.py: the table, the hash of weights, and what is remembered of each run."""

import subprocess

import numpy as np
import pytest

from benchmarks import reproduce


def run(seed, overall, skirt=0.1, **more):
    result = {
        'dataset': 'shop',
        'map': {'overall': overall, 'per_attribute': {'skirt': skirt}},
        'chance_map': {'overall': 0.1579},
        'triplet_accuracy': {'overall': 0.75, 'per_attribute': {'heel': 0.5}},
        'dropped': {'queries': 0, 'candidates': 0},
        'caveat': '',
    }
    return reproduce.Run(seed, result | more, 90.0 + seed, 'abc', f'hash{seed}')


def table(runs):
    return reproduce.format_table(runs, 'configs/shop.py', 'c').splitlines()


def test_the_row_has_mean_deviation_min_and_max_and_each_seed_its_own_line():
    lines = table([run(0, 0.5, skirt=0.1), run(30, 0.6, skirt=0.3)])
    assert lines[0].count('|') == lines[1].count('|') == lines[2].count('|')
    assert lines[2] == '| shop | `configs/shop.py` | MAP | 55.00 ± 7.07 | 50.00 | 60.00 | 15.79 | `c` |'
    assert 'seed 0: 50.00, 1.5 min, commit abc, checkpoint hash0' in lines
    assert 'seed 30: 60.00, 2.0 min, commit abc, checkpoint hash30' in lines
    assert lines[-1] == f'{"skirt":<24}20.00 ± 14.14'
    assert '| MAP | 50.00 | 50.00 | 50.00 |' in table([run(0, 0.5)])[2]  # one seed has no deviation


def test_without_queries_it_is_triplet_accuracy_and_caveats_are_printed():
    lines = table([run(0, None, caveat='Resampled.', dropped={'queries': 3, 'candidates': 4})])
    assert '| triplet accuracy | 75.00 | 75.00 | 75.00 | 50.00 |' in lines[2]
    assert lines[-3:] == [f'{"heel":<24}50.00', '3 queries and 4 candidates lack their photo', 'Resampled.']


def test_equal_weights_have_equal_hashes():
    weights = {'params': {'fc': {'kernel': np.ones((2, 3), np.float32), 'bias': np.zeros(3, np.float32)}}}
    same = {'params': {'fc': {'bias': np.zeros(3, np.float32), 'kernel': np.ones((2, 3), np.float32)}}}
    assert reproduce.hash_weights(weights) == reproduce.hash_weights(same)
    for other in (np.ones((3, 2), np.float32), np.ones((2, 3)), np.ones((2, 3), np.float32) * np.float32(1.0000001)):
        same['params']['fc']['kernel'] = other
        assert reproduce.hash_weights(weights) != reproduce.hash_weights(same)


def test_other_options_use_other_folders():
    given = ['configs/a.py'], ['configs/a.py:csn'], ['configs/a.py', '--config.x=1'], ['configs/a.py', '--config.x=2']
    names = [reproduce.name_of(config, overrides) for config, *overrides in given]
    assert names[:2] == ['a', 'a_csn'] and len(set(names)) == 4


def test_the_first_failing_run_ends_it_with_its_status(capfd, tmp_path):
    arguments = ['reproduce.py', f'--config={tmp_path}/none.py', '--seeds', '0,1', f'--folder={tmp_path}']
    assert reproduce.main(arguments) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['none-seed-0']
    assert 'There is no config file' in capfd.readouterr().err


@pytest.mark.parametrize('wrong', ['--seeds=0,x', '--seeds=1,1', '--seeds=-1', '--config.seed=3', '--epochs=2'])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(SystemExit, match='2'):
        reproduce.main(['reproduce.py', wrong])


def test_a_run_notes_its_first_commit_and_the_time_until_it_first_finishes(tmp_path, monkeypatch):
    def attempt(commit, seconds, leaves):
        def finish(*_, **__):
            (tmp_path / leaves).mkdir(exist_ok=True)
            return done

        monkeypatch.setattr(reproduce, 'commit', lambda: commit)
        monkeypatch.setattr(reproduce.time, 'monotonic', iter([0.0, seconds]).__next__)
        monkeypatch.setattr(reproduce.subprocess, 'run', finish)
        assert reproduce.train(tmp_path, []) == 0
        return [(tmp_path / name).read_text() for name in ('commit.txt', 'seconds.txt')]

    done = subprocess.CompletedProcess([], 0)
    assert attempt('first', 10.0, leaves='nothing') == ['first\n', '10.0\n']
    assert attempt('second', 10.0, leaves='checkpoints') == ['second\n', '20.0\n']
    assert attempt('third', 30.0, leaves='eval_test.json') == ['second\n', '50.0\n']
    assert attempt('fourth', 99.0, leaves='eval_test.json') == ['second\n', '50.0\n']
