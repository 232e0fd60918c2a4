"""What the web page asks for: photos like an uploaded one, or like one of the gallery."""

import functools
import itertools
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from asen_jax.data import images
from asen_jax.embedder import Embedded, Embedder
from asen_jax.errors import InputError
from asen_jax.search.gallery import ID, STATE, THUMBNAIL, Gallery, parse_weights, photo_id
from asen_jax.search.listing import photo_state

MAX_RESULTS = 200
MAX_PIXELS = 40_000_000  # of an uploaded photo; decoding takes up to 20 bytes each
JPEG_SCAN = b'\xff\xda'
MAX_SCANS = 100  # of a JPEG, each of which is decoded over the whole photo; cameras and websites use about 10
MIN_SIDE = 16  # pixels of an uploaded photo; in a smaller one there is nothing to see
MAX_CONDITION = 4000  # characters
MAX_CHOICES = 100  # values of a column; one with more is not offered as a filter
NUM_EXAMPLES = 12
# A condition from the network: words, numbers, strings, columns in backticks, and operators.
OPERATORS = '=<>!(),.+*/%-'
TOKEN = re.compile(rf"\s+|\w+|'(?:[^']|'')*'|`[^`]+`|[{OPERATORS}]")
# What it may call. Others could fill the memory, as repeat('x', 1e11) would.
FUNCTIONS = {'and', 'or', 'not', 'in', 'like', 'ilike', 'between', 'cast', 'try_cast', 'lower', 'upper'}
FUNCTIONS |= {'array_has', 'string_to_array'}


class Finder:
    """A gallery with the network that made it. Its methods may be called from several threads."""

    def __init__(self, gallery: Gallery, embedder: Embedder):
        self.gallery, self.embedder = gallery, embedder
        self.has_heatmaps = embedder.heatmap_shape is not None
        self._lock, self._facts_of = threading.Lock(), functools.lru_cache(1)(self._read_facts)
        self._run(Image.new('RGB', (64, 64)))  # compiles the network, so that the first visitor need not wait

    def facts(self) -> dict[str, Any]:
        """What the page shows before a search: the attributes, the values of each column, and some photos."""
        self.gallery.refresh()
        with self._lock:  # several visitors at once should not all read the columns
            return self._facts_of(self.gallery.table.version)

    def count(self) -> int:
        """The number of photos; raises DamageError if the gallery cannot be read."""
        self.gallery.refresh()
        self.gallery.sample(1)
        return len(self.gallery)

    def embed(self, data: bytes) -> Embedded:
        """What the network makes of an uploaded photo; raises InputError if it cannot be used."""
        return self._run(decode_upload(data))

    def search_upload(self, data: bytes, attribute: str, k: int, where: str | None) -> dict[str, Any]:
        """The `k` photos most like an uploaded one; raises InputError if it cannot be used, and as `Gallery.search` does."""
        search = self._prepare_search(attribute, k, where)
        result = self.embed(data)
        return search(result.vectors, result.heatmaps)

    def search_photo(self, photo: str, attribute: str, k: int, where: str | None) -> dict[str, Any] | None:
        """The `k` photos most like the one of the gallery with the id `photo`; None if there is no such photo."""
        search = self._prepare_search(attribute, k, where)
        row = self.gallery.find(photo, [STATE, *self.gallery.vector_columns])
        if row is None:
            return None
        path = row['path']
        # a changed photo, or the part of one that is inside a box, is not what the page shows
        is_shown = self.has_heatmaps and row[STATE] == photo_state(path, None)
        return search(self.gallery.vectors_of(row), self._run(path).heatmaps if is_shown else None, path)

    def thumbnail(self, photo: str) -> bytes | None:
        """The JPEG of the gallery's photo with the id `photo`; None if there is no such photo."""
        row = self.gallery.find(photo, [THUMBNAIL])
        return None if row is None else row[THUMBNAIL]

    def _prepare_search(self, attribute: str, k: int, where: str | None) -> Callable[..., dict[str, Any]]:
        """A function of a query's vectors, its heatmaps, and its path; raises InputError before anything is computed."""
        weights = parse_weights(attribute, self.gallery.attributes)
        check_condition(where or '')

        def search(
            query: Float[np.ndarray, 'attributes dim'],
            heatmaps: Float[np.ndarray, 'attributes h w'] | None,
            without: str | None = None,
        ) -> dict[str, Any]:
            matches = self.gallery.search(query, weights, k, where or None, without)
            guesses = self.gallery.guess(query, without)
            numbers = [self.gallery.attributes.index(name) for name in weights]
            shares = np.array(list(weights.values())) / sum(weights.values())
            heatmap = None if heatmaps is None else np.tensordot(shares, heatmaps[numbers], 1).round(6).tolist()
            return {
                'results': [match.describe() | {ID: photo_id(match.path)} for match in matches],
                'likely': {name: {'value': guess.value, 'share': guess.share} for name, guess in guesses.items()},
                'heatmap': heatmap,
            }

        return search

    def _run(self, photo: Image.Image | str) -> Embedded:
        [result] = self.embedder.stream([[(photo, None)]], heatmaps=self.has_heatmaps)
        return result

    def _read_facts(self, version: int) -> dict[str, Any]:
        del version  # with another one, the table has changed
        columns = {name: self.gallery.values(name, MAX_CHOICES + 1) for name in self.gallery.metadata_columns}
        return {
            'photos': len(self.gallery),
            'attributes': list(self.gallery.attributes),
            'columns': {name: values for name, values in columns.items() if 1 < len(values) <= MAX_CHOICES},
            'examples': self.gallery.sample(NUM_EXAMPLES),
            'fit': self.embedder.fit,
            'has_heatmaps': self.has_heatmaps,
            'max_results': MAX_RESULTS,
        }


