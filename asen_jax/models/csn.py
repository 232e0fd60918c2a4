"""The conditional similarity network (Veit et al., CVPR 2017) and the plain triplet network."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.models.interfaces import NetworkKind, Output, TorchLayout
from asen_jax.models.layers import Numerics, Roles, Table, average_pool, linear
from asen_jax.models.single import single

MASKS = 'masks.weight'  # the original's name
OWN_FC = 'embeddingnet.fc_embed'  # the last layer in the checkpoints of CSN's own authors, who keep it in the trunk
EMBED_FC = 'embed_fc'  # the same layer in ASEN's copy of CSN


def section_masks(num_attributes: int, dim: int, outside: float) -> Float[Array, 'attributes dim']:
    """Disjoint masks: 1 in the attribute's own `dim // num_attributes` channels, `outside` elsewhere."""
    if dim < num_attributes:
        raise InputError(f'config.model.embed_dim is {dim}, too small for {num_attributes} sections; raise it.')
    owner = np.arange(dim) // (dim // num_attributes)
    return jnp.asarray(np.where(owner == np.arange(num_attributes)[:, None], 1.0, outside), jnp.float32)


class TripletHead(nnx.Module):
    """fc(average pool); the condition is ignored."""

    def __init__(self, options: ConfigDict, trunk_dim: int, num_attributes: int, numerics: Numerics, rngs: nnx.Rngs):
        self.fc = linear(trunk_dim, options.embed_dim, numerics=numerics, rngs=rngs)

    def project(self, x: Float[Array, 'n h w c'], roles: Roles) -> Float[Array, 'n d']:
        """fc(average pool), which is the same for every attribute."""
        return self.fc(average_pool(x))

    def __call__(self, projected: Float[Array, 'n d'], condition: Float[Array, '#n a']) -> Output:
        return Output(projected)


class CsnHead(TripletHead):
    """fc(average pool) times one mask per attribute, which the one-hot condition picks.

    'learned' masks start from N(0.9, 0.7) and 'sections' from disjoint sections (1 inside, 0.1 outside), both through a relu.
    'fixed' masks are disjoint sections (1 inside, 0 outside) that are not trained.
    """

    def __init__(self, options: ConfigDict, trunk_dim: int, num_attributes: int, numerics: Numerics, rngs: nnx.Rngs):
        super().__init__(options, trunk_dim, num_attributes, numerics, rngs)
        starts = {
            'learned': lambda key, shape: 0.9 + 0.7 * jax.random.normal(key, shape),
            'sections': lambda key, shape: section_masks(*shape, outside=0.1),
            'fixed': None,
        }
        init, self.embed_dim = starts[options.csn.masks], options.embed_dim
        self.masks = Table(num_attributes, options.embed_dim, init=init, rngs=rngs) if init else None

    def __call__(self, projected: Float[Array, 'n d'], condition: Float[Array, '#n a']) -> Output:
        if self.masks is None:
            masks = condition @ section_masks(condition.shape[-1], self.embed_dim, outside=0.0)
        else:
            masks = nnx.relu(self.masks(condition))
        masks = jnp.broadcast_to(masks.astype(projected.dtype), projected.shape)
        return Output(projected * masks, extras={'unmasked': projected, 'mask': masks})


def csn_names(options: ConfigDict) -> dict[str, str]:
    """The original's names; without unit length, the network is that of CSN's own authors."""
    return {'trunk': 'embeddingnet', 'head.fc': EMBED_FC if options.normalize else OWN_FC, 'head.masks': 'masks'}


def recognize_csn(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int] | None:
    """The config fields of a checkpoint of CSN, and its number of attributes; None for other tensors."""
    if MASKS not in tensors:
        return None
    masks, own = tensors[MASKS], f'{OWN_FC}.weight' in tensors
    fixed = masks.shape[1] >= len(masks) and np.array_equal(masks, section_masks(*masks.shape, outside=0.0))
    fields = {
        'model.csn.masks': 'fixed' if fixed else 'learned',
        'model.normalize': not own,
        'train.distance': 'euclidean' if own else 'cosine',
        'model.embed_dim': masks.shape[1],
    }
    return fields, len(masks)


def fixed_masks(options: ConfigDict, num_attributes: int) -> dict[str, np.ndarray]:
    """The masks as the original stores them, if they are a constant of the network."""
    if options.csn.masks != 'fixed':
        return {}
    return {MASKS: np.asarray(section_masks(num_attributes, options.embed_dim, outside=0.0))}


NETWORKS = {
    'csn': NetworkKind(
        paper='CSN: Veit et al., CVPR 2017, arXiv 1603.07810',
        build=single(CsnHead),
        torch=TorchLayout(csn_names, recognize_csn, fixed_masks),
        extras=('unmasked', 'mask'),
        is_ordered=lambda options: options.csn.masks == 'fixed',
    ),
    'triplet': NetworkKind(
        paper='a plain triplet network, as in Ma et al., AAAI 2020, arXiv 2002.02814',
        build=single(TripletHead),
        torch=TorchLayout(csn_names, lambda tensors: None),
    ),
}
