"""The training images of a taught model: those of the first fit and the confirmed parts, as one folder."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from pathlib import Path

from PIL import Image

from edgead.data import Category, Sample, open_category
from edgead.runtime.errors import DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame
from edgead.runtime.imaging.listing import GOOD_FOLDERS
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row
from edgead.teaching.lessons import Lessons

PREFIX = "taught-"
_UNKNOWN_KIND = "defect"
_RESERVED = GOOD_FOLDERS | {"train", "test", "validation", "ground_truth", "con", "nul", "aux", "prn"}


def grow(category: Category, record: JournalReader, lessons: Lessons, folder: Path) -> Path:
    """Write a folder in MVTec layout with a category's training images and the parts that are taught.

    Files are linked where the file system can, else copied; nothing is ever written through a path that exists. Good
    parts are ``train/good/taught-<digest>.png``, defective ones ``train/<kind>/taught-<digest>.png``, the pixels just
    as they were judged. A part that was taught before and is disputed now is left out. ``edgead fit`` takes the folder.

    Args:
        category: what the model was fitted on, and the defects beside it.
        record: where the parts' pixels are.
        lessons: what people agree on.
        folder: new; its name becomes that of the category.

    Raises:
        DataError: a stored image is missing or altered, the disk is full, or an image would be lost on the way.
    """
    taught = {file_name(one.row): one for one in (*lessons.good, *lessons.defective)}
    # Labelled otherwise since, or not agreed on any more.
    replaced = {*taught, *map(file_name, lessons.disputed)}
    good = defective = 0
    try:
        for sample in (*category.train, *category.defects):
            if sample.path.name in replaced:
                continue
            _place(sample, folder / "train" / _kind_folder(sample), _flat_name(category, sample))
            good, defective = good + (not sample.anomalous), defective + sample.anomalous
        for name, lesson in taught.items():
            target = folder / "train" / (_folder_name(lesson.kind) if lesson.defective else "good") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                stream.write(png(record.frame(lesson.row)))
            good, defective = good + (not lesson.defective), defective + lesson.defective
    except OSError as error:
        raise DataError(f"cannot write the training images to {folder}: {reason(error)}") from error
    found = open_category(folder, train_only=True)
    if (len(found.train), len(found.defects)) != (good, defective):
        raise DataError(
            f"of {good} good and {defective} defective images {len(found.train)} and {len(found.defects)} can be read "
            f"back from {folder}; rename files with unusual names"
        )
    return folder


def png(frame: Frame) -> bytes:
    """Return a frame's pixels as PNG, RGB or grey."""
    stream = io.BytesIO()
    Image.fromarray(frame.image if frame.layout == "gray" else frame.to_rgb()).save(stream, "PNG")
    return stream.getvalue()


def file_name(row: Row) -> str:
    """Return the name of a part's file: by its pixels, so that a part is one file however often it is taught."""
    return f"{PREFIX}{str(row.body.get('pixels'))[:20]}.png"


def _kind_folder(sample: Sample) -> str:
    return _folder_name(sample.label) if sample.anomalous else "good"


def _flat_name(category: Category, sample: Sample) -> str:
    """Return a file's place in its category as one name that no listing passes over."""
    parts = category.relative(sample).split("/")
    inner = parts[2:] if parts[0] == "train" and len(parts) > 2 else parts
    return "__".join(part.lstrip(".") or "up" for part in inner)


def _place(sample: Sample, folder: Path, name: str) -> None:
    """Link or copy a file into a folder, by another name where the name is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = Path(name).stem, Path(name).suffix
    for number in range(1, 10_000):
        target = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        if target.exists():
            continue
        try:
            os.link(sample.path.resolve(), target)
        except FileExistsError:
            continue
        except OSError:  # another file system, or one without links
            with sample.path.open("rb") as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy)
        return
    raise OSError(errno.EEXIST, "too many files of one name", str(folder / name))


def _folder_name(kind: str | None) -> str:
    """Return a kind of defect as a folder is called, on every system."""
    name = re.sub(r"[^\w.-]+", "_", kind or _UNKNOWN_KIND).strip("._")[:60] or _UNKNOWN_KIND
    return f"{name}_defect" if name.lower().split(".")[0] in _RESERVED else name
