"""What an evaluation prints, and what `metrics.jsonl` has of it and of training."""

import contextlib
import json
from pathlib import Path

KS = (1, 5, 10)  # of recall@k and precision@k
KINDS = ('map', 'chance_map', 'triplet_accuracy')  # of figures in a result, each overall and by attribute


def score(result: dict) -> float:
    """The score that decides which checkpoint is best: MAP, or triplet accuracy if no query has an answer."""
    answered = result['chance_map']['overall']  # None without queries, 0 if no query has an answer
    return result['map']['overall'] if answered else result['triplet_accuracy']['overall'] or 0.0


def headline(result: dict) -> dict[str, float]:
    """The figures of an evaluation that go into metrics.jsonl."""
    figures = {f'{result["split"]}_{kind}': result[kind]['overall'] for kind in KINDS}
    return {name: figure for name, figure in figures.items() if figure is not None}


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines of a `metrics.jsonl`, without one that a killed run left incomplete and lines that we did not write."""
    lines = []
    for text in path.read_text(errors='replace').splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            if isinstance(line['step'], int) and all(isinstance(number, int | float) for number in line.values()):
                lines.append(line)
    return lines


def format_table(result: dict) -> str:
    """The result as a table, in percent."""
    lines = [
        f'{result["dataset"]} {result["split"]}, step {result["checkpoint_step"]}: '
        f'{result["num_queries"]:,} queries, {result["num_candidates"]:,} candidates',
        f'{"":<24}{"MAP":>10}{"chance":>10}{"triplets":>10}',
    ]
    names = dict.fromkeys([*result['map']['per_attribute'], *result['triplet_accuracy']['per_attribute']])
    rows = [(name, [result[kind]['per_attribute'].get(name) for kind in KINDS]) for name in names]
    rows.append(('overall', [result[kind]['overall'] for kind in KINDS]))
    lines += [f'{name:<24}' + ''.join(f'{_percent(figure):>10}' for figure in figures) for name, figures in rows]
    return '\n'.join(lines + _remarks(result))


def _remarks(result: dict) -> list[str]:
    """The lines below the table that apply to this result."""
    lines = []
    for kind, title in (('recall_at_k', 'recall@'), ('precision_at_k', 'precision@')):
        if result[kind]['1'] is not None:
            lines.append('   '.join(f'{title}{k} {_percent(result[kind][str(k)])}' for k in KS))
    selectivity = result.get('selectivity')
    if selectivity and selectivity['ratio'] is not None:
        lines.append(
            f"ranked by another attribute's vectors {_percent(selectivity['cross_map'])}: "
            f'(own - cross) / (own - chance) = {selectivity["ratio"]:.2f}'
        )
    if 'attention' in result:
        inside, share = result['attention']['peak_in_box'], result['attention']['box_share']
        lines.append(
            f"attention peaks inside the attribute's box on {_percent(inside)} of labels; boxes cover {_percent(share)}"
        )
    lost = result['dropped']
    if lost['queries'] or lost['candidates']:
        lines.append(
            f'dropped because their photo was skipped: {lost["queries"]} queries, {lost["candidates"]} candidates ({lost["list_file"]})'
        )
    if result['caveat']:
        lines.append(result['caveat'])
    return lines


def _percent(number: float | None) -> str:
    return '    -' if number is None else f'{100 * number:5.2f}'
