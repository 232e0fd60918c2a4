"""`report.html`: what a network has learned, as one page that needs no network access: figures, curves, rankings, maps."""

import base64
import functools
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.palettes import Category10, Category20, Viridis256
from bokeh.plotting import figure
from bokeh.resources import Resources
from bokeh.transform import linear_cmap
from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from ml_collections import ConfigDict
from PIL import Image

from asen_jax.data.prepared import LoadOptions, Records
from asen_jax.evaluation import metrics
from asen_jax.evaluation.evaluate import AttributeRankings, EmbeddedPhoto, Evaluation, embed_photo
from asen_jax.evaluation.figures import overlay_heatmap
from asen_jax.evaluation.published import PUBLISHED, SOURCES
from asen_jax.evaluation.results import read_metrics
from asen_jax.evaluation.vectors import Vectors
from asen_jax.network import Embed

PHOTO_SIDE = 96  # pixels of a photo on the page
NUM_EXAMPLES = 3  # best and worst queries of each attribute
NUM_RANKS = 6  # photos shown of a ranking
NUM_NEIGHBORS = 10  # that vote in the confusion between values; an evaluation keeps the nearest 10
MAX_VALUES = 20  # of an attribute, the most frequent, in the confusion and in the colors of the map
MAX_ON_MAP = 500  # photos, on all maps together
FRACTIONS = ('_map', '_accuracy')  # how the names of numbers in metrics.jsonl end that are drawn in percent
OTHER = 'other values'
BLUE, GRAY = '#3b76b5', '#9a9a9a'


class Example(NamedTuple):
    """A query and the first photos of its ranking, as positions in the split."""

    query: int
    value: str
    ap: float
    nearest: list[int]
    relevant: list[bool]


class Sheet(NamedTuple):
    """One attribute's queries with the first photos of their rankings, and which values they confuse."""

    examples: list[Example]  # worst first
    confusion: Float[np.ndarray, 'values values']  # share of the neighbors of queries with one value that have another
    names: list[str]  # of the values in `confusion`


def make_report(
    config: ConfigDict, records: Records, evaluation: Evaluation, embed: Embed, workdir: Path, meta: dict
) -> str:
    """The page `report.html` for an evaluation in `workdir`; `embed` is the network that was evaluated, `meta` its metadata."""
    result, by_attribute, vectors = evaluation
    options, split = LoadOptions.from_config(config), result['split']
    embed_one = functools.partial(embed_photo, config, records, split, embed)

    @functools.cache
    def show(index: int) -> str:
        return data_uri(Image.fromarray(options.read_square(records, split, index)))

    sheets = {name: make_sheet(ranked, records.values[ranked.attribute]) for name, ranked in by_attribute.items()}
    charts: dict[str, Any] = {'bars': draw_bars(result)} if result['map']['per_attribute'] else {}
    curves = draw_curves(workdir)
    charts |= curves
    for name, sheet in sheets.items():
        if len(sheet.names) > 1:
            charts[f'confusion {name}'] = draw_confusion(sheet)
        values, count = records.values[by_attribute[name].attribute], MAX_ON_MAP // len(sheets)
        charts[f'map {name}'] = draw_map(by_attribute[name], values, sheet.names, vectors, count, show)
    script, pieces = components(charts) if charts else ('', {})
    template = Environment(loader=PackageLoader('asen_jax.evaluation'), autoescape=True).get_template('report.html')
    return template.render(
        result=result,
        meta=meta,
        names=list(dict.fromkeys([*result['map']['per_attribute'], *result['triplet_accuracy']['per_attribute']])),
        published=PUBLISHED.get(result['dataset'], ()),
        sources=SOURCES,
        examples={
            name: (sheet.examples[::-1][:NUM_EXAMPLES], sheet.examples[:NUM_EXAMPLES]) for name, sheet in sheets.items()
        },
        curves=list(curves),
        side_by_side=compare_attributes(evaluation, sheets, embed_one),
        show=show,
        charts=pieces,
        bokeh=Resources(mode='inline', components=['bokeh']).render(),
        script=script,
    )


