"""`--mode search`: the photos of a gallery that are nearest to one, printed and drawn."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import asen_jax
from asen_jax.data import images as pictures
from asen_jax.errors import InputError
from asen_jax.evaluation.figures import CELL, Ranking, draw_rankings
from asen_jax.files import check_output, write_atomically
from asen_jax.search.gallery import STATE, THUMBNAIL, Gallery, Guess, Match, parse_weights
from asen_jax.search.listing import absolute, file_state
from asen_jax.search.location import file_of

MAX_DRAWN = 20  # photos on the contact sheet


def search_gallery(
    folder: Path | str,
    photo: str,
    attribute: str,
    k: int = 20,
    where: str | None = None,
    workdir: Path | None = None,
    as_json: bool = False,
    output: Path | None = None,
) -> list[Match]:
    """`--mode search`: print the `k` photos of a gallery nearest to `photo` under `attribute`, and draw a contact sheet.

    `attribute` is a name, or several with weights, `sleeve:2,neckline`. A photo of the gallery itself is not among its
    results, and needs no network; for another one, the network is that of the gallery's workdir, or of `workdir` if it has moved.
    """
    gallery, path = Gallery.open(folder), absolute(photo)
    weights = parse_weights(attribute, gallery.attributes)  # before the network is loaded
    known = next(gallery.rows([path], [STATE, THUMBNAIL, *gallery.vector_columns]), None)
    if output:
        check_output(output, ['.jpg', '.jpeg'], itertools.chain([path], gallery.paths()))
    elif not as_json:
        output = file_of(gallery.folder, 'search.jpg')
    state = file_state(path)
    if known and state and known[STATE].startswith(f'{state} '):
        query, picture = gallery.vectors_of(known), pictures.decode(known[THUMBNAIL])
    else:
        # its garment's box is not known, so the whole photo is used
        query = load_embedder(gallery, workdir).embed([path], boxes=[None])[0]
        picture = pictures.decode(pictures.read_file(path))
    without = path if known else None
    matches = gallery.search(query, weights, k, where, without)
    if as_json:
        print(json.dumps([match.describe() for match in matches], indent=1, ensure_ascii=False))
    else:
        print(format_matches(matches, gallery.guess(query, without)))
    if output:
        drawn = [match.path for match in matches[:MAX_DRAWN]]
        thumbnails = {row['path']: row[THUMBNAIL] for row in gallery.rows(drawn, [THUMBNAIL])}
        found = [pictures.decode(thumbnails[path]) for path in drawn if path in thumbnails]
        query_square, *squares = (pictures.fit_square(image, CELL, 'pad') for image in (picture, *found))
        with write_atomically(output) as file:
            draw_rankings([Ranking(attribute, query_square, None, squares)]).save(file, 'JPEG', quality=88)
    if not as_json:
        print(f'wrote {output}')
    return matches


def load_embedder(gallery: Gallery, workdir: Path | None = None) -> 'asen_jax.Embedder':
    """The network that made the gallery, for one photo at a time; raises InputError if it is missing or has changed."""
    info = gallery.network_info
    if workdir is None and 'workdir' not in info:
        raise InputError(f'{gallery.folder} does not say which network made it; name its --workdir.')
    folder = workdir or Path(info['workdir'])
    embedder = asen_jax.Embedder.load(folder, info.get('checkpoint', 'best'), info['precision'], batch_size=1)
    if embedder.fingerprint != info['fingerprint']:
        raise InputError(
            f'{folder} is not the network that made {gallery.folder}, or was trained further; index into a new gallery.'
        )
    return embedder


def format_matches(matches: Sequence[Match], guesses: Mapping[str, Guess]) -> str:
    """A table of the matches, and a line with the likely values."""
    lines = [f'{"rank":>4} {"score":>7}  path']
    for rank, match in enumerate(matches, 1):
        columns = ', '.join(f'{name} {value}' for name, value in match.metadata.items())
        lines.append(f'{rank:>4} {match.score:>7.4f}  {match.path}{f"  ({columns})" if columns else ""}')
    if not matches:
        lines.append('no matching photos')
    if guesses:
        likely = ', '.join(f'{name} {g.value} ({g.share:.0%} of {g.num_voters})' for name, g in guesses.items())
        lines.append(f'likely values, judging by the nearest photos: {likely}')
    return '\n'.join(lines)
