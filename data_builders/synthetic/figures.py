"""Shapes of a paper doll and its clothes: where things are, not their colors.

Figure coordinates: x is 0 on the body's center line, y is 0 at the crown and 1 at the soles; one unit is the figure's
height. Every function returns polygons as float arrays [points, 2].
"""

from typing import NamedTuple

import numpy as np

SHOULDER = (0.168, 0.228)
HIP = (0.065, 0.58)
NECK_BASE = 0.176
WAIST = 0.48
ANKLE = 0.945
ARM_LENGTH = 0.37
FRONT_SCALE = 1.36  # necklines and collars are larger than life, to be recognizable at 96 pixels


class Pose(NamedTuple):
    """Center lines of the limbs, left and right, each [points, 2] from the body outward."""

    arms: tuple[np.ndarray, np.ndarray]
    legs: tuple[np.ndarray, np.ndarray]


def draw_pose(rng: np.random.Generator) -> Pose:
    """Arms that stay clear of the body, so that every cuff is visible, and legs slightly apart."""
    arms, legs = [], []
    for side in (-1, 1):
        upper = np.deg2rad(rng.uniform(30, 52))
        raised = rng.random() < 0.15
        fore = np.deg2rad(rng.uniform(80, 125) if raised else rng.uniform(5, 48))
        elbow = step(SHOULDER, upper, ARM_LENGTH / 2)
        arms.append(bend(SHOULDER, elbow, step(elbow, fore, ARM_LENGTH / 2)) * (side, 1))
        thigh, shin = np.deg2rad(rng.uniform(3, 8)), np.deg2rad(rng.uniform(0, 7))
        knee = step(HIP, thigh, (ANKLE - HIP[1]) / 2)
        legs.append(bend(HIP, knee, step(knee, shin, (ANKLE - HIP[1]) / 2)) * (side, 1))
    return Pose(tuple(arms), tuple(legs))


def step(start, angle: float, length: float) -> tuple[float, float]:
    """The point `length` away from `start`; the angle is 0 straight down and grows outward."""
    return start[0] + length * np.sin(angle), start[1] + length * np.cos(angle)


def bend(start, middle, end, count: int = 17) -> np.ndarray:
    """A limb from `start` to `end` through `middle`: two straight halves with a rounded joint."""
    at = np.linspace(0, 1, count)
    path = np.stack([np.interp(at, (0, 0.5, 1), line) for line in zip(start, middle, end, strict=True)], axis=1)
    path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    return path


def cut(path: np.ndarray, fraction: float) -> np.ndarray:
    """The first `fraction` of a limb, resampled to the same number of points."""
    at = np.linspace(0, 1, len(path))
    return np.stack([np.interp(at * fraction, at, path[:, axis]) for axis in (0, 1)], axis=1)


def ribbon(path: np.ndarray, start_width: float, end_width: float) -> np.ndarray:
    """A band around a path whose half-width changes linearly from `start_width` to `end_width`."""
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    across *= np.linspace(start_width, end_width, len(path))[:, None]
    return np.concatenate([path + across, (path - across)[::-1]])


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> np.ndarray:
    """An ellipse, or the part of it from angle `start` to `end` in degrees (0 right, 90 down)."""
    angle = np.deg2rad(np.linspace(start, end, 25))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def mirrored(*points: tuple[float, float]) -> np.ndarray:
    """A symmetric shape, from the points of its right half (top to bottom)."""
    right = np.array(points)
    return np.concatenate([right, (right * (-1, 1))[::-1]])


def sleeves(pose: Pose, fraction: float, width: float) -> list[np.ndarray]:
    """Both sleeves, down to `fraction` of the arm; none at 0."""
    if fraction <= 0:
        return []
    return [ribbon(cut(arm, fraction), 0.042, 0.042 + fraction * (width - 0.042)) for arm in pose.arms]


def torso() -> np.ndarray:
    """The upper part of a garment, from the shoulders to the waist."""
    return mirrored(
        (0.05, NECK_BASE), (0.13, 0.188), (0.19, 0.214), (0.182, 0.26), (0.16, 0.32), (0.132, 0.42), (0.122, WAIST)
    )


def hem_at(fraction: float) -> float:
    """The height y of a hem at `fraction` of the leg (0 is the hip, 1 the ankle)."""
    return HIP[1] + fraction * (ANKLE - HIP[1])


def skirt(pose: Pose, fraction: float, flare: float) -> np.ndarray:
    """From the waist to `fraction` of the leg, wide enough to cover both legs at the hem."""
    hem = hem_at(fraction)
    if hem <= HIP[1]:  # a coat that ends at the waist or on the hip
        return mirrored((0.12, WAIST), (0.135, max(hem, WAIST + 0.01)))
    reach = max(np.abs(cut(leg, fraction)[-1, 0]) for leg in pose.legs)
    width = max(0.155, reach + 0.045) + flare * fraction
    return mirrored((0.12, WAIST), (0.135, 0.52), (0.15, HIP[1]), (width, hem), (width / 2, hem + 0.008))


def trousers(pose: Pose, fraction: float, width: float) -> list[np.ndarray]:
    """Hips and both legs of a pair of trousers that end at `fraction` of the leg."""
    hips = mirrored((0.12, WAIST), (0.132, 0.53), (0.132, 0.59), (0.11, 0.635), (0.005, 0.635))
    return [hips] + [ribbon(cut(leg, fraction), 0.058, 0.058 + fraction * (width - 0.058)) for leg in pose.legs]


def enlarge(shape: np.ndarray) -> np.ndarray:
    """A life-size neckline or collar, enlarged about the base of the neck."""
    return (shape - (0, NECK_BASE)) * FRONT_SCALE + (0, NECK_BASE)


TOP = NECK_BASE - 0.004
NECKLINES = {  # the skin that each leaves bare below the neck, before `enlarge`
    'Round Neckline': ellipse(0, TOP, 0.082, 0.088, 0, 180),
    'Square Neckline': mirrored((0.09, TOP + 0.005), (0.09, 0.275)),
    'Deep V Neckline': mirrored((0.075, TOP), (0.05, 0.24), (0, 0.385)),
    'Straight Neck': mirrored((0.128, 0.188), (0.124, 0.222)),
    'Sweat Heart Neck': mirrored((0.108, TOP + 0.012), *ellipse(0.055, 0.272, 0.053, 0.05, 360, 195), (0, 0.312)),
}
PETER_PAN = ellipse(0.057, 0.206, 0.055, 0.046, -60, 200)
COLLARS = {  # the right half of each; of a rib collar all
    'Shirt Collar': np.array([(0.052, 0.15), (0.0, 0.196), (0.05, 0.285), (0.098, 0.19)]),
    'Peter Pan': np.array([(0.05, 0.166), *PETER_PAN, (0.0, 0.182)]),
    'Puritan Collar': np.array([(0.05, 0.16), (0.1, 0.176), (0.145, 0.205), (0.14, 0.3), (0.03, 0.335), (0.0, 0.2)]),
    'Rib Collar': mirrored((0.056, 0.148), (0.064, 0.18), (0.08, 0.214)),
}


def collar(value: str) -> list[np.ndarray]:
    """A collar's parts before `enlarge`, left and right separate so that each gets its own outline."""
    shape = COLLARS[value]
    return [shape] if value == 'Rib Collar' else [shape, shape * (-1, 1)]
