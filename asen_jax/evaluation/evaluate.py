"""MAP and its kin on a split, exact for any batch size, against what chance would score."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from asen_jax.checkpoint import Checkpoints
from asen_jax.data.batches import LoadOptions, Records, eval_batches, open_records, open_split, read_rows
from asen_jax.errors import InputError
from asen_jax.evaluation import metrics
from asen_jax.evaluation.figures import Ranking, draw_rankings
from asen_jax.evaluation.vectors import Network, Vectors, collect_vectors, load_network, make_embedder
from asen_jax.sharding import make_mesh

KS = (1, 5, 10)
MAX_EXAMPLES, NUM_NEAREST = 8, 6  # of the picture

Rows = Int[np.ndarray, '_ _']  # lists of different lengths meet in one signature


class Evaluation(NamedTuple):
    """The figures of a split (the fields of `eval_<split>.json`) and the vectors that gave them."""

    result: dict
    vectors: Vectors


def evaluate(
    config, records: Records, split: str, embedder: Callable, params: dict, batch_stats: dict, step: int
) -> Evaluation:
    """Every figure of `split`; raises InputError where it asks nothing."""
    query, candidate = read_rows(records, f'{split}_query'), read_rows(records, f'{split}_candidate')
    triplets = read_rows(records, f'{split}_triplets')
    if not asks_anything(records, split):
        raise InputError(
            f'{records.directory} has no queries and no triplets in its {split} split; name another --split.'
        )
    wanted = _wanted(records, split, query, candidate, triplets, config.eval.cross_attribute)
    indices = np.flatnonzero(wanted.any(axis=1))
    batches = eval_batches(records, split, indices, config)
    vectors = collect_vectors(embedder, params, batch_stats, batches, wanted, f'embed {split}')
    vectors = vectors._replace(distance=config.train.distance)
    if vectors.distance == 'cosine' and not config.model.normalize:
        lengths = np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
        vectors = vectors._replace(vectors=vectors.vectors / np.maximum(lengths, 1e-12))
    result = {'dataset': records.dataset, 'split': split, 'checkpoint_step': step}
    result |= _retrieval(records, query, candidate, vectors)
    result['triplet_accuracy'] = _triplet_accuracy(records, triplets, vectors)
    result['num_queries'], result['num_candidates'] = len(query), len(candidate)
    dropped = records.dropped.get(split, {'queries': 0, 'candidates': 0})
    result['dropped'] = {**dropped, 'list_file': str(Path(records.directory) / 'skipped.txt')}
    result['caveat'] = records.caveat
    if config.eval.cross_attribute and len(query):
        result['selectivity'] = _selectivity(records, query, candidate, vectors, result)
    if vectors.peak_in_box is not None:
        result['attention'] = _attention(records, vectors)
    return Evaluation(result, vectors)


def evaluate_workdir(config, workdir: Path, prepare: Callable, which: str, split: str) -> dict:
    """`--mode eval`: find the checkpoint first (it is quick to say that there is none), then the records."""
    mesh = make_mesh(config.mesh.model)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        checkpoints.find(which)
        records = open_records(prepare(config))
        return evaluate_checkpoint(config, workdir, checkpoints, records, which, split, mesh)


def evaluate_checkpoint(
    config, workdir: Path, checkpoints: Checkpoints, records: Records, which: str, split: str, mesh
) -> dict:
    """Evaluate a saved network, print the table and write `eval_<split>.json`."""
    network = load_network(checkpoints, which, config.precision, mesh)
    check_attributes(network.meta, records, workdir)
    config = as_trained(network, config)
    embedder = make_embedder(network.model, mesh)
    done = evaluate(config, records, split, embedder, network.params, network.batch_stats, network.meta['step'])
    print(format_table(done.result))
    path = write_result(workdir, done.result)
    written = [str(path)]
    if rankings := rank_examples(config, records, split, embedder, network, done.vectors):
        draw_rankings(rankings).save(path.with_suffix('.jpg'), quality=88)
        written.append(str(path.with_suffix('.jpg')))
    print(f'wrote {" and ".join(written)}', flush=True)
    return done.result


def check_attributes(meta: dict, records: Records, workdir: Path) -> None:
    """Refuse records of other attributes; an imported checkpoint whose attributes have no names only counts them."""
    names = meta['attributes']
    nameless = names == [f'attribute_{number}' for number in range(len(names))]
    if list(records.attributes) != names and not (nameless and len(records.attributes) == len(names)):
        raise InputError(
            f'{workdir} was trained on the attributes {", ".join(names)}, but {records.directory} has '
            f'{", ".join(records.attributes)}; give the data it was trained on.'
        )


def as_trained(network: Network, config):
    """`config` with squares and distances as the network was trained on them; says where the caller had asked otherwise."""
    config = config.copy_and_resolve_references()
    trained = network.meta['config']
    fixed = ('data.image_size', 'data.fit', 'data.crop_to_bbox', 'model.normalize', 'train.distance')
    for group, field in (name.split('.') for name in fixed):
        if config[group][field] != trained[group][field]:
            print(f'config.{group}.{field} is {trained[group][field]!r}, as the checkpoint was trained')
            config[group][field] = trained[group][field]
    return config


def rank_examples(
    config, records: Records, split: str, embedder: Callable, network: Network, vectors: Vectors
) -> list[Ranking]:
    """The first query of each attribute: where the network looks in it, and the candidates nearest to it."""
    query, candidate = read_rows(records, f'{split}_query'), read_rows(records, f'{split}_candidate')
    both = np.intersect1d(query[:, 1], candidate[:, 1])[:MAX_EXAMPLES].tolist()
    asked = [query[query[:, 1] == attribute][0].tolist() for attribute in both]
    options, photos = LoadOptions.from_config(config), open_split(records.directory, split) if both else None

    def load(index):
        return options.fit_square(options.open(photos[index]).image)

    batch = np.zeros(
        (config.eval.batch_size, options.size, options.size, 3), np.uint8
    )  # a size that is compiled already
    rankings = []
    for index, attribute, value in asked:
        offered = candidate[candidate[:, 1] == attribute]
        sides = vectors.of(np.array([index]), attribute), vectors.of(offered[:, 0], attribute)
        scores = metrics.nearness(*sides, vectors.distance)[0]
        nearest = offered[np.argsort(-scores, kind='stable')[:NUM_NEAREST]]
        batch[0] = load(index)
        heatmaps = embedder(network.params, network.batch_stats, batch)[1]
        heatmap = None if heatmaps is None else np.asarray(heatmaps)[0, attribute]
        title = f'{records.attributes[attribute]}: {records.values[attribute][value]}'
        found = [load(i) for i in nearest[:, 0].tolist()]
        rankings.append(Ranking(title, batch[0].copy(), heatmap, found, (nearest[:, 2] == value).tolist()))
    return rankings


def headline(result: dict) -> dict[str, float]:
    """The numbers of an evaluation that metrics.jsonl keeps."""
    split = result['split']
    numbers = {
        f'{split}_map': result['map']['overall'], f'{split}_chance_map': result['chance_map']['overall'],
        f'{split}_triplet_accuracy': result['triplet_accuracy']['overall'],
    }  # fmt: skip
    return {name: number for name, number in numbers.items() if number is not None}


def asks_anything(records: Records, split: str) -> bool:
    """Whether the split has queries with candidates, or triplets."""
    lists = f'{split}_query' in records.splits and f'{split}_candidate' in records.splits
    return lists or f'{split}_triplets' in records.splits


def _wanted(records: Records, split: str, query: Rows, candidate: Rows, triplets: Rows, cross: bool) -> np.ndarray:
    """Which (photo, attribute) pairs are asked about; with `cross`, every attribute of every listed photo."""
    wanted = np.zeros((records.splits.get(split, 0), len(records.attributes)), bool)
    for rows in (query, candidate):
        wanted[rows[:, 0], rows[:, 1]] = True
    if cross:
        wanted[wanted.any(axis=1)] = True
    for role in range(3):
        wanted[triplets[:, role], triplets[:, 3]] = True
    return wanted


def _retrieval(records: Records, query: Rows, candidate: Rows, vectors: Vectors) -> dict:
    """MAP, chance, recall and precision at k, each attribute's queries against its candidates."""
    per_attribute = {}
    for attribute, name in enumerate(records.attributes):
        per_attribute[name] = _rank(query, candidate, vectors, attribute, attribute)
    result = {'map': metrics.summarize({name: figures['ap'] for name, figures in per_attribute.items()})}
    result['chance_map'] = metrics.chance_map(records.attributes, query, candidate)
    for kind in ('recall', 'precision'):
        result[f'{kind}_at_k'] = {
            str(k): metrics.summarize({name: figures[f'{kind}@{k}'] for name, figures in per_attribute.items()})[
                'overall'
            ]
            for k in KS
        }
    return result


