"""The recording of steps and the share of the peak; what fails in them never ends a run."""

import json

import jax
import pytest

from asen_jax.training import loop, profiling
from asen_jax.training.profiling import Profiler, peak_flops, step_flops
from data_builders import prepare


def recorded(folder):
    """The names of all events in a recording."""
    (path,) = folder.glob('plugins/profile/*/*.xplane.pb')
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    return [event.name for plane in planes for line in plane.lines for event in line.events]


def test_a_run_records_steps_and_its_share_of_the_peak(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(profiling.PEAKS, 'cpu', (1.0, 2.0, 3.0))
    config.train.profile_steps, config.train.num_epochs, config.train.log_every_steps = 2, 2, 4
    compiled = []
    monkeypatch.setattr(loop, 'step_flops', lambda *args: compiled.append(step_flops(*args)) or compiled[-1])
    loop.train_and_evaluate(config, tmp_path, prepare.prepare(config))
    assert f'wrote a profile to {tmp_path}/plugins/profile' in capsys.readouterr().out
    assert recorded(tmp_path).count('train') == 2
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    shares = [line for line in lines if 'train_share_of_peak' in line]
    assert len(shares) == 2 and compiled[0] == compiled[1] > 1e6
    for line in shares:
        assert line['train_share_of_peak'] == pytest.approx(compiled[0] / (line['train_step_seconds'] * 1e12))


def test_operations_are_counted_in_the_program_that_was_compiled():
    multiply = jax.jit(lambda a, b: a @ b)
    a, b = jax.numpy.ones((8, 16)), jax.numpy.ones((16, 32))
    multiply(a, b)
    events = []

    def listen(name, *_, **__):
        events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for parts in (1, 4):
            assert step_flops(multiply, parts, a, b) == pytest.approx(parts * 2 * 8 * 16 * 32, rel=0.01)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not any('compile' in name for name in events)
    assert step_flops(lambda a: a, 1, a) is None


def test_the_peak_depends_on_the_device_and_the_precision():
    assert peak_flops('NVIDIA H200', 'float32') < peak_flops('NVIDIA H200', 'tensorfloat32')
    assert peak_flops('NVIDIA H200', 'bfloat16') == 989.4e12
    assert peak_flops('cpu', 'float32') is None


def test_a_recording_that_is_cut_short_is_written(tmp_path, capsys):
    profiler = Profiler(tmp_path, 100)
    for _ in range(profiling.SKIPPED_STEPS + 1):
        profiler.step(jax.jit(lambda x: x + 1)(1))
    profiler.close()
    assert recorded(tmp_path) and 'wrote a profile' in capsys.readouterr().out


def test_a_recording_that_fails_is_a_notice(tmp_path, capsys):
    profiler = Profiler(tmp_path, 2)
    jax.profiler.start_trace(tmp_path / 'other')
    try:
        for _ in range(10):
            profiler.step(())
    finally:
        jax.profiler.stop_trace()
    profiler.close()
    assert capsys.readouterr().out.count('no profile of the steps: ') == 1
