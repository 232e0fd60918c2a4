"""MAP and related figures of a split, exact for any batch size, beside what a random ranking would score."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from asen_jax import files, processes
from asen_jax.data.batches import eval_batch_size, eval_batches
from asen_jax.data.prepared import LoadOptions, Records, check_unchanged, has_targets, read_rows
from asen_jax.errors import InputError
from asen_jax.evaluation import metrics
from asen_jax.evaluation.figures import Ranking, draw_rankings
from asen_jax.evaluation.results import KS, format_table
from asen_jax.evaluation.vectors import Vectors, collect_vectors, product_on_device
from asen_jax.matching import attribute_names, config_as_trained
from asen_jax.network import Embed, TrainedNetwork

MAX_EXAMPLES, NUM_NEAREST = 8, 6  # of the picture
TRIPLETS_AT_A_TIME = 10_000  # bounds the memory of their vectors
OTHER_RECORDS = 'The network was trained on other records, which may include photos that are scored here.'


class Targets(NamedTuple):
    """What a split evaluates: rows (index, attribute, value) and (anchor, positive, negative, attribute)."""

    query: Int[np.ndarray, 'queries 3']
    candidate: Int[np.ndarray, 'candidates 3']
    triplets: Int[np.ndarray, 'triplets 4']


class Evaluation(NamedTuple):
    """The figures of a split (the fields of `eval_<split>.json`), and the vectors that gave them."""

    result: dict
    vectors: Vectors


def evaluate(config: ConfigDict, records: Records, split: str, embed: Embed, step: int) -> Evaluation:
    """Every figure of `split` for the network `embed` after `step` steps; raises InputError if the split has no targets."""
    if not has_targets(records, split):
        raise InputError(
            f'{records.directory} has no queries and no triplets in its {split} split; name another --split.'
        )
    targets = Targets(*(read_rows(records, f'{split}_{kind}') for kind in Targets._fields))
    vectors = _embed_split(config, records, split, embed, targets)
    check_unchanged(records)
    result: dict[str, Any] = {'dataset': records.dataset, 'split': split, 'checkpoint_step': step}
    result |= _retrieval(records, targets, vectors)
    result['triplet_accuracy'] = _triplet_accuracy(records, targets.triplets, vectors)
    result['num_queries'] = len(targets.query)
    result['num_candidates'] = metrics.count_candidates(targets.candidate)
    dropped = records.dropped.get(split, {'queries': 0, 'candidates': 0})
    result['dropped'] = {**dropped, 'list_file': str(Path(records.directory) / 'skipped.txt')}
    result['caveat'] = records.caveat
    if config.eval.cross_attribute and len(targets.query):
        result['selectivity'] = _selectivity(records, targets, vectors, result)
    if not np.isnan(vectors.peak_in_box).all():
        result['attention'] = _attention(records, vectors)
    return Evaluation(result, vectors)


def evaluate_network(
    config: ConfigDict,
    network: TrainedNetwork,
    records: Records,
    workdir: Path,
    split: str,
    mesh: jax.sharding.Mesh,
    with_report: bool = False,
) -> dict:
    """Evaluate a trained network, print the table, and write `eval_<split>.json` and a picture of some rankings.

    `with_report` also writes `report.html`.
    """
    embed = match_attributes(config, network.meta, records, workdir, network.embed_on(mesh))
    config = config_as_trained(network.meta, config)
    if network.meta.get('fingerprint') not in (None, records.fingerprint):
        records = records._replace(caveat=f'{records.caveat} {OTHER_RECORDS}'.strip())
    result, vectors = evaluate(config, records, split, embed, network.meta['step'])
    print(format_table(result))
    rankings, page = rank_examples(config, records, split, embed, vectors), ''
    if with_report:
        from asen_jax.evaluation.report import make_report  # loads Bokeh, which no other mode needs

        page = make_report(config, records, result, vectors, embed, workdir, network.meta)
    if processes.is_writer():
        _write(Path(workdir), result, rankings, page)
    return result


def _write(workdir: Path, result: dict, rankings: list[Ranking], page: str) -> None:
    """Write the figures, and the picture and the page if there are any, and print what was written."""
    written = [workdir / f'eval_{result["split"]}.json']
    files.write_json(written[0], result)
    if rankings:
        written.append(written[0].with_suffix('.jpg'))
        with files.write_atomically(written[-1]) as file:
            draw_rankings(rankings).save(file, 'JPEG', quality=88)
    if page:
        written.append(workdir / 'report.html')
        files.write_text(written[-1], page)
    print('\n'.join(f'wrote {path}' for path in written))


def match_attributes(config: ConfigDict, meta: dict, records: Records, workdir: Path, embed: Embed) -> Embed:
    """`embed` with the attributes of `records`, in their order; raises InputError if the network has different ones."""
    known = attribute_names(config, meta, records.attributes, workdir)
    if list(records.attributes) == known:
        return embed
    if set(records.attributes) != set(known):
        raise InputError(
            f'{workdir} was trained on the attributes {", ".join(known)}, but {records.directory} has '
            f'{", ".join(records.attributes)}; use the data it was trained on.'
        )
    order = np.array([known.index(name) for name in records.attributes])

    def reordered(images):
        return jax.tree.map(lambda part: part[:, order], embed(images))

    return reordered


def rank_examples(config: ConfigDict, records: Records, split: str, embed: Embed, vectors: Vectors) -> list[Ranking]:
    """The first query of each attribute: where the network looks in it, and the nearest candidates."""
    query, candidate = read_rows(records, f'{split}_query'), read_rows(records, f'{split}_candidate')
    attributes = np.intersect1d(query[:, 1], candidate[:, 1])[:MAX_EXAMPLES].tolist()
    if not attributes:
        return []
    options = LoadOptions.from_config(config)
    first = [query[query[:, 1] == attribute][0].tolist() for attribute in attributes]
    # evaluation has already compiled this batch size
    batch = np.zeros((eval_batch_size(records, split, config), options.size, options.size, 3), np.uint8)
    rankings = []
    for index, attribute, value in first:
        candidates = metrics.group_candidates(candidate, attribute)
        _, nearest, relevant = metrics.rank_candidates(
            vectors.of(np.array([index]), attribute),
            vectors.of(candidates.photos, attribute),
            np.array([value]),
            candidates.values,
            count=NUM_NEAREST,
            distance=vectors.distance,
        )
        batch[0] = options.read_square(records, split, index)
        heatmaps = embed(batch).heatmap
        ranking = Ranking(
            title=f'{records.attributes[attribute]}: {records.values[attribute][value]}',
            query=batch[0].copy(),
            heatmap=None if heatmaps is None else np.asarray(heatmaps)[0, attribute],
            nearest=[options.read_square(records, split, i) for i in candidates.photos[nearest[0]].tolist()],
            relevant=relevant[0].tolist(),
        )
        rankings.append(ranking)
    return rankings


def _embed_split(config: ConfigDict, records: Records, split: str, embed: Embed, targets: Targets) -> Vectors:
    """The vectors that the targets need, scaled to unit length if they are compared by cosine."""
    wanted = _wanted(records, split, targets, config.eval.cross_attribute)
    batches = eval_batches(records, split, np.flatnonzero(wanted.any(axis=1)), config)
    vectors = collect_vectors(embed, batches, wanted, f'embed {split}')._replace(distance=config.train.distance)
    if vectors.distance == 'cosine' and not config.model.normalize:
        lengths = np.sqrt(np.einsum('nd,nd->n', vectors.vectors, vectors.vectors))
        np.divide(vectors.vectors, np.maximum(lengths, 1e-12)[:, None], out=vectors.vectors)  # a copy may not fit
    return vectors


def _wanted(
    records: Records, split: str, targets: Targets, cross_attribute: bool
) -> Bool[np.ndarray, 'photos attributes']:
    """The (photo, attribute) pairs that the targets need; with `cross_attribute`, every attribute of every listed photo."""
    wanted = np.zeros((records.splits.get(split, 0), len(records.attributes)), bool)
    for rows in (targets.query, targets.candidate):
        wanted[rows[:, 0], rows[:, 1]] = True
    if cross_attribute:
        wanted[wanted.any(axis=1)] = True
    for role in range(3):
        wanted[targets.triplets[:, role], targets.triplets[:, 3]] = True
    return wanted


def _retrieval(records: Records, targets: Targets, vectors: Vectors) -> dict:
    """MAP, chance, recall and precision at k: each attribute's queries against its candidates."""
    per_attribute = {
        name: _rank(targets, vectors, attribute, attribute) for attribute, name in enumerate(records.attributes)
    }

    def summarize(figure: str) -> dict:
        return metrics.summarize({name: figures[figure] for name, figures in per_attribute.items()})

    result = {'map': summarize('ap')}
    result['chance_map'] = metrics.chance_map(records.attributes, targets.query, targets.candidate)
    for kind in ('recall', 'precision'):
        result[f'{kind}_at_k'] = {str(k): summarize(f'{kind}@{k}')['overall'] for k in KS}
    return result


