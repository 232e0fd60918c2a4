"""benchmarks/reproduce.py: the row of figures, and the hash that tells weights apart."""

import numpy as np
import pytest

from benchmarks import reproduce


def result(overall, skirt):
    return {
        'dataset': 'shop', 'map': {'overall': overall, 'per_attribute': {'skirt': skirt}}, 'caveat': '',
        'chance_map': {'overall': 0.1579}, 'triplet_accuracy': {'overall': 0.75, 'per_attribute': {'heel': 0.5}},
        'dropped': {'queries': 0, 'candidates': 0},
    }  # fmt: skip


def table(results, **more):
    options = {'config': 'configs/shop.py', 'seeds': [0, 1], 'at_commit': 'abc', 'hashes': ['1', '2'], 'command': 'c'}
    return reproduce.format_table(results, **options | more)


def test_the_row_has_mean_and_deviation_in_percent():
    text = table([result(0.5, 0.1), result(0.6, 0.3)])
    assert '| shop | `configs/shop.py` | MAP | 55.00 ± 7.07 | 15.79 | 0, 1 | abc | 1, 2 | `c` |' in text
    assert text.endswith(f'{"skirt":<24}20.00 ± 14.14')
    assert '| 50.00 |' in table([result(0.5, 0.1)])


def test_without_queries_it_is_triplet_accuracy_and_the_caveat_is_said():
    asked = result(None, None) | {'caveat': 'Drawn anew.', 'dropped': {'queries': 3, 'candidates': 4}}
    text = table([asked])
    assert '| triplet accuracy | 75.00 | 50.00 |' in text and 'heel                    50.00' in text
    assert text.endswith('3 queries and 4 candidates went with missing photos\nDrawn anew.')


def test_equal_weights_have_equal_hashes():
    weights = {'params': {'fc': {'kernel': np.ones((2, 3), np.float32), 'bias': np.zeros(3, np.float32)}}}
    same = {'params': {'fc': {'bias': np.zeros(3, np.float32), 'kernel': np.ones((2, 3), np.float32)}}}
    assert reproduce.hash_weights(weights) == reproduce.hash_weights(same)
    for other in (np.ones((3, 2), np.float32), np.ones((2, 3)), np.ones((2, 3), np.float32) * np.float32(1.0000001)):
        same['params']['fc']['kernel'] = other
        assert reproduce.hash_weights(weights) != reproduce.hash_weights(same)


def test_runs_of_other_options_lie_elsewhere():
    names = [reproduce.name_of(*options) for options in (
        ('configs/a.py', []), ('configs/a.py:csn', []), ('configs/a.py', ['--config.x=1']), ('configs/a.py', ['--config.x=2']),
    )]  # fmt: skip
    assert names[:2] == ['a', 'a_csn'] and len(set(names)) == 4


def test_a_failed_run_ends_it_with_its_status(capfd, tmp_path):
    arguments = ['reproduce.py', f'--config={tmp_path}/none.py', '--seeds', '0,1', f'--folder={tmp_path}']
    assert reproduce.main(arguments) == 2
    assert 'There is no config file' in capfd.readouterr().err
    for wrong in (['--seeds', '0,x'], ['--seeds', '1,1'], ['--config.seed=3'], ['--epochs=2']):
        with pytest.raises(SystemExit):
            reproduce.main(['reproduce.py', *wrong])


def test_a_run_keeps_the_commit_at_which_it_began(tmp_path, monkeypatch):
    workdir = tmp_path / 'w'
    monkeypatch.setattr(reproduce, 'commit', lambda: 'first')
    assert reproduce.commit_of(workdir) == 'first'
    monkeypatch.setattr(reproduce, 'commit', lambda: 'second')
    assert reproduce.commit_of(workdir) == 'second'  # nothing was trained
    (workdir / 'checkpoints').mkdir()
    monkeypatch.setattr(reproduce, 'commit', lambda: 'third')
    assert reproduce.commit_of(workdir) == 'second'
