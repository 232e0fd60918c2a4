"""Garment boxes: how a CSV file writes them, and where they may lie in their photo. Standard library only."""

import math
from collections.abc import Mapping, Sequence

from asen_jax.errors import InputError

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, 0-based, half-open

BOX_COLUMNS = ('x1', 'y1', 'x2', 'y2')  # the first and the last pixel, counted from 1
OVERHANG = 1.0  # pixels that a box may reach beyond its photo: since counting from 0 and from 1 is easily confused


def parse_box(cells: Mapping[str, str], where: str) -> Box | None:
    """The box of a CSV row that has the box columns, or None if all four cells are empty.

    Raises InputError, which begins with `where`, if a cell is not a number or the box is empty.
    """
    words = [cells[name] for name in BOX_COLUMNS]
    if not any(words):
        return None
    try:
        left, top, right, bottom = map(float, words)
    except ValueError:
        left = top = right = bottom = math.nan
    if not (-math.inf < left <= right < math.inf and -math.inf < top <= bottom < math.inf):
        raise InputError(
            f'{where}: the box is {",".join(words)!r}; x1,y1 is its top left pixel and x2,y2 its bottom right one, counted '
            'from 1, or all four cells are empty.'
        )
    return left - 1, top - 1, right, bottom


def clip_box(box: Sequence[float | int], size: tuple[int, int]) -> Box:
    """`box`, clipped to a photo of `size` (width, height).

    Raises ValueError if it is not four numbers, is empty, or reaches more than OVERHANG beyond the photo.
    """
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f'the box {box} is not four numbers: left, top, right, bottom')
    left, top, right, bottom = map(float, box)
    width, height = size
    empty = right <= left or bottom <= top
    beyond = max(-left, -top, right - width, bottom - height) > OVERHANG
    if empty or beyond or left >= width or top >= height or right <= 0 or bottom <= 0:
        fault = 'is empty' if empty else f'reaches beyond the photo, which is {width} x {height} pixels'
        raise ValueError(
            f'the box left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g} '
            f'(counted from 0, right and bottom exclusive) {fault}'
        )
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
