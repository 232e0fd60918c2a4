"""Looks at every photo of a source once, fully decoded, so that training never meets a broken one."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from asen_jax.data.images import decode
from asen_jax.errors import InputError
from data_builders.records import Photo, RawDataset, keep_photos

PHOTOS_AT_A_TIME = 512  # handed to the threads together: bounds what is done in vain after the first broken photo
OVERHANG = 1.0  # pixels that a box may reach beyond its photo before it is refused: counting from 0 or 1 gets mixed up


def check_photos(raw: RawDataset, missing: str = 'error', broken: str = 'error') -> RawDataset:
    """Decode every photo; one that is not there or is broken is an error, or is left out where the policy says 'skip'.

    Lists are renumbered to the photos that remain; `skipped` and `dropped` say what went. Boxes are cut to their photo,
    and where only some photos of a source have one, the others' is the whole photo.
    """
    for field, policy in (('missing', missing), ('broken', broken)):
        if policy not in ('error', 'skip'):
            raise InputError(f'data.{field} is {policy!r}; write error or skip.')
    if missing == 'error':
        _refuse_missing(raw)
    skip_reasons = {'missing': missing == 'skip', 'broken': broken == 'skip'}
    boxed = any(photo.bbox is not None for photos in raw.photos.values() for photo in photos)
    checked, keep, skipped = {}, {}, []
    total = sum(map(len, raw.photos.values()))
    progress = tqdm(total=total, desc='Checking', unit='photo', disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress as bar:
        for split, photos in raw.photos.items():
            checked[split], keep[split] = [], []
            for start in range(0, len(photos), PHOTOS_AT_A_TIME):
                part = photos[start : start + PHOTOS_AT_A_TIME]
                for photo, size, why in pool.map(_look, part):
                    if why:
                        _refuse(raw, photo, why, skip_reasons)
                        skipped.append({'image_id': photo.image_id, 'why': why, 'path': str(photo.path or '')})
                    checked[split].append(photo if why else _with_box(photo, size, boxed))
                    keep[split].append(not why)
                    bar.update()
    if total and len(skipped) == total:
        first = f'{skipped[0]["image_id"]}, is {skipped[0]["why"]}'
        raise InputError(f'None of {total:,} photos can be used (the first, {first}); check --config.data.manual_dir.')
    return _note_skipped(keep_photos(raw._replace(photos=checked), keep), raw, skipped)


def _look(photo: Photo) -> tuple[Photo, tuple[int, int] | None, str]:
    """(photo, its width and height, '') or (photo, None, why it cannot be used)."""
    try:
        return photo, decode(photo.read()).size, ''
    except (FileNotFoundError, NotADirectoryError):
        return photo, None, 'missing'
    except OSError as error:
        return photo, None, f'broken: cannot be read ({error.strerror or error})'
    except ValueError as error:
        return photo, None, f'broken: {error}'


def _refuse_missing(raw: RawDataset) -> None:
    """Before anything is decoded: name the first photo that is not there, and count the others."""
    photos = [photo for many in raw.photos.values() for photo in many]
    absent = [photo for photo in photos if photo.path is not None and not photo.path.exists()]
    if absent:
        count = f' ({len(absent):,} of {len(photos):,} photos are)' if len(absent) > 1 else ''
        raise InputError(f'{_name(absent[0])} is missing{count}; {_remedy(raw, "missing")}')


def _refuse(raw: RawDataset, photo: Photo, why: str, skip_reasons: Mapping[str, bool]) -> None:
    kind = why.split(':')[0]
    if not skip_reasons[kind]:
        raise InputError(f'{_name(photo)} is {why}; {_remedy(raw, kind)}')


def _remedy(raw: RawDataset, kind: str) -> str:
    mend = 'where photos go says' if kind == 'missing' else 'put a whole one in its place; where photos come from says'
    return f'{mend} data_builders/{raw.dataset}/README.md, and --config.data.{kind}=skip leaves such photos out.'


def _name(photo: Photo) -> str:
    listed = f' ({photo.where})' if photo.where else ''
    return f'{photo.path or photo.image_id}{listed}'


def _with_box(photo: Photo, size: tuple[int, int], boxed: bool) -> Photo:
    if photo.bbox is None:
        return photo._replace(bbox=(0.0, 0.0, float(size[0]), float(size[1]))) if boxed else photo
    left, top, right, bottom = photo.bbox
    width, height = size
    empty = right <= left or bottom <= top
    beyond = max(-left, -top, right - width, bottom - height) > OVERHANG
    if empty or beyond or left >= width or top >= height or right <= 0 or bottom <= 0:
        fault = 'is empty' if empty else f'reaches beyond the photo, which is {width} x {height} pixels'
        raise InputError(
            f'{_name(photo)}: the box left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g} '
            f'(counted from 0, right and bottom exclusive) {fault}; correct it.'
        )
    return photo._replace(bbox=(max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))))


def _note_skipped(kept: RawDataset, raw: RawDataset, skipped: list[dict]) -> RawDataset:
    """Put on record what went with the skipped photos."""
    dropped, notes = {}, list(raw.notes)
    for split in raw.queries:
        counts = {
            'queries': len(raw.queries[split]) - len(kept.queries[split]),
            'candidates': len(raw.candidates[split]) - len(kept.candidates[split]),
        }
        dropped[split] = counts
        if any(counts.values()):
            went = f'{counts["queries"]} queries and {counts["candidates"]} candidates'
            notes.append(f'{split}: {went} went with skipped photos')
    for split in raw.triplets:
        if gone := len(raw.triplets[split]) - len(kept.triplets[split]):
            notes.append(f'{split}: {gone:,} triplets went with skipped photos')
    return kept._replace(skipped=tuple(skipped), dropped=dropped, notes=tuple(notes))
