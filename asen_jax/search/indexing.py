"""`--mode index`: add, update, and delete photos so that a gallery matches a list."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfFlat
from tqdm import tqdm

from asen_jax.embedder import Embedder
from asen_jax.errors import InputError
from asen_jax.search.engine import Engine, embed_here
from asen_jax.search.gallery import ID, SOURCE, STATE, THUMBNAIL, Gallery, path_conditions, photo_id
from asen_jax.search.listing import TAB, ListedPhoto, absolute, list_photos, photo_state, slices, write_skipped
from asen_jax.search.location import changing, file_of, is_gallery, locate

COMMIT_SIZE = 1024  # photos per commit; each commit makes a file, which `tidy` merges
SKIPPED = 'skipped.txt'
EXACT_UP_TO = 100_000  # rows; below, comparing every photo takes less than a tenth of a second
KEEP_VERSIONS = timedelta(hours=1)  # for readers that began before a change


class Changes(NamedTuple):
    """What `index_photos` did, in photos."""

    folder: Path | str
    total: int  # in the gallery now
    added: int
    updated: int  # whose file or box changed, so that they were embedded again
    relabeled: int  # of which only the columns of the CSV changed
    deleted: int
    skipped: dict[str, str]  # path -> why it cannot be used
    left_out: str = ''  # the line about files whose suffix is not that of a photo

    def __str__(self) -> str:
        counts = {'added': self.added, 'updated': self.updated, 'relabeled': self.relabeled, 'deleted': self.deleted}
        summary = ', '.join(f'{count:,} {what}' for what, count in counts.items())
        lines = [f'{self.folder}: {self.total:,} photos ({summary})']
        if self.skipped:
            lines.append(f'skipped {len(self.skipped):,} photos, listed in {file_of(self.folder, SKIPPED)}')
        if self.left_out:
            lines.append(self.left_out)
        return '\n'.join(lines)


def index_photos(
    embedder: Embedder,
    images: str | os.PathLike,
    folder: str | os.PathLike,
    strict: bool = False,
    embed: Engine | None = None,
) -> Changes:
    """Make the gallery in `folder`, which is created if needed, match the photos that `images` names.

    A photo is identified by its absolute path. New ones are added, and those whose file or box changed are embedded again, by
    `embed` or else in this process. Photos that an earlier call with the same `images` listed and this one does not are deleted;
    those of other calls stay. Unusable photos are listed in `skipped.txt` (see `file_of`); with `strict` they are an InputError.
    If a file is missing, as on a drive that is not mounted, its row stays. After a stop, the same call continues. Raises
    InputError also if another network made the gallery, or if another process is changing it, except on object storage.
    """
    folder = locate(folder)
    photos, left_out = list_photos(images, with_boxes=embedder.crop_to_bbox)
    listed, skipped = _by_path(photos, images, folder)
    columns = sorted({name for photo in listed.values() for name in photo.metadata})
    for name in columns:
        if name == 'score' or name.startswith(('gallery_', '_')) or '.' in name or '`' in name:
            raise InputError(f'{images} has a column {name!r}, a name that galleries cannot use; rename it.')
    with changing(folder):
        gallery = _open_or_create(embedder, folder)
        if new := [name for name in columns if name not in gallery.metadata_columns]:
            gallery.table.add_columns(dict.fromkeys(new, 'cast(null as string)'))
        embed = embed or functools.partial(embed_here, embedder)
        changes = _synchronize(gallery, embed, absolute(images), listed, skipped, strict)
        tidy(gallery)
        write_skipped(file_of(folder, SKIPPED), [f'{path}{TAB}{why}' for path, why in changes.skipped.items()])
    if not changes.total:
        path, why = next(iter(changes.skipped.items()))
        raise InputError(f'None of the photos of {images} can be used; {path}: {why}.')
    return changes._replace(left_out=left_out)


def _by_path(
    photos: Sequence[ListedPhoto], images: str | os.PathLike, folder: Path | str
) -> tuple[dict[str, ListedPhoto], dict[str, str]]:
    """The `photos` of `images` by absolute path, without those in `folder`; and why others cannot be in a gallery."""
    sheet = absolute(file_of(folder, 'search.jpg'))
    listed, skipped = {}, {}
    for photo in photos:
        path = absolute(photo.path)
        photo = photo._replace(path=path)
        if path == sheet or (isinstance(folder, Path) and path.startswith(f'{absolute(folder)}{os.sep}')):
            continue  # a contact sheet
        if path in listed and listed[path] != photo:
            raise InputError(f'{images} lists {path} twice; keep one line of it.')
        try:
            path.encode()
        except UnicodeEncodeError:
            skipped[path] = 'its name is not UTF-8; rename it'
            continue
        listed[path] = photo
    return listed, skipped


def _open_or_create(embedder: Embedder, folder: Path | str) -> Gallery:
    """The gallery in `folder`; raises InputError if its vectors are of another network."""
    config = embedder.network.meta['config']
    cosine, unit = config['train']['distance'] == 'cosine', config['model']['normalize']
    network_info = {
        'fingerprint': embedder.fingerprint,
        'attributes': list(embedder.attributes),
        'metric': ('dot' if unit else 'cosine') if cosine else 'l2',
        'precision': embedder.precision,
        **embedder.origin,
    }
    if is_gallery(folder):
        gallery = Gallery.open(folder)
        if gallery.network_info['fingerprint'] == embedder.fingerprint:
            return gallery
        if len(gallery):
            made_by = gallery.network_info.get('workdir')
            earlier = f', or with an earlier checkpoint of {made_by}' if made_by else ''
            raise InputError(f'{folder} was made with another network{earlier}; choose another --gallery.')
    return Gallery.create(folder, network_info, embedder.dim)


def _synchronize(
    gallery: Gallery, embed: Engine, source: str, listed: dict[str, ListedPhoto], skipped: dict[str, str], strict: bool
) -> Changes:
    """Delete, add, and update rows until the gallery's rows of the list `source` are `listed`; completes `skipped`."""
    known, columns = read_known(gallery), gallery.metadata_columns
    states = {path: photo_state(path, photo.box) for path, photo in listed.items()}
    skipped |= {path: 'cannot be read (No such file or directory)' for path, state in states.items() if not state}

    def describe(path: str) -> dict[str, str | None]:
        """The row without path, vectors, and thumbnail."""
        return {SOURCE: source, STATE: states[path], **{name: listed[path].metadata.get(name) for name in columns}}

    gone = [path for path, (listed_in, *_) in known.items() if listed_in == source and path not in listed]
    changed = [path for path, state in states.items() if state and known.get(path) != tuple(describe(path).values())]
    relabeled = [path for path in changed if path in known and known[path][1] == states[path]]
    outdated = [path for path in changed if path not in known or known[path][1] != states[path]]
    _refuse(skipped, strict)
    _delete(gallery, gone)
    for some in slices(relabeled, COMMIT_SIZE):
        merge(gallery, [{'path': path, **describe(path)} for path in some])
    unreadable: dict[str, str] = {}
    with tqdm(total=len(outdated), desc='index', unit='photo', disable=None) as bar:
        outcomes = embed([listed[path] for path in outdated])
        while some := list(itertools.islice(outcomes, COMMIT_SIZE)):
            broken = {path: result.why for path, result in some if result.why is not None}
            _refuse(broken, strict)
            unreadable |= broken
            _delete(gallery, [path for path in broken if path in known])  # its vectors are of an earlier photo
            rows = [
                {
                    'path': path,
                    ID: photo_id(path),
                    THUMBNAIL: result.extra,
                    **dict(zip(gallery.vector_columns, result.vectors, strict=True)),
                    **describe(path),
                }
                for path, result in some
                if result.vectors is not None
            ]
            merge(gallery, rows)
            bar.update(len(some))
    added = sum(path not in known and path not in unreadable for path in outdated)
    lost = sum(path in known for path in unreadable)
    updated = len(outdated) - len(unreadable) - added
    counts = len(gallery), added, updated, len(relabeled), len(gone) + lost
    return Changes(gallery.folder, *counts, skipped | unreadable)


