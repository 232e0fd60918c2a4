"""DeepFashion's category and attribute benchmark with the query and candidate lists that ASEN published."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from asen_jax.data.triplets import Labels
from data_builders import annotations, asen_lists
from data_builders.asen_lists import EVAL_SPLITS, EvalLists, Source, config_name
from data_builders.deepfashion import anno, labels
from data_builders.deepfashion.labels import Ids, Rows
from data_builders.records import RawDataset, RecordsBuilder

DATASET = 'DeepFashion'  # its folder, and its key in meta.json
OTHER = "; DeepFashion's own Anno/ can take the place of the train lists"
INSTRUCTIONS = asen_lists.INSTRUCTIONS.format(name='deepfashion', folder=DATASET, other=OTHER)
__all__ = ['Builder', 'config_name', 'list_files', 'read']  # what prepare.py needs of a builder


class Builder(RecordsBuilder):
    """Writes the records of DeepFashion."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS


def list_files(data: ConfigDict) -> list[Path]:
    """The files that describe the dataset; when one changes, the records are rebuilt."""
    folder = asen_lists.dataset_folder(data, DATASET)
    names, photos, boxes = (anno.find(folder, name) for name in (anno.NAMES, anno.PHOTOS, anno.BOXES))
    train = None
    if photos and not asen_lists.has_train_lists(data, DATASET):
        train = [names or photos.with_name(anno.NAMES), photos]
    label_files = [path for split in EVAL_SPLITS if (path := _label_file(folder, split)).is_file()]
    return list(
        dict.fromkeys([*asen_lists.list_files(data, DATASET, train), *label_files, *filter(None, (names, boxes))])
    )


def read(data: ConfigDict) -> RawDataset:
    """The three splits, with DeepFashion's own value names and boxes if their files exist.

    Train comes from the published lists or, without them, from DeepFashion's own files.
    """
    source = asen_lists.open_source(data, DATASET, list_files(data), INSTRUCTIONS)
    folder, published = source.folder, asen_lists.has_train_lists(data, DATASET)
    names_file, boxes_file = anno.find(folder, anno.NAMES), anno.find(folder, anno.BOXES)
    names = anno.read_names(names_file, source.meta) if names_file else None
    if names:
        source = source._replace(meta=anno.name_values(source.meta, names))
    lists = asen_lists.read_eval_lists(source)
    photos = {split: part.names for split, part in lists.items()}
    if published:
        photos['train'] = annotations.read_filenames(folder / asen_lists.TRAIN_LISTS[0])
    files = {split: path for split in photos if (path := _label_file(folder, split)).is_file()}
    tables = {split: labels.read_rows(path, len(photos[split]), source.meta) for split, path in files.items()}
    attribute_of_id = _attributes_of_ids(source, [rows for rows in tables.values() if rows.is_global], names)
    notes = [rows.note for rows in tables.values()]
    labels_of = {split: labels.to_labels(rows, attribute_of_id) for split, rows in tables.items()}
    for split in [each for each in EVAL_SPLITS if each in tables]:
        labels_of[split], missing = _add_listed(labels_of[split], lists[split])
        if missing:
            notes.append(
                f'{split}: {missing:,} labels in its query and candidate lists are missing from {files[split].name} and were added'
            )
    if published:
        train = asen_lists.make_photos(folder, photos['train'], labels_of['train'], folder / asen_lists.TRAIN_LISTS[0])
    else:
        held_out = {name for part in lists.values() for name in part.names}
        file = anno.find(folder, anno.PHOTOS)
        train, note = anno.rebuild_train(folder, file, names, labels.rank_ids(attribute_of_id), held_out)
        notes.append(note)
    raw = asen_lists.assemble(data, 'deepfashion', source, train, lists, labels_of, notes)
    return anno.add_boxes(raw, anno.read_boxes(boxes_file)) if boxes_file else raw


def _label_file(folder: Path, split: str) -> Path:
    return folder / f'label_{split}.txt'


def _attributes_of_ids(source: Source, files: list[Rows], names: anno.Names | None) -> Ids:
    """The attribute of each global id; empty if none of the `files`, which contain them, needs it."""
    if names:
        for rows in files:
            labels.check_attributes(rows, names.attribute, f'in {names.path}')
        return names.attribute
    remedy = f"put DeepFashion's {anno.NAMES} into {source.folder / anno.PLACES[0]}."
    return labels.infer_attributes(files, source.meta, remedy) if files else np.zeros(0, int)


def _add_listed(given: Labels, lists: EvalLists) -> tuple[Labels, int]:
    """The labels of a label file and those that are only in the query and candidate lists, and how many these are."""
    rows = np.stack(given, axis=1)
    missing = sorted(set(map(tuple, np.stack(lists.labels, axis=1).tolist())) - set(map(tuple, rows.tolist())))
    return Labels(*np.concatenate([rows, np.array(missing, np.int32).reshape(-1, 3)]).T), len(missing)
