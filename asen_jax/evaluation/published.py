"""The papers' figures on the test splits, in percent: one table for docs/results.md and the report."""

from typing import NamedTuple

SOURCES = {
    'paper': 'Ma et al., AAAI 2020',
    'history': "an earlier README of ASEN's authors",
    'README': "the README of RPF's authors",
    'recalled': 'quoted from memory of the paper, not from a stored source',
}


class Published(NamedTuple):
    """A system's MAP as the mean over queries, as we compute it, or its triplet accuracy; with the published digits."""

    system: str
    recipe: str  # what --config names; empty if there is none
    figure: str
    source: str  # a key of SOURCES
    # what was published, if that is the plain mean over attributes; `figure` then follows from their figures
    plain: str = ''

    def __str__(self) -> str:
        plain = f' (published as {self.plain}, the plain mean over attributes)' if self.plain else ''
        return f'{self.figure} [{self.source}]{plain}'


TITLES = {
    'fashionai': 'FashionAI (MAP; chance 15.79)',
    'darn': 'DARN (MAP; 31.26)',
    'deepfashion': 'DeepFashion (MAP; 3.38)',
    'zappos50k': 'Zappos50k (triplet accuracy; 50)',
}
PUBLISHED = {
    'fashionai': (
        Published('ASEN', 'fashionai.py:asen', '59.96', 'recalled', plain='61.02'),
        Published('ASEN v2', ':asen_v2', '60.3', 'history'),
        Published('CSN', ':csn', '53.52', 'recalled'),
        Published('triplet', ':triplet', '38.52', 'recalled'),
        Published('ASEN++', '', '64.31', 'recalled'),
        Published('RPF', '', '70.11', 'README'),
    ),
    'darn': (
        Published('ASEN', 'darn.py:asen', '53.31', 'recalled'),
        Published('CSN', ':csn', '50.86', 'recalled'),
        Published('triplet', ':triplet', '40.14', 'recalled'),
        Published('ASEN++', '', '55.94', 'recalled'),
        Published('RPF', '', '58.80', 'README'),
    ),
    'deepfashion': (
        Published('ASEN', 'deepfashion.py:asen', '8.74', 'paper'),
        Published('ASEN v2', ':asen_v2', '8.67', 'history'),
        Published('CSN', ':csn', '8.01', 'paper'),
        Published('triplet', ':triplet', '7.36', 'paper'),
        Published('ASEN++', '', '9.64', 'recalled'),
        Published('RPF', '', '10.22', 'README'),
    ),
    'zappos50k': (
        Published('ASEN', 'zappos50k.py:asen', '90.79', 'recalled'),
        Published('CSN', ':csn', '89.27', 'recalled'),
        Published('triplet', ':triplet', '76.28', 'recalled'),
    ),
}


def format_table() -> str:
    """The table of docs/results.md, in Markdown."""
    lines = ['| dataset | network | recipe | published |', '| --- | --- | --- | --- |']
    for dataset, systems in PUBLISHED.items():
        for number, each in enumerate(systems):
            title, recipe = '' if number else TITLES[dataset], f'`{each.recipe}`' if each.recipe else '–'
            lines.append(f'| {title} | {each.system} | {recipe} | {each} |')
    return '\n'.join(lines)
