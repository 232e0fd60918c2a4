"""The model card of an export, in the layout of Hugging Face: data, recipe, figures, limits."""

import json
from pathlib import Path

from asen_jax.errors import InputError

DATASETS = {  # names, and the terms that stay with weights trained on them
    'fashionai': ('FashionAI (Tianchi 231671)', 'research use; the photos may not be passed on'),
    'darn': ('DARN (Huang et al., ICCV 2015)', 'photos of shops; research use'),
    'deepfashion': ('DeepFashion, category and attribute prediction', 'non-commercial research use'),
    'zappos50k': ('UT-Zappos50K', 'academic, non-commercial use'),
    'catalog': ("the owner's photos", "the owner's terms"),
    'synthetic': ('drawn garments', 'none'),
}
UNKNOWN = 'not known: the weights were imported without them', 'those of their source'
PAPERS = {
    'asen': 'ASEN: Ma et al., AAAI 2020, arXiv 2002.02814',
    'asen_v2': "ASEN, second version of its authors' repository: Ma et al., AAAI 2020, arXiv 2002.02814",
    'csn': 'CSN: Veit et al., CVPR 2017, arXiv 1603.07810',
    'triplet': 'a plain triplet network, as in Ma et al., AAAI 2020, arXiv 2002.02814',
}

LIMITS = (
    '- Similar means: the same value of an attribute of the training data; other attributes and values are unknown to it.',
    '- Photos unlike the training data (other kinds of clothes, several people, drawings) give vectors all the same.',
    '- Every photo has a vector under every attribute, also where the attribute does not show in it.',
    '- Not meant for telling who somebody is, nor anything about the people in the photos.',
)


def read_figures(meta: dict, workdir: Path) -> list[dict]:
    """The evaluations of this very checkpoint, `eval_test.json` and `eval_valid.json` in `workdir`.

    Raises InputError where one is damaged.
    """
    found = []
    for path in (Path(workdir) / f'eval_{split}.json' for split in ('test', 'valid')):
        if path.exists():
            try:
                result = json.loads(path.read_text())
                _table([result])
                found += [result] * (result['checkpoint_step'] == meta['step'])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f'{path} is damaged ({error!r}); delete it, or run --mode eval again.') from error
    return found


def known_dataset(meta: dict) -> str | None:
    """What a checkpoint was trained on; an imported one does not say."""
    return None if meta['fingerprint'] is None else meta['dataset']


def make_card(meta: dict, figures: list[dict], target: str) -> str:
    """YAML between two lines of dashes, then Markdown."""
    config, name = meta['config'], meta['config']['name']
    known = known_dataset(meta)
    dataset, terms = DATASETS.get(known, (known, 'not stated')) if known else UNKNOWN
    lines = [
        '---', 'library_name: ' + ('jax' if target == 'jax' else 'pytorch'), 'pipeline_tag: image-feature-extraction',
        'license: other', 'license_name: terms-of-the-data', 'tags:', '- fashion', '- image-retrieval',
        '- attribute-specific-similarity', '---', '', f'# {name}', '',
        'Attribute-specific fashion similarity: for a photo and each attribute a vector in which photos with the same value of '
        'that attribute are neighbors.', '',
        f'- Network: {PAPERS[config["model"]["name"]]}; trunk {config["model"]["trunk"]}.',
        f'- Attributes: {", ".join(meta["attributes"])}.',
        f'- Input: {config["data"]["image_size"]} x {config["data"]["image_size"]} RGB pixels ({config["data"]["fit"]}).',
        '', '## Data', '', f'{dataset}; terms: {terms}.',
    ]  # fmt: skip
    lines += ['', '## Recipe', '', *_recipe(meta), '', '## Figures', '', *_table(figures)]
    lines += ['', '## Limits', '', *LIMITS]
    return '\n'.join(lines) + '\n'


def _recipe(meta: dict) -> list[str]:
    source = meta.get('imported')
    begin = f'imported from `{source["file"]}` (SHA-256 `{source["sha256"]}`)' if source else ''
    if source and not meta['step']:
        return [f'Not trained here: {begin}.']
    train, optim, init = (meta['config'][group] for group in ('train', 'optim', 'init'))
    return [
        f'{train["loss"]} loss (margin {train["margin"]}, {train["distance"]}), Adam, learning rate {optim["learning_rate"]}, '
        f'times {optim["decay_rate"]} every {optim["decay_every_epochs"]} epochs; {train["batch_size"]} triplets a step, step '
        f'{meta["step"]}; '
        + (f'all weights {begin}' if source else f'trunk from {init["trunk"]}')
        + f'; seed {meta["config"]["seed"]}.'
    ]


def _table(figures: list[dict]) -> list[str]:
    if not figures:
        return ['Not measured: run `--mode eval` on the workdir, then export again.']
    lines = ['| split | MAP | chance | triplet accuracy |', '| --- | --- | --- | --- |']
    for result in figures:
        cells = [result[kind]['overall'] for kind in ('map', 'chance_map', 'triplet_accuracy')]
        shown = ' | '.join('-' if cell is None else f'{100 * cell:.2f}' for cell in cells)
        lines.append(f'| {result["dataset"]} {result["split"]} | {shown} |')
    lines.append('')
    lines.append('In percent; chance is what a random ranking scores.')
    for result in figures:
        lost = result['dropped']
        if lost['queries'] or lost['candidates']:
            lines.append(
                f'{result["split"]}: {lost["queries"]} queries and {lost["candidates"]} candidates went with lost photos.'
            )
        if result.get('caveat'):
            lines.append(result['caveat'])
    return lines
