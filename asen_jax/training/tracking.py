"""What a run writes down: `metrics.jsonl` (one JSON object a line) and TensorBoard events."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import tensorboardX

from asen_jax.errors import NumericsError


class Meter:
    """Means of a step's numbers since the last line that was written, with the rate and the time spent waiting for data."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.sums, self.count, self.waited, self.start = {}, 0, 0.0, time.perf_counter()

    def add(self, step: int, numbers: Mapping) -> None:
        """Take in the numbers of `step`; raises NumericsError where one is not finite."""
        for name, number in numbers.items():
            number = float(number)
            if not math.isfinite(number):
                raise NumericsError(f'{name} is {number} at step {step}')
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.count += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """The means, triplets a second, and seconds a step that the device waited for data."""
        seconds = time.perf_counter() - self.start
        means = {name: total / max(self.count, 1) for name, total in self.sums.items()}
        rates = {
            'triplets_per_second': self.count * batch_size / seconds,
            'data_wait_seconds': self.waited / max(self.count, 1),
        }
        return means | rates


class Tracker:
    """Writes named numbers by step; lines after `start_step` (of a run that was stopped later) are cut away first."""

    def __init__(self, workdir: Path, start_step: int):
        self.path = Path(workdir) / 'metrics.jsonl'
        if self.path.exists():
            cut_back(self.path, start_step)
        self.file = self.path.open('a')
        self.board = tensorboardX.SummaryWriter(os.fspath(workdir), purge_step=start_step + 1, flush_secs=10)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One line, and one point a number."""
        self.file.write(json.dumps({'step': step, **numbers}) + '\n')
        self.file.flush()
        for name, number in numbers.items():
            self.board.add_scalar(name, number, step)

    def has(self, step: int, prefix: str) -> bool:
        """Whether a number called `prefix`... was written for `step`."""
        lines = map(json.loads, self.path.read_text().splitlines())
        return any(line['step'] == step and any(name.startswith(prefix) for name in line) for line in lines)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def cut_back(path: Path, last_step: int) -> None:
    """Drop the lines of `path` after `last_step`, and a line that a kill cut short."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            step = json.loads(line)['step']
        except (ValueError, KeyError, TypeError):
            continue  # half a line: it is drawn again
        if step <= last_step:
            kept.append(line + '\n')
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(kept))
    temporary.replace(path)
