"""The training images of a taught model: those of the first fit and the confirmed parts, as one folder."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from edgead.data import Category, Sample
from edgead.runtime.errors import DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame
from edgead.runtime.imaging.listing import GOOD_FOLDERS
from edgead.runtime.journal.reader import JournalReader
from edgead.teaching.lessons import Lesson

PREFIX = "taught-"
_UNKNOWN_KIND = "defect"
_RESERVED = GOOD_FOLDERS | {"train", "test", "validation", "ground_truth"}


def grow(category: Category, record: JournalReader, taught: Sequence[Lesson], folder: Path) -> Path:
    """Write a folder in MVTec layout with a category's training images and the parts that are taught.

    Files are linked where the file system can, else copied. Good parts are ``train/good/taught-<digest>.png``,
    defective ones ``train/<kind>/taught-<digest>.png``, the pixels just as they were judged. ``edgead fit`` takes it.

    Args:
        category: what the model was fitted on.
        record: where the parts' pixels are.
        taught: parts that people agree on.
        folder: new; its name becomes that of the category.

    Raises:
        DataError: a stored image is missing or altered, or the disk is full.
    """
    named = {_file_name(lesson): lesson for lesson in taught}
    try:
        for sample in (*category.train, *category.defects):
            kind = _folder_name(sample.label) if sample.anomalous else "good"
            name = category.relative(sample).removeprefix(f"train/{sample.path.parent.name}/").replace("/", "__")
            if name not in named:  # taught before, and perhaps labelled otherwise since
                _place(sample, folder / "train" / kind / name)
        for name, lesson in named.items():
            target = folder / "train" / (_folder_name(lesson.kind) if lesson.defective else "good") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(png(record.frame(lesson.row)))
    except OSError as error:
        raise DataError(f"cannot write the training images to {folder}: {reason(error)}") from error
    return folder


def png(frame: Frame) -> bytes:
    """Return a frame's pixels as PNG, RGB or grey."""
    stream = io.BytesIO()
    Image.fromarray(frame.image if frame.layout == "gray" else frame.to_rgb()).save(stream, "PNG")
    return stream.getvalue()


def _file_name(lesson: Lesson) -> str:
    """Return the name of a part's file: by its pixels, so that a part is one file however often it is taught."""
    return f"{PREFIX}{str(lesson.row.body['pixels'])[:20]}.png"


def _place(sample: Sample, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(sample.path.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(sample.path, target)


def _folder_name(kind: str | None) -> str:
    """Return a kind of defect as a folder is called."""
    name = re.sub(r"[^\w.-]+", "_", kind or _UNKNOWN_KIND).strip("._") or _UNKNOWN_KIND
    return f"{name}_defect" if name.lower() in _RESERVED else name[:60]
