"""Images for training, taken by the camera that will inspect."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.decision.baseline import picture_signals
from edgead.runtime.errors import ConfigError, DataError, SourceError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sources import Source, open_source

DARK, BRIGHT = 25.0, 235.0
_CLIPPED_SHARE = 0.2
_BLURRED = 0.4
_ENOUGH = 5  # images before sharpness is compared


@dataclass(frozen=True, slots=True)
class Photo:
    """One saved image.

    Attributes:
        name: file name.
        brightness: mean grey value, 0 to 255.
        focus: variance of the Laplacian of the grey image; comparable between images of one scene only.
        warning: what looks wrong with it, None where nothing does. The image is kept all the same.
    """

    name: str
    brightness: float
    focus: float
    warning: str | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "brightness": round(self.brightness, 1),
            "focus": round(self.focus, 1),
            "warning": self.warning,
        }


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """What a capture saved: ``wanted`` images asked for, ``unreadable`` frames omitted."""

    source_id: str
    directory: Path
    wanted: int
    photos: tuple[Photo, ...]
    unreadable: int

    @property
    def saved(self) -> int:
        return len(self.photos)

    @property
    def warnings(self) -> list[str]:
        return [f"{photo.name}: {photo.warning}" for photo in self.photos if photo.warning]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.capture/1``)."""
        return {
            "schema": "edgead.capture/1",
            "source": self.source_id,
            "directory": str(self.directory),
            "wanted": self.wanted,
            "saved": self.saved,
            "unreadable": self.unreadable,
            "warnings": len(self.warnings),
            "photos": [photo.to_dict() for photo in self.photos],
        }


def capture(
    source: str | Path | Source,
    n: int,
    directory: str | Path,
    *,
    min_interval_s: float = 0.0,
    on_photo: Callable[[Photo], None] | None = None,
) -> CaptureSummary:
    """Save ``n`` frames of a source as lossless PNG files, by the pixel what `Stream` will see.

    Files are called ``000000.png``, ``000001.png``, …; numbers go on after those in the folder, and no file is ever
    replaced. Each is there whole or not at all.

    Args:
        source: a URI, which is opened and closed here, or an open source, which is closed too.
        n: images wanted; a source that ends before gives fewer.
        directory: made where it does not exist.
        min_interval_s: least time between the captures of two images; frames in between are let go.
        on_photo: called after each image was saved, for progress.

    Raises:
        ConfigError: ``n`` or the interval is out of range.
        SourceError: the source cannot be opened or was lost; what was saved stays.
        DataError: a image cannot be written (disk full); what was saved stays.
    """
    if n < 1 or not min_interval_s >= 0:
        raise ConfigError(
            f"capture needs at least 1 image and an interval of 0 s or more, not {n} and {min_interval_s}"
        )
    folder = Path(directory)
    photos: list[Photo] = []
    unreadable = 0
    with ExitStack() as stack:
        opened = open_source(source) if isinstance(source, str | Path) else source
        stack.callback(opened.close)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = _next_number(folder)
        except OSError as error:
            raise DataError(f"cannot use the folder {folder}: {reason(error)}") from error
        check = _Check()
        due_ns: float = -1
        try:
            for frame in opened.frames():
                if isinstance(frame, BadFrame):
                    unreadable += 1
                    continue
                if frame.timestamp_ns < due_ns:
                    continue
                due_ns = frame.timestamp_ns + min_interval_s * 1e9
                path = folder / f"{number:06d}.png"
                while path.exists():  # another capture into the same folder
                    number += 1
                    path = folder / f"{number:06d}.png"
                _save(frame, path)
                number += 1
                photos.append(check(frame, path.name))
                if on_photo is not None:
                    on_photo(photos[-1])
                if len(photos) == n:
                    break
        except (DataError, SourceError) as error:
            kept = f"{len(photos)} of {n} images were saved in {folder} and stay"
            raise type(error)(f"{error}; {kept}") from error
    return CaptureSummary(opened.source_id, folder, n, tuple(photos), unreadable)


def _next_number(folder: Path) -> int:
    numbers = [int(path.stem) for path in folder.iterdir() if re.fullmatch(r"[0-9]{1,15}", path.stem)]
    return max(numbers, default=-1) + 1


def _save(frame: Frame, path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(frame.image if frame.layout == "gray" else frame.to_rgb())
    with atomic_write(path, DataError) as stream:
        # Level 1 is lossless as well, 4 times as fast as the default, and a few per cent larger.
        image.save(stream, "PNG", compress_level=1)


class _Check:
    """Looks at one image after the other: exposure of its own, sharpness and movement against those before."""

    def __init__(self) -> None:
        self._focus: deque[float] = deque(maxlen=50)
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, frame: Frame, name: str) -> Photo:
        grey = frame.image if frame.image.ndim == 2 else frame.image[:, :, 1]
        brightness, focus = picture_signals(grey).values()
        clipped = float((grey >= 254).mean())
        found = []
        if brightness < DARK:
            found.append("too dark: open the lens, add light or expose longer")
        elif brightness > BRIGHT or clipped > _CLIPPED_SHARE:
            found.append(f"too bright: {clipped:.0%} of the picture is clipped; close the lens or expose shorter")
        if len(self._focus) >= _ENOUGH and focus < _BLURRED * median(self._focus):
            found.append("less sharp than the images before: focus or motion blur?")
        if self._last is not None and np.array_equal(self._last, frame.image):
            found.append("the same pixels as the image before: is the camera frozen?")
        self._focus.append(focus)
        self._last = frame.image
        return Photo(name, brightness, focus, "; ".join(found) or None)
