"""A picture being drawn: distinct colors, patterned cloth, and a figure placed at some scale and lean."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

Color = tuple[int, int, int]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

SUPERSAMPLING = 3  # draw larger and average down, because PIL's polygons have hard edges
SKINS = ('#fbe0cc', '#f0c6a2', '#dba57c', '#b97f57', '#8c5a3c', '#5f3b28')
HAIRS = ('#2b2024', '#4b2e22', '#7b4a2a', '#b5793c', '#e0bd72', '#a9432c', '#8d8a90', '#5b4a78')
CLOTHS = (
    *('#c8323c', '#e4572e', '#f2a541', '#f4d35e', '#8fb339', '#3f8f5b', '#1f6f6b', '#2ca6a4', '#4fa3d9', '#2f5fb3'),
    *('#27346b', '#6a4c93', '#a45fb5', '#d9578c', '#f29ab2', '#7a2e3a', '#3c3c46', '#7d8794', '#f4f1ea', '#5c6b3a'),
)
GROUNDS = (
    *('#f3efe6', '#e3ecef', '#f6dfd7', '#dfe8d3', '#e6ddf0', '#f7ecc8', '#c9d8e6', '#d9c7b8'),
    *('#b8c4bb', '#a7b5c9', '#6f7f92', '#566b66', '#6b5a70', '#3f4757', '#4d4038', '#2e3a40'),
)


def distance(one: Color, other: Color) -> float:
    """How different two colors look ("redmean" weights), 0 to about 765."""
    mean_red = (one[0] + other[0]) / 2
    red, green, blue = (a - b for a, b in zip(one, other, strict=True))
    return ((2 + mean_red / 256) * red**2 + 4 * green**2 + (2 + (255 - mean_red) / 256) * blue**2) ** 0.5


def blend(one: Color, other: Color, share: float) -> Color:
    """`one` with a `share` of `other` mixed in."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def pick_color(rng: np.random.Generator, palette: Sequence[str], apart: Sequence[Color] = (), gap: float = 0) -> Color:
    """A slightly varied color of the palette, at least `gap` from those in `apart`, or else the farthest of 24 tries."""
    best, best_gap = None, -1.0
    for _ in range(24):
        code = palette[rng.integers(len(palette))]
        color = tuple(int(c) for c in np.clip(np.add(ImageColor.getrgb(code), rng.integers(-10, 11, 3)), 0, 255))
        nearest = min((distance(color, other) for other in apart), default=gap)
        if nearest >= gap:
            return color
        if nearest > best_gap:
            best, best_gap = color, nearest
    return best


def shade(color: Color, rng: np.random.Generator) -> Color:
    """The same color a little lighter or darker, for a pattern."""
    luminance = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
    lighter = rng.random() < 0.5 if 70 < luminance < 190 else luminance <= 130
    return blend(color, WHITE if lighter else BLACK, rng.uniform(0.22, 0.36))


def weave(rng: np.random.Generator, side: int, color: Color) -> Image.Image:
    """A square of cloth: plain, striped, checked or dotted, at any angle."""
    cloth = Image.new('RGB', (side, side), color)
    pattern = rng.choice(('plain', 'stripes', 'checks', 'dots'))
    if pattern == 'plain':
        return cloth
    draw, second = ImageDraw.Draw(cloth), shade(color, rng)
    period, angle = side * rng.uniform(0.035, 0.06), rng.uniform(0, np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    offsets = np.arange(-0.75 * side, 0.75 * side, period) + rng.uniform(0, period)
    if pattern == 'dots':
        radius = period * rng.uniform(0.22, 0.3)
        for row, offset in enumerate(offsets):
            for x, y in side / 2 + across * offset + along * (offsets[:, None] + period / 2 * (row % 2)):
                if -radius < x < side + radius and -radius < y < side + radius:
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=second)
        return cloth
    for one, other in ((along, across), (across, along))[: 1 + (pattern == 'checks')]:
        for offset in offsets:
            ends = side / 2 + other * offset + one * [[-side], [side]]
            draw.line(ends.ravel().tolist(), fill=second, width=max(1, round(period * 0.4)))
    return cloth


