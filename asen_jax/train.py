"""Training: epochs of one jitted step, valid MAP after each, best and latest checkpoints, exact resume."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from asen_jax import evaluate, sharding
from asen_jax.checkpoint import Checkpoints, abstract_like
from asen_jax.data.pipeline import Records, open_records, steps_per_epoch, train_batches
from asen_jax.embed import make_embedder
from asen_jax.errors import InputError, NumericsError, StoppedError
from asen_jax.models import build_model
from asen_jax.optim import make_optimizer, make_schedule
from asen_jax.state import TrainState, create_state, make_train_step
from asen_jax.tracking import Meter, Tracker

# these may change when a workdir goes on; all else of model and data, and what the data's position hangs on, may not
FREE_FIELDS = ('data.manual_dir', 'data.dir', 'data.num_workers', 'data.missing', 'data.broken')
FIXED_FIELDS = ('seed', 'train.batch_size')


class Run(NamedTuple):
    """What stays the same from step to step."""

    config: Any
    workdir: Path
    records: Records
    mesh: jax.sharding.Mesh
    epoch_steps: int
    train_step: Callable
    schedule: optax.Schedule
    embedder: Callable
    checkpoints: Checkpoints
    tracker: Tracker
    stop: 'StopRequest'


def train_and_evaluate(config, workdir: Path, records_directory: Path) -> dict | None:
    """Train `config` on prepared records, or go on where `workdir` stopped; the best checkpoint's test figures, if any."""
    records, workdir = open_records(records_directory), Path(workdir)
    with Checkpoints(workdir) as checkpoints, StopRequest() as stop:
        check_same_run(config, records, workdir, checkpoints)
        run, state = start(config, workdir, records, checkpoints, stop)
        step = int(state.step)
        batches = train_batches(records, config, step)
        with contextlib.closing(run.tracker), contextlib.closing(batches):
            for epoch in range(step // run.epoch_steps, config.train.num_epochs):
                state = train_epoch(run, state, batches, epoch)
                finish_epoch(run, state, epoch)
        checkpoints.wait()
        return test_best(run)


def start(config, workdir: Path, records: Records, checkpoints: Checkpoints, stop) -> tuple[Run, TrainState]:
    """Build the network, the step and the state: fresh, or the latest checkpoint's."""
    mesh = sharding.make_mesh(config.mesh.model)
    sharding.check_batch_size(config.train.batch_size, mesh)
    check_options(config)
    epoch_steps = steps_per_epoch(records, config)
    model, params, batch_stats = build_model(config, len(records.attributes))
    optimizer = make_optimizer(config, epoch_steps)
    state = create_state(params, batch_stats, optimizer)
    places = sharding.state_shardings(state, mesh)
    resumed = checkpoints.latest_step()
    if resumed is None:
        check_initial_trunk(config)
        state = jax.device_put(state, places)
    else:
        like = abstract_like(state, places)
        state = restore_state(checkpoints, like, resumed, places)
        print(f'resumes {workdir} after step {resumed} of {epoch_steps * config.train.num_epochs}')
    (workdir / 'config.json').write_text(config.to_json(indent=2) + '\n')
    train_step = make_train_step(model, optimizer, config.train, places, mesh)
    run = Run(
        config, workdir, records, mesh, epoch_steps, train_step, make_schedule(config, epoch_steps),
        make_embedder(model, mesh), checkpoints, Tracker(workdir, resumed or 0), stop,
    )  # fmt: skip
    return run, state


def restore_state(checkpoints: Checkpoints, like: TrainState, step: int, places: TrainState) -> TrainState:
    """The latest checkpoint as a train state."""
    items = {name: getattr(like, name) for name in ('params', 'batch_stats', 'opt_state')}
    restored = checkpoints.restore('latest', items)
    return TrainState(jax.device_put(np.int32(step), places.step), **restored)


def check_options(config) -> None:
    """Words that only training reads."""
    for field, known in (('distance', ('cosine',)), ('loss', ('triplet', 'contrastive'))):
        if config.train[field] not in known:
            raise InputError(f'config.train.{field} is {config.train[field]!r}; it is one of {", ".join(known)}.')


def check_initial_trunk(config) -> None:
    """The published recipes start from an ImageNet trunk; training must never silently start from nothing instead."""
    if config.init.trunk != 'none':
        raise InputError(
            f'config.init.trunk is {config.init.trunk!r}, but reading pretrained trunks is not built yet; '
            'start from random weights with --config.init.trunk=none (the published figures need ImageNet weights).'
        )


def check_same_run(config, records: Records, workdir: Path, checkpoints: Checkpoints) -> None:
    """A workdir with a checkpoint goes on only under the same model, data, seed and batch size."""
    if checkpoints.latest_step() is None:
        return
    meta = checkpoints.read_meta('latest')
    before, now = flatten_config(meta['config']), flatten_config(json.loads(config.to_json()))
    for field in sorted(before.keys() & now.keys()):
        fixed = field.startswith(('model.', 'data.')) or field in FIXED_FIELDS
        if fixed and field not in FREE_FIELDS and before[field] != now[field]:
            raise InputError(
                f'{workdir} was trained with config.{field}={before[field]!r}, not {now[field]!r}; '
                'start another --workdir, or give the same value.'
            )
    if meta['fingerprint'] != records.fingerprint:
        raise InputError(f'{workdir} was trained on other records than {records.directory}; start another --workdir.')


def flatten_config(tree: dict, prefix: str = '') -> dict[str, Any]:
    """{'data.name': ...} of a nested config."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten_config(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat


def train_epoch(run: Run, state: TrainState, batches: Iterator, epoch: int) -> TrainState:
    """Steps up to the end of `epoch`; a step's numbers are read while the next one runs."""
    config, batch_size = run.config, run.config.train.batch_size
    place, meter, last_save = sharding.batch_sharding(run.mesh), Meter(), time.monotonic()
    step, end, pending = int(state.step), (epoch + 1) * run.epoch_steps, None
    with progress_bar(run, epoch, step) as bar:
        while step < end:
            begin = time.perf_counter()
            batch = {name: np.array(part) for name, part in next(batches).items()}
            meter.waited += time.perf_counter() - begin
            state, metrics = run.train_step(state, jax.device_put(batch, place))
            read_numbers(run, meter, pending)
            step, pending = step + 1, (step + 1, metrics)
            bar.update(batch_size)
            stopping = run.stop.signal_number is not None and step < end
            saving = stopping or (step < end and save_is_due(config, step, last_save))
            logging = step == end or step % config.train.log_every_steps == 0
            if saving or logging:
                read_numbers(run, meter, pending)
                pending = None
            if logging:
                write_numbers(run, meter, step, bar)
            if saving:
                run.checkpoints.save('latest', state, make_meta(run, step))
                last_save = time.monotonic()
            if stopping:
                run.checkpoints.wait()
                run.stop.raise_stopped(step)
    return state


def progress_bar(run: Run, epoch: int, step: int) -> tqdm:
    """Triplets of an epoch, with rate and time left; quiet when not at a terminal."""
    batch_size = run.config.train.batch_size
    done, total = (step - epoch * run.epoch_steps) * batch_size, run.epoch_steps * batch_size
    title = f'epoch {epoch + 1}/{run.config.train.num_epochs}'
    return tqdm(total=total, initial=done, desc=title, unit='triplet', disable=None, leave=False)


def read_numbers(run: Run, meter: Meter, pending: tuple[int, dict] | None) -> None:
    """Wait for a step's numbers; where they are not finite the run ends, and its last checkpoint stays."""
    if pending is None:
        return
    try:
        meter.add(*pending)
    except NumericsError as error:
        last = run.checkpoints.latest_step()
        kept = 'nothing was saved yet' if last is None else f'the checkpoint of step {last} is kept'
        raise NumericsError(f'{error}; {kept}. Lower --config.optim.learning_rate and run again.') from None


def write_numbers(run: Run, meter: Meter, step: int, bar: tqdm) -> None:
    """A line of metrics.jsonl, TensorBoard's points, and the bar's text."""
    numbers = meter.read(run.config.train.batch_size) | {'learning_rate': float(run.schedule(step - 1))}
    run.tracker.write(step, {f'train_{name}': number for name, number in numbers.items()})
    bar.set_postfix(loss=f'{numbers["loss"]:.4f}', accuracy=f'{numbers["triplet_accuracy"]:.2f}')
    meter.reset()


def save_is_due(config, step: int, last_save: float) -> bool:
    """Whether the latest checkpoint should be written now, within an epoch."""
    every = config.train.save_every_steps
    return bool(every and step % every == 0) or time.monotonic() - last_save > 60 * config.train.save_every_minutes


def finish_epoch(run: Run, state: TrainState, epoch: int) -> None:
    """Score the valid split, keep the checkpoint if it is the best, and make it the latest."""
    step, config = int(state.step), run.config
    last = epoch + 1 == config.train.num_epochs
    numbers, score, said = {}, None, ''
    if not evaluate.asks_anything(run.records, 'valid'):
        score, said = float(step), 'no valid queries: the latest counts as the best'
    elif last or (epoch + 1) % config.eval.every_epochs == 0:
        done = evaluate.evaluate(config, run.records, 'valid', run.embedder, state.params, state.batch_stats, step)
        score, numbers = evaluate.score(done.result), evaluate.headline(done.result)
        said = '  '.join(f'{name} {number:.4f}' for name, number in numbers.items())
    if numbers:
        run.tracker.write(step, numbers)
    if score is not None:
        run.checkpoints.save('best', state, make_meta(run, step, score), score)
    run.checkpoints.save('latest', state, make_meta(run, step, score))
    trained = run.tracker.last_line
    print(
        f'epoch {epoch + 1}/{config.train.num_epochs}  loss {trained["train_loss"]:.4f}  '
        f'{trained["train_triplets_per_second"]:.1f} triplets/s  {said}', flush=True,
    )  # fmt: skip


def make_meta(run: Run, step: int, score: float | None = None) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild the network and name what it predicts."""
    return {
        'step': step, 'score': score, 'config': json.loads(run.config.to_json()), 'dataset': run.records.dataset,
        'attributes': list(run.records.attributes), 'values': [list(names) for names in run.records.values],
        'fingerprint': run.records.fingerprint,
    }  # fmt: skip


def test_best(run: Run) -> dict | None:
    """Test the best checkpoint, print the table and write `eval_test.json`."""
    if not evaluate.asks_anything(run.records, 'test'):
        print('no test queries: nothing to test')
        return None
    return evaluate.evaluate_checkpoint(run.config, run.workdir, run.checkpoints, run.records, 'best', 'test', run.mesh)


class StopRequest:
    """SIGTERM and SIGINT set a flag that the loop reads after each step, so that it can save before it ends."""

    def __init__(self):
        self.signal_number, self.before = None, {}

    def __enter__(self) -> 'StopRequest':
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt  # asked twice: now, without saving
        self.signal_number = number

    def raise_stopped(self, step: int) -> None:
        name = signal.Signals(self.signal_number).name
        raise StoppedError(
            f'Stopped by {name} after saving step {step}; the same command goes on from there.', self.signal_number
        )
