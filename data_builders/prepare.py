"""Builds one data set's records, or finds them built: raw files in `data.manual_dir` become a directory in `data.dir`.

Beside the records lie `prepare.json` (what was read, skipped and why), `skipped.txt` (the same photos, one a line) and
`arrays.npz` (all labels and lists, without the photos).
All of it is made in a folder `incomplete` and then moved into place at once, so that nothing half-made is ever seen and
a failure harms no earlier records.
"""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from ml_collections import ConfigDict

from asen_jax import files
from asen_jax.errors import InputError
from asen_jax.evaluation.metrics import chance_map
from data_builders.checks import check_photos
from data_builders.records import FORMAT, SPLITS, RawDataset, labels_of, with_triplets, write_arrays

BUILDERS = ('fashionai', 'darn', 'deepfashion', 'zappos50k', 'catalog', 'synthetic')
SHOWN = 5  # skipped photos that the summary names
logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """A dataset on its way to records: the lists are read, the photos are not."""

    target: Path  # where the records are, or will be
    data: ConfigDict  # `config.data`
    raw: RawDataset | None  # None where the records can be used as they are


def read_source(config: ConfigDict) -> Source:
    """Read the lists of `config.data`, unless there are complete records of the same description.

    Complete records can also be used when the raw files are gone. Raises InputError for a list that is missing or malformed.
    """
    target, module = prepared_path(config), load_builder(config.data.name)
    if why := _usable(target, module, config.data):
        logger.info('Using the records in %s: %s.', target, why)
        return Source(target, config.data, None)
    return Source(target, config.data, module.read(config.data))


def build_records(source: Source) -> Path:
    """The directory with the records of `source`, built if need be; raises InputError for a photo that cannot be used.

    If another process is building the same dataset, this one waits for it.
    """
    target, data, raw = source
    if raw is None:
        return target
    module = load_builder(data.name)
    with _lock(target.parent):
        _clear_leftovers(target)
        if not _usable(target, module, data):  # the other process may have built them
            raw = with_triplets(check_photos(raw, data.missing, data.broken))
            built = _build(module, raw, target)
            write_arrays(raw, built / 'arrays.npz')
            (built / 'skipped.txt').write_text(''.join(f'{e["image_id"]}\t{e["why"]}\n' for e in raw.skipped))
            content = describe(raw, _description(module, data))
            content['files'] = {path.name: path.stat().st_size for path in sorted(built.iterdir())}
            (built / 'prepare.json').write_text(json.dumps(content, indent=1))
            _move(built, target)
            _clear_leftovers(target)
    return target


def prepare(config: ConfigDict) -> Path:
    """The directory with the records of `config.data`: `build_records` of `read_source`."""
    return build_records(read_source(config))


def prepared_path(config) -> Path:
    """`<data.dir>/<name>/<builder config>/<version>`."""
    module = load_builder(config.data.name)
    root = Path(config.data.dir).expanduser()
    return root / config.data.name / module.config_name(config.data) / str(module.Builder.VERSION)


def load_builder(name: str):
    """The builder's module: `Builder`, `list_files(data)`, `config_name(data)` and `read(data) -> RawDataset`."""
    if name not in BUILDERS:
        raise InputError(f'data.name is {name!r}; write one of {", ".join(BUILDERS)}.')
    return importlib.import_module(f'data_builders.{name}.{name}_dataset_builder')


def describe(raw: RawDataset, description: str) -> dict:
    """The content of prepare.json; `fingerprint` tells records apart, also by the photos that were skipped."""
    splits, left_out = {}, [[entry['image_id'], entry['why']] for entry in raw.skipped]  # wherever they lie
    for split in SPLITS:
        labels = labels_of(raw.photos.get(split, ()))
        if not raw.photos.get(split):
            continue
        query = raw.queries.get(split, np.zeros((0, 3), np.int32))
        candidate = raw.candidates.get(split, np.zeros((0, 3), np.int32))
        pairs = np.unique(np.stack([labels.attribute, labels.value]), axis=1)[0]
        splits[split] = {
            'photos': len(raw.photos[split]),
            'labels': len(labels.photo),
            'values': {name: int((pairs == number).sum()) for number, name in enumerate(raw.attributes)},
            'queries': len(query),
            'candidates': len(candidate),
            'unanswered': count_unanswered(query, candidate),
            'triplets': len(raw.triplets.get(split, ())),
            'chance_map': chance_map(raw.attributes, query, candidate) if len(query) else None,
        }
    return {
        'dataset': raw.dataset, 'splits': splits, 'skipped': list(raw.skipped), 'notes': list(raw.notes),
        'caveat': raw.caveat, 'description': description,
        'fingerprint': hashlib.sha256(json.dumps([description, left_out]).encode()).hexdigest(),
    }  # fmt: skip


def count_unanswered(query: Int[np.ndarray, 'n 3'], candidate: Int[np.ndarray, 'm 3']) -> int:
    """Queries without a candidate of their attribute and value."""
    answers = set(map(tuple, candidate[:, 1:].tolist()))
    return sum(tuple(row) not in answers for row in query[:, 1:].tolist())


