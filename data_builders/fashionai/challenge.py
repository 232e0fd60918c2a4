"""FashionAI's train split from the challenge's own label.csv, for a copy of the lists without the train lists."""

from pathlib import Path, PurePosixPath

from asen_jax.errors import InputError
from data_builders import annotations
from data_builders.annotations import Meta
from data_builders.asen_lists import Source
from data_builders.records import Photo, photo_in

TRAIN_FOLDERS = ('fashionAI_attributes_train1', 'fashionAI_attributes_train2')
TABLES = (*(f'{name}/Annotations/label.csv' for name in TRAIN_FOLDERS), 'label.csv')


def find_tables(folder: Path) -> list[Path]:
    """The label.csv files that exist; all of them are read."""
    return [path for table in TABLES if (path := folder / table).is_file()]


def rebuild_train(source: Source, tables: list[Path], held_out: set[str]) -> tuple[list[Photo], str]:
    """The photos of the tables, in their order, without those of valid and test; and a note that counts them.

    Older lists have the photos under other paths (test/Images/...), so file names, which are ids, are compared too.
    """
    held_out_ids = {PurePosixPath(name).name for name in held_out}
    photos, by_path, by_id = [], 0, 0
    for photo in _read_photos(source, tables):
        if photo.image_id in held_out:
            by_path += 1
        elif PurePosixPath(photo.image_id).name in held_out_ids:
            by_id += 1
        else:
            photos.append(photo)
    where = ' and '.join(str(path.relative_to(source.folder)) for path in tables)
    if not by_path + by_id:
        raise InputError(
            f'{source.folder}: none of the {len(held_out):,} photos of valid and test is in {where}, so train cannot be '
            f'kept apart from them; use label.csv and lists of the same photos.'
        )
    if not photos:
        raise InputError(f'{source.folder}: {where} has only photos of valid and test; none is left for train.')
    note = (
        f'train: rebuilt from {where}, because the published train lists are missing: {len(photos):,} photos; '
        f'{by_path + by_id:,} of the {len(held_out):,} photos of valid and test were found and left out '
        f'({by_path:,} by path, {by_id:,} by file name)'
    )
    return photos, note


def _read_photos(source: Source, tables: list[Path]) -> list[Photo]:
    """Each photo once, with all its labels; two different values of one attribute are an error."""
    labels_of, first = {}, {}
    for table in tables:
        for line, text in enumerate(annotations.read_lines(table), 1):
            where = f'{table}, line {line}'
            name, attribute, value = _read_line(text, source.meta, where)
            name = _place(source.folder, table, name)
            first.setdefault(name, where)
            known, listed = labels_of.setdefault(name, {}).setdefault(attribute, (value, where))
            if known != value:
                raise InputError(
                    f'{where}: {name} has value {value} of {source.meta.attributes[attribute]}, but value {known} '
                    f'on {listed}; delete one of the two lines.'
                )
    return [
        photo_in(source.folder, name, [(attribute, value) for attribute, (value, _) in labels.items()], first[name])
        for name, labels in labels_of.items()
    ]


def _read_line(text: str, meta: Meta, where: str) -> tuple[str, int, int]:
    """Path, attribute and value, which is the position of the only `y`; `m` (maybe) counts as `n`."""
    cells = [cell.strip() for cell in text.split(',')]
    counts = {f'{name}_labels': len(meta.values[name]) for name in meta.attributes}
    name, attribute, letters = cells if len(cells) == 3 else ('', '', '')
    if len(letters) != counts.get(attribute) or set(letters) - set('nmy') or letters.count('y') != 1:
        known = ', '.join(f'{each} ({count} letters)' for each, count in counts.items())
        raise InputError(
            f'{where}: {text[:80]!r}; expected "path,attribute_labels,nnynn" with one of {known}, each n, m or y, and exactly one y.'
        )
    annotations.check_relative(name, where)
    return name, list(counts).index(attribute), letters.index('y')


def _place(folder: Path, table: Path, name: str) -> str:
    """Paths are relative to the train folder of their table; the table above both may omit the train folder's name."""
    if table.parent != folder:
        return f'{table.parent.parent.name}/{name}'
    if not name.startswith('Images/'):
        return name
    holders = (train for train in TRAIN_FOLDERS if (folder / train / name).is_file())
    return f'{next(holders, TRAIN_FOLDERS[0])}/{name}'  # a photo in neither is reported as missing later