def make_sheet(ranked: AttributeRankings, values: Sequence[str]) -> Sheet:
    """What the page shows of an attribute's rankings; `values` are the names of its values."""
    query, (ap, nearest, relevant) = ranked.query, ranked.rankings
    examples = [
        Example(
            int(query[row, 0]),
            values[query[row, 2]],
            float(ap[row]),
            ranked.nearest(row, NUM_RANKS),
            relevant[row, :NUM_RANKS].tolist(),
        )
        for row in np.argsort(ap, kind='stable').tolist()
        if ap[row]
    ]
    frequent = np.argsort(-np.bincount(query[:, 2], minlength=len(values)), kind='stable')[:MAX_VALUES]
    shown = np.sort(frequent[np.isin(frequent, query[:, 2])])
    near = ranked.candidates.values[nearest[:, :NUM_NEIGHBORS]]
    shares = (near[..., None] == shown).any(axis=2).mean(axis=1)  # [queries, values]
    confusion = np.stack([shares[query[:, 2] == value].mean(axis=0) for value in shown])
    return Sheet(examples, confusion, [values[value] for value in shown.tolist()])


def data_uri(image: Image.Image) -> str:
    """A picture of `PHOTO_SIDE` pixels as the source of an <img>."""
    file = io.BytesIO()
    image.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC).save(file, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


def compare_attributes(
    evaluation: Evaluation, sheets: Mapping[str, Sheet], embed_one: Callable[[int], EmbeddedPhoto]
) -> list[dict[str, Any]]:
    """One photo under each attribute: where the network looks, and the nearest candidates.

    The photo is the query of the first attribute with the median average precision.
    """
    first = next((sheet.examples for sheet in sheets.values()), [])
    if not first:
        return []
    index = first[len(first) // 2].query
    photo, distance, rows = embed_one(index), evaluation.vectors.distance, []
    for name, ranked in evaluation.by_attribute.items():
        others = ranked.candidates.photos != index
        photos, values = ranked.candidates.photos[others], ranked.candidates.values[others]
        vectors = photo.vectors[[ranked.attribute]], evaluation.vectors.of(photos, ranked.attribute)
        rankings = metrics.rank_candidates(*vectors, np.zeros(1, int), values, NUM_RANKS, distance)
        nearest, look = photos[rankings.nearest[0]].tolist(), None
        if photo.heatmaps is not None:
            look = data_uri(overlay_heatmap(photo.square, photo.heatmaps[ranked.attribute]))
        rows.append({'attribute': name, 'look': look, 'nearest': nearest, 'query': index})
    return rows


def draw_bars(result: dict) -> figure:
    """MAP of each attribute beside chance."""
    names = list(result['map']['per_attribute'])
    source = ColumnDataSource(
        {
            'attribute': names,
            'map': [100 * result['map']['per_attribute'][name] for name in names],
            'chance': [100 * result['chance_map']['per_attribute'][name] for name in names],
        }
    )
    plot = new_figure(y_range=names[::-1], height=60 + 34 * len(names), x_range=(0, 100))
    plot.hbar('attribute', right='map', height=0.62, color=BLUE, source=source, legend_label='MAP')
    plot.hbar('attribute', right='chance', height=0.62, color=GRAY, source=source, legend_label='random ranking')
    plot.add_tools(HoverTool(tooltips=[('', '@attribute'), ('MAP', '@map{0.00}'), ('random', '@chance{0.00}')]))
    plot.xaxis.axis_label = 'percent'
    return place_legend(plot)


def draw_curves(workdir: Path) -> dict[str, figure]:
    """Every number of `metrics.jsonl` by step: a chart `percent` with all fractions, and a chart for each other number."""
    path = Path(workdir) / 'metrics.jsonl'
    lines = read_metrics(path) if path.exists() else []  # an import has none
    names = dict.fromkeys(name for line in lines for name in line if name != 'step')
    fractions = [name for name in names if name.endswith(FRACTIONS)]
    charts = {}
    for title, drawn in {'percent': fractions, **{name: [name] for name in names if name not in fractions}}.items():
        options, factor = ({'height': 280, 'y_range': (0, 100)}, 100) if drawn is fractions else ({'height': 180}, 1)
        plot = new_figure(**options)
        for name, color in zip(drawn, itertools.cycle(Category10[10]), strict=False):
            points = {line['step']: factor * line[name] for line in lines if name in line}
            curve = {'x': list(points), 'y': list(points.values())}
            plot.line(**curve, color=color, line_width=2, legend_label=name)
            plot.scatter(**curve, color=color, size=5)
        if drawn:
            plot.xaxis.axis_label = 'step'
            charts[title] = place_legend(plot)
    return charts


def draw_confusion(sheet: Sheet) -> figure:
    """Which values the nearest candidates have, for each value of the query."""
    names = sheet.names
    source: dict[str, Any] = {
        'query': [name for name in names for _ in names],
        'found': names * len(names),
        'share': (100 * sheet.confusion).ravel().tolist(),
    }
    plot = new_figure(x_range=names, y_range=names[::-1], height=160 + 22 * len(names))
    color = linear_cmap('share', Viridis256, 0, 100)
    plot.rect('found', 'query', 1, 1, source=source, fill_color=color, line_color=None)
    plot.add_tools(HoverTool(tooltips='@query: @share{0}% of the nearest are @found'))
    plot.xaxis.major_label_orientation = 0.9
    plot.xaxis.axis_label, plot.yaxis.axis_label = 'value of the nearest', 'value of the query'
    return plot


def draw_map(
    ranked: AttributeRankings,
    values: Sequence[str],
    colored: Sequence[str],
    vectors: Vectors,
    count: int,
    show: Callable[[int], str],
) -> figure:
    """The vectors of `count` candidates of an attribute in two dimensions, with the photo on hover.

    Those values that are among `colored` have their own color.
    """
    photos = ranked.candidates.photos
    shown = np.linspace(0, len(photos) - 1, min(len(photos), count)).astype(int)  # evenly spaced
    points = project(vectors.of(photos[shown], ranked.attribute))
    names = [values[value] for value in ranked.candidates.values[shown, 0].tolist()]
    colors = dict(zip(colored, Category20[20], strict=False))
    source: dict[str, Any] = {
        'x': points[:, 0],
        'y': points[:, 1],
        'value': names,
        'group': [name if name in colors else OTHER for name in names],
        'color': [colors.get(name, GRAY) for name in names],
        'photo': [show(index) for index in photos[shown].tolist()],
    }
    plot = new_figure(height=420)
    plot.scatter('x', 'y', color='color', size=9, alpha=0.8, source=source, legend_group='group')
    plot.add_tools(HoverTool(tooltips=f'<img src="@photo" width="{PHOTO_SIDE}" alt=""><br>@value'))
    plot.axis.visible = plot.grid.visible = False
    return place_legend(plot)


def project(vectors: Float[np.ndarray, 'n dim']) -> Float[np.ndarray, 'n 2']:
    """The vectors along the two directions in which they vary most (principal components)."""
    vectors = np.nan_to_num(vectors)  # a broken network has a report, too
    centered = vectors - vectors.mean(axis=0)
    points = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))  # one photo, or one dimension, has a single direction


def new_figure(**options: Any) -> figure:
    """An empty chart that follows the width and the colors of the page."""
    plot = figure(sizing_mode='stretch_width', toolbar_location=None, tools='', **options)
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = GRAY, 0.3
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = GRAY
    return plot


def place_legend(plot: figure) -> figure:
    """The chart with its legend below it, where it covers nothing."""
    legend = plot.legend[0]
    plot.add_layout(legend, 'below')
    legend.orientation, legend.ncols, legend.label_text_color = 'horizontal', 2, GRAY
    legend.background_fill_alpha, legend.border_line_color = 0, None
    return plot
