"""Training: epochs of one compiled step, valid MAP after each, best and latest checkpoints, exact resume."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from asen_jax import files, processes, sharding
from asen_jax.checkpoint import ADVICE, Checkpoints
from asen_jax.data.batches import open_photos, steps_per_epoch, train_batches
from asen_jax.data.cache import CachedPhotos, put_on_devices
from asen_jax.data.prepared import Records, choose_image_size, has_targets, read_records
from asen_jax.errors import NumericsError
from asen_jax.evaluation import results
from asen_jax.evaluation.evaluate import evaluate, rank_examples
from asen_jax.evaluation.figures import draw_rankings
from asen_jax.evaluation.run import evaluate_network
from asen_jax.models.build import build_model
from asen_jax.network import Embed, load_network, make_embedder
from asen_jax.signals import StopRequest, stopped
from asen_jax.training.checks import Trunks, check_config
from asen_jax.training.features import compute_features
from asen_jax.training.losses import any_needs
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.profiling import Profiler, peak_flops, step_flops
from asen_jax.training.resume import check_same_run, report_missing, restore_state
from asen_jax.training.step import TrainState, create_state, make_train_step
from asen_jax.training.tracking import Meter, Meters, Tracker
from asen_jax.weights.starting import read_start

PHOTO_SPLITS = ('train', 'valid', 'test')


class Run(NamedTuple):
    """What stays the same from step to step."""

    config: ConfigDict
    records: Records
    graphdef: nnx.GraphDef
    mesh: jax.sharding.Mesh
    epoch_steps: int
    train_step: Callable[[TrainState, dict], tuple[TrainState, dict]]
    bind: Callable[[dict, dict], Embed]  # (params, batch_stats) -> the network as a function
    checkpoints: Checkpoints
    tracker: Tracker
    profiler: Profiler
    stop: StopRequest
    meta: dict[str, Any]  # of every checkpoint: enough to rebuild the network and to name what it predicts


def train_and_evaluate(
    config: ConfigDict, workdir: Path, records_directory: Path, trunks: Trunks | None = None
) -> dict | None:
    """Train on prepared records, or resume `workdir`; returns the best checkpoint's test figures, if there is a test split.

    `trunks` is what `check_config` returned for this config and workdir; without it, that check runs here.
    """
    if trunks is None:
        trunks = check_config(config, workdir)
    workdir = Path(workdir)
    only_run = files.lock_workdir(workdir) if processes.is_writer() else contextlib.nullcontext()
    with read_records(records_directory) as records, only_run:
        sized = with_image_size(config, records)
        with StopRequest() as stop, Checkpoints(workdir) as checkpoints:
            check_same_run(sized, records, workdir, checkpoints)
            run, state, meters = start(sized, records, checkpoints, stop, trunks)
            if processes.is_writer():
                files.write_text(workdir / 'config.json', config.to_json(indent=2) + '\n')  # as the user wrote it
            for split in (name for name in PHOTO_SPLITS if name in records.splits):
                open_photos(records, split, sized, stop)  # now, when a full disk costs no work
            step, with_labels = int(state.step), any_needs(config.train, 'labels')
            photos = photos_on_devices(run, step)
            batches = train_batches(records, sized, step, frozen_features(run, state), with_labels)
            with (
                contextlib.closing(run.tracker),
                contextlib.closing(batches),
                contextlib.closing(run.profiler),
                naming_last_checkpoint(run),
            ):
                if is_unfinished(run, step):
                    finish_epoch(run, state, step // run.epoch_steps - 1, {})
                for epoch in range(step // run.epoch_steps, config.train.num_epochs):
                    state, numbers = train_epoch(run, state, batches, photos, epoch, meters)
                    finish_epoch(run, state, epoch, numbers)
                    meters = Meters.start()
        return evaluate_best(run)


def with_image_size(config: ConfigDict, records: Records) -> ConfigDict:
    """`config` with the size of the input chosen from the photos, if it names none."""
    if config.data.image_size or 'train' not in records.splits:
        return config
    config = config.copy_and_resolve_references()
    config.data.image_size = choose_image_size(records, config.data.crop_to_bbox)
    print(f'config.data.image_size is {config.data.image_size}, chosen from the photos')
    return config


def start(
    config: ConfigDict, records: Records, checkpoints: Checkpoints, stop: StopRequest, trunks: Trunks
) -> tuple[Run, TrainState, Meters]:
    """Build the network, the step and the state: fresh, or from the newest checkpoint."""
    mesh, workdir, writes = sharding.make_mesh(config.mesh.model), checkpoints.workdir, processes.is_writer()
    epoch_steps = steps_per_epoch(records, config)
    graphdef, params, batch_stats = build_model(config, len(records.attributes))
    params, batch_stats = params | trunks[0], batch_stats | trunks[1]
    optimizer = make_optimizer(config, make_schedule(config, epoch_steps), params)
    kind, origin, meters = checkpoints.kind_to_resume(), {}, Meters.start()
    if kind is None and config.init.workdir:
        params, batch_stats, origin['started_from'] = read_start(config, records.attributes, params, batch_stats)
    state = create_state(params, batch_stats, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    if kind is None:
        state = jax.device_put(state, shardings)
    else:
        meta = checkpoints.read_meta(kind)
        origin = {name: meta[name] for name in ('imported', 'started_from') if name in meta}
        state = restore_state(checkpoints, kind, meta, state, shardings, optimizer)
        meters = Meters.start(meta.get('meters'))
        print(f'resuming {workdir} after step {meta["step"]} of {epoch_steps * config.train.num_epochs}')
        report_missing(checkpoints, meta)
    run = Run(
        config=config,
        records=records,
        graphdef=graphdef,
        mesh=mesh,
        epoch_steps=epoch_steps,
        train_step=make_train_step(graphdef, optimizer, config.train, shardings, mesh, config.seed),
        bind=make_embedder(graphdef, mesh),
        checkpoints=checkpoints,
        tracker=Tracker(workdir, int(state.step), writes),
        profiler=Profiler(workdir, config.train.profile_steps if writes else 0),
        stop=stop,
        meta={
            'config': json.loads(config.to_json()),
            'dataset': records.dataset,
            'attributes': list(records.attributes),
            'values': [list(names) for names in records.values],
            'fingerprint': records.fingerprint,
            **origin,
        },
    )
    return run, state, meters


def photos_on_devices(run: Run, step: int) -> dict[str, jax.Array]:
    """With `data.cache=device` and if epochs remain, the train photos as the entry `train_photos` of every batch."""
    if run.config.data.cache != 'device' or step >= run.epoch_steps * run.config.train.num_epochs:
        return {}
    photos = open_photos(run.records, 'train', run.config)
    assert isinstance(photos, CachedPhotos)
    return {'train_photos': put_on_devices(photos.images, run.mesh)}


def frozen_features(run: Run, state: TrainState) -> np.ndarray | None:
    """With `train.precompute_features` and if epochs remain, the features of the train photos."""
    config, arrays, folder = run.config, (state.params, state.batch_stats), run.checkpoints.workdir
    if not config.train.precompute_features or int(state.step) >= run.epoch_steps * config.train.num_epochs:
        return None
    return compute_features(config, run.records, run.graphdef, arrays, run.mesh, folder, run.stop)


def train_epoch(
    run: Run, state: TrainState, batches: Iterator, photos: dict[str, jax.Array], epoch: int, meters: Meters
) -> tuple[TrainState, dict[str, float]]:
    """Train to the end of `epoch`, and return its mean metrics; `photos` are part of every batch."""
    config, batch_size = run.config, run.config.train.batch_size
    last_save, step, end, pending = time.monotonic(), int(state.step), (epoch + 1) * run.epoch_steps, 0
    flops, peak = None, peak_flops(run.mesh.devices.flat[0].device_kind, config.precision)
    for meter in meters:  # caches, features, and an evaluation may have come before
        meter.start = time.perf_counter()
    with progress_bar(run, epoch, step) as bar:
        while step < end:
            begin = time.perf_counter()
            batch = next(batches)
            meters.since_log.waited += time.perf_counter() - begin
            overdue = processes.is_writer() and time.monotonic() - last_save > 60 * config.train.save_every_minutes
            last_save = time.monotonic() if overdue else last_save  # asked once
            batch['request'] = np.full_like(batch['attribute'], 2 * (run.stop.signal_number or 0) + overdue)
            placed = sharding.put_rows(run.mesh, batch, batch_size) | photos
            with jax.profiler.StepTraceAnnotation('train', step_num=step):
                state, metrics = run.train_step(state, placed)
            run.profiler.step(state)
            step += 1
            # that of the previous step, so that the device never waits for the host
            (signal_number, save), pending = divmod(int(pending), 2), metrics.pop('request')
            meters.add(step, metrics)
            bar.update(batch_size)
            if step == end or step % config.train.log_every_steps == 0:
                if peak and flops is None:
                    flops = step_flops(run.train_step, state, placed) / run.mesh.size
                write_metrics(run, meters.since_log, step, bar, flops / peak if flops and peak else None)
            every = config.train.save_every_steps
            if step < end and (signal_number or save or (every and step % every == 0)):
                save_latest(run, state, step, meters)  # `finish_epoch` saves the last step
                last_save = time.monotonic()
            if step < end and signal_number:
                stop_now(run, step, signal_number)
        run.profiler.close(state)  # before the evaluation
        return state, meters.of_epoch.read(batch_size)


def save_latest(run: Run, state: TrainState, step: int, meters: Meters) -> None:
    """Start to save the latest checkpoint, once the metrics of its step are known to be finite."""
    more = {'meters': meters.save(), 'best': run.checkpoints.steps().get('best')}
    run.checkpoints.save('latest', state.arrays(), run.meta | {'step': step, 'score': None} | more)


def progress_bar(run: Run, epoch: int, step: int) -> tqdm:
    """A bar of the epoch's triplets with rate and time left; silent if the output is not a terminal."""
    batch_size = run.config.train.batch_size
    done, total = (step - epoch * run.epoch_steps) * batch_size, run.epoch_steps * batch_size
    title = f'epoch {epoch + 1}/{run.config.train.num_epochs}'
    return tqdm(total=total, initial=done, desc=title, unit='triplet', disable=None, leave=False)


