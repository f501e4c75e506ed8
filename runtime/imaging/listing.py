"""The one rule by which folders become lists of images: training, evaluation, proofs and folder sources share it.

Hidden files and folders, macOS' ``._*`` and ``__MACOSX``, and files without an image suffix are omitted, and counted.
Links are followed, each real folder once. Names are relative POSIX paths in Unicode's NFC, and sorted by them.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgead.runtime.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
# Folders of the MVTec and LOCO layouts that hold masks, not images of parts.
MASK_FOLDERS = frozenset({"ground_truth"})


@dataclass(frozen=True, slots=True)
class ImageListing:
    """The images of a folder.

    Attributes:
        files: ``(name, path)``, sorted by name.
        omitted: what was passed over and how often, such as ``{"hidden": 2, ".txt": 1, "masks": 40}``.
    """

    files: tuple[tuple[str, Path], ...]
    omitted: Mapping[str, int] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        return [path for _, path in self.files]

    def explain(self) -> str:
        """Return what was omitted on one line; empty where nothing was."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.omitted.items(), key=lambda item: -item[1])]
        return f"omitted: {', '.join(parts)}" if parts else ""


def list_images(root: Path, *, recursive: bool = True, masks: bool = True) -> ImageListing:
    """List the images of a folder.

    Args:
        root: a folder.
        recursive: also those in the folders below.
        masks: False omits what lies in `MASK_FOLDERS`.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[tuple[str, Path]] = []
    omitted: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()

    def visit(current: Path, prefix: str, kind: str | None) -> None:
        try:
            status = current.stat()
        except OSError as error:
            raise DataError(f"cannot read the folder {current}: {error.strerror or error}") from error
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for name, path, is_folder in folder_entries(current, omitted):
            if is_folder and recursive:
                visit(path, f"{prefix}{name}/", "masks" if not masks and name in MASK_FOLDERS else kind)
            elif not is_folder and path.suffix.lower() not in IMAGE_SUFFIXES:
                omitted[path.suffix.lower() or "without suffix"] += 1
            elif not is_folder and kind is not None:
                omitted[kind] += 1
            elif not is_folder:
                found.append((prefix + name, path))

    visit(root, "", None)
    return ImageListing(tuple(sorted(found)), dict(omitted))


def folder_entries(folder: Path, omitted: Counter[str] | None = None) -> list[tuple[str, Path, bool]]:
    """Return ``(name in NFC, path, is a folder)``, sorted, links last so that a real folder wins over a link to it.

    Raises:
        DataError: the folder cannot be read.
    """
    listed = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    if omitted is not None:
                        omitted["hidden"] += 1
                    continue
                path = folder / entry.name
                target = path if entry.is_symlink() else entry  # an entry saves a system call a file
                is_folder = target.is_dir()
                # A broken link is listed: reading it fails with its name, which beats a training set silently smaller.
                if is_folder or target.is_file() or (entry.is_symlink() and not path.exists()):
                    listed.append((entry.is_symlink(), unicodedata.normalize("NFC", entry.name), path, is_folder))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return [(name, path, is_folder) for _, name, path, is_folder in sorted(listed)]