def _rank(query: Rows, candidate: Rows, vectors: Vectors, attribute: int, under: int) -> dict[str, np.ndarray]:
    """The metrics of `attribute`'s queries when photos are ranked by their vectors under the attribute `under`."""
    asked, offered = query[query[:, 1] == attribute], candidate[candidate[:, 1] == attribute]
    sides = vectors.of(asked[:, 0], under), vectors.of(offered[:, 0], under)
    return metrics.retrieval_metrics(*sides, asked[:, 2], offered[:, 2], KS, vectors.distance)


def _triplet_accuracy(records: Records, triplets: Rows, vectors: Vectors) -> dict:
    """The share of triplets whose anchor is strictly nearer to its positive; `overall` counts every triplet alike."""
    figures = {}
    for attribute, name in enumerate(records.attributes):
        rows = triplets[triplets[:, 3] == attribute]
        roles = [vectors.of(rows[:, role], attribute) for role in range(3)]
        figures[name] = metrics.triplet_is_right(*roles, vectors.distance).astype(np.float64)
    summary = metrics.summarize(figures)
    return {'overall': summary['overall'], 'per_attribute': summary['per_attribute']}


def _selectivity(records: Records, query: Rows, candidate: Rows, vectors: Vectors, result: dict) -> dict:
    """How much of what a vector knows belongs to its own attribute: (own - cross) / (own - chance).

    `cross` ranks one attribute's queries by another's vectors, mean over the ordered pairs; own and chance are plain means
    over the attributes.
    """
    names = list(result['map']['per_attribute'])
    numbers = [records.attributes.index(name) for name in names]
    cross = {}
    for attribute, name in zip(numbers, names, strict=True):
        others = [_rank(query, candidate, vectors, attribute, other)['ap'] for other in numbers if other != attribute]
        if others:
            cross[name] = float(np.mean([ap.mean() for ap in others]))
    if not cross:
        return {'cross_map': None, 'per_attribute': {}, 'ratio': None}
    own, chance = result['map']['macro'], result['chance_map']['macro']
    mean = float(np.mean(list(cross.values())))
    return {
        'cross_map': mean,
        'per_attribute': cross,
        'ratio': (own - mean) / (own - chance) if own != chance else None,
    }