@contextlib.contextmanager
def naming_last_checkpoint(run: Run) -> Iterator[None]:
    """If metrics are not finite, tell the user which checkpoint remains and what to try."""
    try:
        yield
    except NumericsError as error:
        last = run.checkpoints.steps().get('latest')
        kept, again = 'nothing was saved yet', ''
        if last is not None:
            folder = run.checkpoints.root / 'latest' / str(last)
            kept, again = f'the checkpoint of step {last} is kept', f'; if that fails at once, delete {folder} too'
        fact = str(error).removesuffix(f'; {ADVICE}')
        raise NumericsError(f'{fact}; {kept}. Lower --config.optim.learning_rate and run again{again}.') from None


def write_metrics(run: Run, meter: Meter, step: int, bar: tqdm, peak_seconds: float | None) -> None:
    """Write a line of metrics.jsonl and TensorBoard's points, and show the loss in the progress bar.

    `peak_seconds` is what a step would take at the devices' peak; None if that is not known.
    """
    numbers = meter.read(run.config.train.batch_size)
    numbers['learning_rate'] = float(np.asarray(make_schedule(run.config, run.epoch_steps)(step - 1)))
    if peak_seconds:
        numbers['share_of_peak'] = peak_seconds / numbers['step_seconds']
    run.tracker.write(step, {f'train_{name}': number for name, number in numbers.items()})
    bar.set_postfix({name: f'{numbers[name]:.4f}' for name in ('loss', 'triplet_accuracy') if name in numbers})
    meter.reset()


