"""A gallery: photos, ready to be searched by attribute, in a LanceDB table in a folder or on object storage.

One row per photo: its path, the columns of the CSV that listed it, a thumbnail, and a vector per attribute. Our own columns
begin with `gallery_`. Every change is one commit of LanceDB, so a killed process leaves the state before it or after it.
"""

import contextlib
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from asen_jax.errors import InputError
from asen_jax.search.listing import slices
from asen_jax.search.location import TABLE, DamageError, damage, drop_torn_versions, first_line, is_gallery, locate

ID, SOURCE, STATE, THUMBNAIL = 'gallery_id', 'gallery_source', 'gallery_state', 'gallery_thumbnail'
VECTOR = 'gallery_vector_{}'
PATHS_AT_ONCE = 1000  # in one condition
NUM_VOTERS = 20  # nearest labeled photos, which vote on a value
NUM_CONSIDERED = 100  # nearest photos, among which the voters are
MAX_WEIGHT = 1_000_000
NUM_PROBES = 64  # partitions of an index, of about 4,096 photos each, that are searched
PRIMARY_KEY = {b'lance-schema:unenforced-primary-key': b'true'}  # two commits cannot add the same photo


class Match(NamedTuple):
    """A photo that a search found."""

    path: str
    score: float  # similarity to the query: the cosine, or the negative distance, as the network compares vectors
    metadata: dict[str, str]  # the columns of the CSV that listed the photo, without empty cells

    def describe(self) -> dict[str, Any]:
        """The match as a JSON object."""
        return {'path': self.path, 'score': self.score, **self.metadata}


class Guess(NamedTuple):
    """The most frequent value of an attribute among a photo's nearest neighbors."""

    value: str
    share: float  # of the voters
    num_voters: int