def _attention(records: Records, vectors: Vectors) -> dict:
    """On how many labels the attention peaks inside the attribute's box, beside the share of the photo the box covers."""
    labeled = ~np.isnan(vectors.peak_in_box)
    per_attribute = {
        name: {
            'peak_in_box': float(vectors.peak_in_box[labeled[:, number], number].mean()),
            'box_share': float(vectors.box_share[labeled[:, number], number].mean()),
        }
        for number, name in enumerate(records.attributes)
        if labeled[:, number].any()
    }
    return {
        'peak_in_box': float(vectors.peak_in_box[labeled].mean()), 'box_share': float(vectors.box_share[labeled].mean()),
        'per_attribute': per_attribute,
    }  # fmt: skip


def write_result(workdir: Path, result: dict) -> Path:
    """`eval_<split>.json`, whole or not at all."""
    path = Path(workdir) / f'eval_{result["split"]}.json'
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(result, indent=2) + '\n')
    temporary.replace(path)
    return path


def score(result: dict) -> float:
    """What `best` is chosen by: MAP, or triplet accuracy where there are no queries."""
    answered = result['chance_map']['overall']  # None without queries, 0 where no query has an answer
    return result['map']['overall'] if answered else result['triplet_accuracy']['overall'] or 0.0


def format_table(result: dict) -> str:
    """The result as a person reads it, in percent."""

    def percent(number):
        return '    -' if number is None else f'{100 * number:5.2f}'

    def line(name, source):
        parts = [source(result[kind]) for kind in ('map', 'chance_map', 'triplet_accuracy')]
        return f'{name:<24}' + ''.join(f'{percent(part):>10}' for part in parts)

    lines = [f'{result["dataset"]} {result["split"]}, step {result["checkpoint_step"]}: '
             f'{result["num_queries"]:,} queries, {result["num_candidates"]:,} candidates']  # fmt: skip
    lines.append(f'{"":<24}{"MAP":>10}{"chance":>10}{"triplets":>10}')
    names = dict.fromkeys([*result['map']['per_attribute'], *result['triplet_accuracy']['per_attribute']])
    lines += [line(name, lambda kind, name=name: kind['per_attribute'].get(name)) for name in names]
    lines.append(line('overall', lambda kind: kind['overall']))
    for kind, title in (('recall_at_k', 'recall@'), ('precision_at_k', 'precision@')):
        if result[kind]['1'] is not None:
            lines.append('   '.join(f'{title}{k} {percent(result[kind][str(k)])}' for k in KS))
    if 'selectivity' in result and result['selectivity']['ratio'] is not None:
        cross, ratio = result['selectivity']['cross_map'], result['selectivity']['ratio']
        lines.append(
            f"ranked by another attribute's vectors {percent(cross)}: (own - cross) / (own - chance) = {ratio:.2f}"
        )
    if 'attention' in result:
        inside, share = result['attention']['peak_in_box'], result['attention']['box_share']
        lines.append(
            f"attention peaks inside the attribute's box on {percent(inside)} of labels; boxes cover {percent(share)}"
        )
    if any(result['dropped'][kind] for kind in ('queries', 'candidates')):
        lost = result['dropped']
        lines.append(
            f'dropped with their photo: {lost["queries"]} queries, {lost["candidates"]} candidates ({lost["list_file"]})'
        )
    if result['caveat']:
        lines.append(result['caveat'])
    return '\n'.join(lines)
