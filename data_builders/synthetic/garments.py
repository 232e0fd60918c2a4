"""Drawn photos of garments: paper dolls whose clothes have FashionAI's attributes and values.

A label shows only in its own region: pose, scale, place, colors, patterns, background and the other labels are drawn
independently of it.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_builders.synthetic import figures, sketch
from data_builders.synthetic.figures import Pose
from data_builders.synthetic.sketch import Color, Sketch

SLEEVE_ENDS = {'Sleeveless': 0.0, 'Short Sleeves': 0.3, '3/4 Sleeves': 0.66, 'Long Sleeves': 0.96}  # of the arm
# Hems as a fraction of the leg, from hip to ankle, far enough apart to stay distinct under a jitter of +-JITTER.
HEMS = {
    'skirt_length': {'Short Length': 0.2, 'Knee Length': 0.45, 'Midi Length': 0.7, 'Floor Length': 0.98},
    'pant_length': {'Short Pant': 0.2, 'Mid Length': 0.45, '3/4 Length': 0.7, 'Full Length': 0.96},
    'coat_length': {
        'High Waist Length': -0.2,
        'Long Length': 0.13,
        'Knee Length': 0.42,
        'Midi Length': 0.7,
        'Ankle&Floor Length': 0.98,
    },
}
JITTER = 0.03
KINDS = {'coat': 0.3, 'trousers': 0.3, 'skirt': 0.2, 'dress': 0.2}  # how often each is drawn
OUTLINE = (28, 22, 34)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    'skirt_length': tuple(HEMS['skirt_length']),
    'sleeve_length': tuple(SLEEVE_ENDS),
    'coat_length': tuple(HEMS['coat_length']),
    'pant_length': tuple(HEMS['pant_length']),
    'collar_design': tuple(figures.COLLARS),
    'neckline_design': tuple(figures.NECKLINES),
}


class Garment(NamedTuple):
    """A drawn photo with the value and the box (left, top, right, bottom) of each of its attributes."""

    image: Image.Image
    labels: dict[str, str]
    boxes: dict[str, tuple[float, float, float, float]]


def draw_garment(seed: int, index: int, size: int) -> Garment:
    """Photo `index` of the series `seed`, size x size pixels, with its labels and their boxes."""
    rng = np.random.default_rng([seed, index])
    kind = str(rng.choice(tuple(KINDS), p=tuple(KINDS.values())))
    labels, pose, look = draw_labels(rng, kind), figures.draw_pose(rng), draw_look(rng)
    background, ground = sketch.draw_background(rng, size * sketch.SUPERSAMPLING, [look.skin, look.upper, look.lower])
    doll = Sketch(rng, background)
    draw_body(doll, pose, look, ground)
    draw_clothes(doll, pose, look, kind, labels, rng)
    draw_head(doll, look)
    boxes = {attribute: doll.box(region(attribute, pose), size) for attribute in labels}
    return Garment(add_noise(doll.picture.reduce(sketch.SUPERSAMPLING), rng), labels, boxes)


def draw_labels(rng: np.random.Generator, kind: str) -> dict[str, str]:
    """A value, drawn uniformly and independently, for each attribute that this kind of garment shows."""
    length = {'coat': 'coat_length', 'trousers': 'pant_length'}.get(kind, 'skirt_length')
    front = 'neckline_design' if kind != 'coat' and rng.random() < 0.65 else 'collar_design'
    return {name: str(rng.choice(ATTRIBUTES[name])) for name in ('sleeve_length', front, length)}


def draw_look(rng: np.random.Generator) -> SimpleNamespace:
    """Everything that varies independently of the labels: colors that stay apart from their neighbors, and widths."""
    skin = sketch.pick_color(rng, sketch.SKINS)
    upper = sketch.pick_color(rng, sketch.CLOTHS, [skin], 170)
    lower = sketch.pick_color(rng, sketch.CLOTHS, [skin, upper], 170)
    return SimpleNamespace(
        skin=skin,
        hair=sketch.pick_color(rng, sketch.HAIRS, [skin], 130),
        shoes=sketch.pick_color(rng, sketch.CLOTHS, [skin, lower], 100),
        upper=upper,
        lower=lower,
        collar=sketch.pick_color(rng, sketch.CLOTHS + ('#ffffff',) * 8, [skin, upper], 170),
        sleeve_width=rng.uniform(0.034, 0.056),
        leg_width=rng.uniform(0.04, 0.06),
        flare=rng.uniform(0.0, 0.07),
        hair_style=str(rng.choice(('bob', 'long', 'bun', 'short', 'curls'))),
        belted=bool(rng.random() < 0.4),
    )


def draw_body(doll: Sketch, pose: Pose, look: SimpleNamespace, ground: Color) -> None:
    """What is behind the clothes: hair, a shadow on the floor, bare limbs, shoes and neck."""
    edge = sketch.blend(look.skin, OUTLINE, 0.45)
    doll.fill(figures.ellipse(0, 0.985, 0.24, 0.02), sketch.blend(ground, OUTLINE, 0.3))
    if look.hair_style == 'long':
        doll.fill(figures.mirrored((0.05, 0.03), (0.076, 0.09), (0.082, 0.2), (0.06, 0.215)), look.hair)
    for paths, *widths in ((pose.legs, 0.05, 0.026), (pose.arms, 0.036, 0.022)):
        for path in paths:
            doll.shape(figures.ribbon(path, *widths), look.skin, edge)
    for arm in pose.arms:
        doll.shape(figures.ellipse(*arm[-1], 0.025, 0.025), look.skin, edge)
    for leg in pose.legs:
        x, y = leg[-1]
        shoe = figures.ellipse(x + np.copysign(0.012, x), y + 0.026, 0.042, 0.024)
        doll.shape(shoe, look.shoes, sketch.blend(look.shoes, OUTLINE, 0.5))
    doll.shape(figures.mirrored((0.034, 0.12), (0.036, 0.165), (0.06, 0.19)), look.skin, edge)


def draw_clothes(
    doll: Sketch, pose: Pose, look: SimpleNamespace, kind: str, labels: dict[str, str], rng: np.random.Generator
) -> None:
    """The garments from the inside out; a coat is worn over full-length trousers, whatever its own length."""
    upper, lower = (sketch.weave(rng, doll.picture.width, color) for color in (look.upper, look.lower))
    upper_edge, lower_edge = sketch.blend(look.upper, OUTLINE, 0.5), sketch.blend(look.lower, OUTLINE, 0.5)
    jitter = rng.uniform(-JITTER, JITTER, 2)
    sleeve_end = SLEEVE_ENDS[labels['sleeve_length']]
    sleeve_end += jitter[0] if sleeve_end else 0
    length = next(name for name in labels if name in HEMS)
    hem = HEMS[length][labels[length]] + jitter[1]
    doll.cloth(figures.sleeves(pose, sleeve_end, look.sleeve_width), upper, upper_edge)
    if kind in ('trousers', 'coat'):
        end = hem if kind == 'trousers' else HEMS['pant_length']['Full Length']
        doll.cloth(figures.trousers(pose, end, look.leg_width), lower, lower_edge)
        doll.line([(0, 0.605), (0, 0.65)], lower_edge, 0.01)
    if kind == 'skirt':
        doll.cloth([figures.skirt(pose, hem, look.flare)], lower, lower_edge)
    one_piece = kind in ('dress', 'coat')
    doll.cloth([figures.torso()] + [figures.skirt(pose, hem, look.flare)] * one_piece, upper, upper_edge)
    if kind == 'coat':
        draw_opening(doll, hem, upper_edge)
    if look.belted:
        belt = figures.mirrored((0.124, figures.WAIST - 0.013), (0.126, figures.WAIST + 0.013))
        doll.shape(belt, look.collar, upper_edge)
    draw_front(doll, look, labels, upper_edge)


def draw_opening(doll: Sketch, hem: float, edge: Color) -> None:
    """A coat's front edge and buttons, down to its hem."""
    bottom = max(figures.hem_at(hem), figures.WAIST + 0.01)
    # through the waist, so that the pixels above it do not depend on the hem
    doll.line([(0, figures.NECK_BASE), (0, figures.WAIST), (0, bottom)], edge, 0.01)
    for y in np.arange(0.36, min(bottom, 0.66) - 0.02, 0.07):
        doll.fill(figures.ellipse(0.028, y, 0.011, 0.011), edge)


