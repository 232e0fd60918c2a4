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

    def update(updates, state, params=None):
        steps, state = adam.update(updates, state, params)
        return _scale_trunk(steps, trunk_factor), state

    return optax.GradientTransformation(adam.init, update)  # its state does not depend on the factor


def _scale_trunk(steps: Any, factor: float) -> dict:
    return {**steps, 'trunk': jax.tree.map(lambda step: factor * step, steps['trunk'])}
