"""`--mode embed`: the vectors of any photos in one .npz file.

Vectors are first saved in the folder `<output>.parts`, CHUNK_SIZE photos per file, from which a stopped run resumes. At the end
the .npz is assembled from these parts one at a time, so that memory does not grow with the number of photos.
"""

import contextlib
import hashlib
import itertools
import json
import os
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from asen_jax.embedder import Embedded, Embedder
from asen_jax.errors import InputError
from asen_jax.files import check_output, lock, write_atomically, write_json
from asen_jax.search.listing import TAB, ListedPhoto, file_state, list_photos, slices, write_skipped

CHUNK_SIZE = 1024  # photos


class Summary(NamedTuple):
    """What `embed_files` did."""

    output: Path
    num_photos: int  # that have vectors
    num_attributes: int
    dim: int
    skipped: list[str]  # `path<tab>reason` of each photo that has none
    num_reused: int  # photos that an earlier, stopped run had embedded
    seconds: float  # for the others
    left_out: str  # the line about files whose suffix is not that of a photo, or ''

    def __str__(self) -> str:
        done = self.num_photos + len(self.skipped) - self.num_reused
        lines = [
            f'{self.num_photos:,} photos under {self.num_attributes} attributes, {self.dim} numbers each; '
            f'{done:,} photos in {self.seconds:.1f} s ({done / max(self.seconds, 1e-9):.1f} photos/s)'
        ]
        if self.skipped:
            lines.append(f'skipped {len(self.skipped):,} photos, listed in {self.output}.skipped.txt')
        if self.left_out:
            lines.append(self.left_out)
        return '\n'.join([*lines, f'wrote {self.output}'])


