"""What a category is once its folder or list has been read."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgead.runtime.files import file_sha256
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.imaging.listing import GOOD_FOLDERS

GOOD = "good"
GOOD_NAMES = GOOD_FOLDERS  # what others call it

Layout = Literal["mvtec", "folder", "csv"]
Split = Literal["train", "validation", "test", "defects"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file.

    Attributes:
        path: the file; it is opened when the image is read, not before.
        label: ``"good"``, the name of the defect, or None where nobody said.
        anomalous: True for a defect; False for good and for unknown.
        masks: mask files of a defect, united; empty where there are none.
        bits: how many bits of the values carry the picture where the file has 16 bits a channel, see `read_image`.
    """

    path: Path
    label: str | None
    anomalous: bool
    masks: tuple[Path, ...] = ()
    bits: int = ALL_BITS


@dataclass(frozen=True, slots=True)
class Category:
    """The images of one product, each split sorted by relative POSIX path (NFC, by code point).

    Attributes:
        name: of the folder, or of the list without ``.csv``.
        root: folder that relative paths count from.
        layout: ``"mvtec"`` (also MVTec LOCO), ``"folder"`` or ``"csv"``.
        train: good images only.
        test: good and anomalous images; empty where it was not asked for.
        validation: more good images (MVTec LOCO), in neither of the others.
        defects: defective images beside the training images (``train/defect``); they are not trained on, and say what a
            threshold lets pass.
        omitted: files of the training folders that are no training images, such as ``{".heic": 17, "masks": 4}``.
    """

    name: str
    root: Path
    layout: Layout
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    validation: tuple[Sample, ...] = ()
    defects: tuple[Sample, ...] = ()
    omitted: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def has_masks(self) -> bool:
        """Whether every anomalous test image has a mask (and there is one)."""
        defects = [sample for sample in self.test if sample.anomalous]
        return bool(defects) and all(sample.masks for sample in defects)

    def with_bits(self, bits: int) -> Category:
        """Return the category with all of its 16-bit files read as of so many bits."""
        train, test, validation = (
            tuple(replace(sample, bits=bits) for sample in part) for part in (self.train, self.test, self.validation)
        )
        defects = tuple(replace(sample, bits=bits) for sample in self.defects)
        return replace(self, train=train, test=test, validation=validation, defects=defects)

    def relative(self, sample: Sample) -> str:
        """Return the path of a sample relative to the root, with ``/`` and in NFC on every platform."""
        return relative_name(sample.path, self.root)

    def fingerprint(self, split: Split = "train") -> str:
        """Return the SHA-256 (hex) of a split: the sorted relative paths, labels and SHA-256 of the contents.

        Masks count as part of their image. The place of the category, its file system, file times and the order in
        which folders are listed do not matter. Files are streamed.

        Raises:
            DataError: a file that cannot be read.
        """
        digest = hashlib.sha256()
        for sample in getattr(self, split):
            for path in (sample.path, *sample.masks):
                record = json.dumps([relative_name(path, self.root), sample.label, file_sha256(path)])
                digest.update(record.encode() + b"\n")
        return digest.hexdigest()


def relative_name(path: Path, root: Path) -> str:
    """Return ``path`` relative to ``root`` as POSIX text in NFC, which macOS and Linux agree on."""
    try:
        relative = path.relative_to(root).as_posix()
    except ValueError:  # a list may name images outside of its own folder
        relative = Path(os.path.relpath(path, root)).as_posix()
    return unicodedata.normalize("NFC", relative)
