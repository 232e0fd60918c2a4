"""What a run writes down."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asen_jax.errors import NumericsError
from asen_jax.training.tracking import Meter, Tracker


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_numbers_reach_the_lines_and_tensorboard(tmp_path):
    tracker = Tracker(tmp_path, 0)
    tracker.write(3, {'train_loss': 0.5})
    tracker.close()
    assert read_lines(tmp_path) == [{'step': 3, 'train_loss': 0.5}]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars('train_loss')] == [(3, 0.5)]


def test_a_resumed_run_cuts_back_what_came_after_its_step(tmp_path):
    tracker = Tracker(tmp_path, 0)
    for step in (2, 4, 6):
        tracker.write(step, {'train_loss': float(step)})
    tracker.close()
    with (tmp_path / 'metrics.jsonl').open('ab') as file:
        file.write(b'{"step": "x"}\n[8]\n\xff\n')  # damaged
        file.write(b'{"step": 8, "tra')  # killed in the middle of a line
    tracker = Tracker(tmp_path, 4)
    assert tracker.has(4, 'train_')
    assert not tracker.has(6, 'train_')
    assert not tracker.has(4, 'valid_')
    tracker.write(5, {'train_loss': 5.0})
    tracker.close()
    assert [line['step'] for line in read_lines(tmp_path)] == [2, 4, 5]


def test_a_meter_means_and_refuses_what_is_not_finite():
    meter = Meter()
    meter.add(1, {'loss': 1.0})
    meter.add(2, {'loss': 3.0})
    numbers = meter.read(batch_size=8)
    assert numbers['loss'] == 2
    assert numbers['triplets_per_second'] == pytest.approx(8 / numbers['step_seconds'])
    meter.add(3, {'loss': float('nan')})
    with pytest.raises(NumericsError, match='loss is nan at step 3'):
        meter.add(4, {'loss': 1.0})
