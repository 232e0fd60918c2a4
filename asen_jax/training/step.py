"""The train state (arrays only, frozen) and the one step that replaces it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from asen_jax import sharding
from asen_jax.models import Model, embed_triplets
from asen_jax.models.layers import l2_normalize
from asen_jax.training import losses


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes; the data's position and randomness follow from `step` and the seed."""

    step: Any  # int32 scalar; in a tree of shardings, its place
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def create_state(params: dict, batch_stats: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, options: Any, places: TrainState, mesh: jax.sharding.Mesh
) -> Callable:
    """The compiled step: (state, batch) -> (state, metrics). The state is donated; the batch is shared over 'data'.

    `options` is `config.train`; `places` are the state's shardings.
    """
    compute_loss = {'triplet': _triplet_loss, 'contrastive': _contrastive_loss}[options.loss]

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        def objective(params):
            return compute_loss(model, params, state.batch_stats, batch, options)

        (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {'loss': loss, 'triplet_accuracy': accuracy, 'gradient_norm': optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(
        train_step, donate_argnums=0, in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
    )  # fmt: skip


def _similarities(
    embedding: Float[Array, 'b 3 d'], distance: str = 'cosine'
) -> tuple[Float[Array, ' b'], Float[Array, ' b']]:
    """Of each anchor to its positive and to its negative."""
    compare = {'cosine': losses.cosine_similarity, 'euclidean': losses.negative_distance}[distance]
    anchor, positive, negative = embedding[:, 0], embedding[:, 1], embedding[:, 2]
    return compare(anchor, positive), compare(anchor, negative)


def _triplet_loss(model: Model, params: dict, batch_stats: dict, batch: dict, options: Any):
    """The papers' loss: the mean over all triplets (ASEN, equation 9), and CSN's two norms where they weigh anything."""
    output, stats = embed_triplets(model, params, batch_stats, batch['images'], batch['attribute'])
    near, far = _similarities(output.embedding, options.distance)
    loss = losses.triplet_loss(near, far, options.margin).mean()
    if options.embedding_norm:
        loss += options.embedding_norm * losses.embedding_norm(output.unmasked.astype(jnp.float32))
    if options.mask_norm:
        loss += options.mask_norm * losses.mask_norm(output.mask.astype(jnp.float32))
    return loss, (stats, (near > far).mean())


def _contrastive_loss(model: Model, params: dict, batch_stats: dict, batch: dict, options: Any):
    """Every photo of the batch against every other, under each attribute that it is labeled with."""
    output, stats = embed_triplets(model, params, batch_stats, batch['images'], batch['attribute'], all_attributes=True)
    embedding = output.embedding
    folded, labels, photo = (
        part.reshape(-1, *part.shape[2:]) for part in (embedding, batch['labels'], batch['photo'])
    )  # fmt: skip
    loss = jnp.nanmean(losses.contrastive_loss(l2_normalize(folded), labels, photo, options.temperature))
    own = jnp.take_along_axis(embedding, batch['attribute'][:, None, None, None], axis=2)[:, :, 0]
    near, far = _similarities(own)
    return loss, (stats, (near > far).mean())
