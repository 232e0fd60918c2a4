"""Losses per triplet or per photo, which the caller averages, and the norms that CSN adds."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

PAIRWISE_EPSILON = (
    1e-6  # added to each coordinate of a difference by PyTorch's pairwise_distance; keeps the gradient finite at 0
)
MASKED_LOGIT = -1e30  # instead of -infinity, whose gradient is NaN where every logit is masked


def cosine_similarity(a: Float[Array, 'n d'], b: Float[Array, 'n d']) -> Float[Array, ' n']:
    """a.b / (||a|| ||b||), float32."""
    return jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def negative_distance(a: Float[Array, 'n d'], b: Float[Array, 'n d']) -> Float[Array, ' n']:
    """-||a - b + 1e-6||_2, float32: as a similarity, so that the triplet loss applies its margin to distances (CSN)."""
    return -jnp.linalg.norm(a - b + PAIRWISE_EPSILON, axis=-1)


def triplet_loss(
    similarity_to_positive: Float[Array, ' n'], similarity_to_negative: Float[Array, ' n'], margin: float
) -> Float[Array, ' n']:
    """max(0, margin - s(anchor, positive) + s(anchor, negative)) of each triplet (ASEN, equation 9)."""
    return jnp.maximum(0.0, margin - similarity_to_positive + similarity_to_negative)


def embedding_norm(unmasked: Float[Array, 'b roles d']) -> Float[Array, '']:
    """mean over roles of ||embeddings of the batch before their mask||_F / sqrt(b), which CSN penalizes (Veit et al., CVPR 2017)."""
    return jnp.sqrt(jnp.square(unmasked).sum(axis=(0, 2))).mean() / jnp.sqrt(unmasked.shape[0])


def mask_norm(masks: Float[Array, 'b roles d']) -> Float[Array, '']:
    """mean over roles of ||mask rows of the batch||_1 / b, which makes masks sparse (Veit et al., CVPR 2017)."""
    return jnp.abs(masks).sum(axis=(0, 2)).mean() / masks.shape[0]


def contrastive_loss(
    embedding: Float[Array, 'n a d'], labels: UInt8[Array, 'n a v'], photo: Int[Array, ' n'], temperature: float
) -> Float[Array, 'n a']:
    """Each photo against all others of the batch, under each attribute for which it has a label.

    -mean over positives p of log(exp(s_ip / t) / sum over labeled j != i of exp(s_ij / t)), s the dot product of unit
    vectors (Khosla et al., NeurIPS 2020, equation 2, within each attribute). A positive shares a value. NaN where a photo
    has no label or no positive, so that the caller averages the rest. Equal numbers in `photo` mark the same photo drawn
    twice, which is not compared with itself. Not in the ASEN papers: it learns far more from each pass of the trunk than
    triplets alone.
    """
    same = jnp.einsum('iav,jav->aij', labels, labels, preferred_element_type=jnp.int32) > 0
    labeled = labels.any(axis=-1).T  # [a, n]
    other = (photo[:, None] != photo[None])[None]
    positive, counted = same & other, labeled[:, None, :] & other
    similarity = jnp.einsum('iad,jad->aij', embedding, embedding, precision=lax.Precision.HIGHEST) / temperature
    log_share = similarity - jax.nn.logsumexp(jnp.where(counted, similarity, MASKED_LOGIT), axis=-1, keepdims=True)
    num_positive = positive.sum(axis=-1)
    total = -jnp.where(positive, log_share, 0.0).sum(axis=-1)
    return jnp.where(num_positive > 0, total / jnp.maximum(num_positive, 1), jnp.nan).T
