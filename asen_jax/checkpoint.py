"""Checkpoints of a workdir, written whole or not at all: `latest`, which resume reads, and `best` by valid score.

Two Orbax managers, since a second save of a step is refused by one. Items of a step: params, batch_stats, opt_state (each
restorable alone) and meta (JSON: step, score, config, attributes, values).
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from asen_jax.errors import InputError
from asen_jax.training.step import TrainState

ARRAYS = ('params', 'batch_stats', 'opt_state')
KINDS = ('best', 'latest')


def _score(metrics: dict[str, float]) -> float:
    """The metric that `best` is kept by; a NaN would win, so that it counts as the lowest."""
    return metrics['score'] if math.isfinite(metrics['score']) else -math.inf


def _options(kind: str, read_only: bool) -> ocp.CheckpointManagerOptions:
    policies = ocp.checkpoint_managers
    if kind == 'best':
        keep = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        scoring = {'best_fn': _score, 'best_mode': 'max'}
    else:
        keep, scoring = policies.LatestN(1), {}
    return ocp.CheckpointManagerOptions(
        preservation_policy=keep, cleanup_tmp_directories=not read_only, read_only=read_only, **scoring
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns three times that what is opened for reading is read only."""
    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Checkpoints:
    """The two managers of a workdir; a context manager, so that asynchronous writes are finished before it closes."""

    def __init__(self, workdir: Path, read_only: bool = False):
        self.root = Path(workdir).resolve() / 'checkpoints'
        self.managers = {}
        for kind in KINDS:
            if not read_only:
                (self.root / kind).mkdir(parents=True, exist_ok=True)
            if (self.root / kind).is_dir():
                with _quiet() if read_only else contextlib.nullcontext():
                    self.managers[kind] = ocp.CheckpointManager(self.root / kind, options=_options(kind, read_only))

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_) -> None:
        for manager in self.managers.values():
            manager.wait_until_finished()
            manager.close()

    def save(self, kind: str, state: TrainState, meta: dict[str, Any], score: float | None = None) -> None:
        """Write `state` under its step; `best` keeps it only where `score` is the highest so far."""
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in ARRAYS}
        items['meta'] = ocp.args.JsonSave(meta)
        step = int(state.step)
        metrics = None if score is None else {'score': float(score)}
        self.managers[kind].save(step, args=ocp.args.Composite(**items), metrics=metrics)

    def wait(self) -> None:
        """Until everything saved so far is on disk."""
        for manager in self.managers.values():
            manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The step from which a run resumes; None in a fresh workdir."""
        manager = self.managers.get('latest')
        return None if manager is None else manager.latest_step()

    def find(self, which: str) -> tuple[str, int]:
        """(manager, step) of `best`, `latest` or a step's number; raises InputError where there is none."""
        steps = {}
        if 'best' in self.managers:
            steps['best'] = self.managers['best'].best_step()
        if 'latest' in self.managers:
            steps['latest'] = self.managers['latest'].latest_step()
        steps = {kind: step for kind, step in steps.items() if step is not None}
        if which in steps:
            return which, steps[which]
        for kind, step in steps.items():
            if which == str(step):
                return kind, step
        there = ', '.join(f'{kind} (step {step})' for kind, step in steps.items())
        remedy = f'there is {there}: name one with --checkpoint' if there else 'train first, or name another --workdir'
        raise InputError(f'{self.root} has no checkpoint {which!r}; {remedy}.')

    def read_meta(self, which: str) -> dict[str, Any]:
        """What a checkpoint says of itself, without its arrays."""
        kind, step = self.find(which)
        return self._restore(kind, step, {'meta': ocp.args.JsonRestore()})['meta']

    def restore(self, which: str, like: dict[str, Any]) -> dict[str, Any]:
        """The items named in `like` (any of params, batch_stats, opt_state), as its arrays' shapes, types and shardings."""
        kind, step = self.find(which)
        return self._restore(kind, step, {name: ocp.args.StandardRestore(tree) for name, tree in like.items()})

    def _restore(self, kind: str, step: int, items: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.managers[kind].restore(step, args=ocp.args.Composite(**items)))
        except (KeyError, ValueError, OSError) as error:
            first_line = str(error).strip().split('\n')[0][:120]
            raise InputError(
                f'{self.root / kind / str(step)} does not fit this network, or is damaged ({first_line}); '
                'name another --checkpoint or --workdir, or delete that folder.'
            ) from error


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes, types and shardings of `tree`, for `restore`: a checkpoint of 8 devices loads on one, and back."""

    def describe(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree, shardings)