def draw_front(doll: Sketch, look: SimpleNamespace, labels: dict[str, str], edge: Color) -> None:
    """The neckline or the collar."""
    if 'neckline_design' in labels:
        doll.shape(figures.enlarge(figures.NECKLINES[labels['neckline_design']]), look.skin, edge, 0.012)
        doll.fill(figures.mirrored((0.033, 0.14), (0.035, 0.165), (0.052, 0.181)), look.skin)
        return
    collar_edge = sketch.blend(look.collar, OUTLINE, 0.55)
    for half in figures.collar(labels['collar_design']):
        doll.shape(figures.enlarge(half), look.collar, collar_edge, 0.009)
    if labels['collar_design'] == 'Rib Collar':
        for x in np.linspace(-0.045, 0.045, 5):
            doll.line(figures.enlarge(np.array([(x, 0.152), (x * 1.3, 0.208)])), collar_edge, 0.006)


def draw_head(doll: Sketch, look: SimpleNamespace) -> None:
    """Face and hair."""
    edge = sketch.blend(look.skin, OUTLINE, 0.45)
    style, hair = look.hair_style, look.hair
    if style == 'bun':
        doll.fill(figures.ellipse(0, 0.012, 0.032, 0.03), hair)
    if style in ('bob', 'curls'):
        doll.fill(figures.ellipse(0, 0.078, 0.082, 0.068), hair)
    doll.shape(figures.ellipse(0, 0.083, 0.058, 0.066), look.skin, edge, 0.006)
    fringe = [(0.05, 0.062), (0.01, 0.046), (-0.05, 0.066)]
    doll.fill(np.concatenate([figures.ellipse(0, 0.073, 0.066, 0.066, 180, 360), fringe]), hair)
    if style == 'curls':
        for angle in np.linspace(170, 370, 8):
            x, y = 0.066 * np.cos(np.deg2rad(angle)), 0.073 + 0.062 * np.sin(np.deg2rad(angle))
            doll.fill(figures.ellipse(x, y, 0.024, 0.024), hair)
    for side in (-1, 1):
        doll.fill(figures.ellipse(side * 0.023, 0.087, 0.007, 0.009), OUTLINE)
        doll.fill(figures.ellipse(side * 0.034, 0.109, 0.011, 0.007), sketch.blend(look.skin, (222, 84, 84), 0.35))
    doll.line(figures.ellipse(0, 0.108, 0.016, 0.012, 20, 160), sketch.blend(look.skin, (120, 20, 30), 0.7), 0.007)


def region(attribute: str, pose: Pose) -> np.ndarray:
    """The part of the figure that shows this attribute, whatever its value is."""
    if attribute == 'sleeve_length':
        arms = np.concatenate(pose.arms)
        return np.concatenate([arms - 0.06, arms + 0.06])
    if attribute == 'neckline_design':
        return figures.enlarge(figures.mirrored((0.14, 0.15), (0.14, 0.39)))
    if attribute == 'collar_design':
        return figures.enlarge(figures.mirrored((0.195, 0.14), (0.195, 0.35)))
    width = 0.19 if attribute == 'pant_length' else 0.24
    return figures.mirrored((width, figures.WAIST - 0.01), (width, 1.0))  # a length shows by where it ends on the leg


def add_noise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with a little sensor noise and a change of brightness."""
    pixels = np.asarray(picture, np.float32) * np.float32(rng.uniform(0.88, 1.08))
    pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(1, 5))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
