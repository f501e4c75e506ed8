"""The one rule by which folders become lists of images: training, evaluation, proofs and folder sources share it.

Omitted, and counted: hidden files and folders, folders that operating systems and network storage keep for themselves
(`SYSTEM_FOLDERS`), masks (folders in `MASK_FOLDERS`, and ``NAME_mask.*`` beside ``NAME.*``), and files without an image
suffix. Links are followed, each real folder once. Names are relative POSIX paths in Unicode's NFC, and sorted by them.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from edgead.runtime.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
)
# Folders that hold masks, not images of parts, in the MVTec and LOCO layouts; compared in lower case.
MASK_FOLDERS = frozenset({"ground_truth"})
# Thumbnails, waste baskets and snapshots of macOS, Windows, Synology and QNAP; compared in lower case.
SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
GOOD_FOLDERS = frozenset({"good", "ok", "normal"})
_MASK_MARK = "_mask"
_HIDDEN, _SYSTEM, _MASKS = "hidden", "folders of the system", "masks"
_EXPECTED = frozenset({_HIDDEN, _SYSTEM})


@dataclass(frozen=True, slots=True)
class ImageListing:
    """The images of a folder.

    Attributes:
        files: ``(name, path)``, sorted by name.
        omitted: what was passed over and how often, such as ``{"hidden": 2, ".txt": 1, "masks": 40}``; of a folder
            that is hidden or the system's own, the folder counts, not what is in it.
    """

    files: tuple[tuple[str, Path], ...]
    omitted: Mapping[str, int] = field(default_factory=dict)

    @property
    def unexpected(self) -> Mapping[str, int]:
        """What of it a user should hear of: all but hidden files and the system's own folders."""
        return {kind: count for kind, count in self.omitted.items() if kind not in _EXPECTED}

    @property
    def paths(self) -> list[Path]:
        return [path for _, path in self.files]

    def explain(self) -> str:
        """Return what was omitted on one line, such as ``omitted: 17 .heic, 4 masks``; empty where nothing was."""
        return explain_omitted(self.omitted)


def explain_omitted(omitted: Mapping[str, int]) -> str:
    """Return counts as in `ImageListing.omitted` on one line; empty where there are none."""
    parts = [f"{count} {kind}" for kind, count in sorted(omitted.items(), key=lambda item: (-item[1], item[0]))]
    return f"omitted: {', '.join(parts)}" if parts else ""


def list_images(root: Path, *, recursive: bool = True) -> ImageListing:
    """List the images of a folder.

    Args:
        root: a folder; one that is named as a mask folder itself lists what is in it.
        recursive: also those in the folders below.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[tuple[str, Path]] = []
    omitted: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    truth = any(part.lower() in MASK_FOLDERS for part in root.parts)

    def visit(current: Path, prefix: str, kind: str | None) -> None:
        try:
            status = current.stat()
        except OSError as error:
            raise DataError(f"cannot read the folder {current}: {error.strerror or error}") from error
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        entries = folder_entries(current, omitted)
        stems = {PurePath(name).stem for name, _, is_folder in entries if not is_folder}
        for name, path, is_folder in entries:
            if is_folder and recursive:
                visit(path, f"{prefix}{name}/", _MASKS if name.lower() in MASK_FOLDERS else kind)
            elif not is_folder and path.suffix.lower() not in IMAGE_SUFFIXES:
                omitted[path.suffix.lower() or "without suffix"] += 1
            elif not is_folder and (kind is not None or (not truth and _is_mask(name, stems))):
                omitted[kind or _MASKS] += 1
            elif not is_folder:
                found.append((prefix + name, path))

    visit(root, "", None)
    return ImageListing(tuple(sorted(found)), dict(omitted))


def require_normals(folder: Path) -> None:
    """Refuse the folder of a category where a folder of normal parts is meant: its defects would count as normal.

    Raises:
        DataError: the folder, or one below it, has parts called train, test or ground_truth, or folders beside one
            called good, ok or normal; the message names a folder that may be meant.
    """
    seen: set[tuple[int, int]] = set()

    def visit(current: Path) -> None:
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        _refuse_category(current)
        for _, path, is_folder in folder_entries(current):
            if is_folder:
                visit(path)

    visit(folder)


def _refuse_category(folder: Path) -> None:
    inner = {name.lower(): path for name, path, is_folder in folder_entries(folder) if is_folder}
    splits = [name for name in ("train", "test", *sorted(MASK_FOLDERS)) if name in inner]
    good = [name for name in inner if name in GOOD_FOLDERS]
    if splits or (good and len(inner) > len(good)):
        places = [inner[name] for name in ("test", "train") if name in inner] or [folder]
        meant = [path for place in places for path in _good_folders(place)]
        hint = f"; give {meant[0]}" if meant else ""
        raise DataError(
            f"{folder} holds {', '.join(sorted(inner))}, as a category with its defects does, "
            f"and only images of normal parts may be here{hint}"
        )


def _good_folders(folder: Path) -> list[Path]:
    return [path for name, path, is_folder in folder_entries(folder) if is_folder and name.lower() in GOOD_FOLDERS]


def _is_mask(name: str, stems: Collection[str]) -> bool:
    stem = PurePath(name).stem
    return stem.endswith(_MASK_MARK) and stem.removesuffix(_MASK_MARK) in stems


def folder_entries(folder: Path, omitted: Counter[str] | None = None) -> list[tuple[str, Path, bool]]:
    """Return ``(name in NFC, path, is a folder)``, sorted, links last so that a real folder wins over a link to it.

    Raises:
        DataError: the folder cannot be read.
    """
    listed = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                    if omitted is not None:
                        omitted[_HIDDEN if entry.name.startswith(".") else _SYSTEM] += 1
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
