"""The train state (frozen, arrays only) and the one step that replaces it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int32, Key, UInt8
from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.models.apply import embed_triplets
from asen_jax.models.interfaces import Train
from asen_jax.training.losses import any_needs, total_loss
from asen_jax.training.optimizer import Optimizer

# On a CPU, XLA drops the barriers behind which values are recomputed, so that it keeps the original ones anyway.
KEEP_BARRIERS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes; the position in the data and all randomness follow from `step` and the seed."""

    step: Any  # int32 scalar; in a tree of shardings, its sharding
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    def arrays(self) -> dict[str, Any]:
        """The trees that a checkpoint saves under the step."""
        return {'params': self.params, 'batch_stats': self.batch_stats, 'opt_state': self.opt_state}


def create_state(params: dict, batch_stats: dict, optimizer: Optimizer) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    options: ConfigDict,
    shardings: TrainState,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The compiled step: (state, batch) -> (state, metrics). The state is donated; the batch is split over all devices.

    `options` is `config.train`; `shardings` are those of the state; `seed` and the step decide which channels are dropped.
    `train_photos` in the batch are all photos, from which the step takes those of its triplets; they are not donated.
    The batch is computed in `options.accumulate_steps` parts, whose mean gradient makes the update.
    Parameters that are sharded are gathered for the step, and each device updates its own part of them.
    """
    every, groups = any_needs(options, 'all_attributes'), optimizer.groups

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        whole = jax.lax.with_sharding_constraint(state.params, sharding.replicated(mesh))
        trained, frozen = groups.split(whole)

        def differentiate(batch_stats, batch, key):
            def objective(trained):
                params, attribute = groups.join(trained, frozen), None if every else batch['attribute']
                mode = Train(key, options.remat)
                output, moved = embed_triplets(graphdef, params, batch_stats, batch['images'], attribute, mode)
                loss, metrics = total_loss(output, batch, options)
                return loss, (moved, metrics)

            (loss, (batch_stats, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
            gradients = jax.lax.with_sharding_constraint(gradients, groups.split(shardings.params)[0])
            return batch_stats, ({'loss': loss, **metrics}, gradients)

        key = jax.random.fold_in(jax.random.key(seed), state.step)
        inputs = batch | {'images': _photos(batch, mesh)}
        parts = options.accumulate_steps
        batch_stats, (metrics, gradients) = accumulate(differentiate, state.batch_stats, inputs, key, parts, mesh)
        params, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics['gradient_norm'] = optax.tree.norm(gradients)
        if 'request' in batch:  # what any process asks of all: every process reads the same value after the same step
            metrics['request'] = batch['request'].max()
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=KEEP_BARRIERS if options.remat and mesh.devices.flat[0].platform == 'cpu' else None,
    )


def accumulate(
    differentiate: Callable, batch_stats: dict, batch: dict, key: Key[Array, ''], count: int, mesh: jax.sharding.Mesh
):
    """The batch statistics after `count` parts of the batch, one after the other, and the means of what was computed for each.

    Part i has the rows i, i + count, i + 2 * count, ..., and each device holds the same number of them, so that no photo moves.
    """
    if count == 1:
        return differentiate(batch_stats, batch, key)
    rows = {name: part for name, part in batch.items() if name != 'train_photos'}
    parts = jax.tree.map(lambda part: part.reshape(-1, count, *part.shape[1:]).swapaxes(0, 1), rows)
    parts = jax.lax.with_sharding_constraint(parts, jax.NamedSharding(mesh, jax.P(None, mesh.axis_names)))

    def add(carry, part):
        batch_stats, values = differentiate(carry[0], *part)
        return (batch_stats, jax.tree.map(jnp.add, carry[1], values)), None

    shapes = jax.eval_shape(differentiate, batch_stats, rows, key)[1]
    start = batch_stats, jax.tree.map(jnp.zeros_like, shapes)
    (batch_stats, sums), _ = jax.lax.scan(add, start, (parts, jax.random.split(key, count)))
    return batch_stats, jax.tree.map(lambda total: total / count, sums)


def _photos(batch: dict, mesh: jax.sharding.Mesh) -> Array:
    """The pixels of a batch, mirrored where `flip` says so, or the features that a frozen trunk has for them."""
    if 'features' in batch:
        return batch['features']
    images = gather_photos(mesh, batch['train_photos'], batch['photo']) if 'train_photos' in batch else batch['images']
    if 'flip' not in batch:
        return images
    return jnp.where(batch['flip'][..., None, None, None], images[..., ::-1, :], images)


def gather_photos(
    mesh: jax.sharding.Mesh, photos: UInt8[Array, 'photos h w c'], index: Int32[Array, 'b 3']
) -> UInt8[Array, 'b 3 h w c']:
    """`photos[index]`, where each device holds a part of the photos, and gets those of its part of the batch."""
    if mesh.size == 1:
        return photos[index]
    axes = mesh.axis_names
    split = jax.P(axes)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(split, split), out_specs=split)
    def exchange(photos, index):
        place = jax.lax.all_gather(index, axes, tiled=True) - jax.lax.axis_index(axes) * len(photos)
        own = (place >= 0) & (place < len(photos))
        found = jnp.where(own[..., None, None, None], photos[place.clip(0, len(photos) - 1)], 0)
        return jax.lax.psum_scatter(found, axes, tiled=True)  # only one device has added more than zeros

    return exchange(photos, index)
