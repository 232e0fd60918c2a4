"""MAP and related figures of a split, exact for any batch size, beside what a random ranking would score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from asen_jax.data.batches import eval_batch_size, eval_batches
from asen_jax.data.prepared import LoadOptions, Records, check_unchanged, has_targets, read_rows
from asen_jax.errors import InputError
from asen_jax.evaluation import metrics
from asen_jax.evaluation.figures import Ranking
from asen_jax.evaluation.results import KS
from asen_jax.evaluation.vectors import Vectors, collect_vectors, product_on_device
from asen_jax.network import Embed

MAX_EXAMPLES, NUM_NEAREST = 8, 6  # of the picture
TRIPLETS_AT_A_TIME = 10_000  # bounds the memory of their vectors


class AttributeRankings(NamedTuple):
    """The queries of one attribute, its candidates, and how each query ranks them."""

    attribute: int
    query: Int[np.ndarray, 'queries 3']
    candidates: metrics.Candidates
    rankings: metrics.Rankings

    def nearest(self, row: int, count: int) -> list[int]:
        """The first `count` photos of a query's ranking."""
        return self.candidates.photos[self.rankings.nearest[row, :count]].tolist()


class EmbeddedPhoto(NamedTuple):
    """A photo of the split as the network sees it, and what the network makes of it."""

    square: UInt8[np.ndarray, 'h w 3']
    vectors: Float[np.ndarray, 'a d']
    heatmaps: Float[np.ndarray, 'a h16 w16'] | None


class Evaluation(NamedTuple):
    """The figures of a split (the fields of `eval_<split>.json`), the rankings by attribute, and the vectors behind them."""

    result: dict
    by_attribute: dict[str, AttributeRankings]  # where there are queries and candidates
    vectors: Vectors


def evaluate(config: ConfigDict, records: Records, split: str, embed: Embed, step: int) -> Evaluation:
    """Every figure of `split` for the network `embed` after `step` steps; raises InputError if the split has no targets."""
    if not has_targets(records, split):
        raise InputError(
            f'{records.directory} has no queries and no triplets in its {split} split; name another --split.'
        )
    query, candidate, triplets = (read_rows(records, f'{split}_{kind}') for kind in ('query', 'candidate', 'triplets'))
    # the (photo, attribute) pairs to compare
    wanted = np.zeros((records.splits.get(split, 0), len(records.attributes)), bool)
    for rows in (query, candidate):
        wanted[rows[:, 0], rows[:, 1]] = True
    if config.eval.cross_attribute:
        wanted[wanted.any(axis=1)] = True
    for role in range(3):
        wanted[triplets[:, role], triplets[:, 3]] = True
    vectors = _embed_wanted(config, records, split, embed, wanted)
    check_unchanged(records)

    def rank(attribute: int, under: int, count: int = max(KS)) -> AttributeRankings:
        """How the attribute's queries rank its candidates by the vectors under the attribute `under`."""
        rows, candidates = query[query[:, 1] == attribute], metrics.group_candidates(candidate, attribute)
        compared = vectors.of(candidates.photos, under)
        product = None if jax.default_backend() == 'cpu' else product_on_device(compared)
        rankings = metrics.rank_candidates(
            vectors.of(rows[:, 0], under), compared, rows[:, 2], candidates.values, count, vectors.distance, product
        )
        return AttributeRankings(attribute, rows, candidates, rankings)

    by_attribute = {name: rank(number, number) for number, name in enumerate(records.attributes)}

    def summarize(figure: Callable[[metrics.Rankings], np.ndarray]) -> dict:
        return metrics.summarize({name: figure(each.rankings) for name, each in by_attribute.items()})

    dropped = records.dropped.get(split, {'queries': 0, 'candidates': 0})
    result: dict[str, Any] = {
        'dataset': records.dataset,
        'split': split,
        'checkpoint_step': step,
        'map': summarize(lambda rankings: rankings.ap),
        'chance_map': metrics.chance_map(records.attributes, query, candidate),
        'recall_at_k': {str(k): summarize(lambda rankings, k=k: rankings.recall_at(k))['overall'] for k in KS},
        'precision_at_k': {str(k): summarize(lambda rankings, k=k: rankings.precision_at(k))['overall'] for k in KS},
        'triplet_accuracy': _triplet_accuracy(records, triplets, vectors),
        'num_queries': len(query),
        'num_candidates': metrics.count_candidates(candidate),
        'dropped': {**dropped, 'list_file': str(Path(records.directory) / 'skipped.txt')},
        'caveat': records.caveat,
    }
    if config.eval.cross_attribute and len(query):
        queried = {name: each.attribute for name, each in by_attribute.items() if len(each.query)}
        cross = {
            name: np.array([rank(own, other, 0).rankings.ap.mean() for other in queried.values() if other != own])
            for name, own in queried.items()
        }
        result['selectivity'] = _selectivity(cross, result)
    if not np.isnan(vectors.peak_in_box).all():
        result['attention'] = _attention(records, vectors)
    shown = {name: each for name, each in by_attribute.items() if len(each.query) and len(each.candidates.photos)}
    return Evaluation(result, shown, vectors)


