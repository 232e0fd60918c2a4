"""Decodes every photo of a source once, so that training never meets a broken one."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from asen_jax.data.boxes import clip_box
from asen_jax.data.images import decode
from asen_jax.errors import InputError
from asen_jax.evaluation.metrics import count_candidates
from data_builders.records import Photo, RawDataset, keep_photos

PLURALS = {'query': (len, 'queries'), 'candidate': (count_candidates, 'candidates')}  # how to count a list's entries
PHOTOS_AT_A_TIME = 512  # submitted to the threads together: bounds the work wasted after the first broken photo


def check_photos(raw: RawDataset, missing: str = 'error', broken: str = 'error') -> RawDataset:
    """Decode every photo. A missing or broken one is an error, or is left out if its policy is 'skip'.

    Lists are renumbered to the photos that remain; `skipped` and `dropped` record what was left out. Boxes are clipped
    to their photo. If only some photos of a source have a box, the box of the others is the whole photo.
    """
    policies = {'missing': missing, 'broken': broken}
    if missing != 'skip':
        _refuse_missing(raw)
    boxed = any(photo.bbox is not None for photos in raw.photos.values() for photo in photos)
    checked, keep, skipped = {split: [] for split in raw.photos}, {split: [] for split in raw.photos}, []
    for split, photo, size, why in _check_all(raw):
        if why:
            if policies[kind := why.split(':')[0]] != 'skip':
                raise InputError(f'{_name(photo)} is {why}; {_remedy(raw, kind)}')
            skipped.append({'image_id': photo.image_id, 'why': why, 'path': str(photo.path or '')})
        checked[split].append(photo if why else _with_box(photo, size, boxed))
        keep[split].append(not why)
    total = sum(map(len, keep.values()))
    if total and len(skipped) == total:
        first = f'{skipped[0]["image_id"]}, is {skipped[0]["why"]}'
        raise InputError(f'None of {total:,} photos can be used (the first, {first}); check --config.data.manual_dir.')
    return _note_skipped(keep_photos(raw._replace(photos=checked), keep), raw, skipped)


def _check_all(raw: RawDataset) -> Iterator[tuple[str, Photo, tuple[int, int], str]]:
    """Each split and photo, in order, with what `_check` returns."""
    photos = [(split, photo) for split, many in raw.photos.items() for photo in many]
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(photos, desc='Checking', unit='photo', disable=None) as bar:
        for start in range(0, len(photos), PHOTOS_AT_A_TIME):
            some = photos[start : start + PHOTOS_AT_A_TIME]
            for (split, photo), checked in zip(some, pool.map(lambda each: _check(each[1]), some), strict=True):
                yield split, photo, *checked
                bar.update()


def _check(photo: Photo) -> tuple[tuple[int, int], str]:
    """Width and height, and why the photo cannot be used: '', 'missing' or 'broken: ...'."""
    try:
        return decode(photo.read()).size, ''
    except (FileNotFoundError, NotADirectoryError):
        return (0, 0), 'missing'
    except OSError as error:
        return (0, 0), f'broken: cannot be read ({error.strerror or error})'
    except ValueError as error:
        return (0, 0), f'broken: {error}'


def _refuse_missing(raw: RawDataset) -> None:
    """Name the first missing photo and count them all, before any photo is decoded."""
    photos = [photo for many in raw.photos.values() for photo in many]
    absent = [photo for photo in photos if photo.path is not None and not photo.path.exists()]
    if absent:
        count = f' ({len(absent):,} of {len(photos):,} photos are)' if len(absent) > 1 else ''
        raise InputError(f'{_name(absent[0])} is missing{count}; {_remedy(raw, "missing")}')


def _remedy(raw: RawDataset, kind: str) -> str:
    readme = f'data_builders/{raw.dataset}/README.md'
    fix = f'put it where {readme} says' if kind == 'missing' else f'replace it ({readme} says where photos come from)'
    return f'{fix}, or leave such photos out with --config.data.{kind}=skip.'


def _name(photo: Photo) -> str:
    listed = f' ({photo.where})' if photo.where else ''
    return f'{photo.path or photo.image_id}{listed}'


def _with_box(photo: Photo, size: tuple[int, int], boxed: bool) -> Photo:
    """`photo` with its box clipped to it; with `boxed`, a photo without a box gets one around all of it."""
    if photo.bbox is None:
        return photo._replace(bbox=(0.0, 0.0, float(size[0]), float(size[1]))) if boxed else photo
    try:
        return photo._replace(bbox=clip_box(photo.bbox, size))
    except ValueError as error:
        raise InputError(f'{_name(photo)}: {error}; correct it.') from error


def _note_skipped(kept: RawDataset, raw: RawDataset, skipped: list[dict]) -> RawDataset:
    """`kept` with a record of the photos that were skipped, and of the list entries dropped with them."""
    dropped, notes = {}, list(raw.notes)
    for name, rows in raw.lists.items():
        split, kind = name.split('_')
        count, kinds = PLURALS.get(kind, (len, kind))
        lost = count(rows) - count(kept.lists[name])
        if kind in PLURALS:
            dropped.setdefault(split, {})[kinds] = lost
        if lost:
            notes.append(f'{split}: {lost:,} {kinds} were dropped with skipped photos')
    return kept._replace(skipped=tuple(skipped), dropped=dropped, notes=tuple(notes))
