"""What every head takes and returns.

A head takes one attribute for all photos, an array of length 1, or one for each.
"""

from typing import NamedTuple

from jaxtyping import Array, Float


class HeadOutput(NamedTuple):
    """A head's output for photos under attributes."""

    embedding: Float[Array, 'n d']  # not yet normalized
    heatmap: Float[Array, 'n h w'] | None = None  # the spatial attention, if the head has one
    extras: dict[str, Float[Array, 'n d']] | None = None  # what only this head's losses need, by name


class Projected(NamedTuple):
    """The part of a head's computation that is the same for every attribute."""

    features: Float[Array, 'n h w c'] | Float[Array, 'n c']  # the trunk's; pooled where no attention needs positions
    image: Float[Array, 'n h w k'] | None = None  # what spatial attention compares with the attribute