def is_unfinished(run: Run, step: int) -> bool:
    """Whether a resumed run stopped at an epoch's end, after saving `latest` but before `finish_epoch` was done."""
    if step == 0 or step % run.epoch_steps:
        return False
    if has_targets(run.records, 'valid'):
        return not processes.agree(run.tracker.has(step, 'valid_'))  # the last thing that `finish_epoch` writes
    return run.checkpoints.steps().get('best') != step


def finish_epoch(run: Run, state: TrainState, epoch: int, numbers: dict) -> None:
    """Save the end of an epoch, score the valid split, and keep the checkpoint if it is the best."""
    step, config = int(state.step), run.config
    if run.checkpoints.steps().get('latest') != step:
        save_latest(run, state, step, Meters.start())  # first, since scoring may take long and may be stopped
    stop_if_asked(run, step)
    due = epoch + 1 == config.train.num_epochs or (epoch + 1) % config.eval.every_epochs == 0
    report = [f'epoch {epoch + 1}/{config.train.num_epochs}']
    if numbers:
        report += [f'loss {numbers["loss"]:.4f}', f'{numbers["triplets_per_second"]:.1f} triplets/s']
    if not has_targets(run.records, 'valid'):  # by which to choose the best checkpoint
        keep_best(run, state)
        report.append('no valid split: the latest checkpoint counts as the best')
    elif due:
        embed = run.bind(state.params, state.batch_stats)
        evaluation = evaluate(config, run.records, 'valid', embed, step)
        score = results.score(evaluation.result)
        keep_best(run, state, score)
        figures = results.headline(evaluation.result)
        if rankings := rank_examples(config, run.records, embed, evaluation):
            run.tracker.write_picture(step, 'valid_rankings', draw_rankings(rankings))
        run.tracker.write(step, figures)
        report += [f'{name} {number:.4f}' for name, number in figures.items()]
    print('  '.join(report), flush=True)
    stop_if_asked(run, step)


def keep_best(run: Run, state: TrainState, score: float | None = None) -> None:
    """Save the checkpoint as `best` if its score is the highest so far, or without scores, and wait until it is on disk."""
    step, best = int(state.step), run.checkpoints.steps().get('best')
    if best == step:  # a stopped run had already saved it
        return
    if best is not None and score is not None:
        highest = run.checkpoints.read_meta('best')['score']  # None for imported weights, which were not scored
        if not processes.agree(highest is None or score >= highest):
            return
    run.checkpoints.save('best', state.arrays(), run.meta | {'step': step, 'score': score})
    run.checkpoints.wait()


def stop_if_asked(run: Run, step: int) -> None:
    """Stop at the end of an epoch, or after scoring it, if a signal has asked for it."""
    if number := processes.agree(run.stop.signal_number or 0):
        stop_now(run, step, number)


def stop_now(run: Run, step: int, number: int) -> None:
    """End the run after a signal, once everything saved is on disk; raises StoppedError."""
    run.checkpoints.wait()
    raise stopped(number, f'after saving step {step}; run the same command to resume.')


def evaluate_best(run: Run) -> dict | None:
    """Evaluate the best checkpoint on the test split and return the figures; None if there is no test split."""
    if not has_targets(run.records, 'test'):
        print('no test queries: nothing to test')
        return None
    workdir = run.checkpoints.workdir
    network = load_network(workdir, 'best', run.config.precision, run.mesh)
    return evaluate_network(run.config, network, run.records, workdir, 'test', run.mesh, with_report=True)
