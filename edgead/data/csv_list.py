"""Reads a category from a CSV list, for images that lie in folders of somebody else's making.

Header ``path,label,split,mask``, comma-separated, UTF-8; ``split`` and ``mask`` may be omitted. ``path`` and ``mask``
count from the folder of the list; several masks are separated by ``;``. ``label`` is good, ok, normal or 0 for a good
part and the name of the defect otherwise. ``split`` is train, validation or test; left empty, good parts are for
training and defective ones for the test.
"""

from __future__ import annotations

import csv
from pathlib import Path

from edgead.data.category import GOOD, GOOD_NAMES, Category, Sample, Split, relative_name
from edgead.runtime.errors import DataError, suggest

_COLUMNS = ("path", "label", "split", "mask")
_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def read_csv(path: Path) -> Category:
    """Return the category that a list describes.

    Raises:
        DataError: naming the line, for a bad header, a missing file, a defect among the training images, ...
    """
    samples: dict[Split, list[Sample]] = {"train": [], "validation": [], "test": []}
    lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = _header(next(reader, []), path)
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(row) > len(columns):
                    raise DataError(
                        f"{where}: {len(row)} cells under {len(columns)} columns; quote a path with a comma"
                    )
                cells = dict.fromkeys(_COLUMNS, "") | dict(zip(columns, (cell.strip() for cell in row), strict=False))
                sample, split = _sample(cells, path.parent, where)
                name = relative_name(sample.path, path.parent)
                if name in lines:
                    raise DataError(f"{where}: {name} is in line {lines[name]} already; remove one of them")
                lines[name] = reader.line_num
                samples[split].append(sample)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save the list as CSV UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; fix the quotes") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    train, validation, test = (
        tuple(sorted(part, key=lambda sample: relative_name(sample.path, path.parent))) for part in samples.values()
    )
    return Category(path.stem, path.parent, "csv", train, test, validation)


def _header(cells: list[str], path: Path) -> list[str]:
    columns = [cell.strip().lower() for cell in cells]
    if len(columns) == 1 and ";" in columns[0]:
        raise DataError(f"{path}, line 1: separated by ';'; save the list with commas, header {','.join(_COLUMNS)}")
    for column in columns:
        if column not in _COLUMNS:
            raise DataError(f"{path}, line 1: unknown column '{column}'.{suggest(column, _COLUMNS)}")
    if "path" not in columns or "label" not in columns or len(set(columns)) < len(columns):
        raise DataError(f"{path}, line 1: the header must be {','.join(_COLUMNS)}, the last two may be omitted")
    return columns


def _sample(cells: dict[str, str], root: Path, where: str) -> tuple[Sample, Split]:
    if not cells["path"] or not cells["label"]:
        raise DataError(f"{where}: no {'label' if cells['path'] else 'path'}; every line needs path and label")
    anomalous = cells["label"].lower() not in GOOD_NAMES | {"0"}
    named = cells["split"].lower() or ("test" if anomalous else "train")
    if named not in _SPLITS:
        raise DataError(f"{where}: unknown split '{cells['split']}'; use train, validation or test")
    split = _SPLITS[named]
    if anomalous and split != "test":
        raise DataError(f"{where}: a defective image ('{cells['label']}') in split {split}; it belongs into test")
    masks = tuple(_file(name.strip(), root, where) for name in cells["mask"].split(";") if name.strip())
    label = cells["label"] if anomalous else GOOD
    # A good image has no anomalous pixel; exports often name an all-black mask for it.
    return Sample(_file(cells["path"], root, where), label, anomalous, masks if anomalous else ()), split


def _file(name: str, root: Path, where: str) -> Path:
    for candidate in (name, name.replace("\\", "/")):  # the second for lists written on Windows
        if (root / candidate).is_file():
            return root / candidate
    raise DataError(f"{where}: {name} does not exist in {root}")
