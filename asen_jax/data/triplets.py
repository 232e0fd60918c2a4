"""Triplets of photos drawn from labels; numpy only, so that builders use the very same draw as training.

A label is an entry (photo, attribute, value). ASEN draws: attribute uniform; value uniform among the attribute's values;
anchor and positive two different photos with that value; negative uniform over the attribute's entries with another value.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from asen_jax.errors import InputError

STRICT_ROUNDS = 1000


class Labels(NamedTuple):
    """Every label of a split, one entry each; `photo` is the record's position."""

    photo: Int[np.ndarray, ' entries']
    attribute: Int[np.ndarray, ' entries']
    value: Int[np.ndarray, ' entries']


class TripletIndex(NamedTuple):
    """Labels sorted by attribute and value; a group is the entries of one (attribute, value) from which anchors come."""

    labels: Labels  # sorted, without repeats
    attributes: Int[np.ndarray, ' usable']  # attributes with at least one group and another value
    attribute_start: Int[np.ndarray, ' usable']  # the attribute's first entry
    attribute_size: Int[np.ndarray, ' usable']  # its number of entries
    first_group: Int[np.ndarray, ' usable']  # its groups are first_group ... first_group + num_groups - 1
    num_groups: Int[np.ndarray, ' usable']
    group_start: Int[np.ndarray, ' groups']
    group_size: Int[np.ndarray, ' groups']
    left_out: tuple[tuple[int, int, int], ...]  # (attribute, value, photos): values that can have no anchor


def make_index(labels: Labels) -> TripletIndex:
    """Sort labels for drawing; a value with fewer than two photos, or with nothing to contrast to, gives no anchor.

    The PyTorch original loops for ever on a value with fewer than two photos.
    """
    entries = np.unique(np.stack([labels.attribute, labels.value, labels.photo], axis=1).astype(np.int64), axis=0)
    groups, start, size = np.unique(entries[:, :2], axis=0, return_index=True, return_counts=True)
    attributes, attribute_start, attribute_size = np.unique(entries[:, 0], return_index=True, return_counts=True)
    position = np.searchsorted(attributes, groups[:, 0])
    usable = (size >= 2) & (size < attribute_size[position])
    left_out = tuple((int(a), int(v), int(n)) for (a, v), n in zip(groups[~usable], size[~usable], strict=True))
    groups, start, size = groups[usable], start[usable], size[usable]
    if not len(groups):
        raise InputError(
            "No triplet can be drawn: every value has fewer than two photos, or is its attribute's only one."
        )
    kept, first_group, num_groups = np.unique(groups[:, 0], return_index=True, return_counts=True)
    position = np.searchsorted(attributes, kept)
    return TripletIndex(
        Labels(entries[:, 2], entries[:, 0], entries[:, 1]), kept, attribute_start[position], attribute_size[position],
        first_group, num_groups, start, size, left_out,
    )  # fmt: skip


def draw_triplets(
    index: TripletIndex, num_triplets: int, rng: np.random.Generator, strict_negatives: bool = False
) -> Int[np.ndarray, 'triplets 4']:
    """`num_triplets` rows (anchor, positive, negative, attribute), all at once.

    `strict_negatives` forbids a negative that also holds the anchor's value (photos may have several values of one
    attribute); the published recipe allows it.
    """
    which = rng.integers(0, len(index.attributes), num_triplets)
    group = index.first_group[which] + rng.integers(0, index.num_groups[which])
    size, start = index.group_size[group], index.group_start[group]
    anchor = rng.integers(0, size)
    positive = (anchor + 1 + rng.integers(0, size - 1)) % size
    negative = _draw_negatives(index, which, group, rng)
    if strict_negatives:
        wrong = np.flatnonzero(_holds_value(index, negative, group))
        for _ in range(STRICT_ROUNDS):
            if not len(wrong):
                break
            negative[wrong] = _draw_negatives(index, which[wrong], group[wrong], rng)
            wrong = wrong[_holds_value(index, negative[wrong], group[wrong])]
        else:
            entry = start[wrong[0]]
            raise InputError(
                f'data.strict_negatives: attribute {index.labels.attribute[entry]} has hardly a photo without value '
                f'{index.labels.value[entry]}; turn strict_negatives off.'
            )
    photo = index.labels.photo
    rows = (photo[start + anchor], photo[start + positive], photo[negative], index.attributes[which])
    return np.stack(rows, axis=1).astype(np.int32)


def _draw_negatives(index, which, group, rng) -> Int[np.ndarray, ' triplets']:
    """Entries uniform over the attribute's others: draw among (all - group) and step over the group's block."""
    size, start = index.group_size[group], index.group_start[group]
    first = index.attribute_start[which]
    negative = first + rng.integers(0, index.attribute_size[which] - size)
    return np.where(negative >= start, negative + size, negative)


def _holds_value(index, entry, group) -> Bool[np.ndarray, ' triplets']:
    """Whether the photo of `entry` is also among the photos of `group` (which are sorted)."""
    photos, many = index.labels.photo, int(index.labels.photo.max()) + 1
    group_of_entry = np.repeat(np.arange(len(index.group_start)), index.group_size)
    member = np.concatenate([np.arange(s, s + n) for s, n in zip(index.group_start, index.group_size, strict=True)])
    keys = group_of_entry * many + photos[member]  # ascending: groups in order, photos sorted within each
    wanted = group * many + photos[entry]
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[place] == wanted