def draw_background(rng: np.random.Generator, side: int, apart: list[Color]) -> tuple[Image.Image, Color]:
    """A soft gradient with clutter on it, in colors unlike those in `apart`, and the gradient's base color."""
    ground = pick_color(rng, GROUNDS, apart, 110)
    corners = Image.new('RGB', (2, 2))
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.putpixel(corner, blend(ground, WHITE if rng.random() < 0.5 else BLACK, rng.uniform(0, 0.16)))
    picture = corners.resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 8)):
        color = blend(ground, pick_color(rng, GROUNDS + CLOTHS, apart, 110), rng.uniform(0.3, 0.8))
        draw_clutter(rng, draw, side, color)
    return picture, ground


def draw_clutter(rng: np.random.Generator, draw: ImageDraw.ImageDraw, side: int, color: Color) -> None:
    """One shape somewhere behind the figure."""
    x, y = rng.uniform(0, side, 2)
    radius, angle = side * rng.uniform(0.04, 0.2), rng.uniform(0, 2 * np.pi)
    match rng.choice(('disc', 'ring', 'polygon', 'bar')):
        case 'disc':
            draw.circle((x, y), radius, fill=color)
        case 'ring':
            draw.circle((x, y), radius, outline=color, width=max(1, side // 45))
        case 'polygon':
            draw.regular_polygon((x, y, radius), int(rng.integers(3, 6)), np.rad2deg(angle), fill=color)
        case 'bar':
            across, down = 2 * radius * np.cos(angle), 2 * radius * np.sin(angle)
            draw.line((x - across, y - down, x + across, y + down), fill=color, width=max(1, side // 40))


class Sketch:
    """The picture at drawing size, and where the figure stands in it; shapes are given in figure coordinates."""

    def __init__(self, rng: np.random.Generator, picture: Image.Image):
        self.picture, self.draw = picture, ImageDraw.Draw(picture)
        side = picture.width
        # Up to a head taller than the picture, standing near its lower edge: as in a shop's photos, the head is often
        # cut off, so it cannot serve as a landmark for the collar.
        height, lean = rng.uniform(0.84, 1.12), np.deg2rad(rng.uniform(-5, 5))
        middle = 0.5 + rng.uniform(-0.08, 0.08), rng.uniform(0.94, 0.995) - 0.5 * height
        self.height = side * height
        turn = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
        self.matrix, self.shift = self.height * turn, side * np.array(middle) - self.height * np.array([0, 0.5]) @ turn

    def place(self, points) -> np.ndarray:
        """Convert figure coordinates to pixels of the drawing."""
        return np.asarray(points, np.float64) @ self.matrix + self.shift

    def fill(self, points, color: Color) -> None:
        """Draw a plain shape."""
        self.draw.polygon(self.place(points).ravel().tolist(), fill=color)

    def line(self, points, color: Color, width: float = 0.009) -> None:
        """Draw a line of a `width` in figure coordinates."""
        self.draw.line(self.place(points).ravel().tolist(), fill=color, width=max(1, round(width * self.height)))

    def shape(self, points, color: Color, edge: Color, width: float = 0.008) -> None:
        """Draw a plain shape with an outline."""
        self.fill(points, color)
        self.line(np.concatenate([points, points[:1]]), edge, width)

    def cloth(self, shapes: list[np.ndarray], weave: Image.Image, edge: Color) -> None:
        """Draw a garment of several shapes: each is outlined, then all are filled, so that no seams show."""
        if not shapes:
            return
        mask = Image.new('L', self.picture.size)
        draw = ImageDraw.Draw(mask)
        for points in shapes:
            self.line(np.concatenate([points, points[:2]]), edge, 0.014)
            draw.polygon(self.place(points).ravel().tolist(), fill=255)
        self.picture.paste(weave, mask=mask)

    def box(self, points, picture_size: int) -> tuple[float, float, float, float]:
        """The box around points of the figure, in pixels of the finished picture and clipped to it."""
        placed = self.place(points) * (picture_size / self.picture.width)
        return tuple(np.clip([*placed.min(axis=0), *placed.max(axis=0)], 0, picture_size).tolist())
