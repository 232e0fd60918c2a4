"""`--mode embed`: vectors of any photos in one .npz, made from pieces in `<output>.parts`, so that a stopped run goes on.

A piece holds the vectors of CHUNK_SIZE photos; more are never in memory.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from asen_jax.errors import InputError
from asen_jax.network import config_as_trained
from asen_jax.search import pieces
from asen_jax.search.embedder import Embedded, Embedder
from asen_jax.search.listing import list_photos

CHUNK_SIZE = 1024  # photos


class Summary(NamedTuple):
    """What `embed_files` did."""

    output: Path
    num_photos: int  # that have vectors
    num_attributes: int
    dim: int
    skipped: list[str]  # `path<tab>why` of each photo without
    num_reused: int  # photos that an earlier, stopped run had done
    seconds: float  # for the others

    def __str__(self) -> str:
        done = self.num_photos + len(self.skipped) - self.num_reused
        lines = [
            f'{self.num_photos:,} photos under {self.num_attributes} attributes, {self.dim} numbers each; '
            f'{done:,} photos in {self.seconds:.1f} s ({done / max(self.seconds, 1e-9):.1f} photos/s)'
        ]
        if self.skipped:
            lines.append(f'skipped {len(self.skipped):,} photos, listed in {_beside(self.output, "skipped.txt")}')
        return '\n'.join([*lines, f'wrote {self.output}'])


def embed_workdir(
    config, workdir: Path, which: str, images: str, output: Path, heatmaps: bool = False, strict: bool = False
) -> Summary:
    """`--mode embed`: the photos `images` by a workdir's checkpoint into `output`; prints what was done."""
    embedder = Embedder.load(workdir, which, config.precision, config.eval.batch_size)
    config_as_trained(embedder.network.meta, config)
    summary = embed_files(embedder, images, output, heatmaps=heatmaps, strict=strict)
    print(summary, flush=True)
    return summary


def embed_files(
    embedder: Embedder, images: str | os.PathLike, output: str | os.PathLike, *, heatmaps: bool = False,
    strict: bool = False, chunk_size: int = CHUNK_SIZE,
) -> Summary:  # fmt: skip
    """Write `paths [N]`, `attributes [A]`, `embeddings [N, A, D]`, with `heatmaps` also `heatmaps [N, A, h, w]`, as an .npz.

    `paths` open from the folder where this ran. A photo that cannot be read is skipped and listed in `<output>.skipped.txt`;
    with `strict` it is an InputError. An `output` that was there is replaced once the new one is whole. The same call after
    a stop goes on. InputError also where there are no photos, no attention for heatmaps, or another process at work.
    """
    if heatmaps:
        embedder.check_attention()
    output = Path(output).expanduser()
    if output.is_dir():
        raise InputError(f'{output} is a folder; name a file like {output / "embeddings.npz"}.')
    paths, folder = list_photos(images), _beside(output, 'parts')
    chunks = list(_slices(paths, chunk_size))
    request = {'checkpoint': embedder.fingerprint, 'photos': _hash(map(os.fsencode, paths))}
    with pieces.hold(folder):
        pieces.claim(folder, request | {'heatmaps': heatmaps, 'chunk_size': chunk_size})
        begin, num_reused = time.monotonic(), embed_chunks(embedder, chunks, folder, heatmaps, strict)
        seconds, skipped = time.monotonic() - begin, _read_skipped(chunks, folder)
        if len(skipped) == len(paths):
            pieces.forget(folder)
            why = skipped[0].replace('\t', ': ')
            raise InputError(f'None of the {len(paths)} photos of {images} can be used; {why}.')
        _list_skipped(output, folder, skipped)
        _assemble(output, folder, chunks, embedder, heatmaps)
    num_photos = len(paths) - len(skipped)
    return Summary(output, num_photos, len(embedder.attributes), embedder.dim, skipped, num_reused, seconds)


