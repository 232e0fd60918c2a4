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
    config.train.profile_steps, config.train.num_epochs, config.train.log_every_steps = 5, 2, 4
    counted = []
    monkeypatch.setattr(loop, 'step_flops', lambda *args: counted.append(step_flops(*args)) or counted[-1])
    loop.train_and_evaluate(config, tmp_path, prepare.prepare(config))
    assert f'wrote a profile to {tmp_path}/plugins/profile' in capsys.readouterr().out
    assert recorded(tmp_path).count('train') == 1  # the last of the first epoch: evaluations are not recorded
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    shares = [line for line in lines if 'train_share_of_peak' in line]
    assert len(shares) == 2 and counted[0] == counted[1] > 1e6
    for line in shares:
        assert line['train_share_of_peak'] == pytest.approx(
            counted[0] / jax.device_count() / (line['train_step_seconds'] * 1e12)
        )


def test_products_and_convolutions_are_counted_with_their_gradients():
    def convolve(x, kernel):
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        return (x @ jax.numpy.ones((5, 7))).sum()

    def repeat(x, kernel):
        return jax.lax.scan(lambda total, _: (total + convolve(x, kernel), None), 0.0, length=3)[0]

    arguments = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.ones((3, 3, 3, 5))
    convolution, product = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3), 2 * (2 * 4 * 4) * 5 * 7
    assert step_flops(jax.jit(convolve), *arguments) == convolution + product
    assert step_flops(jax.jit(repeat), *arguments) == 3 * (convolution + product)
    both = jax.jit(jax.grad(convolve, argnums=(0, 1)))
    assert step_flops(both, *arguments) == 3 * convolution + 2 * product  # the product with ones has one gradient


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
