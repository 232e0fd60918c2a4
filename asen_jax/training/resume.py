"""What may change when a run resumes, and how its state is restored."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from asen_jax.checkpoint import Checkpoints, abstract_like
from asen_jax.data.prepared import Records
from asen_jax.errors import InputError
from asen_jax.fields import Fixed, differences
from asen_jax.matching import attribute_names
from asen_jax.training.optimizer import Optimizer
from asen_jax.training.step import TrainState, create_state


def is_untrained_import(meta: dict) -> bool:
    """Whether a checkpoint holds imported weights that have not been trained here: a starting point, not a run to continue."""
    return bool(meta.get('imported')) and meta['step'] == 0


def check_same_run(config: ConfigDict, records: Records, workdir: Path, checkpoints: Checkpoints) -> None:
    """Refuse to resume a workdir, or to compare with its best checkpoint, if a fixed field or the data differs."""
    for kind in checkpoints.steps():
        meta = checkpoints.read_meta(kind)
        made, fixed = ('imported', Fixed.WEIGHTS) if is_untrained_import(meta) else ('trained', Fixed.RUN)
        for field, (before, now) in differences(meta['config'], config, fixed).items():
            raise InputError(
                f'{workdir} was {made} with config.{field}={before!r}, not {now!r} ({kind} checkpoint); '
                'use another --workdir, or the same value.'
            )
        known = attribute_names(config, meta, records.attributes, workdir)
        if list(records.attributes) != known:
            raise InputError(
                f'{workdir} has the attributes {", ".join(known)}, in this order, but {records.directory} has '
                f'{", ".join(records.attributes)}; training needs the same attributes in the same order.'
            )
        if meta['fingerprint'] not in (None, records.fingerprint):
            raise InputError(f'{workdir} was trained on records other than {records.directory}; use another --workdir.')


def report_missing(checkpoints: Checkpoints, meta: dict[str, Any]) -> None:
    """Tell the user if `latest` or `best` is gone from a run that resumes from the checkpoint with this `meta`."""
    steps = checkpoints.steps()
    if 'latest' not in steps:
        print(f'{checkpoints.root / "latest"} is empty: continuing from the best checkpoint')
    if meta.get('best') is not None and 'best' not in steps:
        print(f'{checkpoints.root / "best"} has lost step {meta["best"]}: the best from here on will be kept')


def restore_state(
    checkpoints: Checkpoints,
    kind: str,
    meta: dict[str, Any],
    shapes: TrainState,
    shardings: TrainState,
    optimizer: Optimizer,
) -> TrainState:
    """The checkpoint `kind`, whose metadata is `meta`, as a train state; imported weights start with a fresh optimizer."""
    like = abstract_like(shapes, shardings).arrays()
    if is_untrained_import(meta):
        del like['opt_state']
        state = create_state(**checkpoints.restore(kind, like), optimizer=optimizer)
        return jax.device_put(state, shardings)
    arrays = checkpoints.restore(kind, like)
    return TrainState(jax.device_put(np.int32(meta['step']), shardings.step), **arrays)
