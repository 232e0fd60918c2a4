"""DARN (Huang et al., ICCV 2015) with the query and candidate lists that ASEN published."""

from pathlib import Path

import ml_collections

from data_builders import annotations, asen_lists, records
from data_builders.asen_lists import config_name
from data_builders.records import RawDataset

DATASET = 'DARN'  # its folder, and its key in meta.json
INSTRUCTIONS = (
    'data_builders/darn/README.md says what to download and where each file goes (meta.json in the folder '
    '--config.data.manual_dir, lists and photos in DARN/ below it).'
)
__all__ = ['Builder', 'config_name', 'list_files', 'read']  # the interface that prepare.py expects of a builder


class Builder(records.RecordsBuilder):
    """Writes the records of DARN once its lists are read and its photos are checked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS


def list_files(data: ml_collections.ConfigDict) -> list[Path]:
    """The files that describe the dataset: a change in one of them rebuilds the records."""
    return asen_lists.list_files(data, DATASET)


def read(data: ml_collections.ConfigDict) -> RawDataset:
    """The three splits; the labels of valid and test come from their query and candidate lists alone."""
    annotations.require_files(list_files(data), INSTRUCTIONS)
    source = asen_lists.open_source(data, DATASET)
    train = asen_lists.read_train(source)
    valid, test = (asen_lists.read_asked(source, split) for split in ('valid', 'test'))
    return asen_lists.assemble(data, 'darn', source, train, valid, test)
