"""A folder into which another program puts images: each new one is judged once it is whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgead.runtime.errors import DataError, SourceError
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.listing import list_images
from edgead.runtime.sources import Address, Clock, Source


class _Seen(NamedTuple):
    """What a file was like: another size, time or inode is another content."""

    size: int
    modified_ns: int
    inode: int


class WatchSource(Source):
    """Reads the images that come into a folder and its subfolders after it was opened.

    An image is read when its size and time stayed the same from one look to the next, ``settle`` seconds at least, so
    that a half-written file is never judged; a file that was written elsewhere and renamed into the folder is whole at
    once and waits as long. A name that is written again is a new image. What was there at the start is left alone,
    unless ``existing=yes``. Hidden files and folders are omitted. Images that became whole together come in the order
    of their times, then names. A file that cannot be read is a `BadFrame`. A frame's time is when it was first seen as
    it is, so waiting and decoding count as latency.

    Parameters: ``settle`` (0.5 s), ``poll`` (0.2 s), ``existing`` (``no``).
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self.source_id = address.source_id
        self.live = False  # nothing is lost where nobody is in time: files wait
        self.delivery = address.delivery
        self._root = Path(address.location)
        self._clock = clock
        self._settle_ns = int((address.parameters.seconds("settle") or 0.5) * 1e9)
        self._poll_s = address.parameters.seconds("poll") or 0.2
        if not self._root.is_dir():
            raise SourceError(f"no folder {self._root} to watch; make it first")
        self._closed = threading.Event()
        existing = address.parameters.choice("existing", "no", ("no", "yes")) == "yes"
        self._done: dict[Path, _Seen] = {} if existing else self._look()

    def frames(self) -> Iterator[Frame | BadFrame]:
        index = 0
        # When each file was first seen as it is now.
        since: dict[Path, tuple[_Seen, int]] = {}
        while not self._closed.is_set():
            found = self._look()
            now_ns = self._clock()
            ready: list[tuple[int, Path]] = []
            for path, seen in found.items():
                if self._done.get(path) == seen:
                    continue
                before = since.get(path)
                if before is None or before[0] != seen:
                    since[path] = seen, now_ns
                elif seen.size and now_ns - before[1] >= self._settle_ns:
                    ready.append((seen.modified_ns, path))
            # What was removed may come again under the same name.
            self._done = {path: seen for path, seen in self._done.items() if path in found}
            since = {path: state for path, state in since.items() if path in found}
            for _, path in sorted(ready):
                seen, whole_ns = since.pop(path)
                self._done[path] = seen
                if self._closed.is_set():
                    return
                yield self._read(path, index, whole_ns)
                index += 1
            self._closed.wait(self._poll_s)

    def close(self) -> None:
        self._closed.set()

    def _read(self, path: Path, index: int, whole_ns: int) -> Frame | BadFrame:
        name = path.relative_to(self._root).as_posix()
        try:
            return Frame(read_image(path), index, whole_ns, self.source_id, name=name)
        except DataError as error:
            return BadFrame(index, whole_ns, self.source_id, str(error), name)

    def _look(self) -> dict[Path, _Seen]:
        found: dict[Path, _Seen] = {}
        if not self._root.is_dir():
            raise SourceError(f"the folder {self._root} is gone")
        try:
            paths = list_images(self._root).paths
        except DataError as error:
            raise SourceError(str(error)) from error
        for path in paths:
            try:
                state = path.stat()
            except OSError:
                continue  # removed meanwhile
            found[path] = _Seen(state.st_size, state.st_mtime_ns, state.st_ino)
        return found
