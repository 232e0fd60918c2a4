"""DeepFashion's category and attribute benchmark with the query and candidate lists that ASEN published."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from jaxtyping import Int

from asen_jax.data.triplets import Labels
from data_builders import annotations, asen_lists, records
from data_builders.asen_lists import Asked, Source, config_name
from data_builders.deepfashion import anno, labels
from data_builders.deepfashion.labels import Rows
from data_builders.records import Photo, RawDataset

DATASET = 'DeepFashion'  # its folder, and its key in meta.json
ASKED = ('valid', 'test')
Ids = Int[np.ndarray, ' ids']
INSTRUCTIONS = (
    'data_builders/deepfashion/README.md says what to download and where each file goes (meta.json in the folder '
    "--config.data.manual_dir, lists and photos in DeepFashion/ below it; DeepFashion's own Anno/ can take the place "
    'of the train lists).'
)
__all__ = ['Builder', 'config_name', 'list_files', 'read']  # the interface that prepare.py expects of a builder


class Builder(records.RecordsBuilder):
    """Writes the records of DeepFashion once its lists are read and its photos are checked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS


def list_files(data: ml_collections.ConfigDict) -> list[Path]:
    """The files that describe the dataset: a change in one of them rebuilds the records."""
    folder = asen_lists.dataset_folder(data, DATASET)
    names, photos, boxes = (anno.find(folder, name) for name in (anno.NAMES, anno.PHOTOS, anno.BOXES))
    train = None
    if photos and not asen_lists.has_train_lists(data, DATASET):
        train = [names or photos.with_name(anno.NAMES), photos]
    label_files = [path for path in _label_files(folder, ASKED).values() if path.is_file()]
    files = [*asen_lists.list_files(data, DATASET, train), *label_files, *filter(None, (names, boxes))]
    return list(dict.fromkeys(files))


def read(data: ml_collections.ConfigDict) -> RawDataset:
    """The three splits, with DeepFashion's own value names and boxes if their files exist.

    Train comes from the published lists or, without them, from DeepFashion's own files.
    """
    annotations.require_files(list_files(data), INSTRUCTIONS)
    source = asen_lists.open_source(data, DATASET)
    published = asen_lists.has_train_lists(data, DATASET)
    names_file = anno.find(source.folder, anno.NAMES)
    names = names_file and anno.read_names(names_file, source.meta)
    if names:
        source = source._replace(meta=anno.name_values(source.meta, names))
    tables = _read_tables(source, (*ASKED, 'train') if published else ASKED)
    attribute_of_id = _attributes_of_ids(source, tables, names)
    notes = [rows.note for rows in tables.values()]
    asked = {split: _read_asked(source, split, tables.get(split), attribute_of_id, notes) for split in ASKED}
    if published:
        train = _read_train(source, tables['train'], attribute_of_id)
    else:
        held_out = {photo.image_id for split in ASKED for photo in asked[split].photos}
        file = anno.find(source.folder, anno.PHOTOS)
        train, note = anno.rebuild_train(source.folder, file, names, labels.rank_ids(attribute_of_id), held_out)
        notes.append(note)
    train, asked = _with_boxes(source.folder, train, asked, notes)
    return asen_lists.assemble(data, 'deepfashion', source, train, asked['valid'], asked['test'], tuple(notes))


def _label_files(folder: Path, splits: Sequence[str]) -> dict[str, Path]:
    return {split: folder / f'label_{split}.txt' for split in splits}


def _read_tables(source: Source, splits: Sequence[str]) -> dict[str, Rows]:
    """The label files that exist; those of valid and test are optional."""
    tables = {}
    for split, path in _label_files(source.folder, splits).items():
        if path.is_file():
            num_photos = len(annotations.read_filenames(source.folder / f'filenames_{split}.txt'))
            tables[split] = labels.read_rows(path, num_photos, source.meta)
    return tables


def _attributes_of_ids(source: Source, tables: dict[str, Rows], names: anno.Names | None) -> Ids:
    """The attribute of each global id; empty if no file needs them."""
    files = [rows for rows in tables.values() if rows.is_global]
    if names:
        for rows in files:
            labels.check_attributes(rows, names.attribute, f'in {names.path}')
        return names.attribute
    remedy = f"put DeepFashion's {anno.NAMES} into {source.folder / anno.PLACES[0]}."
    return labels.infer_attributes(files, source.meta, remedy) if files else np.zeros(0, int)


def _read_train(source: Source, rows: Rows, attribute_of_id: Ids) -> list[Photo]:
    """The published train split."""
    names_file = source.folder / asen_lists.TRAIN_LISTS[0]
    names = annotations.read_filenames(names_file)
    return asen_lists.make_photos(source.folder, names, labels.to_labels(rows, attribute_of_id), names_file)


def _read_asked(source: Source, split: str, rows: Rows | None, attribute_of_id: Ids, notes: list[str]) -> Asked:
    """Valid or test; its photos have the labels of the label file and those of the query and candidate lists."""
    asked = asen_lists.read_asked(source, split)
    if rows is None:
        return asked
    given, listed = labels.to_labels(rows, attribute_of_id), np.concatenate([asked.query, asked.candidate])
    missing = set(map(tuple, listed.tolist())) - set(zip(*(column.tolist() for column in given), strict=True))
    if missing:
        notes.append(
            f'{split}: {len(missing):,} labels in its query and candidate lists are missing from {rows.path.name} and were added'
        )
    extra = np.array(sorted(missing), np.int32).reshape(-1, 3).T
    both = Labels(*(np.concatenate(pair) for pair in zip(given, extra, strict=True)))
    return asen_lists.read_asked(source, split, both)


def _with_boxes(
    folder: Path, train: list[Photo], asked: dict[str, Asked], notes: list[str]
) -> tuple[list[Photo], dict[str, Asked]]:
    """The photos of all splits, with their boxes if list_bbox.txt exists."""
    path = anno.find(folder, anno.BOXES)
    if path is None:
        return train, asked
    boxes = anno.read_boxes(path)
    train = [anno.add_box(photo, boxes) for photo in train]
    asked = {
        split: part._replace(photos=[anno.add_box(photo, boxes) for photo in part.photos])
        for split, part in asked.items()
    }
    notes.append(anno.note_boxes([*train, *asked['valid'].photos, *asked['test'].photos], boxes))
    return train, asked
