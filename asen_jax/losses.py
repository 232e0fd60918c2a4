"""Losses per triplet; the caller reduces."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cosine_similarity(a: Float[Array, 'n d'], b: Float[Array, 'n d']) -> Float[Array, ' n']:
    """a.b / (||a|| ||b||), float32."""
    return jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def triplet_loss(
    similarity_to_positive: Float[Array, ' n'], similarity_to_negative: Float[Array, ' n'], margin: float
) -> Float[Array, ' n']:
    """max(0, margin - s(anchor, positive) + s(anchor, negative)) of each triplet (ASEN, equation 9)."""
    return jnp.maximum(0.0, margin - similarity_to_positive + similarity_to_negative)