def decode_upload(data: bytes) -> Image.Image:
    """The photo in `data`, upright; raises InputError if it is not one, is too small, or would take too long to decode."""
    try:
        width, height = images.read_size(data)
        if width * height > MAX_PIXELS:
            raise ValueError(f'it has {width}x{height} pixels; send one of at most {MAX_PIXELS:,}')
        if min(width, height) < MIN_SIDE:
            raise ValueError(f'it has {width}x{height} pixels; send one of at least {MIN_SIDE}x{MIN_SIDE}')
        if data.count(JPEG_SCAN) > MAX_SCANS:
            raise ValueError(f'it has more than {MAX_SCANS} scans; save it again as a JPEG')
        return images.decode(data)
    except ValueError as error:
        raise InputError(f'The photo cannot be used: {error}.') from error


def check_condition(where: str) -> None:
    """Raise InputError if a condition from the network does more than compare columns with values."""
    if len(where) > MAX_CONDITION:
        raise InputError(f'The condition has {len(where)} characters; write one of at most {MAX_CONDITION}.')
    tokens = TOKEN.findall(where)
    solid = [token for token in tokens if not token.isspace()]
    faults = [] if ''.join(tokens) == where else [TOKEN.sub('', where)]
    pairs = list(itertools.pairwise(tokens))
    faults += [token + after for token, after in pairs if token + after in ('--', '/*')]  # comments
    faults += [token + after for token, after in pairs if after[0] == "'" and re.match(r'\w', token)]  # E'\n'
    faults += [token for token in solid if token.strip('`').lower().startswith(('gallery_', '_'))]  # our own columns
    for token, after in itertools.pairwise(solid):
        if after == '(' and token not in OPERATORS and token.lower() not in FUNCTIONS:
            faults.append(f'{token}(')
    if faults:
        raise InputError(
            f'The condition contains {faults[0][:50]!r}, which is not allowed here; use columns, strings in single quotes, '
            'numbers, =, <, LIKE, IN, AND, OR, and NOT.'
        )
