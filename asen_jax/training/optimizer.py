"""Adam with the papers' staircase schedule, and groups of parameters with their own learning rate, or frozen."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from asen_jax.errors import InputError


class Groups:
    """By which factor each parameter's learning rate is multiplied; one with the factor 0 is frozen.

    A group is 'REGEX:FACTOR'. The first regular expression that matches the beginning of a parameter's path, such as
    trunk/conv1/kernel, decides; without one, the factor is 1.
    """

    def __init__(self, groups: Sequence[str], params: dict):
        """`params` are the network's parameters or shapes. Raises InputError for a group that is malformed or matches none."""
        self.factors, unmatched = {}, dict.fromkeys(groups)
        parsed = [(group, *_parse(group)) for group in groups]
        for path in flatten_dict(params):
            group, factor = next(
                ((group, factor) for group, pattern, factor in parsed if pattern.match('/'.join(map(str, path)))),
                ('', 1.0),
            )
            self.factors[path] = factor
            unmatched.pop(group, None)
        if not any(self.factors.values()):
            raise InputError(f'config.optim.groups={",".join(groups)} freezes every parameter; leave some to train.')
        for group in unmatched:
            parts = ', '.join(dict.fromkeys(str(path[0]) for path in self.factors))
            raise InputError(
                f'config.optim.groups has {group!r}, which applies to no parameter; paths begin with {parts}.'
            )

    def split(self, tree: dict) -> tuple[dict, dict]:
        """The part of a tree like the parameters that is trained, and the part that is frozen."""
        flat = flatten_dict(tree)
        trained = {path: leaf for path, leaf in flat.items() if self.factors[path]}
        frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
        return unflatten_dict(trained), unflatten_dict(frozen)

    def join(self, trained: dict, frozen: dict) -> dict:
        """The tree whose parts `split` returned."""
        return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))

    def scale(self, updates: dict) -> dict:
        """The updates of the trained parameters, each multiplied by its factor."""
        return unflatten_dict({path: self.factors[path] * step for path, step in flatten_dict(updates).items()})

    def trains(self, prefix: str) -> bool:
        """Whether a parameter below the module `prefix` is trained."""
        return any(factor and path[0] == prefix for path, factor in self.factors.items())


def _parse(group: str) -> tuple[re.Pattern, float]:
    pattern, _, factor = group.rpartition(':')
    try:
        parsed = re.compile(pattern), float(factor)
    except (re.error, ValueError):
        parsed = re.compile(''), -1.0
    if not pattern or not 0 <= parsed[1] <= 1000:
        raise InputError(
            f'config.optim.groups has {group!r}; write REGEX:FACTOR, such as trunk:0.1, with a factor between 0 and 1,000.'
        )
    return parsed


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """learning_rate * decay_rate ^ floor(epoch / decay_every_epochs): PyTorch's StepLR, stepped once per epoch."""
    return optax.exponential_decay(
        config.optim.learning_rate,
        transition_steps=config.optim.decay_every_epochs * steps_per_epoch,
        decay_rate=config.optim.decay_rate,
        staircase=True,
    )


class Optimizer(NamedTuple):
    """Adam for the trained parameters of some groups; frozen ones have no state."""

    groups: Groups
    adam: optax.GradientTransformation

    def init(self, params: dict) -> optax.OptState:
        """The state before the first step."""
        return self.adam.init(self.groups.split(params)[0])

    def update(self, gradients: dict, state: optax.OptState, params: dict) -> tuple[dict, optax.OptState]:
        """The parameters and the state after a step; `gradients` are those of the trained parameters."""
        trained, frozen = self.groups.split(params)
        steps, state = self.adam.update(gradients, state, trained)
        updates: Any = steps
        updated: Any = optax.apply_updates(trained, self.groups.scale(updates))
        return self.groups.join(updated, frozen), state


def make_optimizer(config: ConfigDict, schedule: optax.Schedule, params: dict) -> Optimizer:
    """Adam (0.9, 0.999, 1e-8), PyTorch's defaults, with `config.optim.groups`; `params` are the parameters or their shapes."""
    return Optimizer(Groups(config.optim.groups, params), optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8))
