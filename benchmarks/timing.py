"""Time calls that take turns, and report them beside each other; shared by the commands of this folder."""

import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from asen_jax import files

PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'pillow', 'torch')


class Work(NamedTuple):
    """The same work done by several sides, the first of which is ours; a call returns when its work is done."""

    name: str
    unit: str
    items: int  # that one call handles
    calls: Mapping[str, Callable[[], Any]]
    limit: float | None = None  # seconds that one call takes at least on this hardware


class Timed(NamedTuple):
    """The seconds that each call of each side took, in the order in which they took turns."""

    work: Work
    seconds: Mapping[str, Sequence[float]]

    def summary(self) -> dict:
        """Medians with lowest and highest: items per second of each side, our ratio to the others, our share of the limit."""
        work, ours = self.work, next(iter(self.seconds))
        per_second = {side: [work.items / each for each in seconds] for side, seconds in self.seconds.items()}
        ratios = {
            side: [their / our for their, our in zip(seconds, self.seconds[ours], strict=True)]
            for side, seconds in self.seconds.items()
            if side != ours
        }
        result: dict = {'work': work.name, 'unit': f'{work.unit}/s'}
        result['per_second'] = {side: spread(each) for side, each in per_second.items()}
        result['ratio'] = {side: spread(each) for side, each in ratios.items()}
        if work.limit is not None:
            result['limit_per_second'] = work.items / work.limit
            result['share_of_limit'] = work.limit / statistics.median(self.seconds[ours])
        return result


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Median, lowest, and highest."""
    return {'median': statistics.median(numbers), 'lowest': min(numbers), 'highest': max(numbers)}


def take_turns(work: Work, repeats: int) -> Timed:
    """Time `repeats` calls of each side; each round starts with another side.

    Each timed call follows one of the same side that is not timed, as in continuous use: while a side waits for its turn, its
    caches, and on some virtual machines even the memory that it has freed, go to others.
    """
    sides = list(work.calls)
    seconds = {side: [] for side in sides}
    for number in range(repeats):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            work.calls[side]()
            start = time.perf_counter()
            work.calls[side]()
            seconds[side].append(time.perf_counter() - start)
    return Timed(work, seconds)


def fastest(call: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of the call's times in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def report(title: str, timed: Sequence[Timed], output: Path | None = None, more: Mapping | None = None) -> None:
    """Print a table, one line for each side of each work, and write it with `more` as JSON."""
    machine = hardware()
    print(f'{title}\n{machine["device"]}\n{machine["versions"]}\n')
    print(f'{"":<36}{"per second":>12}  {"ours / theirs (lowest - highest)":<34}share of the limit')
    summaries = [each.summary() for each in timed]
    for summary in summaries:
        for number, (side, speed) in enumerate(summary['per_second'].items()):
            name = f'{summary["work"]}, {summary["unit"]}' if not number else ''
            ratio = summary['ratio'].get(side)
            beside = f'{ratio["median"]:.2f} ({ratio["lowest"]:.2f} - {ratio["highest"]:.2f})' if ratio else ''
            share = f'{summary["share_of_limit"]:.0%}' if not number and 'share_of_limit' in summary else ''
            if name:
                print(name)
            print(f'  {side:<34}{speed["median"]:>12,.2f}  {beside:<34}{share}')
    if output:
        files.write_json(output, {'title': title, **machine, 'rows': summaries, **(more or {})})
        print(f'wrote {output}')


def hardware() -> dict[str, str]:
    """The device and the versions, as every table names them."""
    return {'device': device_name(), 'versions': versions()}


def device_name() -> str:
    """The GPUs that JAX sees, or else the CPU."""
    import jax  # here, so that a command can set its flags first

    if jax.default_backend() == 'gpu':
        return ', '.join(sorted({f'{jax.device_count()} x {device.device_kind}' for device in jax.devices()}))
    path = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*:\s*(.*)', path.read_text()) if path.exists() else None
    wide = ', AVX-512' if path.exists() and 'avx512f' in path.read_text() else ''
    return f'{found[1] if found else platform.processor()}, {os.cpu_count()} cores{wide}'


def versions() -> str:
    """Python's version, and that of each package that is installed."""
    known = {each.metadata['Name'].lower(): each.version for each in importlib.metadata.distributions()}
    named = [f'{name} {known[name]}' for name in PACKAGES if name in known]
    return ', '.join([f'Python {platform.python_version()}', *named])
