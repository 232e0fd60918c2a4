"""The record of a run: `metrics.jsonl` (one JSON object per line) and TensorBoard events."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorboardX
from PIL import Image

from asen_jax import files
from asen_jax.errors import NumericsError
from asen_jax.evaluation.results import read_metrics


class Meter:
    """Means of the steps' metrics since the last reset, with the rate and the time spent waiting for data.

    A step's metrics are read only when the next step's are added, so that the device never waits for the host.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0):
        """Continue with the `sums` of `count` steps; the rate and the time are those of this process."""
        self._unread: tuple[int, Mapping] | None = None
        self.reset()
        self.sums, self.count = dict(sums or {}), count

    def reset(self) -> None:
        """Start over; the metrics that were added last must have been read."""
        self.sums, self.count, self.timed, self.waited, self.start = {}, 0, 0, 0.0, time.perf_counter()

    def add(self, step: int, metrics: Mapping) -> None:
        """Take the metrics of `step`, and read the previous ones; raises NumericsError if one is not finite."""
        self.flush()
        self._unread = step, metrics

    def flush(self) -> None:
        """Wait for the metrics that were added last, and read them; raises NumericsError if one is not finite."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        for name, number in metrics.items():
            number = float(number)
            if not math.isfinite(number):
                raise NumericsError(f'{name} is {number} at step {step}')
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.count += 1
        self.timed += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """The means, triplets per second, and the seconds that a step took, and that it waited for its data."""
        self.flush()
        seconds = time.perf_counter() - self.start
        means = {name: total / max(self.count, 1) for name, total in self.sums.items()}
        rates = {
            'triplets_per_second': self.timed * batch_size / seconds,
            'step_seconds': seconds / max(self.timed, 1),
            'data_wait_seconds': self.waited / max(self.timed, 1),
        }
        return means | rates


class Meters(NamedTuple):
    """The running means of an epoch, which a checkpoint keeps, so that a resumed run writes the lines of an unbroken one."""

    since_log: Meter
    of_epoch: Meter

    @classmethod
    def start(cls, saved: Mapping[str, Mapping] | None = None) -> 'Meters':
        """At the beginning of an epoch, or as `save` returned them within one."""
        return cls(**{name: Meter(**(saved or {}).get(name, {})) for name in cls._fields})

    def add(self, step: int, metrics: Mapping) -> None:
        """Take the metrics of `step`; raises NumericsError if one is not finite."""
        for meter in self:
            meter.add(step, metrics)

    def save(self) -> dict[str, dict]:
        """The sums and counts, as JSON can keep them; raises NumericsError as `add` does."""
        for meter in self:
            meter.flush()
        return {name: {'sums': meter.sums, 'count': meter.count} for name, meter in self._asdict().items()}


class Tracker:
    """Writes named numbers by step; lines after `start_step`, from a run that stopped later, are removed first.

    Of several processes, only the one that `is_writer` writes anything.
    """

    def __init__(self, workdir: Path, start_step: int, is_writer: bool = True):
        self.path = Path(workdir) / 'metrics.jsonl' if is_writer else Path(os.devnull)
        if is_writer and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line['step'] <= start_step]
            files.write_text(self.path, ''.join(json.dumps(line) + '\n' for line in kept))
        self.file = self.path.open('a')
        # an unlimited queue: its thread ends when the disk is full, and a limited one would then block the training
        options = {'max_queue': 0, 'flush_secs': 10, 'write_to_disk': is_writer}
        self.board = tensorboardX.SummaryWriter(os.fspath(workdir), purge_step=start_step + 1, **options)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add one line, and one TensorBoard point per number."""
        with files.errors_name(self.path):
            self.file.write(json.dumps({'step': step, **numbers}) + '\n')
            self.file.flush()
        for name, number in numbers.items():
            self.board.add_scalar(name, number, step)

    def write_picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Add a picture to TensorBoard."""
        self.board.add_image(name, np.asarray(picture), step, dataformats='HWC')

    def has(self, step: int, prefix: str) -> bool:
        """Whether a number whose name starts with `prefix` was written for `step`."""
        lines = [line for line in read_metrics(self.path) if line['step'] == step]
        return any(name.startswith(prefix) for line in lines for name in line)

    def close(self) -> None:
        """Flush and close both files."""
        with files.errors_name(self.path):
            self.board.close()
            self.file.close()
