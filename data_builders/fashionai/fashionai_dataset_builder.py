"""FashionAI (Tianchi 231671) with the query and candidate lists of ASEN; README.md says where files go."""

from pathlib import Path

from ml_collections import ConfigDict

from data_builders import asen_lists
from data_builders.asen_lists import config_name
from data_builders.fashionai import challenge
from data_builders.records import RawDataset, RecordsBuilder

DATASET = 'FashionAI'  # its folder, and its key in meta.json
OTHER = "; the challenge's own label.csv can take the place of the train lists"
INSTRUCTIONS = asen_lists.INSTRUCTIONS.format(name='fashionai', folder=DATASET, other=OTHER)
__all__ = ['Builder', 'config_name', 'list_files', 'read']  # what prepare.py needs of a builder


class Builder(RecordsBuilder):
    """Writes the records of FashionAI."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS


def list_files(data: ConfigDict) -> list[Path]:
    """The files that describe the dataset; when one changes, the records are rebuilt."""
    tables = challenge.find_tables(asen_lists.dataset_folder(data, DATASET))
    published = asen_lists.has_train_lists(data, DATASET) or not tables
    return asen_lists.list_files(data, DATASET, None if published else tables)


def read(data: ConfigDict) -> RawDataset:
    """Read the lists; the only labels of valid and test are those in their query and candidate lists."""
    source = asen_lists.open_source(data, DATASET, list_files(data), INSTRUCTIONS)
    lists = asen_lists.read_eval_lists(source)
    if asen_lists.has_train_lists(data, DATASET):
        train, notes = asen_lists.read_train(source), []
    else:
        held_out = {name for part in lists.values() for name in part.names}
        train, *notes = challenge.rebuild_train(source, challenge.find_tables(source.folder), held_out)
    return asen_lists.assemble(data, 'fashionai', source, train, lists, notes=notes)