def _rank(targets: Targets, vectors: Vectors, attribute: int, under: int) -> dict[str, np.ndarray]:
    """The metrics of `attribute`'s queries when photos are ranked by their vectors under the attribute `under`."""
    query = targets.query[targets.query[:, 1] == attribute]
    candidates = metrics.group_candidates(targets.candidate, attribute)
    ranked = vectors.of(candidates.photos, under)
    return metrics.retrieval_metrics(
        vectors.of(query[:, 0], under),
        ranked,
        query[:, 2],
        candidates.values,
        KS,
        vectors.distance,
        None if jax.default_backend() == 'cpu' else product_on_device(ranked),
    )


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


def _selectivity(records: Records, targets: Targets, vectors: Vectors, result: dict) -> dict:
    """How specific vectors are to their own attribute: (own - cross) / (own - chance).

    `cross` ranks one attribute's queries by another's vectors, averaged over the ordered pairs; own and chance are plain
    means over the attributes.
    """
    names = list(result['map']['per_attribute'])
    numbers = [records.attributes.index(name) for name in names]
    cross = {}
    for attribute, name in zip(numbers, names, strict=True):
        others = [_rank(targets, vectors, attribute, other)['ap'].mean() for other in numbers if other != attribute]
        if others:
            cross[name] = float(np.mean(others))
    if not cross:
        return {'cross_map': None, 'per_attribute': {}, 'ratio': None}
    own, chance = result['map']['macro'], result['chance_map']['macro']
    mean = float(np.mean(list(cross.values())))
    ratio = (own - mean) / (own - chance) if own != chance else None
    return {'cross_map': mean, 'per_attribute': cross, 'ratio': ratio}


def _attention(records: Records, vectors: Vectors) -> dict:
    """The fraction of labels whose attention peaks inside their box, and the fraction of the input that the boxes cover."""
    labeled = ~np.isnan(vectors.peak_in_box)

    def means(select) -> dict:
        return {
            'peak_in_box': float(vectors.peak_in_box[select].mean()),
            'box_share': float(vectors.box_share[select].mean()),
        }

    per_attribute = {
        name: means((labeled[:, number], number))
        for number, name in enumerate(records.attributes)
        if labeled[:, number].any()
    }
    return {**means(labeled), 'per_attribute': per_attribute}
