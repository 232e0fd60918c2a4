"""The model card of an export, in the format of the Hugging Face Hub: data, recipe, results and limits."""

import json
from pathlib import Path

from asen_jax.checkpoint import identity
from asen_jax.errors import InputError
from asen_jax.fields import Fixed, default_config, differences
from asen_jax.models.registry import network_kind, trunk_kind

DATASETS = {  # name, and the terms that also apply to weights trained on it
    'fashionai': ('FashionAI (Tianchi 231671)', 'research use; the photos must not be redistributed'),
    'darn': ('DARN (Huang et al., ICCV 2015)', 'photos from shops; research use'),
    'deepfashion': ('DeepFashion, Category and Attribute Prediction Benchmark', 'non-commercial research use'),
    'zappos50k': ('UT-Zappos50K', 'academic, non-commercial use'),
    'catalog': ("the owner's photos", "the owner's terms"),
    'synthetic': ('generated drawings of garments', 'none'),
}
UNKNOWN = (
    'unknown data: the weights were imported, and their file does not name it',
    'those of the source of the weights',
)
CARD_METADATA = """---
library_name: {library}
pipeline_tag: image-feature-extraction
license: other
license_name: terms-of-the-data
tags:
- fashion
- image-retrieval
- attribute-specific-similarity
---
"""
LIMITS = (
    '- Similar means having the same value of an attribute of the training data; it knows no other attributes or values.',
    '- It also embeds photos unlike the training data (other garments, several people, drawings), without a warning.',
    '- Every photo gets a vector for every attribute, even if the attribute is not visible in the photo.',
    '- Not meant for identifying people in photos or inferring anything about them.',
)


def read_figures(meta: dict, workdir: Path) -> list[dict]:
    """The contents of `eval_test.json` and `eval_valid.json` in `workdir`, if they evaluate the checkpoint of `meta`.

    Raises InputError if one of them is damaged.
    """
    figures = []
    for path in (Path(workdir) / f'eval_{split}.json' for split in ('test', 'valid')):
        if path.exists():
            try:
                result = json.loads(path.read_text())
                _table([result])
                figures += [result] * (result['checkpoint_sha256'] == identity(meta))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f'{path} is damaged ({error!r}); delete it, or run --mode eval again.') from error
    return figures


def known_dataset(meta: dict) -> str | None:
    """The name of the dataset that a checkpoint was trained on, or None if it was only imported."""
    return None if meta['fingerprint'] is None else meta['dataset']


def make_card(meta: dict, figures: list[dict], target: str) -> str:
    """YAML between two lines of dashes, then Markdown; `target` is 'jax' or 'torch'."""
    known = known_dataset(meta)
    dataset, terms = DATASETS.get(known, (known, 'not stated')) if known else UNKNOWN
    config = meta['config']
    model, data = config['model'], config['data']
    return '\n'.join(
        [
            CARD_METADATA.format(library='pytorch' if target == 'torch' else 'jax'),
            f'# {config["name"]}',
            '',
            'Attribute-specific fashion similarity: one vector per attribute for each photo. Photos with the same value of an '
            'attribute are neighbors among the vectors of that attribute.',
            '',
            f'- Network: {network_kind(model["name"]).paper}; trunk {model["trunk"]}{_differences(model)}.',
            f'- Attributes: {", ".join(meta["attributes"])}.',
            f'- Input: {data["image_size"]} x {data["image_size"]} RGB pixels ({data["fit"]}).',
            '',
            *('## Data', '', f'{dataset}; terms: {terms}.', ''),
            *('## Recipe', '', _recipe(meta), ''),
            *('## Figures', '', *_table(figures), ''),
            *('## Limits', '', *LIMITS, ''),
        ]
    )


def _differences(model: dict) -> str:
    """The fields of config.model that determine vectors and are not as published."""
    others = {name: value for name, value in model.items() if name not in ('name', 'trunk')}
    changed = differences({'model': others}, default_config(), Fixed.VECTORS)
    listed = ', '.join(f'{name.removeprefix("model.")}={value}' for name, (value, _) in changed.items())
    return f'; not as published: {listed}' if listed else ''


def _recipe(meta: dict) -> str:
    if meta.get('imported') and not meta['step']:
        return f'Not trained here: {_origin(meta)}.'
    train, optim = meta['config']['train'], meta['config']['optim']
    used = {
        'triplet': f'margin {train["margin"]}, {train["distance"]}',
        'contrastive': f'temperature {train["temperature"]}',
    }
    options = '; '.join(option for loss, option in used.items() if loss in train['loss'])
    epochs = optim['decay_every_epochs']
    period = 'epoch' if epochs == 1 else f'{epochs} epochs'
    factors = [group.rpartition(':')[::2] for group in optim['groups']]
    rates = [f'{pattern}: {f"times {factor}" if float(factor) else "frozen"}' for pattern, factor in factors]
    groups = f' ({"; ".join(rates)})' if rates else ''
    return (
        f'{train["loss"]} loss ({options}); Adam, learning rate '
        f'{optim["learning_rate"]}{groups}, multiplied by {optim["decay_rate"]} every {period}; '
        f'{train["batch_size"]} triplets per step, step {meta["step"]}; {_origin(meta)}; seed {meta["config"]["seed"]}.'
    )


def _origin(meta: dict) -> str:
    """Where the weights came from before they were trained here."""
    if source := meta.get('imported'):
        return f'all weights imported from `{source["file"]}` (SHA-256 `{source["sha256"]}`)'
    if source := meta.get('started_from'):
        dataset, terms = DATASETS.get(source['dataset'], UNKNOWN)
        return (
            f'weights from step {source["step"]} of `{source["workdir"]}`, trained on {dataset}, whose terms '
            f'({terms}) also apply'
        )
    trunk, start = meta['config']['model']['trunk'], meta['config']['init']['trunk']
    names = {'imagenet': trunk_kind(trunk).pretrained.about, 'none': 'random weights'}
    return f'trunk from {names.get(start, start)}'


def _table(figures: list[dict]) -> list[str]:
    if not figures:
        return ['Not measured: run `--mode eval` on the workdir and export again.']
    lines = ['| split | MAP | chance | triplet accuracy |', '| --- | --- | --- | --- |']
    for result in figures:
        cells = [result[kind]['overall'] for kind in ('map', 'chance_map', 'triplet_accuracy')]
        shown = ' | '.join('-' if cell is None else f'{100 * cell:.2f}' for cell in cells)
        lines.append(f'| {result["dataset"]} {result["split"]} | {shown} |')
    lines += ['', 'In percent; chance is what a random ranking scores.']
    for result in figures:
        lost = result['dropped']
        if lost['queries'] or lost['candidates']:
            counts = f'{lost["queries"]} queries and {lost["candidates"]} candidates'
            lines.append(f'{result["split"]}: {counts} were left out, because their photos are missing.')
        if result.get('caveat'):
            lines.append(result['caveat'])
    return lines
