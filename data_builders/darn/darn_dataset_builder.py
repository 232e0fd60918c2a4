"""DARN (Huang et al., ICCV 2015) with the published query and candidate lists of ASEN; README.md says where files go.

`data` is the config's part of that name.
"""

from pathlib import Path

from data_builders import annotations, asen_lists, records
from data_builders.asen_lists import config_name
from data_builders.records import RawDataset

DATASET = 'DARN'  # its folder, and its key in meta.json
INSTRUCTIONS = (
    'data_builders/darn/README.md says what to download and where each file goes (meta.json in the folder '
    '--config.data.manual_dir, lists and photos in DARN/ below it).'
)
__all__ = ['Builder', 'config_name', 'list_files', 'read']  # what prepare.py asks a builder for


class Builder(records.RecordsBuilder):
    """Writes the records of a DARN that was read and checked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS


def list_files(data) -> list[Path]:
    """The description of the data set: when one of these changes the records are made anew."""
    return asen_lists.list_files(data, DATASET)


def read(data) -> RawDataset:
    """Read the lists; the labels of valid and test exist only in their query and candidate lists."""
    annotations.require_files(list_files(data), INSTRUCTIONS)
    source = asen_lists.open_source(data, DATASET)
    train = asen_lists.read_train(source)
    valid, test = (asen_lists.read_asked(source, split) for split in ('valid', 'test'))
    return asen_lists.assemble(data, 'darn', source, train, valid, test)
