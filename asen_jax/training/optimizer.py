"""Adam with the papers' staircase schedule."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """learning_rate * decay_rate ^ floor(epoch / decay_every_epochs): PyTorch's StepLR, stepped once per epoch."""
    return optax.exponential_decay(
        config.optim.learning_rate,
        transition_steps=config.optim.decay_every_epochs * steps_per_epoch,
        decay_rate=config.optim.decay_rate,
        staircase=True,
    )


def make_optimizer(schedule: optax.Schedule, trunk_factor: float = 1.0) -> optax.GradientTransformation:
    """Adam (0.9, 0.999, 1e-8), PyTorch's defaults, on every parameter; the trunk's learning rate is `trunk_factor` of the others'."""
    adam = optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)
    if trunk_factor == 1:
        return adam

    def slow_down(updates: Any, params: Any) -> Any:
        return updates | {'trunk': jax.tree.map(lambda update: trunk_factor * update, updates['trunk'])}

    return optax.chain(adam, optax.stateless(slow_down))
