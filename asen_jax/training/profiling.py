"""How well a training uses its devices: a recording of some steps, and the share of the devices' peak."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

SKIPPED_STEPS = 3  # of a process, before the recording: they compile, and fill the queues
# Dense TFLOP/s in float32 without tensor cores, TF32, and bfloat16 with float32 sums, from NVIDIA's data sheets.
PRECISIONS = ('float32', 'tensorfloat32', 'bfloat16')
A100, H100 = (19.5, 156.0, 312.0), (66.9, 494.7, 989.4)
PEAKS = {  # by `device_kind`
    'NVIDIA A100-PCIE-40GB': A100,
    'NVIDIA A100-SXM4-40GB': A100,
    'NVIDIA A100 80GB PCIe': A100,
    'NVIDIA A100-SXM4-80GB': A100,
    'NVIDIA H100 80GB HBM3': H100,
    'NVIDIA H200': H100,
    'NVIDIA L4': (30.3, 60.0, 121.0),
    'NVIDIA GeForce RTX 4090': (82.6, 82.6, 165.2),
}


def peak_flops(device_kind: str, precision: str) -> float | None:
    """The most FLOP/s that a device can do in the arithmetic of config.precision; None if that is not known."""
    peaks = PEAKS.get(device_kind)
    return 1e12 * peaks[PRECISIONS.index(precision)] if peaks else None


def step_flops(train_step: Any, *arguments: Any) -> int:
    """The floating-point operations of the products and convolutions of one call, over all devices.

    `train_step` was compiled with `jax.jit` and called with such arguments, so JAX need not trace it again. XLA's own count takes a
    loop for one round, and leaves out what a GPU does in cuBLAS and cuDNN.
    """
    return _count_flops(train_step.trace(*arguments).jaxpr)


def _count_flops(program: Any) -> int:
    """Those of a jaxpr: 2 for each multiplication, with its addition."""
    total = 0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        inside = [each for each in jax.tree.leaves(list(params.values())) if hasattr(each, 'eqns')]
        total += params.get('length', 1) * sum(map(_count_flops, inside))
        if name in ('dot_general', 'conv_general_dilated'):
            left, right = (operand.aval.shape for operand in equation.invars[:2])
            if name == 'dot_general':
                (contracted, _), _ = params['dimension_numbers']
                per_result = math.prod(left[axis] for axis in contracted)
            else:  # a stride becomes zeros between the inputs in the gradient, which nobody need multiply
                per_result = math.prod(right) / right[params['dimension_numbers'].rhs_spec[0]]
                per_result /= math.prod(params['lhs_dilation'])
            total += round(2 * math.prod(equation.outvars[0].aval.shape) * per_result)
    return total


class Profiler:
    """Records up to `num_steps` steps with jax.profiler below `folder`, where TensorBoard and XProf find them; never raises."""

    def __init__(self, folder: Path, num_steps: int):
        self.folder, self.num_steps = folder, num_steps
        self.steps_done, self.recording = 0, False

    def step(self, arrays: Any) -> None:
        """A step, whose results are `arrays`, has been started: begin or end the recording when it is time."""
        self.steps_done += 1
        if self.num_steps and self.steps_done == SKIPPED_STEPS:
            with _reporting_errors():
                jax.block_until_ready(arrays)  # so that only whole steps are recorded
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # every call of a Python function: slow, and large
                jax.profiler.start_trace(self.folder, profiler_options=options)
                self.recording = True
        elif self.steps_done == SKIPPED_STEPS + self.num_steps:
            self.close(arrays)

    def close(self, arrays: Any = ()) -> None:
        """End the recording, if there is one, once `arrays` are computed."""
        if self.recording:
            self.recording = False
            with _reporting_errors():
                jax.block_until_ready(arrays)
                jax.profiler.stop_trace()
                tqdm.write(
                    f'wrote a profile to {self.folder / "plugins" / "profile"}; see it with TensorBoard or XProf'
                )


@contextlib.contextmanager
def _reporting_errors() -> Iterator[None]:
    """Print errors, such as a full disk or another profiler that is running, instead of raising them."""
    try:
        yield
    except Exception as error:
        tqdm.write(f'no profile of the steps: {str(error).splitlines()[0] if str(error) else type(error).__name__}')