def embed_files(
    embedder: Embedder,
    images: str | os.PathLike,
    output: str | os.PathLike,
    heatmaps: bool = False,
    strict: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> Summary:
    """Write `paths [N]`, `attributes [A]`, `embeddings [N, A, D]`, with `heatmaps` also `heatmaps [N, A, h, w]`, as an .npz.

    `output` is replaced once the new file is complete. An unreadable photo is skipped and listed in `<output>.skipped.txt`;
    with `strict` it is an InputError. After a stop, the same call resumes and writes the same bytes. Raises InputError also
    if there are no usable photos, no heatmaps, if `output` is one of the inputs or does not end in .npz, or if `<output>.parts`
    is in use, of another call, or not ours.
    """
    if heatmaps:
        embedder.check_attention()
    output, source = Path(output).expanduser(), Path(images).expanduser()
    skipped_file = output.with_name(f'{output.name}.skipped.txt')
    photos, left_out = list_photos(images, with_boxes=embedder.crop_to_bbox)
    check_output(output, ['.npz'], [source, *(photo.path for photo in photos)])
    check_output(skipped_file, ['.txt'], [source])
    request = {
        'checkpoint': embedder.fingerprint,
        'photos': _hash(os.fsencode(photo.path) for photo in photos),
        'boxes': _hash(repr((photo.path, photo.box)).encode() for photo in photos if photo.box),
        'heatmaps': heatmaps,
        'chunk_size': chunk_size,
    }
    with _open_parts(output.with_name(f'{output.name}.parts'), request) as folder:
        start = time.monotonic()
        chunks = {_part(folder, number, chunk): chunk for number, chunk in enumerate(slices(photos, chunk_size))}
        num_reused = _embed_missing(embedder, chunks, heatmaps, strict)
        seconds = time.monotonic() - start
        paths = [path for part in chunks for path in _read(part, 'paths').tolist()]
        skipped = [line for part in chunks for line in _read(part, 'skipped').tolist()]
        if paths:
            write_skipped(skipped_file, skipped)
            used = [part for part in chunks if len(_read(part, 'paths'))]
            _assemble(output, used, paths, embedder.attributes, heatmaps)
    if not paths:
        raise InputError(f'None of the {len(photos)} photos of {images} can be used; {skipped[0].replace(TAB, ": ")}.')
    return Summary(output, len(paths), len(embedder.attributes), embedder.dim, skipped, num_reused, seconds, left_out)


@contextlib.contextmanager
def _open_parts(folder: Path, request: Mapping[str, Any]) -> Iterator[Path]:
    """`folder`, locked, with no parts but those of `request`; deleted afterwards unless there was an error."""
    folder.mkdir(parents=True, exist_ok=True)
    known = None
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((folder / 'request.json').read_text())
    ours = isinstance(known, dict) and known.keys() == request.keys()
    foreign = [path.name for path in folder.iterdir() if not path.name.startswith(('.lock', '.request.json.'))]
    if foreign and not ours:
        raise InputError(f'{folder} has files that we did not write, such as {min(foreign)}; name another --output.')
    with lock(folder / '.lock', f'Another process is using {folder}; wait for it, or name another --output.'):
        changed = ', '.join(name for name in request if ours and known[name] != request[name])
        if changed and any(folder.glob('part-*.npz')):
            raise InputError(
                f'{folder} holds parts of a run with other {changed}, which only the same command can finish; '
                'delete that folder, or name another --output.'
            )
        write_json(folder / 'request.json', request)
        yield folder
        # request.json goes last, since it says that the others are ours
        for pattern in ('part-*.npz', 'whole.npz', '.*.npz.*.tmp', '.request.json.*.tmp', 'request.json', '.lock'):
            for path in folder.glob(pattern):
                path.unlink()
    with contextlib.suppress(OSError):  # the user's files stay
        folder.rmdir()


def _part(folder: Path, number: int, photos: Sequence[ListedPhoto]) -> Path:
    """The file of a chunk. Its name changes when a photo is replaced, fixed or removed, so that the chunk is embedded again."""
    states = ((file_state(photo.path) or 'missing').encode() for photo in photos)
    return folder / f'part-{number:06}-{_hash(states)[:16]}.npz'


def _embed_missing(
    embedder: Embedder, chunks: Mapping[Path, Sequence[ListedPhoto]], heatmaps: bool, strict: bool
) -> int:
    """Write the parts that do not exist yet; returns the number of photos in the others."""
    missing = {part: photos for part, photos in chunks.items() if not part.exists()}
    total, num_missing = (sum(map(len, some.values())) for some in (chunks, missing))
    if num_missing < total:
        print(f'resuming after {total - num_missing:,} of {total:,} photos', flush=True)
    batches = (
        [(photo.path, photo.box) for photo in batch]
        for photos in missing.values()
        for batch in slices(photos, embedder.batch_size)
    )
    with (
        tqdm(total=total, initial=total - num_missing, desc='embed', unit='photo', disable=None) as bar,
        contextlib.closing(embedder.stream(batches, heatmaps=heatmaps)) as results,
    ):
        for part, photos in chunks.items():
            if part in missing:
                _write_part(part, photos, results, bar)
            for line in _read(part, 'skipped').tolist() if strict else ():
                raise InputError(f'{line.replace(TAB, ": ")}; fix it, or leave out --strict to skip such photos.')
    return total - num_missing


def _write_part(part: Path, photos: Sequence[ListedPhoto], results: Iterator[Embedded], bar: tqdm) -> None:
    """Save the results of a chunk's photos."""
    paths, skipped, vectors, maps = [], [], [], []
    for photo, result in zip(photos, results, strict=False):  # the others are of the next chunks
        bar.update()
        if result.why is not None:
            skipped.append(f'{photo.path}{TAB}{result.why}')
            continue
        paths.append(photo.path)
        vectors.append(result.vectors)
        maps += [] if result.heatmaps is None else [result.heatmaps]
    arrays = {'embeddings': np.array(vectors, np.float32), 'heatmaps': np.array(maps, np.float32)}
    with write_atomically(part) as file:
        np.savez(file, paths=np.array(paths, np.str_), skipped=np.array(skipped, np.str_), **arrays)


def _read(part: Path, name: str) -> np.ndarray:
    """An array of a part; raises InputError if the part is damaged."""
    try:
        with part.open('rb') as file, np.load(file) as arrays:  # NumPy leaves a damaged file open
            return arrays[name]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{part} is damaged ({error}); delete it and run the same command again.') from error


def _assemble(output: Path, parts: Sequence[Path], paths: Sequence[str], attributes: Sequence[str], heatmaps: bool):
    """Write to `output` what `numpy.savez` would, without holding more than a part in memory."""
    whole = parts[0].with_name('whole.npz')
    with write_atomically(whole) as file, zipfile.ZipFile(file, 'w') as archive:
        for name in ('paths', 'attributes', 'embeddings', 'heatmaps')[: 4 if heatmaps else 3]:
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                if name == 'attributes':
                    np.lib.format.write_array(member, np.array(attributes))
                    continue
                arrays = (_read(part, name) for part in parts)
                first = next(arrays)
                dtype = np.dtype(f'<U{max(map(len, paths))}') if name == 'paths' else first.dtype
                header = {'descr': dtype.str, 'fortran_order': False, 'shape': (len(paths), *first.shape[1:])}
                np.lib.format.write_array_header_1_0(member, header)
                for array in itertools.chain([first], arrays):
                    member.write(array.astype(dtype, copy=False).tobytes())
    whole.replace(output)


def _hash(items: Iterable[bytes]) -> str:
    return hashlib.sha256(b'\0'.join(items)).hexdigest()
