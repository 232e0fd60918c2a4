"""The train state (arrays only, frozen) and the one step that replaces it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from asen_jax import losses, sharding
from asen_jax.models import Model, embed_triplets


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes; the data's position and randomness follow from `step` and the seed."""

    step: Int[Array, '']
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def create_state(params: dict, batch_stats: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, margin: float, places: TrainState, mesh: jax.sharding.Mesh
) -> Callable:
    """The compiled step: (state, batch) -> (state, metrics). The state is donated; the batch is shared over 'data'.

    `places` are the state's shardings. The loss is the mean over all triplets of the batch (ASEN, equation 9).
    """

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        def mean_loss(params):
            embedding, stats = embed_triplets(model, params, state.batch_stats, batch['images'], batch['attribute'])
            anchor, positive, negative = embedding[:, 0], embedding[:, 1], embedding[:, 2]
            near, far = losses.cosine_similarity(anchor, positive), losses.cosine_similarity(anchor, negative)
            return losses.triplet_loss(near, far, margin).mean(), (stats, (near > far).mean())

        (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {'loss': loss, 'triplet_accuracy': accuracy, 'gradient_norm': optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(
        train_step, donate_argnums=0, in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
    )  # fmt: skip
