"""DARN (Huang et al., ICCV 2015) with the query and candidate lists that ASEN published."""

from functools import partial

from ml_collections import ConfigDict

from data_builders import asen_lists
from data_builders.asen_lists import config_name
from data_builders.records import RawDataset, RecordsBuilder

DATASET = 'DARN'  # its folder, and its key in meta.json
INSTRUCTIONS = asen_lists.INSTRUCTIONS.format(name='darn', folder=DATASET, other='')
__all__ = ['Builder', 'config_name', 'list_files', 'read']  # what prepare.py needs of a builder


class Builder(RecordsBuilder):
    """Writes the records of DARN."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS


list_files = partial(asen_lists.list_files, dataset=DATASET)


def read(data: ConfigDict) -> RawDataset:
    """The three splits; the labels of valid and test come from their query and candidate lists alone."""
    source = asen_lists.open_source(data, DATASET, list_files(data), INSTRUCTIONS)
    train = asen_lists.read_train(source)
    return asen_lists.assemble(data, 'darn', source, train, asen_lists.read_eval_lists(source))
