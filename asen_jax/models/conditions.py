"""The condition of each attribute: the vector that tells a head which attribute is meant."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class AttributeConditions(nnx.Module):
    """[E_c; onehot(c)] for each attribute c: a row of a trained table from N(0, 1), which has `dim` columns, and a one-hot vector.

    Without `dim` there is no table. With a table, the one-hot vector is there only if `one_hot` asks for it.
    """

    def __init__(self, num_attributes: int, dim: int = 0, one_hot: bool = False, *, rngs: nnx.Rngs):
        self.num_attributes, self.one_hot = num_attributes, one_hot
        self.rows = nnx.Param(jax.random.normal(rngs.params(), (num_attributes, dim))) if dim else None

    def __call__(self) -> Float[Array, 'a e']:
        one_hot = jnp.eye(self.num_attributes)
        if self.rows is None:
            return one_hot
        return jnp.concatenate([self.rows[...], one_hot], axis=-1) if self.one_hot else self.rows[...]
