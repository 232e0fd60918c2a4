"""Checkpoints of a workdir, saved atomically: `latest`, which resume reads, and `best` by valid score.

Each has its own Orbax manager, because one manager refuses to save a step twice. A checkpoint has the items params, batch_stats
and opt_state, which can be restored one by one, and meta (JSON: step, score, config, attributes, values, ...). The meta holds
the version of this format, and checksums of the arrays and of itself, so that damage is noticed.
"""

import contextlib
import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from asen_jax import files, processes
from asen_jax.errors import InputError, NumericsError

FORMAT = 3  # of a checkpoint; another one is refused
KINDS = ('best', 'latest')
ADVICE = 'use another checkpoint, or train again with a lower config.optim.learning_rate'  # for a diverged network
Loaded = TypeVar('Loaded')


class Place(NamedTuple):
    """Where a checkpoint is: in `best` or `latest`, under its step."""

    kind: str
    step: int


class Checkpoints:
    """The two managers of a workdir; a context manager, so that asynchronous saves finish before it closes."""

    def __init__(self, workdir: Path, read_only: bool = False):
        self.workdir, self.root = Path(workdir), Path(workdir).resolve() / 'checkpoints'
        self.managers = {}
        for kind in KINDS:
            if not read_only:
                (self.root / kind).mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                # several processes: one manager may still be saving when the other begins
                multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind),
                preservation_policy=ocp.checkpoint_managers.LatestN(1),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            )
            if processes.agree((self.root / kind).is_dir()):  # a manager is made by all processes or by none
                with _quiet():
                    self.managers[kind] = ocp.CheckpointManager(self.root / kind, options=options)

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with contextlib.ExitStack() as stack:
            if kind:  # the first error is the cause
                stack.enter_context(contextlib.suppress(InputError))
            for manager in self.managers.values():  # each is closed, even if another cannot be
                stack.enter_context(self._writing())
                stack.callback(manager.close)

    def save(self, kind: str, arrays: Mapping[str, Any], meta: dict[str, Any]) -> None:
        """Start to save the trees `arrays` and `meta` under its `step`, in place of what `kind` holds.

        Raises NumericsError if an array is not finite.
        """
        step, checksums = meta['step'], {}
        # Orbax refuses a tree without arrays
        arrays = {name: tree for name, tree in arrays.items() if jax.tree.leaves(tree)}
        for name, tree in arrays.items():
            checksums[name], broken = checksum(tree)
            if broken:
                raise NumericsError(f'{name} after step {step}: {broken[0]} is not finite')
        meta = json.loads(json.dumps({**meta, 'format': FORMAT, 'checksums': checksums}))
        trees = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items = ocp.args.Composite(**trees, meta=ocp.args.JsonSave({**meta, 'sha256': files.sha256_of_json(meta)}))
        with self._writing():
            saved = self.managers[kind].save(step, args=items)
        if not saved:
            raise InputError(f'{self.root / kind} already has step {step} or a later one; use another --workdir.')

    def wait(self) -> None:
        """Wait until everything saved so far is on disk."""
        for manager in self.managers.values():
            with self._writing():
                manager.wait_until_finished()

    def steps(self) -> dict[str, int]:
        """The step of `best` and of `latest`, where they exist."""
        steps = {kind: manager.latest_step() for kind, manager in self.managers.items()}
        return {kind: step for kind, step in steps.items() if step is not None}

    def kind_to_resume(self) -> str | None:
        """The kind of checkpoint from which a run resumes: `latest`, or `best` if that is gone; None if there is neither."""
        return next((kind for kind in ('latest', 'best') if kind in self.steps()), None)

    def find(self, which: str) -> Place:
        """Where `best`, `latest`, or a step is; raises InputError if there is no such checkpoint."""
        steps = self.steps()
        for kind, step in steps.items():
            if which in (kind, str(step)):
                return Place(kind, step)
        found = ', '.join(f'{kind} (step {step})' for kind, step in steps.items())
        remedy = f'it has {found}: name one of these' if found else 'train first, or name another workdir'
        raise InputError(f'{self.root} has no checkpoint {which!r}; {remedy}.')

    def read(self, which: str, load: Callable[[Place], Loaded]) -> Loaded:
        """`load` of where `which` is; once more if a running training has replaced the checkpoint meanwhile."""
        while True:
            place = self.find(which)
            try:
                return load(place)
            except InputError:
                self.managers[place.kind].reload()
                if self.find(which) == place:
                    raise

    def read_meta(self, which: str) -> dict[str, Any]:
        """The metadata of a checkpoint, without its arrays."""
        return self.read(which, self.meta_of)

    def meta_of(self, place: Place) -> dict[str, Any]:
        """The metadata of the checkpoint in a place; raises InputError if it is damaged, or of another version."""
        meta = self._restore(place, {'meta': ocp.args.JsonRestore()})['meta']
        if meta.get('format') != FORMAT:
            raise InputError(
                f'{self._folder(place)} was written by another version of asen_jax; '
                'train again with another --workdir, or import the PyTorch file again.'
            )
        digest = meta.pop('sha256', None)
        if digest != files.sha256_of_json(meta) or meta['step'] != place.step:
            raise self._damage(place, 'meta does not match its checksum')
        return meta

    def restore(self, which: str, like: Mapping[str, Any]) -> dict[str, Any]:
        """`arrays_of` wherever `which` is."""
        return self.read(which, functools.partial(self.arrays_of, like=like))

    def arrays_of(self, place: Place, like: Mapping[str, Any]) -> dict[str, Any]:
        """The items named in `like`, with the shapes, dtypes and shardings of its trees (see `abstract_like`).

        Raises InputError if they are damaged.
        """
        checksums = self.meta_of(place)['checksums']
        saved = {name: tree for name, tree in like.items() if name in checksums or jax.tree.leaves(tree)}
        arrays = self._restore(place, {name: ocp.args.StandardRestore(tree) for name, tree in saved.items()})
        for name, tree in arrays.items():
            if checksum(tree)[0] != checksums[name]:
                raise self._damage(place, f'{name} does not match its checksum')
        return {**like, **arrays}  # trees without arrays were not saved

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what Orbax raises when it cannot write, as on a full disk, into one sentence."""
        try:
            yield
        except Exception as error:  # ValueError, OSError, or another, depending on the file
            cause = re.search(r'([^:]+) \[os_error_code=', str(error))
            if cause:
                why = cause[1].strip()
            elif isinstance(error, OSError) and not isinstance(error, TimeoutError):
                why = error.strerror or error
            else:  # as when another process has ended
                raise
            remedy = 'free space or fix its permissions, then run the same command again'
            raise InputError(f'{self.root} cannot be written ({why}); {remedy}.') from error

    def _restore(self, place: Place, items: dict[str, Any]) -> dict[str, Any]:
        try:
            with _quiet():
                return dict(self.managers[place.kind].restore(place.step, args=ocp.args.Composite(**items)))
        except Exception as error:  # Orbax raises a bare Exception for a truncated file
            processes.await_peer_error()  # or another process has ended, which says nothing about the checkpoint
            reason = re.split(r'\. See |\n', str(error).strip())[0]  # without the description of the store
            raise self._damage(place, reason[:120]) from error

    def _damage(self, place: Place, why: str) -> InputError:
        others = [f'{kind} (step {step})' for kind, step in self.steps().items() if kind != place.kind]
        start = f'continue from {others[0]}' if others else 'start over'
        return InputError(
            f'{self._folder(place)} does not fit this network or is damaged ({why}); '
            f'name another --checkpoint or --workdir, or delete that folder to {start}.'
        )

    def _folder(self, place: Place) -> Path:
        return self.root / place.kind / str(place.step)


def identity(meta: Mapping[str, Any]) -> str:
    """A hash of a checkpoint's arrays, from its metadata, by which figures can be told to be of this checkpoint."""
    return files.sha256_of_json(meta['checksums'])


