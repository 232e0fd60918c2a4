"""Triplets of photos drawn from labels; numpy only, so that builders draw exactly as training does.

A label is an entry (photo, attribute, value). ASEN draws an attribute uniformly, then one of its values uniformly. Anchor
and positive are two different photos with that value; the negative is uniform over the attribute's entries with another value.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from asen_jax.errors import InputError

STRICT_ROUNDS = 1000  # draws before giving up on a strict negative


class Labels(NamedTuple):
    """Every label of a split, one entry each; `photo` is the record's position."""

    photo: Int[np.ndarray, ' entries']
    attribute: Int[np.ndarray, ' entries']
    value: Int[np.ndarray, ' entries']


class TripletIndex(NamedTuple):
    """Labels sorted by attribute and value. A group is the entries of one (attribute, value) that can supply anchors."""

    labels: Labels  # sorted, without repeats
    attributes: Int[np.ndarray, ' usable']  # attributes with at least one group and another value
    attribute_start: Int[np.ndarray, ' usable']  # the attribute's first entry
    attribute_size: Int[np.ndarray, ' usable']  # its number of entries
    first_group: Int[np.ndarray, ' usable']  # its groups are first_group ... first_group + num_groups - 1
    num_groups: Int[np.ndarray, ' usable']
    group_start: Int[np.ndarray, ' groups']
    group_size: Int[np.ndarray, ' groups']
    left_out: tuple[tuple[int, int, int], ...]  # (attribute, value, photos) of values that supply no anchor


def make_index(labels: Labels) -> TripletIndex:
    """Sort labels for drawing; raises InputError if they allow no triplet.

    A value with fewer than two photos, or without another value to contrast with, supplies no anchor. The PyTorch
    original loops forever on a value with fewer than two photos.
    """
    entries = np.unique(np.stack([labels.attribute, labels.value, labels.photo], axis=1).astype(np.int64), axis=0)
    groups, start, size = np.unique(entries[:, :2], axis=0, return_index=True, return_counts=True)
    attributes, attribute_start, attribute_size = np.unique(entries[:, 0], return_index=True, return_counts=True)
    position = np.searchsorted(attributes, groups[:, 0])
    usable = (size >= 2) & (size < attribute_size[position])
    left_out = np.column_stack([groups, size])[~usable]
    groups, start, size = groups[usable], start[usable], size[usable]
    if not len(groups):
        raise InputError(
            "No triplet can be drawn: every value has fewer than two photos, or is its attribute's only one."
        )
    kept, first_group, num_groups = np.unique(groups[:, 0], return_index=True, return_counts=True)
    position = np.searchsorted(attributes, kept)
    return TripletIndex(
        labels=Labels(photo=entries[:, 2], attribute=entries[:, 0], value=entries[:, 1]),
        attributes=kept,
        attribute_start=attribute_start[position],
        attribute_size=attribute_size[position],
        first_group=first_group,
        num_groups=num_groups,
        group_start=start,
        group_size=size,
        left_out=tuple(map(tuple, left_out.tolist())),
    )


def draw_triplets(
    index: TripletIndex, num_triplets: int, rng: np.random.Generator, strict_negatives: bool = False
) -> Int[np.ndarray, 'triplets 4']:
    """`num_triplets` rows (anchor, positive, negative, attribute), all drawn at once.

    `strict_negatives` forbids a negative that also has the anchor's value (photos may have several values of one
    attribute); the published recipe allows it.
    """
    which = rng.integers(0, len(index.attributes), num_triplets)
    group = index.first_group[which] + rng.integers(0, index.num_groups[which])
    size, start = index.group_size[group], index.group_start[group]
    anchor = rng.integers(0, size)
    positive = (anchor + 1 + rng.integers(0, size - 1)) % size
    negative = _draw_negatives(index, which, group, rng, strict_negatives)
    photo = index.labels.photo
    rows = (photo[start + anchor], photo[start + positive], photo[negative], index.attributes[which])
    return np.stack(rows, axis=1).astype(np.int32)


def _draw_negatives(
    index: TripletIndex,
    which: Int[np.ndarray, ' triplets'],
    group: Int[np.ndarray, ' triplets'],
    rng: np.random.Generator,
    strict: bool,
) -> Int[np.ndarray, ' triplets']:
    """Entries drawn uniformly from the attribute's other values: draw from (all - group) and skip the group's block.

    With `strict`, those are drawn again whose photo also has the group's value.
    """
    negative, wrong = np.zeros_like(group), np.arange(len(group))
    for _ in range(STRICT_ROUNDS):
        size, start = index.group_size[group[wrong]], index.group_start[group[wrong]]
        drawn = index.attribute_start[which[wrong]] + rng.integers(0, index.attribute_size[which[wrong]] - size)
        negative[wrong] = np.where(drawn >= start, drawn + size, drawn)
        if not strict or not len(wrong := wrong[_has_value(index, negative[wrong], group[wrong])]):
            return negative
    entry = index.group_start[group[wrong[0]]]
    raise InputError(
        f'data.strict_negatives: attribute {index.labels.attribute[entry]} has almost no photos without value '
        f'{index.labels.value[entry]}; turn strict_negatives off.'
    )


def _has_value(
    index: TripletIndex, entry: Int[np.ndarray, ' n'], group: Int[np.ndarray, ' n']
) -> Bool[np.ndarray, ' n']:
    """Whether the photo of `entry` is also among the photos of `group`."""
    photo, attribute, value = index.labels
    num_photos, num_values = int(photo.max()) + 1, int(value.max()) + 1
    first = index.group_start[group]
    known = (attribute * num_values + value) * num_photos + photo  # every label as one number
    return np.isin((attribute[first] * num_values + value[first]) * num_photos + photo[entry], known)
