"""A network with one trunk, whose features serve every attribute: ASEN, ASEN v2, CSN, and the triplet network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from asen_jax.models.conditions import AttributeConditions
from asen_jax.models.interfaces import Conditions, Head, Output, Train, Trunk
from asen_jax.models.layers import BatchNorm, Numerics, Roles, l2_normalize
from asen_jax.models.registry import trunk_kind

TOGETHER: Roles = (0,)  # the three roles as one batch
ASEN_ROLES: Roles = (0, 2, 1)  # the original passes anchor, negative, positive; our axis is anchor, positive, negative

BuildHead = Callable[[ConfigDict, int, int, Numerics, nnx.Rngs], Head]  # of config.model, trunk_dim, num_attributes
BuildConditions = Callable[[ConfigDict, int, nnx.Rngs], Conditions]  # of config.model, num_attributes


class SingleNetwork(nnx.Module):
    """unit(head(dropout(bn(trunk(photo))), condition)).

    `feature_bn` may be None. `dropout` is the share of each photo's channels that training sets to zero everywhere (PyTorch's
    Dropout2d). `roles` say how batch norm sees a batch of triplets in training, and `trunk_roles` the same for the trunk: empty if
    it keeps its running statistics.
    """

    def __init__(
        self,
        trunk: Trunk,
        conditions: Conditions,
        head: Head,
        *,
        feature_bn: BatchNorm | None,
        dropout: float,
        unit_length: bool,
        roles: Roles,
        trunk_roles: Roles,
    ):
        self.trunk, self.conditions, self.head, self.feature_bn = trunk, conditions, head, feature_bn
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))
        self.unit_length, self.roles, self.trunk_roles = unit_length, roles, trunk_roles

    def features(self, images: UInt8[Array, 'n h w 3'], mode: Train | None = None) -> Float[Array, 'n h2 w2 c']:
        """The trunk's features, from which the head computes everything else."""
        roles, remat = (self.trunk_roles, mode.remat) if mode else ((), False)
        return self.trunk(self.trunk.normalize(images), roles, remat)

    def __call__(
        self,
        images: UInt8[Array, 'n h w 3'] | Float[Array, 'n h w c'],
        conditions: Float[Array, '#n k e'],
        mode: Train | None = None,
    ) -> Output:
        """Every photo under k conditions; `images` are pixels, or the `features` that a frozen trunk has for them."""
        roles = self.roles if mode else ()
        features = self.features(images, mode) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        if self.feature_bn is not None:
            features = self.feature_bn(features, roles)
        features = self.dropout(features, deterministic=mode is None, rngs=mode.key if mode else None)
        projected = self.head.project(features, roles)
        if conditions.shape[1] == 1:  # an axis of length 1 from vmap costs ASEN's step 7 % on a CPU
            return jax.tree.map(lambda part: part[:, None], self._under(projected, conditions[:, 0]))
        return jax.vmap(lambda condition: self._under(projected, condition), in_axes=1, out_axes=1)(conditions)

    def _under(self, projected: Any, condition: Float[Array, '#n e']) -> Output:
        output = self.head(projected, condition)
        embedding = output.embedding.astype(jnp.float32)
        return output._replace(embedding=l2_normalize(embedding) if self.unit_length else embedding)


def one_hot_conditions(options: ConfigDict, num_attributes: int, rngs: nnx.Rngs) -> Conditions:
    """Conditions without parameters."""
    return AttributeConditions(num_attributes, rngs=rngs)


def single(
    build_head: BuildHead, build_conditions: BuildConditions = one_hot_conditions
) -> Callable[[ConfigDict, int, Numerics, nnx.Rngs], SingleNetwork]:
    """What builds a network with such a head and such conditions."""

    def build(options: ConfigDict, num_attributes: int, numerics: Numerics, rngs: nnx.Rngs) -> SingleNetwork:
        trunk = trunk_kind(options.trunk).build(options, numerics, rngs)
        conditions = build_conditions(options, num_attributes, rngs)
        roles = ASEN_ROLES if options.bn_per_role else TOGETHER
        return SingleNetwork(
            trunk,
            conditions,
            build_head(options, trunk.out_dim, num_attributes, numerics, rngs),
            feature_bn=BatchNorm(trunk.out_dim) if options.feature_bn else None,
            dropout=options.dropout,
            unit_length=options.normalize,
            roles=roles,
            trunk_roles={'batch': roles, 'running': ()}[options.trunk_bn],
        )

    return build