def _refuse(skipped: Mapping[str, str], strict: bool) -> None:
    for path, why in skipped.items() if strict else ():
        raise InputError(f'{path}: {why}; fix it, or leave out --strict to skip such photos.')


def read_known(gallery: Gallery) -> dict[str, tuple[str | None, ...]]:
    """What the gallery knows of each photo: the list that named it, its state, and the CSV's columns.

    Equal cells are one object, so that a million photos take less than half a gigabyte.
    """
    columns, same, known = [SOURCE, STATE, *gallery.metadata_columns], {}, {}
    with gallery.reading():
        for batch in gallery.table.search().select(['path', *columns]).to_batches():
            cells = ([same.setdefault(cell, cell) for cell in batch.column(name).to_pylist()] for name in columns)
            known |= zip(batch.column('path').to_pylist(), zip(*cells, strict=True), strict=True)
    return known


def merge(gallery: Gallery, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows, or update the columns that they have, by path, in one commit."""
    if not rows:
        return
    schema = pa.schema([gallery.table.schema.field(name) for name in rows[0]])
    columns = []
    for field in schema:
        cells = [row[field.name] for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            columns.append(pa.FixedSizeListArray.from_arrays(np.concatenate(cells), type=field.type))
        else:
            columns.append(pa.array(cells, field.type))
    merge = gallery.table.merge_insert('path').when_matched_update_all()
    if THUMBNAIL in rows[0]:
        merge = merge.when_not_matched_insert_all()
    merge.execute(pa.Table.from_arrays(columns, schema=schema))


def _delete(gallery: Gallery, paths: Sequence[str]) -> None:
    for condition in path_conditions(paths):
        gallery.table.delete(condition)


def tidy(gallery: Gallery) -> None:
    """Merge small files, drop old versions, and index a gallery that is too large to compare every photo."""
    if len(gallery) > EXACT_UP_TO:
        indexed = {column for index in gallery.table.list_indices() for column in index.columns}
        for column in gallery.vector_columns:
            if column not in indexed:
                gallery.table.create_index(column, config=IvfFlat(distance_type=gallery.network_info['metric']))
        for column in {'path', ID} - indexed:
            gallery.table.create_index(column, config=BTree())
    gallery.table.optimize(cleanup_older_than=KEEP_VERSIONS)
