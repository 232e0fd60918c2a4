"""The losses that config.train.loss names, what each needs, and the formulas behind them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.models.interfaces import Output
from asen_jax.models.layers import l2_normalize

# added to each coordinate of a difference by PyTorch's pairwise_distance; keeps the gradient finite at 0
PAIRWISE_EPSILON = 1e-6
MASKED_LOGIT = -1e30  # instead of -infinity, whose gradient is NaN where every logit is masked

Metrics = dict[str, Float[Array, '']]


class Loss(NamedTuple):
    """A loss, and what it needs."""

    # (output [b, 3, k, ...] for anchor, positive, negative; batch; config.train) -> (values whose mean is the loss, metrics)
    compute: Callable[[Output, dict, ConfigDict], tuple[Float[Array, '...'], Metrics]]
    all_attributes: bool = False  # the output under every attribute (k = a), instead of each triplet's own (k = 1)
    labels: bool = False  # `labels` and `photo` in the batch
    whole_batch: bool = False  # a batch cannot be computed in parts
    extras: tuple[str, ...] = ()  # names in `Output.extras`
    distances: tuple[str, ...] = ('cosine', 'euclidean')  # values of config.train.distance


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


def _similarities(
    embedding: Float[Array, 'b 3 d'], distance: str = 'cosine'
) -> tuple[Float[Array, ' b'], Float[Array, ' b']]:
    """The similarity of each anchor to its positive and to its negative."""
    compare = {'cosine': cosine_similarity, 'euclidean': negative_distance}[distance]
    anchor, positive, negative = embedding[:, 0], embedding[:, 1], embedding[:, 2]
    return compare(anchor, positive), compare(anchor, negative)


def _triplet(output: Output, batch: dict, options: ConfigDict) -> tuple[Float[Array, ' b'], Metrics]:
    """The papers' loss: the mean over all triplets."""
    near, far = _similarities(output.embedding[:, :, 0], options.distance)
    return triplet_loss(near, far, options.margin), {'triplet_accuracy': (near > far).mean()}


def _contrastive(output: Output, batch: dict, options: ConfigDict) -> tuple[Float[Array, ''], Metrics]:
    """Every photo of the batch against every other, under each attribute for which it has a label."""
    embedding, labels = output.embedding, batch['labels']
    folded = l2_normalize(embedding.reshape(-1, *embedding.shape[2:]))
    labels, photo = labels.reshape(-1, *labels.shape[2:]), batch['photo'].reshape(-1)
    per_photo = contrastive_loss(folded, labels, photo, options.temperature)
    near, far = _similarities(_pick(embedding, batch['attribute'])[:, :, 0])
    return jnp.nanmean(per_photo), {'triplet_accuracy': (near > far).mean()}


def _norm_of(name: str, norm: Callable[[Array], Array]) -> Loss:
    """The norm of an extra output, as a loss."""

    def compute(output: Output, batch: dict, options: ConfigDict) -> tuple[Float[Array, ''], Metrics]:
        assert output.extras
        return norm(output.extras[name][:, :, 0].astype(jnp.float32)), {}

    return Loss(compute, extras=(name,))


LOSSES = {
    'triplet': Loss(_triplet),
    'contrastive': Loss(_contrastive, all_attributes=True, labels=True, whole_batch=True, distances=('cosine',)),
    'embedding_norm': _norm_of('unmasked', embedding_norm),
    'mask_norm': _norm_of('mask', mask_norm),
}


def parse_losses(text: str) -> dict[str, float]:
    """The weights in `triplet:1,mask_norm:0.0005` by name; a name alone weighs 1. Raises InputError for an unknown one."""
    weights = {}
    for part in text.split(','):
        name, _, weight = part.strip().partition(':')
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = 0.0
        if name not in LOSSES or not 0 < weights[name] < float('inf'):
            raise InputError(f'config.train.loss has {part!r}; write NAME or NAME:WEIGHT, from {", ".join(LOSSES)}.')
    return weights


def check_losses(options: ConfigDict, network: str, extras: tuple[str, ...]) -> None:
    """Raise InputError if a loss does not fit the other fields of `options`, config.train, or the network and its `extras`."""
    for name in parse_losses(options.loss):
        loss = LOSSES[name]
        if options.distance not in loss.distances:
            raise InputError(
                f'The loss {name} (config.train.loss) needs config.train.distance={loss.distances[0]}; set it.'
            )
        if loss.whole_batch and options.accumulate_steps > 1:
            raise InputError(
                f'The loss {name} (config.train.loss) needs whole batches; set config.train.accumulate_steps=1.'
            )
        if missing := [each for each in loss.extras if each not in extras]:
            raise InputError(
                f'The loss {name} needs {missing[0]!r}, which {network} lacks; remove it from config.train.loss.'
            )


def any_needs(options: ConfigDict, what: str) -> bool:
    """Whether a loss of `options`, config.train, has the need `what`, a field of `Loss`."""
    return any(getattr(LOSSES[name], what) for name in parse_losses(options.loss))


def total_loss(output: Output, batch: dict, options: ConfigDict) -> tuple[Float[Array, ''], Metrics]:
    """The weighted sum of the losses of `options`, config.train, and their metrics; with several, also the value of each.

    `output` is under every attribute if a loss needs that, and else under each triplet's own.
    """
    own, weights = output, parse_losses(options.loss)
    if any_needs(options, 'all_attributes'):
        own = jax.tree.map(lambda part: _pick(part, batch['attribute']), output)
    total, metrics = jnp.zeros(()), {}
    for name, weight in weights.items():
        loss = LOSSES[name]
        values, more = loss.compute(output if loss.all_attributes else own, batch, options)
        total, metrics = total + weight * values.mean(), metrics | more
        if len(weights) > 1:
            metrics[f'loss_{name}'] = values.mean()
    return total, metrics


def _pick(part: Float[Array, 'b 3 a ...'], attribute: Int[Array, ' b']) -> Float[Array, 'b 3 1 ...']:
    """The part of an output under each triplet's own attribute."""
    return jnp.take_along_axis(part, attribute.reshape(-1, *[1] * (part.ndim - 1)), axis=2)
