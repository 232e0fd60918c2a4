"""Training: epochs of one jitted step, valid MAP after each, best and latest checkpoints, exact resume."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from asen_jax import sharding
from asen_jax.checkpoint import Checkpoints, abstract_like
from asen_jax.data.batches import LoadOptions, Records, open_records, steps_per_epoch, train_batches
from asen_jax.errors import InputError, NumericsError, StoppedError
from asen_jax.evaluation import evaluate
from asen_jax.evaluation.vectors import make_embedder
from asen_jax.models import build_model, build_shapes
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.step import TrainState, create_state, make_train_step
from asen_jax.training.tracking import Meter, Tracker
from asen_jax.weights.trunks import load_trunk

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
    imported: dict | None  # what the weights were before training


def train_and_evaluate(config, workdir: Path, records_directory: Path) -> dict | None:
    """Train `config` on prepared records, or go on where `workdir` stopped; the best checkpoint's test figures, if any."""
    records, workdir = open_records(records_directory), Path(workdir)
    check_config(config, workdir)
    with Checkpoints(workdir) as checkpoints:
        check_same_run(config, records, workdir, checkpoints)
        with StopRequest() as stop:
            run, state = start(config, workdir, records, checkpoints, stop)
            step = int(state.step)
            batches = train_batches(records, config, step)
            with contextlib.closing(run.tracker), contextlib.closing(batches):
                if is_unscored(run, step):
                    finish_epoch(run, state, step // run.epoch_steps - 1, {})
                for epoch in range(step // run.epoch_steps, config.train.num_epochs):
                    state, numbers = train_epoch(run, state, batches, epoch)
                    finish_epoch(run, state, epoch, numbers)
            checkpoints.wait()
        return test_best(run)


def start(config, workdir: Path, records: Records, checkpoints: Checkpoints, stop) -> tuple[Run, TrainState]:
    """Build the network, the step and the state: fresh, or the latest checkpoint's."""
    mesh = sharding.make_mesh(config.mesh.model)
    epoch_steps = steps_per_epoch(records, config)
    model, *arrays = build_model(config, len(records.attributes))
    optimizer = make_optimizer(config, epoch_steps)
    resumed = checkpoints.latest_step()
    if resumed is None:
        arrays = load_trunk(config, *arrays)
    state = create_state(*arrays, optimizer)
    places = sharding.state_shardings(state, mesh)
    if resumed is None:
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
        checkpoints.read_meta('latest').get('imported') if resumed is not None else None,
    )  # fmt: skip
    return run, state


def restore_state(checkpoints: Checkpoints, like: TrainState, step: int, places: TrainState) -> TrainState:
    """The latest checkpoint as a train state."""
    items = {name: getattr(like, name) for name in ('params', 'batch_stats', 'opt_state')}
    restored = checkpoints.restore('latest', items)
    return TrainState(jax.device_put(np.int32(step), places.step), **restored)


def check_config(config, workdir: Path) -> None:
    """Everything about `config` that can be refused without the data, so that nobody waits for records in vain."""
    check_loss(config)
    LoadOptions.from_config(config)
    sharding.check_batch_size(config.train.batch_size, sharding.make_mesh(config.mesh.model))
    _, *shapes = build_shapes(config, num_attributes=2)
    if not any(path.name.isdigit() for path in (Path(workdir) / 'checkpoints' / 'latest').glob('*')):
        load_trunk(config, *shapes)  # training must never silently start from other weights than the recipe's


def check_loss(config) -> None:
    """Refuse a loss that does not exist, or that the network or the distance cannot have."""
    options = config.train
    for field, known in (('distance', ('cosine', 'euclidean')), ('loss', ('triplet', 'contrastive'))):
        if options[field] not in known:
            raise InputError(f'config.train.{field} is {options[field]!r}; it is one of {", ".join(known)}.')
    if options.loss == 'contrastive' and options.distance != 'cosine':
        raise InputError('config.train.loss=contrastive compares by cosine; set config.train.distance=cosine.')
    for field in ('embedding_norm', 'mask_norm'):
        if options[field] and (config.model.name != 'csn' or options.loss != 'triplet'):
            raise InputError(
                f'config.train.{field} is {options[field]}, but it belongs to the triplet loss of csn; set it to 0.'
            )


def check_same_run(config, records: Records, workdir: Path, checkpoints: Checkpoints) -> None:
    """A workdir with a checkpoint goes on only under the same model, data, seed and batch size."""
    if checkpoints.latest_step() is None:
        return
    meta = checkpoints.read_meta('latest')
    before, now = (flatten_dict(tree, sep='.') for tree in (meta['config'], json.loads(config.to_json())))
    for field in sorted(before.keys() & now.keys()):
        fixed = field.startswith(('model.', 'data.')) or field in FIXED_FIELDS
        if fixed and field not in FREE_FIELDS and before[field] != now[field]:
            raise InputError(
                f'{workdir} was trained with config.{field}={before[field]!r}, not {now[field]!r}; '
                'start another --workdir, or give the same value.'
            )
    if meta['fingerprint'] is None:  # imported: it knows no records
        evaluate.check_attributes(meta, records, workdir)
    elif meta['fingerprint'] != records.fingerprint:
        raise InputError(f'{workdir} was trained on other records than {records.directory}; start another --workdir.')


def train_epoch(run: Run, state: TrainState, batches: Iterator, epoch: int) -> tuple[TrainState, dict]:
    """Steps up to the end of `epoch`, and their mean numbers; a step's are read while the next one runs."""
    config, batch_size = run.config, run.config.train.batch_size
    place, last_save = sharding.batch_sharding(run.mesh), time.monotonic()
    meters = Meter(), Meter()  # since the last line, and of the epoch
    step, end, pending = int(state.step), (epoch + 1) * run.epoch_steps, None
    with progress_bar(run, epoch, step) as bar:
        while step < end:
            begin = time.perf_counter()
            batch = {name: np.array(part) for name, part in next(batches).items()}
            meters[0].waited += time.perf_counter() - begin
            state, metrics = run.train_step(state, jax.device_put(batch, place))
            read_numbers(run, meters, pending)
            step, pending = step + 1, (step + 1, metrics)
            bar.update(batch_size)
            stopping = run.stop.signal_number is not None and step < end
            saving = stopping or (step < end and save_is_due(config, step, last_save))
            logging = step == end or step % config.train.log_every_steps == 0
            if saving or logging:
                read_numbers(run, meters, pending)
                pending = None
            if logging:
                write_numbers(run, meters[0], step, bar)
            if saving:
                run.checkpoints.save('latest', state, make_meta(run, step))
                last_save = time.monotonic()
            if stopping:
                stop_now(run, step)
    return state, meters[1].read(batch_size)


def progress_bar(run: Run, epoch: int, step: int) -> tqdm:
    """Triplets of an epoch, with rate and time left; quiet when not at a terminal."""
    batch_size = run.config.train.batch_size
    done, total = (step - epoch * run.epoch_steps) * batch_size, run.epoch_steps * batch_size
    title = f'epoch {epoch + 1}/{run.config.train.num_epochs}'
    return tqdm(total=total, initial=done, desc=title, unit='triplet', disable=None, leave=False)


def read_numbers(run: Run, meters: Sequence[Meter], pending: tuple[int, dict] | None) -> None:
    """Wait for a step's numbers; where they are not finite the run ends, and its last checkpoint stays."""
    if pending is None:
        return
    try:
        for meter in meters:
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


def is_unscored(run: Run, step: int) -> bool:
    """Whether a resumed run had ended an epoch but not yet scored it: its line in metrics.jsonl comes last."""
    ended = step > 0 and step % run.epoch_steps == 0
    return ended and evaluate.asks_anything(run.records, 'valid') and not run.tracker.has(step, 'valid_')


def finish_epoch(run: Run, state: TrainState, epoch: int, numbers: dict) -> None:
    """Save the epoch's end, score the valid split, and keep the checkpoint if it is the best."""
    step, config = int(state.step), run.config
    run.checkpoints.save('latest', state, make_meta(run, step))  # first: scoring may take long, and may be stopped
    if run.stop.signal_number is not None:
        stop_now(run, step)
    due = epoch + 1 == config.train.num_epochs or (epoch + 1) % config.eval.every_epochs == 0
    said = [f'epoch {epoch + 1}/{config.train.num_epochs}']
    if numbers:
        said += [f'loss {numbers["loss"]:.4f}', f'{numbers["triplets_per_second"]:.1f} triplets/s']
    if not evaluate.asks_anything(run.records, 'valid'):
        keep_best(run, state, float(step))
        said.append('no valid queries: the latest counts as the best')
    elif due:
        done = evaluate.evaluate(config, run.records, 'valid', run.embedder, state.params, state.batch_stats, step)
        keep_best(run, state, evaluate.score(done.result))
        figures = evaluate.headline(done.result)
        run.tracker.write(step, figures)
        said += [f'{name} {number:.4f}' for name, number in figures.items()]
    print('  '.join(said), flush=True)
    if run.stop.signal_number is not None:
        stop_now(run, step)


def keep_best(run: Run, state: TrainState, score: float) -> None:
    """Save the best checkpoint if this is it, and wait until it is on disk."""
    run.checkpoints.save('best', state, make_meta(run, int(state.step), score), score)
    run.checkpoints.wait()


def stop_now(run: Run, step: int) -> None:
    """End the run as the signal asked, once what was saved is on disk."""
    run.checkpoints.wait()
    number = run.stop.signal_number
    name = signal.Signals(number).name
    raise StoppedError(f'Stopped by {name} after saving step {step}; the same command goes on from there.', number)


def make_meta(run: Run, step: int, score: float | None = None) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild the network and name what it predicts."""
    return {
        'step': step, 'score': score, 'config': json.loads(run.config.to_json()), 'dataset': run.records.dataset,
        'attributes': list(run.records.attributes), 'values': [list(names) for names in run.records.values],
        'fingerprint': run.records.fingerprint,
    } | ({'imported': run.imported} if run.imported else {})  # fmt: skip


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