class Gallery:
    """An opened gallery. `network_info` describes the network of its vectors: `fingerprint`, `attributes`, `workdir`, …"""

    def __init__(self, folder: Path | str, table: Any):
        self.folder, self.table, self._metadata = folder, table, table.schema.metadata
        try:
            self.network_info = json.loads(self._metadata[b'asen_jax'])
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f'{folder} contains a LanceDB table that is not a gallery; choose another --gallery.'
            ) from error
        self.attributes = tuple(self.network_info['attributes'])

    @classmethod
    def open(cls, folder: str | os.PathLike) -> 'Gallery':
        """The gallery in `folder` (or at s3://…); raises InputError if there is none, or if it cannot be read."""
        folder = locate(folder)
        if not is_gallery(folder):
            raise InputError(f'{folder} is not a gallery; make one with --mode index --gallery={folder}.')
        if isinstance(folder, Path):
            drop_torn_versions(folder)
        try:
            return cls(folder, lancedb.connect(folder).open_table(TABLE))
        except (OSError, RuntimeError, ValueError) as error:
            raise damage(folder, error) from error

    @classmethod
    def create(cls, folder: str | os.PathLike, network_info: Mapping[str, Any], dim: int) -> 'Gallery':
        """An empty gallery for the vectors of the network that `network_info` describes; replaces one that is there."""
        fields = [pa.field('path', pa.string(), False, PRIMARY_KEY)]
        fields += [pa.field(name, pa.string()) for name in (ID, SOURCE, STATE)]
        fields.append(pa.field(THUMBNAIL, pa.binary()))
        vectors = range(len(network_info['attributes']))
        fields += [pa.field(VECTOR.format(number), pa.list_(pa.float32(), dim)) for number in vectors]
        schema = pa.schema(fields, metadata={b'asen_jax': json.dumps(network_info).encode()})
        folder = locate(folder)
        return cls(folder, lancedb.connect(folder).create_table(TABLE, schema=schema, mode='overwrite'))

    def __len__(self) -> int:
        return self.table.count_rows()

    def refresh(self) -> None:
        """See what other processes have changed; raises DamageError if the gallery cannot be read."""
        with self.reading():
            self.table.checkout_latest()
            metadata = self.table.schema.metadata
        if metadata != self._metadata:
            raise DamageError(f'{self.folder} was rebuilt since it was opened; open it again.')

    @property
    def metadata_columns(self) -> list[str]:
        """The columns that came from CSVs."""
        return [name for name in self.table.schema.names if name != 'path' and not name.startswith('gallery_')]

    def search(
        self,
        query: Float[np.ndarray, 'attributes dim'],
        weights: Mapping[str, float],
        k: int,
        where: str | None = None,
        without: str | None = None,
    ) -> list[Match]:
        """The `k` photos nearest to `query`, a photo's vectors under all attributes, best first.

        The score is the mean of the attributes' similarities, by weight. With one attribute, LanceDB ranks, by its index if the
        gallery has one; with several, every photo is compared. `where` is a condition in SQL on the CSV's columns, and
        `without` a path to leave out. Raises InputError for an unknown attribute, a weight that is not positive, an invalid
        condition, or a damaged gallery.
        """
        check_weights(weights, self.attributes)
        self.refresh()
        numbers = {self.attributes.index(name): weight / sum(weights.values()) for name, weight in weights.items()}
        count = min(k + (without is not None), max(len(self), 1))
        with self.reading(where):
            if len(numbers) > 1:
                scores = self._scan(numbers, query, count, where)
            else:
                [number] = numbers
                found = self._nearest(number, query[number], count, where)
                distances = found.column('_distance').to_numpy()  # l2 is squared
                near = -np.sqrt(distances) if self.network_info['metric'] == 'l2' else 1 - distances
                scores = dict(zip(found.column('path').to_pylist(), near.tolist(), strict=True))
        columns, paths = self.metadata_columns, [path for path in scores if path != without][:k]
        rows = {row['path']: row for row in self.rows(paths, columns)}
        return [
            Match(path, scores[path], {name: rows[path][name] for name in columns if rows[path][name]})
            for path in paths
            if path in rows  # another process may have deleted it since
        ]

    def guess(self, query: Float[np.ndarray, 'attributes dim'], without: str | None = None) -> dict[str, Guess]:
        """The likely value of each attribute for which the CSVs have a column of that name: its neighbors' vote.

        A cell with several values, `red|white`, is a vote for each.
        """
        guesses = {}
        for number, name in enumerate(self.attributes):
            if name not in self.metadata_columns:
                continue
            with self.reading():
                found = self._nearest(number, query[number], NUM_CONSIDERED, None, name)
            cells = zip(found.column('path').to_pylist(), found.column(name).to_pylist(), strict=True)
            voters = [split_cell(cell) for path, cell in cells if cell and path != without][:NUM_VOTERS]
            votes = Counter(value for values in voters for value in set(values))
            if votes:
                value, count = votes.most_common(1)[0]
                guesses[name] = Guess(value, count / len(voters), len(voters))
        return guesses

    def find(self, photo: str, columns: Sequence[str]) -> dict[str, Any] | None:
        """The row of the photo with the id `photo`, with `path` and `columns`; None if there is none."""
        self.refresh()
        with self.reading():
            search = self.table.search().where(f'{ID} = {quote(photo)}').select(['path', *columns]).limit(1)
            return next(iter(search.to_arrow().to_pylist()), None)

    def values(self, column: str, k: int) -> list[str]:
        """The `k` most frequent values of a column of the CSVs; `red|white` counts as two."""
        with self.reading():
            cells = self.table.search().select([column]).to_arrow().column(column)
        counts: Counter[str] = Counter()
        for each in cells.drop_null().value_counts().to_pylist():
            counts.update(dict.fromkeys(split_cell(each['values']), each['counts']))
        return sorted(counts, key=lambda value: (-counts[value], value))[:k]

    def sample(self, k: int) -> list[str]:
        """The ids of `k` photos, evenly spaced."""
        count = len(self)
        with self.reading():
            offsets = sorted({number * count // k for number in range(k)}) if count else []
            return self.table.take_offsets(offsets).select([ID]).to_arrow().column(ID).to_pylist()

    def rows(self, paths: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of `paths`, in any order, with `path` and `columns`; paths that are not in the gallery are left out."""
        with self.reading():
            for condition in path_conditions(paths):
                yield from self.table.search().where(condition).select(['path', *columns]).to_arrow().to_pylist()

    def paths(self) -> Iterator[str]:
        """The paths of all photos."""
        with self.reading():
            for batch in self.table.search().select(['path']).to_batches():
                yield from batch.column('path').to_pylist()

    def vectors_of(self, row: Mapping[str, Any]) -> Float[np.ndarray, 'attributes dim']:
        """The vectors in a row that has all of `vector_columns`."""
        return np.array([row[column] for column in self.vector_columns], np.float32)

    @property
    def vector_columns(self) -> list[str]:
        """The columns of the vectors, in the order of `attributes`."""
        return [VECTOR.format(number) for number in range(len(self.attributes))]

    @contextlib.contextmanager
    def reading(self, where: str | None = None) -> Iterator[None]:
        """Turn LanceDB's errors, which are about a condition or about damaged files, into ours."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # a panic of Rust, too, whose class cannot be imported
            if where and ('LanceError(IO)' not in str(error) or 'sql filter' in str(error)):
                columns = ', '.join(['path', *self.metadata_columns])
                raise InputError(
                    f'The condition {where!r} does not work ({first_line(error).removeprefix("Invalid input, ")}); write a '
                    f'condition such as "color = \'red\'" on the columns {columns}.'
                ) from error
            raise damage(self.folder, error) from error

    def _nearest(
        self, number: int, query: Float[np.ndarray, ' dim'], k: int, where: str | None, *columns: str
    ) -> pa.Table:
        """The nearest photos under one attribute, by LanceDB, with `path`, `_distance`, and `columns`."""
        search = self.table.search(query, vector_column_name=VECTOR.format(number))
        search = search.distance_type(self.network_info['metric']).select(['path', *columns, '_distance']).limit(k)
        # few photos may meet a condition, and an index would miss them
        search = search.bypass_vector_index().where(where) if where else search.nprobes(NUM_PROBES)
        return search.to_arrow()

    def _scan(
        self, weights: Mapping[int, float], query: Float[np.ndarray, 'attributes dim'], k: int, where: str | None
    ) -> dict[str, float]:
        """The score of the nearest photos under several attributes: each photo is compared, a batch of rows at a time."""
        search = self.table.search().select(['path', *map(VECTOR.format, weights)])
        if where:
            search = search.where(where)
        best: list[tuple[float, str]] = []
        for batch in search.to_batches():
            scores = np.zeros(batch.num_rows, np.float32)
            for number, weight in weights.items():
                vectors = batch.column(VECTOR.format(number)).flatten().to_numpy().reshape(batch.num_rows, -1)
                scores += weight * self._compare(vectors, query[number])
            best = heapq.nlargest(k, [*best, *zip(scores.tolist(), batch.column('path').to_pylist(), strict=True)])
        return {path: score for score, path in best}

    def _compare(
        self, vectors: Float[np.ndarray, 'n dim'], query: Float[np.ndarray, ' dim']
    ) -> Float[np.ndarray, ' n']:
        match self.network_info['metric']:
            case 'l2':
                return -np.linalg.norm(vectors - query, axis=1)
            case 'cosine':
                return vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(query), 1e-12)
        return vectors @ query


def parse_weights(text: str, attributes: Sequence[str]) -> dict[str, float]:
    """The weights in `sleeve:2,neckline`; a name without one weighs 1. Raises InputError as `check_weights` does."""
    if text in attributes:  # a name may contain a comma or a colon
        return {text: 1.0}
    weights = {}
    for part in filter(None, (part.strip() for part in text.split(','))):
        name, colon, weight = part.rpartition(':')
        try:
            weights[name if colon else weight] = float(weight) if colon else 1.0
        except ValueError as error:
            raise InputError(
                f'The attribute {part!r} has no number as its weight; write NAME, or NAME:WEIGHT.'
            ) from error
    check_weights(weights, attributes)
    return weights


def check_weights(weights: Mapping[str, float], attributes: Sequence[str]) -> None:
    """Raise InputError if there is no weight, an attribute is unknown, or a weight is not positive."""
    if not weights:
        raise InputError('No attribute was given; name one.')
    for name, weight in weights.items():
        if name not in attributes:
            raise InputError(f'The gallery has no attribute {name!r}; it has {", ".join(attributes)}.')
        if not 0 < weight <= MAX_WEIGHT:
            raise InputError(f'The weight of {name} is {weight:g}; it must be positive, and at most {MAX_WEIGHT:,}.')


def split_cell(cell: str) -> list[str]:
    """The values in a cell of a CSV: `red|white` has two."""
    return [value for value in cell.split('|') if value.strip()]


def photo_id(path: str) -> str:
    """A short name for a photo that does not tell where it is: the first 16 digits of the SHA-256 of its path."""
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def path_conditions(paths: Sequence[str]) -> Iterator[str]:
    """SQL conditions for `paths`, PATHS_AT_ONCE of them in each."""
    for some in slices(paths, PATHS_AT_ONCE):
        yield f'path in ({", ".join(map(quote, some))})'


def quote(text: str) -> str:
    """`text` as a string in SQL."""
    return "'" + text.replace("'", "''") + "'"