def rank_examples(config: ConfigDict, records: Records, embed: Embed, evaluation: Evaluation) -> list[Ranking]:
    """The first query of each attribute: where the network looks in it, and the nearest candidates."""
    options, split, rankings = LoadOptions.from_config(config), evaluation.result['split'], []
    for name, ranked in list(evaluation.by_attribute.items())[:MAX_EXAMPLES]:
        index, attribute, value = ranked.query[0].tolist()
        photo = embed_photo(config, records, split, embed, index)
        heatmap = None if photo.heatmaps is None else photo.heatmaps[attribute]
        nearest = [options.read_square(records, split, found) for found in ranked.nearest(0, NUM_NEAREST)]
        title, relevant = f'{name}: {records.values[attribute][value]}', ranked.rankings.relevant[0, :NUM_NEAREST]
        rankings.append(Ranking(title, photo.square, heatmap, nearest, relevant.tolist()))
    return rankings


def embed_photo(config: ConfigDict, records: Records, split: str, embed: Embed, index: int) -> EmbeddedPhoto:
    """One photo, by its position in the split."""
    options = LoadOptions.from_config(config)
    # evaluation has already compiled this batch size
    batch = np.zeros((eval_batch_size(records, split, config), options.size, options.size, 3), np.uint8)
    batch[0] = options.read_square(records, split, index)
    output = embed(batch)
    heatmaps = None if output.heatmap is None else np.asarray(output.heatmap)[0]
    return EmbeddedPhoto(batch[0].copy(), np.asarray(output.embedding)[0], heatmaps)


def _embed_wanted(
    config: ConfigDict, records: Records, split: str, embed: Embed, wanted: Bool[np.ndarray, 'photos attributes']
) -> Vectors:
    """The vectors of the `wanted` (photo, attribute) pairs, scaled to unit length if they are compared by cosine."""
    batches = eval_batches(records, split, np.flatnonzero(wanted.any(axis=1)), config)
    vectors = collect_vectors(embed, batches, wanted, f'embed {split}')._replace(distance=config.train.distance)
    if vectors.distance == 'cosine' and not config.model.normalize:
        lengths = np.sqrt(np.einsum('nd,nd->n', vectors.vectors, vectors.vectors))
        np.divide(vectors.vectors, np.maximum(lengths, 1e-12)[:, None], out=vectors.vectors)  # a copy may not fit
    return vectors


def _triplet_accuracy(records: Records, triplets: Int[np.ndarray, 'triplets 4'], vectors: Vectors) -> dict:
    """The fraction of triplets whose anchor is strictly nearer to its positive; `overall` weights every triplet equally."""
    figures = {}
    for attribute, name in enumerate(records.attributes):
        rows = triplets[triplets[:, 3] == attribute]
        right = []
        for part in np.array_split(rows, len(rows) // TRIPLETS_AT_A_TIME + 1):
            anchor, positive, negative = (vectors.of(part[:, role], attribute) for role in range(3))
            right.append(metrics.triplet_is_right(anchor, positive, negative, vectors.distance))
        figures[name] = np.concatenate(right).astype(np.float64)
    summary = metrics.summarize(figures)
    return {'overall': summary['overall'], 'per_attribute': summary['per_attribute']}


def _selectivity(cross: dict[str, np.ndarray], result: dict) -> dict:
    """How specific vectors are to their own attribute: (own - cross) / (own - chance).

    `cross` has the MAP of each attribute's queries by the vectors of each other attribute; own and chance are plain means over
    the attributes, and so is the mean of `cross`.
    """
    means = metrics.summarize(cross)
    mean, own, chance = means['macro'], result['map']['macro'], result['chance_map']['macro']
    ratio = None if mean is None or own == chance else (own - mean) / (own - chance)
    return {'cross_map': mean, 'per_attribute': means['per_attribute'], 'ratio': ratio}


def _attention(records: Records, vectors: Vectors) -> dict:
    """The fraction of labels whose attention peaks inside their box, and the fraction of the input that the boxes cover."""

    def means(*select) -> dict:
        figures = {'peak_in_box': vectors.peak_in_box[select], 'box_share': vectors.box_share[select]}
        return {name: float(np.nanmean(figure)) for name, figure in figures.items()}

    labeled = np.flatnonzero((~np.isnan(vectors.peak_in_box)).any(axis=0)).tolist()
    per_attribute = {records.attributes[number]: means(slice(None), number) for number in labeled}
    return {**means(), 'per_attribute': per_attribute}
