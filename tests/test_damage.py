"""benchmarks/damage.py: what it does to a file, and what it calls a fault."""

import json
import random

import pytest

from benchmarks import damage
from benchmarks.damage import Outcome

SILENT = Outcome(0, 'MAP 50.1\n', '')


@pytest.fixture
def copies(tmp_path):
    """The folder of a command on an undamaged copy, and on another copy with other figures."""
    for name, figure in (('whole', 0.5), ('copy', 0.4)):
        (tmp_path / name / 'run').mkdir(parents=True)
        (tmp_path / name / 'run' / 'eval_test.json').write_text(json.dumps({'map': figure}))
    return tmp_path / 'whole', tmp_path / 'copy'


VERDICTS = [
    (Outcome(2, '', 'main.py: x is damaged.\n'), 'noticed'),
    (Outcome(0, 'MAP 40.1\nother records\n', ''), 'noticed'),
    (Outcome(0, 'MAP 40.1\n', ''), 'fault'),
    (Outcome(0, 'MAP nan\n', ''), 'fault'),
    (Outcome(2, '', 'main.py: x is damaged.\nnoise\n'), 'fault'),
    (Outcome(1, '', 'Error\n'), 'fault'),
    (Outcome(None, '', ''), 'fault'),
]


@pytest.mark.parametrize('outcome,verdict', VERDICTS)
def test_other_figures_are_a_fault_unless_the_command_says_why(copies, outcome, verdict):
    assert damage.judge('eval', outcome, SILENT, *copies)[0] == verdict
    whole, _ = copies
    assert damage.judge('eval', SILENT, SILENT, whole, whole)[0] == 'harmless'


@pytest.mark.parametrize('kind,size', [('flip', 1000), ('cut', None), ('zero', 1000), ('remove', None)])
def test_a_damage_changes_one_file_and_follows_from_the_seed(tmp_path, kind, size):
    content = bytes(range(1, 251)) * 4
    whats = []
    for name in ('one', 'other'):
        folder = tmp_path / name
        for part in ('run', 'rec'):
            (folder / part).mkdir(parents=True)
            (folder / part / 'file').write_bytes(content)
        whats.append(damage.damage(folder, kind, random.Random(3)))
        left = [path.read_bytes() for path in sorted(folder.rglob('file'))]
        assert sum(found == content for found in left) == 1
        if size:
            assert [len(found) for found in left] == [size, size]
    assert whats[0] == whats[1]
