"""The heads of the conditional similarity network (Veit et al., CVPR 2017) and of the plain triplet network."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from asen_jax.errors import InputError
from asen_jax.models.heads import HeadOutput, Projected
from asen_jax.models.layers import Numerics, Roles, average_pool, linear

MASKS = ('learned', 'sections', 'fixed')


def section_masks(num_attributes: int, dim: int, outside: float) -> Float[Array, 'attributes dim']:
    """Disjoint masks: 1 in the attribute's own `dim // num_attributes` channels, `outside` elsewhere."""
    if dim < num_attributes:
        raise InputError(
            f'config.model.embed_dim is {dim}, too small to give each of {num_attributes} attributes a section; raise it.'
        )
    owner = np.arange(dim) // (dim // num_attributes)
    return jnp.asarray(np.where(owner == np.arange(num_attributes)[:, None], 1.0, outside), jnp.float32)


class CsnHead(nnx.Module):
    """fc(average pool) times one mask row per attribute.

    'learned' masks start from N(0.9, 0.7) and 'sections' from disjoint sections (1 inside, 0.1 outside), both through a relu.
    'fixed' masks are disjoint sections (1 inside, 0 outside) that are not trained.
    """

    def __init__(
        self, trunk_dim: int, embed_dim: int, num_attributes: int, masks: str, *, numerics: Numerics, rngs: nnx.Rngs
    ):
        if masks not in MASKS:
            raise InputError(f'config.model.csn.masks is {masks!r}; it must be one of {", ".join(MASKS)}.')
        self.fc = linear(trunk_dim, embed_dim, numerics=numerics, rngs=rngs)
        self.num_attributes, self.embed_dim = num_attributes, embed_dim
        if masks == 'learned':
            self.masks = nnx.Param(0.9 + 0.7 * jax.random.normal(rngs.params(), (num_attributes, embed_dim)))
        elif masks == 'sections':
            self.masks = nnx.Param(section_masks(num_attributes, embed_dim, outside=0.1))
        else:
            self.masks = None

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Projected:
        """fc(average pool), which is the same for every attribute."""
        return Projected(self.fc(average_pool(x)))

    def __call__(self, projected: Projected, attribute: Int[Array, ' #n']) -> HeadOutput:
        if self.masks is None:
            masks = section_masks(self.num_attributes, self.embed_dim, outside=0.0)
        else:
            masks = nnx.relu(self.masks[...])
        rows = masks[attribute].astype(projected.features.dtype)
        return HeadOutput(projected.features * rows, extras={'unmasked': projected.features, 'mask': rows})


class TripletHead(nnx.Module):
    """fc(average pool); the attribute is ignored."""

    def __init__(self, trunk_dim: int, embed_dim: int, *, numerics: Numerics, rngs: nnx.Rngs):
        self.fc = linear(trunk_dim, embed_dim, numerics=numerics, rngs=rngs)

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Projected:
        """fc(average pool)."""
        return Projected(self.fc(average_pool(x)))

    def __call__(self, projected: Projected, attribute: Int[Array, ' #n']) -> HeadOutput:
        return HeadOutput(projected.features)
