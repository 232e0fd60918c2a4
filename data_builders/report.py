"""What prepare.json says about a dataset's records, and the same as text for the user."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Int

from asen_jax.evaluation.metrics import chance_map, count_candidates
from data_builders.records import SPLITS, RawDataset, labels_of

MAX_SKIPPED = 5  # skipped photos that the summary names
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
    """Counts of a split's photos, labels and list entries, and the MAP that a random ranking would score."""
    labels = labels_of(raw.photos[split])
    query, candidate = raw.queries.get(split, NO_ROWS), raw.candidates.get(split, NO_ROWS)
    attribute_of_value = np.unique(np.stack([labels.attribute, labels.value]), axis=1)[0]
    return {
        'photos': len(raw.photos[split]),
        'labels': len(labels.photo),
        'values': {name: int((attribute_of_value == number).sum()) for number, name in enumerate(raw.attributes)},
        'queries': len(query),
        'candidates': count_candidates(candidate),
        'unanswered': count_unanswered(query, candidate),
        'triplets': len(raw.triplets.get(split, ())),
        'chance_map': chance_map(raw.attributes, query, candidate) if len(query) else None,
    }


def count_unanswered(query: Int[np.ndarray, 'n 3'], candidate: Int[np.ndarray, 'm 3']) -> int:
    """The number of queries without a candidate of their attribute and value."""
    answers = set(map(tuple, candidate[:, 1:].tolist()))
    return sum(tuple(row) not in answers for row in query[:, 1:].tolist())


def summary(prepared: Path) -> str:
    """prepare.json as text for the user, with chance MAP in percent."""
    content = json.loads((Path(prepared) / 'prepare.json').read_text())
    skipped = content['skipped']
    lines = [f'{content["dataset"]}: {prepared}', '']
    lines += [*_table_of_splits(content['splits']), '', *_table_of_attributes(content['splits']), '']
    lines.append(f'skipped: {len(skipped):,} photos')
    lines += [f'  {entry["image_id"]}: {entry["why"]}' for entry in skipped[:MAX_SKIPPED]]
    if len(skipped) > MAX_SKIPPED:
        lines.append(f'  ... {Path(prepared) / "skipped.txt"} lists all of them')
    lines += content['notes']
    if content['caveat']:
        lines.append(content['caveat'])
    return '\n'.join(lines)


def _table_of_splits(splits: dict) -> list[str]:
    heads = ('queries', 'candidates', 'unanswered', 'chance MAP', 'triplets')
    lines = [f'{"":10}{"photos":>10}{"labels":>10}' + ''.join(f'{head:>12}' for head in heads)]
    for split, facts in splits.items():
        chance = _percent(facts['chance_map'] and facts['chance_map']['overall'])
        figures = f'{facts["photos"]:>10,}{facts["labels"]:>10,}{facts["queries"]:>12,}{facts["candidates"]:>12,}'
        lines.append(f'{split:10}{figures}{facts["unanswered"]:>12,}{chance:>12}{facts["triplets"]:>12,}')
    return lines


def _table_of_attributes(splits: dict) -> list[str]:
    lines = [f'{"":24}' + ''.join(f'{f"{split} values":>14}{"chance MAP":>12}' for split in splits)]
    for name in next(iter(splits.values()))['values']:
        cells = ''
        for facts in splits.values():
            chance = _percent(facts['chance_map'] and facts['chance_map']['per_attribute'].get(name))
            cells += f'{facts["values"][name]:>14,}{chance:>12}'
        lines.append(f'{name:24}' + cells)
    return lines


def _percent(fraction: float | None) -> str:
    return '-' if fraction is None else f'{100 * fraction:.2f}'
