"""Checkpoints of a workdir, each saved whole or not at all: `latest`, which resume reads, and `best` by valid score.

Each has its own Orbax manager, because one manager refuses to save a step twice. A checkpoint has the items params, batch_stats
and opt_state, which can be restored one by one, and meta (JSON: step, score, config, attributes, values, ...).
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from asen_jax.errors import InputError

KINDS = ('best', 'latest')


class Checkpoints:
    """The two managers of a workdir; a context manager, so that asynchronous saves finish before it closes."""

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

    def save(
        self, kind: str, step: int, arrays: Mapping[str, Any], meta: dict[str, Any], score: float | None = None
    ) -> None:
        """Start to save the trees `arrays` and `meta`; `best` keeps them only if `score` is the highest so far."""
        trees = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items = ocp.args.Composite(**trees, meta=ocp.args.JsonSave(meta))
        metrics = None if score is None else {'score': float(score)}
        self.managers[kind].save(step, args=items, metrics=metrics)

    def wait(self) -> None:
        """Wait until everything saved so far is on disk."""
        for manager in self.managers.values():
            manager.wait_until_finished()

    def steps(self) -> dict[str, int]:
        """The step of `best` and of `latest`, where they exist."""
        steps = {}
        if 'best' in self.managers:
            steps['best'] = self.managers['best'].best_step()
        if 'latest' in self.managers:
            steps['latest'] = self.managers['latest'].latest_step()
        return {kind: step for kind, step in steps.items() if step is not None}

    def find(self, which: str) -> tuple[str, int]:
        """(manager, step) of `best`, `latest` or a step; raises InputError if there is none."""
        steps = self.steps()
        for kind, step in steps.items():
            if which in (kind, str(step)):
                return kind, step
        found = ', '.join(f'{kind} (step {step})' for kind, step in steps.items())
        remedy = f'it has {found}: name one with --checkpoint' if found else 'train first, or name another --workdir'
        raise InputError(f'{self.root} has no checkpoint {which!r}; {remedy}.')

    def read_meta(self, which: str) -> dict[str, Any]:
        """The metadata of a checkpoint, without its arrays."""
        kind, step = self.find(which)
        return self._restore(kind, step, {'meta': ocp.args.JsonRestore()})['meta']

    def restore(self, which: str, like: Mapping[str, Any]) -> dict[str, Any]:
        """The items named in `like`, with the shapes, dtypes and shardings of its trees (see `abstract_like`)."""
        kind, step = self.find(which)
        return self._restore(kind, step, {name: ocp.args.StandardRestore(tree) for name, tree in like.items()})

    def _restore(self, kind: str, step: int, items: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.managers[kind].restore(step, args=ocp.args.Composite(**items)))
        except (KeyError, ValueError, OSError) as error:
            first_line = str(error).strip().split('\n')[0][:120]
            raise InputError(
                f'{self.root / kind / str(step)} does not fit this network or is damaged ({first_line}); '
                'name another --checkpoint or --workdir, or delete that folder.'
            ) from error


def abstract_like(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of `tree` with the given shardings, so that a checkpoint from 8 devices loads on one, and vice versa."""

    def describe(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree, shardings)


def _score(metrics: dict[str, float]) -> float:
    """The score that decides which checkpoint `best` keeps; NaN counts as the lowest, since it would otherwise win."""
    return metrics['score'] if math.isfinite(metrics['score']) else -math.inf


def _options(kind: str, read_only: bool) -> ocp.CheckpointManagerOptions:
    policies = ocp.checkpoint_managers
    if kind == 'best':
        keep = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    else:
        keep = policies.LatestN(1)
    return ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=_score if kind == 'best' else None,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Orbax's three warnings that a manager opened for reading is read-only."""
    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