def abstract_like(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of `tree` with the given shardings, so that a checkpoint from 8 devices loads on one, and vice versa."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def checksum(tree: Any) -> tuple[str, list[str]]:
    """A hash of all arrays of `tree` and their paths, which does not depend on how they are sharded; and the paths of those that are not finite.

    Each array counts with the sum, modulo 2^64, of its numbers, read as integers, each times a factor that follows from its
    position. So the sums of shards, and of processes, add up.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    facts = np.array([_inspect(leaf) for leaf in leaves.values()], np.uint64)  # rows (sum, whether not finite)
    # as 32-bit numbers, since JAX has no others
    facts = processes.gather(facts.view(np.uint32)).view(np.uint64).sum(axis=0, dtype=np.uint64)
    broken = [name for name, not_finite in zip(leaves, facts[:, 1], strict=True) if not_finite]
    return files.sha256_of_json(sorted(zip(leaves, facts[:, 0].tolist(), strict=True))), broken


def _inspect(array: Any) -> tuple[int, bool]:
    """The sum of `checksum` over the shards that this process holds, and whether they hold a number that is not finite."""
    array, total, finite = jnp.asarray(array), 0, True
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        part = np.asarray(shard.data)
        finite = finite and bool(np.isfinite(part).all())
        sums = part.view(f'u{part.itemsize}')
        for axis in reversed(range(array.ndim)):  # the factor of a position is a product, one factor for each axis
            sums = np.einsum('...i,i', sums, _factors(axis, array.shape[axis])[shard.index[axis]])
        total += int(sums)
    return total % 2**64, not finite


def _factors(axis: int, length: int) -> np.ndarray:
    """Numbers that differ by axis and position, spread over all bits; odd, so that no bit of what they multiply is lost."""
    numbers = np.arange(1, length + 1, dtype=np.uint64) + np.uint64(axis << 32)
    numbers *= np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
    return numbers ^ (numbers >> np.uint64(29)) | np.uint64(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Orbax logs of a manager that it opens, and of an error that it also raises."""
    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
