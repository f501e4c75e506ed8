"""A folder into which another program puts images: each new one is judged once it is whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from edgead.runtime.errors import ConfigError, DataError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame, require_part_id
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.listing import list_images
from edgead.runtime.sources import Address, Clock, Source, named_parts

# A file is made empty and then filled; one that stays so was a part that nobody will see.
_EMPTY_NS = 5_000_000_000
# Of files that are gone; more than a shift's parts, and a few MB.
_REMEMBERED = 100_000
# Of these, those among which a renamed file is looked for: between two looks it may be missing under both names.
_RENAMED = 1000
# So many images do not vanish between two looks because somebody removed a part's picture.
_MASS = 3

_log = logging.getLogger("edgead.sources")


class _Seen(NamedTuple):
    """What a file was like: another size, time or inode is another content."""

    size: int
    modified_ns: int
    inode: int


class _Folder(NamedTuple):
    """Which folder it is: where a share is not mounted, its mount point is another one."""

    device: int
    inode: int


class WatchSource(Source):
    """Reads the images that come into a folder and its subfolders after it was opened.

    An image is read when its size and time stayed the same from one look to the next, ``settle`` seconds at least, so
    that a half-written file is never judged; a file that was written elsewhere and renamed into the folder is whole at
    once and waits as long. A name that is written again is a new image. What was there at the start is left alone,
    unless ``existing=yes``. What is an image is the rule of `edgead.runtime.imaging.listing`. Images that became whole
    together come in the order of their times, then names. A file that cannot be read, or stays empty for 5 s, is a
    `BadFrame`. A frame's time is when it was first seen as it is, so waiting and decoding count as latency.

    A folder that is gone, or is another one because a share was unmounted, is lost, and opened again when it is back.
    What was seen is remembered by name, size, time and inode (of the files that are gone, the last `_REMEMBERED`), so
    that files which come back as they were are not judged again; on another device, as a share that was mounted again
    may be, by name, size and time. A file that was judged and gets another name in the folder is recognised by size,
    time and inode, where the file system's times are finer than a second, and not judged again. Where several images
    vanish at once and none is left, that is logged.

    Parameters: ``settle`` (0.5 s), ``poll`` (0.2 s), ``existing`` (``no``), ``part_id`` (``none``).
    """

    def __init__(self, address: Address, clock: Clock, _before: WatchSource | None = None) -> None:
        self.source_id = address.source_id
        self.live = False  # nothing is lost where nobody is in time: files wait
        self.delivery = address.delivery
        self._address = address
        self._root = Path(address.location)
        self._clock = clock
        self._named = named_parts(address.parameters)
        self._settle_ns = int((address.parameters.seconds("settle") or 0.5) * 1e9)
        self._poll_s = address.parameters.seconds("poll") or 0.2
        if not self._root.is_dir():
            raise SourceError(f"no folder {self._root} to watch; make it first")
        self._closed = threading.Event()
        existing = address.parameters.choice("existing", "no", ("no", "yes")) == "yes"
        if _before is None:
            self._folder = self._identity()
            self._done: dict[Path, _Seen] = {} if existing else self._look()
            self._gone: dict[Path, _Seen] = {}
            if self._done:
                _log.warning(
                    "%d images that were in %s before are not judged; ?existing=yes judges them",
                    len(self._done),
                    self._root,
                )
        else:
            self._folder, self._done, self._gone = self._identity(), _before._done, _before._gone
            if self._folder != _before._folder:
                self._recognise(self._look())

    def frames(self) -> Iterator[Frame | BadFrame]:
        index = 0
        # When each file was first seen as it is now.
        since: dict[Path, tuple[_Seen, int]] = {}
        while not self._closed.is_set():
            self._require_same_folder()
            found = self._look()
            self._remember(found)
            self._recognise_renamed(found)
            now_ns = self._clock()
            ready: list[tuple[int, Path]] = []
            for path, seen in found.items():
                if self._done.get(path) == seen:
                    continue
                before = since.get(path)
                if before is None or before[0] != seen:
                    since[path] = seen, now_ns
                elif now_ns - before[1] >= (self._settle_ns if seen.size else max(self._settle_ns, _EMPTY_NS)):
                    ready.append((seen.modified_ns, path))
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

    def reopener(self) -> Callable[[], Source]:
        return partial(WatchSource, self._address, self._clock, self)

    def _recognise(self, found: dict[Path, _Seen]) -> None:
        """Take over the new inodes of what was seen before the folder was lost."""
        if not found:
            # As an unmounted share's mount point is; whoever made it anew has put nothing into it yet.
            raise SourceLost(f"{self._root} is another folder than before, and empty; is the share mounted?")
        for path, seen in found.items():
            before = self._done.get(path) or self._gone.get(path)
            if before is not None and before[:2] == seen[:2]:
                self._done[path] = seen

    def _recognise_renamed(self, found: dict[Path, _Seen]) -> None:
        """Take files that were judged under another name for what they are.

        Another file may get the inode of a deleted one, but not its time as well where times are fine: a judged file
        was left alone since then. Whole seconds are of a file system that cannot tell, or set by a program.
        """
        new = [
            path for path, seen in found.items() if self._done.get(path) != seen and seen.modified_ns % 1_000_000_000
        ]
        if new:
            judged = {*self._done.values(), *islice(reversed(self._gone.values()), _RENAMED)}
            self._done.update((path, found[path]) for path in new if found[path] in judged)

    def _remember(self, found: dict[Path, _Seen]) -> None:
        """Move what vanished to what is gone, and back what came again as it was."""
        for path, seen in found.items():
            if self._gone.pop(path, None) == seen:
                self._done[path] = seen
        vanished = [path for path in self._done if path not in found]
        for path in vanished:
            self._gone[path] = self._done.pop(path)
        for path in list(islice(self._gone, max(0, len(self._gone) - _REMEMBERED))):
            del self._gone[path]
        if len(vanished) >= _MASS and not found:
            _log.warning(
                "all %d images of %s vanished at once; if a share was unmounted, those that come back as they were "
                "are not judged again",
                len(vanished),
                self._root,
            )

    def _require_same_folder(self) -> None:
        if self._identity() != self._folder:
            raise SourceLost(f"{self._root} is another folder than before; was a share unmounted?")

    def _identity(self) -> _Folder:
        try:
            status = self._root.stat()
        except OSError as error:
            raise SourceLost(f"the folder {self._root} is gone; make it again, or mount the share") from error
        return _Folder(status.st_dev, status.st_ino)

    def _read(self, path: Path, index: int, whole_ns: int) -> Frame | BadFrame:
        name = path.relative_to(self._root).as_posix()
        part_id = path.stem if self._named else None
        try:
            require_part_id(part_id)
        except ConfigError as error:
            return BadFrame(index, whole_ns, self.source_id, str(error), name)
        try:
            image = read_image(path, self._address.bits)
        except DataError as error:
            return BadFrame(index, whole_ns, self.source_id, str(error), name, part_id)
        return Frame(image, index, whole_ns, self.source_id, name=name, part_id=part_id)

    def _look(self) -> dict[Path, _Seen]:
        found: dict[Path, _Seen] = {}
        try:
            paths = list_images(self._root).paths
        except DataError as error:
            raise SourceLost(str(error)) from error
        for path in paths:
            try:
                state = path.stat()
            except OSError:
                continue  # removed meanwhile
            found[path] = _Seen(state.st_size, state.st_mtime_ns, state.st_ino)
        return found
