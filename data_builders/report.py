"""What prepare.json says about a dataset's records, and the same as text for the user."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asen_jax.evaluation.metrics import chance_map, count_candidates
from data_builders.records import SPLITS, RawDataset, labels_of

MAX_SKIPPED = 5  # skipped photos that the summary names
COUNTS = ('photos', 'labels', 'queries', 'candidates', 'unanswered', 'triplets')  # of a split, in the summary
NO_ROWS = np.zeros((0, 3), np.int32)


def describe(raw: RawDataset) -> dict:
    """The content of prepare.json that depends only on what was read."""
    return {
        'dataset': raw.dataset,
        'splits': {split: describe_split(raw, split) for split in SPLITS if raw.photos.get(split)},
        'skipped': list(raw.skipped),
        'notes': list(raw.notes),
        'caveat': raw.caveat,
    }


def describe_split(raw: RawDataset, split: str) -> dict:
    """Counts of a split's photos, labels and list entries, and the MAP that a random ranking would score.

    A query is unanswered if no candidate has its attribute and value.
    """
    labels = labels_of(raw.photos[split])
    query, candidate, triplets = (
        raw.lists.get(f'{split}_{kind}', NO_ROWS) for kind in ('query', 'candidate', 'triplets')
    )
    attribute_of_value = np.unique(np.stack([labels.attribute, labels.value]), axis=1)[0]
    answers = set(map(tuple, candidate[:, 1:].tolist()))
    return {
        'photos': len(raw.photos[split]),
        'labels': len(labels.photo),
        'values': {name: int((attribute_of_value == number).sum()) for number, name in enumerate(raw.attributes)},
        'queries': len(query),
        'candidates': count_candidates(candidate),
        'unanswered': sum(tuple(row) not in answers for row in query[:, 1:].tolist()),
        'triplets': len(triplets),
        'chance_map': chance_map(raw.attributes, query, candidate) if len(query) else None,
    }


def summary(prepared: Path) -> str:
    """prepare.json as text for the user, with chance MAP in percent."""
    content = json.loads((Path(prepared) / 'prepare.json').read_text())
    skipped, splits = content['skipped'], content['splits']
    chance = {split: facts['chance_map'] or {'per_attribute': {}} for split, facts in splits.items()}
    table = [('', *COUNTS, 'chance MAP')]
    for split, facts in splits.items():
        table.append((split, *(f'{facts[count]:,}' for count in COUNTS), _percent(chance[split].get('overall'))))
    values = [('', *(head for split in splits for head in (f'{split} values', 'chance MAP')))]
    for name in next(iter(splits.values()))['values']:
        row = [name]
        for split, facts in splits.items():
            row += [f'{facts["values"][name]:,}', _percent(chance[split]['per_attribute'].get(name))]
        values.append(row)
    lines = [f'{content["dataset"]}: {prepared}', '', *_align(table), '', *_align(values), '']
    lines.append(f'skipped: {len(skipped):,} photos')
    lines += [f'  {entry["image_id"]}: {entry["why"]}' for entry in skipped[:MAX_SKIPPED]]
    if len(skipped) > MAX_SKIPPED:
        lines.append(f'  ... {Path(prepared) / "skipped.txt"} lists all of them')
    return '\n'.join([*lines, *content['notes'], *filter(None, [content['caveat']])])


def _align(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    return [
        name.ljust(first) + ''.join(cell.rjust(width + 2) for cell, width in zip(cells, others, strict=True))
        for name, *cells in table
    ]


def _percent(fraction: float | None) -> str:
    return '-' if fraction is None else f'{100 * fraction:.2f}'
