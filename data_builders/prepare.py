"""Builds a dataset's records from the raw files in `data.manual_dir`, or finds them already built in `data.dir`.

The records come with `prepare.json` (what was read, and what was skipped and why), `skipped.txt` (one skipped photo per
line) and `arrays.npz` (all labels and lists, without the photos). Everything is written to a folder `incomplete` and
then moved into place at once, so that no reader sees half of it and a failure leaves earlier records as they were.
"""

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from asen_jax import files
from asen_jax.data.prepared import READING, REPORT, checksum, checksum_of_report, open_records
from asen_jax.errors import InputError
from data_builders.checks import check_photos
from data_builders.records import FORMAT, RawDataset, with_triplets, write_arrays
from data_builders.report import describe

REPLACED = 'replaced'  # the old records, between the two moves that replace them
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """A dataset on its way to records: its lists are read, its photos are not."""

    target: Path  # where the records are, or will be
    data: ConfigDict  # `config.data`
    raw: RawDataset | None  # None if the records in `target` can be used as they are


def read_source(config: ConfigDict) -> Source:
    """Read the lists of `config.data`, unless complete records with the same description exist.

    Complete records are also used when the raw files are gone. Raises InputError if a list is missing or malformed.
    """
    target, module = prepared_path(config), load_builder(config.data.name)
    usable, reason = _can_reuse(target, module, config.data)
    if reason:
        logger.info('%s the records in %s: %s.', 'Using' if usable else 'Rebuilding', target, reason)
    if usable:
        return Source(target, config.data, None)
    with _full_disk_names(target.parent):
        return Source(target, config.data, module.read(config.data))


def build_records(source: Source) -> Path:
    """The directory with the records of `source`, built if needed; raises InputError if a photo cannot be used.

    If another process is building the same dataset, this one waits for it. Records that are being read are not replaced;
    this raises InputError too.
    """
    target, data, raw = source
    if raw is None:
        return target
    module = load_builder(data.name)
    busy = (
        f'{target} would be replaced, but a training run or an evaluation is reading it; wait until it ends, '
        'or choose another --config.data.dir.'
    )
    with _full_disk_names(target.parent), _lock(target.parent), contextlib.ExitStack() as stack:
        _remove_leftovers(target)
        stack.callback(_remove_leftovers, target)
        if not _can_reuse(target, module, data)[0]:  # the other process may have built them
            with files.lock(target.parent / READING, busy):
                raw = with_triplets(check_photos(raw, data.missing, data.broken))
                built = _write_records(module, raw, target)
                _write_files(raw, built, _description(module, data))
                if target.exists():
                    target.rename(target.parent / REPLACED)
                built.rename(target)
    return target


def prepare(config: ConfigDict) -> Path:
    """The directory with the records of `config.data`: `build_records` of `read_source`."""
    return build_records(read_source(config))


def prepared_path(config: ConfigDict) -> Path:
    """`<data.dir>/<name>/<builder config>/<version>`."""
    module = load_builder(config.data.name)
    root = Path(config.data.dir).expanduser()
    return root / config.data.name / module.config_name(config.data) / str(module.Builder.VERSION)


def load_builder(name: str) -> ModuleType:
    """The builder's module: `Builder`, `list_files(data)`, `config_name(data)` and `read(data) -> RawDataset`."""
    return importlib.import_module(f'data_builders.{name}.{name}_dataset_builder')


def _can_reuse(target: Path, module: ModuleType, data: ConfigDict) -> tuple[bool, str]:
    """Whether the records can be used as they are, and why or why not; no reason if there are none."""
    report = target / REPORT
    if not report.is_file():
        return False, ''
    try:
        open_records(target)
    except InputError:
        return False, 'they are damaged'
    content = json.loads(report.read_text())
    if not all(path.is_file() for path in module.list_files(data)):
        return True, 'the raw files are missing, but the records are complete'
    for entry in content['skipped']:
        # photos left out under data.missing=skip must not stay out unnoticed under 'error', nor once the files are there
        kind, path = entry['why'].split(':')[0], Path(entry['path'])
        fixed = path.is_file() and (kind == 'missing' or path.stat().st_mtime > report.stat().st_mtime)
        if data[kind] != 'skip' or fixed:
            return False, 'photos were skipped that are required or repaired now'
    if content['description'] != _description(module, data):
        return False, 'their description has changed'
    return True, 'their description has not changed'


def _description(module: ModuleType, data: ConfigDict) -> str:
    """A hash of everything that determines the records: lists, options (they are in the config's name), versions."""
    hashes = [[path.name, files.sha256(path)] for path in module.list_files(data)]
    facts = [data.name, module.config_name(data), str(module.Builder.VERSION), FORMAT, hashes]
    return files.sha256_of_json(facts)


def _write_records(module: ModuleType, raw: RawDataset, target: Path) -> Path:
    """Let TFDS write the records below `incomplete`, and return their directory."""
    config = tfds.core.BuilderConfig(name=target.parent.name)
    with _quiet_tfds():
        builder = module.Builder(raw=raw, data_dir=target.parent / 'incomplete', config=config)
        builder.download_and_prepare(file_format='array_record')
    assert builder.is_prepared()  # TFDS takes an existing empty directory for finished records
    return Path(builder.data_path)


def _write_files(raw: RawDataset, built: Path, description: str) -> None:
    """Write the files beside the records, prepare.json last.

    Its `fingerprint` distinguishes records that differ in anything, including the photos that were skipped.
    """
    write_arrays(raw, built / 'arrays.npz')
    files.write_text(built / 'skipped.txt', ''.join(f'{entry["image_id"]}\t{entry["why"]}\n' for entry in raw.skipped))
    left_out = [[entry['image_id'], entry['why']] for entry in raw.skipped]  # without the folder they lie in
    content = describe(raw) | {
        'description': description,
        'fingerprint': files.sha256_of_json([description, left_out]),
        'checksums': {path.name: checksum(path) for path in sorted(built.iterdir())},
    }
    files.write_json(built / REPORT, content | {'checksum': checksum_of_report(content)})


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silence TFDS, which prints that it downloads (it does not) and warns that it does not know our config."""
    absl_logger = logging.getLogger('absl')
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logger.setLevel(level)


def _lock(home: Path) -> contextlib.AbstractContextManager[None]:
    """A lock that lets only one process build in `home`."""
    path = home / '.lock'
    try:
        home.mkdir(parents=True, exist_ok=True)
        for created in (path, home / READING):  # so that users who only read these records can lock them
            created.touch()
    except OSError as error:
        raise InputError(f'{home} cannot be written ({error.strerror}); choose another --config.data.dir.') from error
    return files.lock(path, f'Another process is preparing {home}; waiting for it.', wait=True)


@contextlib.contextmanager
def _full_disk_names(home: Path) -> Iterator[None]:
    """Turn the errors of a full disk into one sentence that names `home`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        full = [os.strerror(number) for number in FULL if os.strerror(number) in str(error)]
        if not full:
            raise
        raise InputError(
            f'{home} cannot be written ({full[0]}); make room, or choose another --config.data.dir, and run the same command again.'
        ) from error


def _remove_leftovers(target: Path) -> None:
    """Remove what a build leaves behind; after one that was interrupted between its two moves, restore the old records."""
    replaced = target.parent / REPLACED
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for path in (replaced, *target.parent.glob('incomplete*')):
        if path.exists():
            shutil.rmtree(path)