def summary(prepared: Path) -> str:
    """prepare.json as text for a person; chance MAP in percent."""
    content = json.loads((Path(prepared) / 'prepare.json').read_text())
    splits = content['splits']
    lines = [f'{content["dataset"]}: {prepared}', '']
    heads = ''.join(f'{head:>12}' for head in ('queries', 'candidates', 'unanswered', 'chance MAP', 'triplets'))
    lines.append(f'{"":10}{"photos":>10}{"labels":>10}{heads}')
    for split, facts in splits.items():
        chance = f'{100 * facts["chance_map"]["overall"]:.2f}' if facts['chance_map'] else '-'
        figures = f'{facts["photos"]:>10,}{facts["labels"]:>10,}{facts["queries"]:>12,}{facts["candidates"]:>12,}'
        lines.append(f'{split:10}{figures}{facts["unanswered"]:>12,}{chance:>12}{facts["triplets"]:>12,}')
    lines += ['', f'{"":24}' + ''.join(f'{f"{split} values":>14}{"chance MAP":>12}' for split in splits)]
    for name in next(iter(splits.values()))['values']:
        cells = ''
        for facts in splits.values():
            chance = facts['chance_map'] and facts['chance_map']['per_attribute'].get(name)
            cells += f'{facts["values"][name]:>14,}{"-" if chance is None else f"{100 * chance:.2f}":>12}'
        lines.append(f'{name:24}' + cells)
    lines += ['', f'skipped: {len(content["skipped"]):,} photos']
    lines += [f'  {entry["image_id"]}: {entry["why"]}' for entry in content['skipped'][:SHOWN]]
    if len(content['skipped']) > SHOWN:
        lines.append(f'  ... all are listed in {Path(prepared) / "skipped.txt"}')
    return '\n'.join([*lines, *content['notes'], *filter(None, [content['caveat']])])


def is_whole(prepared: Path) -> bool:
    """Whether every file is there in the size it was written; the records' contents carry checksums of their own."""
    try:
        sizes = json.loads((prepared / 'prepare.json').read_text())['files']
        return all((prepared / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False  # nothing there, or a damaged prepare.json: it is made again


def _usable(target: Path, module, data) -> str:
    """Why the records can be used as they are; '' where they must be built."""
    if not is_whole(target):
        return ''
    if not all(path.is_file() for path in module.list_files(data)):
        return 'the raw files are not there, the records are whole'
    content = json.loads((target / 'prepare.json').read_text())
    # photos that were left out by data.missing=skip must not stay out unseen under 'error', nor once they are there
    allowed = all(data[entry['why'].split(':')[0]] == 'skip' for entry in content['skipped'])
    same = content.get('description') == _description(module, data)
    if not allowed or not same or _any_mended(content['skipped'], (target / 'prepare.json').stat().st_mtime):
        return ''
    return 'their description has not changed'


def _any_mended(skipped: Sequence[dict], since: float) -> bool:
    """Whether a photo that was missing is there now, or a broken one's file was changed after `since`."""
    for entry in skipped:
        path = Path(entry['path'])
        if entry['path'] and path.is_file() and (entry['why'] == 'missing' or path.stat().st_mtime > since):
            return True
    return False


def _description(module, data) -> str:
    """A hash of all that decides the records: the lists, the options (in the config's name), the versions."""
    files = []
    for path in module.list_files(data):
        with path.open('rb') as file:
            files.append([path.name, hashlib.file_digest(file, 'sha256').hexdigest()])
    facts = [data.name, module.config_name(data), str(module.Builder.VERSION), FORMAT, files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _build(module, raw: RawDataset, target: Path) -> Path:
    """Let TFDS write the records below `incomplete`, and return where."""
    config = tfds.core.BuilderConfig(name=target.parent.name)
    with _quiet():
        builder = module.Builder(raw=raw, data_dir=target.parent / 'incomplete', config=config)
        builder.download_and_prepare(file_format='array_record')
    if not builder.is_prepared():  # TFDS takes an existing empty directory for done
        raise RuntimeError(f'TFDS wrote no records to {builder.data_path}')
    return Path(builder.data_path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints to stdout that it downloads (it does not), and warns of a config that is not in a list."""
    absl_logger = logging.getLogger('absl')
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logger.setLevel(level)


def _lock(home: Path) -> contextlib.AbstractContextManager[None]:
    """A lock with which only one process builds in `home`."""
    path = home / '.lock'
    try:
        home.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise InputError(
            f'data.dir: {home} cannot be written ({error.strerror}); choose another --config.data.dir.'
        ) from error
    return files.lock(path, f'Another process prepares {home}; waiting for it.', wait=True)


def _move(built: Path, target: Path) -> None:
    """Put the new records in the place of the old."""
    if target.exists():
        target.rename(target.parent / 'replaced')
    built.rename(target)


def _clear_leftovers(target: Path) -> None:
    """Remove what an interrupted build left; if it was interrupted between the two moves, the old records come back."""
    replaced = target.parent / 'replaced'
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for path in (replaced, *target.parent.glob('incomplete*')):
        if path.exists():
            shutil.rmtree(path)
