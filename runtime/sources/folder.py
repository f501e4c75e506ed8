"""Images of a folder, or one image file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from edgead.runtime.errors import ConfigError, DataError, SourceError
from edgead.runtime.frame import BadFrame, Frame, require_part_id
from edgead.runtime.imaging import listing
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.sources import Address, Clock, Source, named_parts

_log = logging.getLogger("edgead.sources")


class FolderSource(Source):
    """Reads the images of a folder and its subfolders, or a single image.

    The order is that of the relative POSIX paths by code point, so it does not depend on the file system. What is an
    image is the rule of `edgead.runtime.imaging.listing`; other files that lie there are logged. An image that cannot
    be read is a `BadFrame`, and the next one follows. The timestamp is taken before an image is read, so decoding
    counts as latency.

    Attributes:
        paths: all image files in order; ``paths[frame.index]`` is the file of a frame.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.source_id = address.source_id
        self.live = False
        self.delivery = address.delivery
        self._root = Path(address.location)
        self.paths = list_images(self._root)
        self._clock, self._bits = clock, address.bits
        self._named = named_parts(address.parameters)
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame | BadFrame]:
        root = self._root if self._root.is_dir() else self._root.parent
        for index, path in enumerate(self.paths):
            name = path.relative_to(root).as_posix()
            if self._closed.is_set():
                return
            timestamp_ns = self._clock()
            part_id = path.stem if self._named else None
            try:
                require_part_id(part_id)
            except ConfigError as error:
                yield BadFrame(index, timestamp_ns, self.source_id, str(error), name)
                continue
            try:
                image = read_image(path, self._bits)
            except DataError as error:
                yield BadFrame(index, timestamp_ns, self.source_id, str(error), name, part_id)
                continue
            yield Frame(image, index, timestamp_ns, self.source_id, name=name, part_id=part_id)

    def close(self) -> None:
        self._closed.set()


def list_images(root: Path) -> list[Path]:
    """Return the image files under ``root`` (or ``root`` itself, a file) in stream order.

    Raises:
        SourceError: ``root`` does not exist, cannot be listed or holds no image.
    """
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise SourceError(f"no file or folder {root}; check the path")
    try:
        listed = listing.list_images(root)
    except DataError as error:
        raise SourceError(str(error)) from error
    if listed.unexpected:
        _log.warning("%s: %s", root, listing.explain_omitted(listed.unexpected))
    found = listed.paths
    if not found:
        raise SourceError(f"no image in {root}; known file types: {' '.join(sorted(listing.IMAGE_SUFFIXES))}")
    return found
