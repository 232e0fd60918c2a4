"""Pictures of where a network looks and what it finds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

CELL, GAP, TITLE_HEIGHT = 128, 6, 18  # pixels
RIGHT, WRONG, INK = (46, 139, 87), (200, 60, 50), (40, 40, 40)
COLD, WARM = np.array([30, 20, 90]), np.array([255, 200, 40])


class Ranking(NamedTuple):
    """One query and its nearest candidates, nearest first."""

    title: str
    query: UInt8[np.ndarray, 'h w 3']
    heatmap: Float[np.ndarray, 'h16 w16'] | None  # where the network looks in the query, if it has attention
    nearest: Sequence[UInt8[np.ndarray, 'h w 3']]
    relevant: Sequence[bool] | None = None  # of each of the nearest, if it is known


def overlay_heatmap(photo: UInt8[np.ndarray, 'h w 3'], heatmap: Float[np.ndarray, 'h16 w16']) -> Image.Image:
    """The photo, darkened where the network does not look and tinted warm where it looks most."""
    span = max(float(heatmap.max() - heatmap.min()), 1e-12)
    cells = Image.fromarray(np.uint8(255 * (heatmap - heatmap.min()) / span))
    weight = np.asarray(cells.resize(photo.shape[1::-1], Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    tinted = photo * (0.5 + 0.25 * weight) + (COLD * (1 - weight) + WARM * weight) * 0.3
    return Image.fromarray(np.uint8(np.clip(tinted, 0, 255)))


def draw_rankings(rankings: Sequence[Ranking]) -> Image.Image:
    """A contact sheet, one row per query: the photo, where the network looks, and the nearest, framed by relevance."""
    columns = 2 + max(len(ranking.nearest) for ranking in rankings)
    row_height = TITLE_HEIGHT + CELL + GAP
    sheet = Image.new('RGB', (columns * (CELL + GAP) + GAP, len(rankings) * row_height + GAP), 'white')
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, ranking in enumerate(rankings):
        top = GAP + number * row_height
        pen.text((GAP, top), ranking.title, INK, font)
        cells = [(Image.fromarray(ranking.query), INK)]
        if ranking.heatmap is not None:
            cells.append((overlay_heatmap(ranking.query, ranking.heatmap), INK))
        frames = [INK] * len(ranking.nearest)
        if ranking.relevant is not None:
            frames = [RIGHT if relevant else WRONG for relevant in ranking.relevant]
        cells += zip(map(Image.fromarray, ranking.nearest), frames, strict=True)
        for place, (image, frame) in enumerate(cells):
            left = GAP + place * (CELL + GAP)
            sheet.paste(image.resize((CELL, CELL), Image.Resampling.BICUBIC), (left, top + TITLE_HEIGHT))
            edges = (left, top + TITLE_HEIGHT, left + CELL - 1, top + TITLE_HEIGHT + CELL - 1)
            pen.rectangle(edges, outline=frame, width=3 if frame != INK else 1)
    return sheet
