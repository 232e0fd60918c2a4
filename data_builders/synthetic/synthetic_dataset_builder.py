"""Drawn garments, to try everything without any data; README.md describes them."""

import functools
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from asen_jax import files
from asen_jax.data.workers import map_in_processes
from data_builders import annotations, asen_lists, records
from data_builders.records import Photo, RawDataset, RecordsBuilder
from data_builders.synthetic.garments import ATTRIBUTES, draw_garment

SEED = 2020  # of the drawings; config.seed must not change records
EVAL_SHARE = 10  # one photo in ten is in valid, and one in test
QUERY_SHARE = 5  # one photo in five of valid and test is a query; the others are candidates
JPEG_QUALITY = 95
PHOTOS_PER_PROCESS = 1000  # at least; a process takes about a second to start


class Builder(RecordsBuilder):
    """Writes the records of drawn photos."""


def list_files(data: ConfigDict) -> list[Path]:
    """The drawing code, which describes the dataset: when it changes the records are rebuilt."""
    del data
    return [Path(__file__).with_name(name) for name in ('figures.py', 'garments.py', 'sketch.py', Path(__file__).name)]


def config_name(data: ConfigDict) -> str:
    """The number and size of the photos, and a hash of the chosen attributes unless all are chosen."""
    name = f'{data.synthetic.num_photos}-photos-{data.synthetic.photo_size}px'
    chosen = annotations.pick_attributes(data.attributes, tuple(ATTRIBUTES), 'synthetic')
    return name if len(chosen) == len(ATTRIBUTES) else f'{name}-{asen_lists.name_choice(chosen)}'


def read(data: ConfigDict) -> RawDataset:
    """Draw the photos; in valid and test, labels of the first fifth are queries and those of the others are candidates."""
    chosen = annotations.pick_attributes(data.attributes, tuple(ATTRIBUTES), 'synthetic')
    draw, num_photos = functools.partial(draw_photo, data.synthetic.photo_size), data.synthetic.num_photos
    num_processes = min(os.cpu_count() or 1, num_photos // PHOTOS_PER_PROCESS)
    drawn = map_in_processes(draw, num_photos, num_processes) if num_processes > 1 else map(draw, range(num_photos))
    photos = list(tqdm(drawn, total=num_photos, desc='Drawing', unit='photo', disable=None))
    num_eval = num_photos // EVAL_SHARE
    splits = {'train': photos[: -2 * num_eval], 'valid': photos[-2 * num_eval : -num_eval], 'test': photos[-num_eval:]}
    num_queries = num_eval // QUERY_SHARE
    lists = {}
    for split in ('valid', 'test'):
        lists[f'{split}_query'] = records.label_rows(splits[split], range(num_queries))
        lists[f'{split}_candidate'] = records.label_rows(splits[split], range(num_queries, num_eval))
    write_catalog(Path(data.dir).expanduser() / 'synthetic' / 'photos', [*splits['valid'], *splits['test']])
    raw = RawDataset('synthetic', tuple(ATTRIBUTES), ATTRIBUTES, splits, lists)
    return records.choose_attributes(raw, chosen)


def write_catalog(folder: Path, photos: Sequence[Photo]) -> None:
    """Write photos as files with a labels.csv, as a catalog has them, to search among them with --mode index."""
    names = tuple(ATTRIBUTES)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'path,{",".join(names)}\n']
    for photo in photos:
        with files.write_atomically(folder / photo.image_id) as file:
            file.write(photo.read())
        labels = {names[a]: ATTRIBUTES[names[a]][v] for a, v in zip(photo.attributes, photo.values, strict=True)}
        lines.append(f'{photo.image_id},{",".join(labels.get(name, "") for name in names)}\n')
    files.write_text(folder / 'labels.csv', ''.join(lines))


def draw_photo(size: int, index: int) -> Photo:
    """The photo `index`, of `size` x `size` pixels: encoded, with its labels and their boxes."""
    garment = draw_garment(SEED, index, size)
    encoded = io.BytesIO()
    garment.image.save(encoded, 'JPEG', quality=JPEG_QUALITY, subsampling=0)
    names = tuple(ATTRIBUTES)
    return Photo(
        image_id=f'{index:06d}.jpg',
        read=encoded.getvalue,
        attributes=tuple(names.index(name) for name in garment.labels),
        values=tuple(ATTRIBUTES[name].index(value) for name, value in garment.labels.items()),
        attribute_boxes=tuple(garment.boxes[name] for name in garment.labels),
    )