def embed_chunks(
    embedder: Embedder, chunks: Sequence[Sequence[str]], folder: Path, heatmaps: bool, strict: bool
) -> int:
    """Embed the chunks of which `folder` has no piece yet; how many photos were. Raises InputError for a broken one if `strict`."""
    missing = [number for number, photos in enumerate(chunks) if not _is_there(folder, number, photos, strict)]
    total, size, stamps = sum(map(len, chunks)), embedder.batch_size, {}
    num_reused = total - sum(len(chunks[number]) for number in missing)
    if num_reused:
        print(f'goes on after {num_reused:,} of {total:,} photos', flush=True)

    def batches():
        for number in missing:
            stamps[number] = _stamp(chunks[number])  # before a photo of it is read
            yield from _slices(chunks[number], size)

    with (
        tqdm(total=total, initial=num_reused, desc='embed', unit='photo', disable=None) as bar,
        contextlib.closing(embedder.stream(batches(), heatmaps=heatmaps)) as stream,
    ):
        for number in missing:
            answers = []
            for photos in _slices(chunks[number], size):
                answer = next(stream)
                for place, why in answer.broken.items() if strict else ():
                    raise InputError(f'{photos[place]}: {why}; mend it, or leave out --strict to skip such photos.')
                answers.append(answer)
                bar.update(len(photos))
            pieces.write(folder, number, _join(answers, size, heatmaps) | {'stamp': np.array(stamps[number])})
    return num_reused


def _slices(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _stamp(photos: Iterable[str]) -> str:
    """Changes when a photo is replaced, mended or removed: an earlier run's vectors are then not taken for its own."""

    def describe(photo):
        try:
            status = Path(photo).stat()
            return b'%d %d' % (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            return b'absent'

    return _hash(map(describe, photos))


def _hash(lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line + b'\0')
    return digest.hexdigest()


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f'{output.name}.{suffix}')


def _join(answers: Sequence[Embedded], size: int, heatmaps: bool) -> dict[str, np.ndarray]:
    """A chunk's vectors, the places in it of the photos that have one, and what is wrong with the others."""
    placed = [(size * batch, answer) for batch, answer in enumerate(answers)]
    arrays = {
        'embeddings': np.concatenate([answer.vectors for answer in answers]),
        'kept': np.array([start + place for start, answer in placed for place in answer.kept], np.int64),
        'skipped': np.array([start + place for start, answer in placed for place in answer.broken], np.int64),
        'why': np.array([why for answer in answers for why in answer.broken.values()], np.str_),
    }
    if heatmaps:
        arrays['heatmaps'] = np.concatenate([answer.heatmaps for answer in answers])
    return arrays


def _is_there(folder: Path, number: int, photos: Sequence[str], strict: bool) -> bool:
    """Whether there is a piece of these very photos; with `strict` one that lacks some is made anew, to name them."""
    try:
        stamp, skipped = (pieces.read(folder, number, name) for name in ('stamp', 'skipped'))
    except InputError:  # it is damaged
        return False
    return stamp is not None and str(stamp) == _stamp(photos) and not (strict and len(skipped))


def _read_skipped(chunks: Sequence[Sequence[str]], folder: Path) -> list[str]:
    """`path<tab>why` of every photo without a vector."""
    lines = []
    for number, photos in enumerate(chunks):
        places, whys = (pieces.read(folder, number, name).tolist() for name in ('skipped', 'why'))
        lines += [f'{photos[place]}\t{why}' for place, why in zip(places, whys, strict=True)]
    return lines


def _list_skipped(output: Path, folder: Path, lines: Sequence[str]) -> None:
    """Write `<output>.skipped.txt`; where nothing was skipped, remove that of an earlier run."""
    path = _beside(output, 'skipped.txt')
    if not lines:
        path.unlink(missing_ok=True)
        return
    with pieces.written_whole(path, folder) as file:
        file.writelines(os.fsencode(line) + b'\n' for line in lines)


def _assemble(output: Path, folder: Path, chunks: Sequence[Sequence[str]], embedder: Embedder, heatmaps: bool) -> None:
    """The output from all pieces, one after the other."""

    def parts(name):
        return (pieces.read(folder, number, name) for number in range(len(chunks)))

    names = [[photos[place] for place in kept.tolist()] for photos, kept in zip(chunks, parts('kept'), strict=True)]
    count, longest = sum(map(len, names)), max(len(name) for chunk in names for name in chunk)
    text, number, attributes = np.dtype(f'<U{longest}'), np.dtype(np.float32), np.array(embedder.attributes)
    shape = (count, len(attributes))
    arrays = {
        'paths': pieces.Rows(text, (count,), (np.array(chunk, text) for chunk in names)),
        'attributes': pieces.Rows(attributes.dtype, attributes.shape, [attributes]),
        'embeddings': pieces.Rows(number, (*shape, embedder.dim), parts('embeddings')),
    }
    if heatmaps:
        arrays['heatmaps'] = pieces.Rows(number, (*shape, *embedder.heatmap_shape), parts('heatmaps'))
    pieces.write_npz(output, folder, arrays)
