"""The train state (frozen, arrays only) and the one step that replaces it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, Key, UInt8
from ml_collections import ConfigDict

from asen_jax import sharding
from asen_jax.models import Structure, embed_triplets
from asen_jax.models.layers import l2_normalize
from asen_jax.training import losses

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


def create_state(params: dict, batch_stats: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    structure: Structure,
    optimizer: optax.GradientTransformation,
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
    compute_loss = {'triplet': _triplet_loss, 'contrastive': _contrastive_loss}[options.loss]

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        whole = jax.lax.with_sharding_constraint(state.params, sharding.replicated(mesh))

        def differentiate(batch_stats, batch, key):
            def objective(params):
                return compute_loss(structure, params, batch_stats, batch, key, options)

            (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(objective, has_aux=True)(whole)
            return batch_stats, (loss, accuracy, jax.lax.with_sharding_constraint(gradients, shardings.params))

        inputs = batch | {'images': _photos(batch, mesh)}
        parts = options.accumulate_steps
        batch_stats, (loss, accuracy, gradients) = _accumulate(
            differentiate, state.batch_stats, inputs, key, parts, mesh
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = {'loss': loss, 'triplet_accuracy': accuracy, 'gradient_norm': optax.tree.norm(gradients)}
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


def _accumulate(
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
    images = _gather(mesh, batch['train_photos'], batch['photo']) if 'train_photos' in batch else batch['images']
    if 'flip' not in batch:
        return images
    return jnp.where(batch['flip'][..., None, None, None], images[..., ::-1, :], images)


def _gather(
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


def _similarities(
    embedding: Float[Array, 'b 3 d'], distance: str = 'cosine'
) -> tuple[Float[Array, ' b'], Float[Array, ' b']]:
    """The similarity of each anchor to its positive and to its negative."""
    compare = {'cosine': losses.cosine_similarity, 'euclidean': losses.negative_distance}[distance]
    anchor, positive, negative = embedding[:, 0], embedding[:, 1], embedding[:, 2]
    return compare(anchor, positive), compare(anchor, negative)


def _triplet_loss(
    structure: Structure, params: dict, batch_stats: dict, batch: dict, key: Key[Array, ''], options: ConfigDict
):
    """The papers' loss: the mean over all triplets (ASEN, equation 9), plus CSN's two norms if their weights are not zero."""
    output, stats = embed_triplets(
        structure, params, batch_stats, batch['images'], batch['attribute'], key, remat=options.remat
    )
    near, far = _similarities(output.embedding, options.distance)
    loss, extras = losses.triplet_loss(near, far, options.margin).mean(), output.extras or {}
    if options.embedding_norm:
        loss += options.embedding_norm * losses.embedding_norm(extras['unmasked'].astype(jnp.float32))
    if options.mask_norm:
        loss += options.mask_norm * losses.mask_norm(extras['mask'].astype(jnp.float32))
    return loss, (stats, (near > far).mean())


def _contrastive_loss(
    structure: Structure, params: dict, batch_stats: dict, batch: dict, key: Key[Array, ''], options: ConfigDict
):
    """Every photo of the batch against every other, under each attribute for which it has a label."""
    output, stats = embed_triplets(
        structure,
        params,
        batch_stats,
        batch['images'],
        batch['attribute'],
        key,
        all_attributes=True,
        remat=options.remat,
    )
    embedding, labels, photo = output.embedding, batch['labels'], batch['photo']
    folded = l2_normalize(embedding.reshape(-1, *embedding.shape[2:]))
    per_photo = losses.contrastive_loss(
        folded, labels.reshape(-1, *labels.shape[2:]), photo.reshape(-1), options.temperature
    )
    own = jnp.take_along_axis(embedding, batch['attribute'][:, None, None, None], axis=2)[:, :, 0]
    near, far = _similarities(own)
    return jnp.nanmean(per_photo), (stats, (near > far).mean())
