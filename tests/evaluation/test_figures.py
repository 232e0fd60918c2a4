"""Pictures: the warm place is where the heat is, and frames tell right from wrong."""

import numpy as np
import pytest

from asen_jax.evaluation import figures


def test_the_warm_place_is_where_the_heat_is():
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[3, 0] = 0.5
    picture = np.asarray(figures.overlay_heatmap(np.full((64, 64, 3), 100, np.uint8), heatmap)).astype(int)
    assert picture[60, 4, 0] > picture[4, 60, 0] + 60


def test_a_flat_map_is_drawn_too():
    assert figures.overlay_heatmap(np.zeros((8, 8, 3), np.uint8), np.ones((2, 2), np.float32)).size == (8, 8)


@pytest.mark.parametrize('heatmap', [None, np.eye(2, dtype=np.float32)])
def test_frames_tell_right_from_wrong(heatmap):
    gray = np.full((10, 10, 3), 128, np.uint8)
    sheet = figures.draw_rankings([figures.Ranking('collar: round', gray, heatmap, [gray, gray], [True, False])])
    row = figures.GAP + figures.TITLE_HEIGHT + figures.CELL // 2
    first = figures.GAP + (1 if heatmap is None else 2) * (figures.CELL + figures.GAP)
    assert sheet.getpixel((first, row)) == figures.RIGHT
    assert sheet.getpixel((first + figures.CELL + figures.GAP, row)) == figures.WRONG
