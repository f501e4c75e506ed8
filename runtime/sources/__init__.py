"""Sources: where frames come from, one file each, chosen by URI.

=======================================  =============================================================================
``parts/good``, ``folder://parts/good``  images of a folder and its subfolders, by relative path (``?part_id=file``)
``part.png``, ``line.mp4``               one image; a video file, frame by frame
``0``, ``/dev/video0``, ``v4l2://0``     a camera on this machine (``?width=&height=&fps=&fourcc=``)
``rtsp://…``, ``http://…``               a network camera; its own query parameters are passed on
``csi://0``                              a Jetson's CSI camera (``?width=&height=&fps=&flip=``)
``genicam://0``, ``genicam://SERIAL``    an industrial camera (``?cti=&format=``)
``watch://in``                           images as they come into a folder (``?settle=&poll=&existing=&part_id=``)
``receive://127.0.0.1:8090``             images that are posted to ``/frame?part_id=ID`` (``?token_file=``)
``synthetic://``                         made parts (``?width=&height=&fps=&frames=&seed=&defects=``)
=======================================  =============================================================================

Every URI takes ``?policy=newest|every`` and ``?max_age=SECONDS`` (or ``500ms``); cameras take ``?silence=SECONDS``
(or ``off``), after which one that delivers nothing is opened anew. `PushSource` takes frames from a loop of your own.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, get_args
from urllib.parse import unquote, urlsplit

from edgead.runtime.errors import ConfigError, SourceError, missing_extra, suggest
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.imaging.decode import ALL_BITS, require_bits
from edgead.runtime.imaging.listing import IMAGE_SUFFIXES
from edgead.runtime.uri import Parameters, redact, redact_uri, split_query

Clock = Callable[[], int]
Policy = Literal["newest", "every"]

# A picture this old says nothing about the part that lies before the camera now.
MAX_AGE_S = 5.0
# Longer than a camera takes from one frame to the next, shorter than people take to notice.
SILENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the frames of a source reach the inspector.

    Attributes:
        policy: ``newest`` keeps only the newest frame and counts what it replaced; ``every`` keeps order, and each
            captured frame gives exactly one Result.
        max_age_s: a frame that waited longer since its capture is not judged: dropped as stale (``newest``) or
            `NOT_INSPECTED` (``every``). None: no limit. By URI, a live ``newest`` source has `MAX_AGE_S`.
        silence_s: a source that can be opened anew is, where no frame came for so long. None: it may be silent for
            ever, as a triggered camera is. By URI, a camera that runs freely (``newest``) has `SILENCE_S`.
    """

    policy: Policy
    max_age_s: float | None = None
    silence_s: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ConfigError(f"unknown policy '{self.policy}'.{suggest(str(self.policy), get_args(Policy))}")
        for name, value in (("max_age_s", self.max_age_s), ("silence_s", self.silence_s)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}; None is no limit")


class Source(Protocol):
    """Delivers frames. A class of your own subclasses it and sets the three attributes.

    Attributes:
        source_id: name in results and reports, without secrets; differs between the sources of one stream.
        live: True where frames are lost unless they are taken in time (a camera), False where they wait (a file).
        delivery: policy and maximum age.
    """

    source_id: str
    live: bool
    delivery: Delivery

    def frames(self) -> Iterator[Frame | BadFrame]:
        """Yield frames in order, once; a frame that was captured but cannot be used is a `BadFrame`.

        Raises:
            SourceLost: frames came and then stopped coming.
            SourceError: the source cannot be read.
        """

    def close(self) -> None:
        """Release the source; any thread may call it, twice too, and `frames` then ends soon."""

    def reopener(self) -> Callable[[], Source] | None:
        """Return what opens the same source anew, with the same id; None where a loss is its end.

        It is called in a thread of its own, again and again, and raises `SourceError` as long as the source is away.
        """
        return None

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed source URI.

    Attributes:
        scheme: registry name.
        location: path, device or URL as the library needs it, **with** its secrets; never shown.
        source_id: the URI without secrets and without ``policy`` and ``max_age``.
        delivery: policy and maximum age.
        parameters: the source's own parameters.
        bits: how many bits of a value carry the picture, in files and cameras of 16 bits a pixel.
    """

    scheme: str
    location: str = field(repr=False)
    source_id: str
    delivery: Delivery
    parameters: Parameters
    bits: int = ALL_BITS


class SourceEntry(NamedTuple):
    """One registry line: where the class lives, which package and extra it needs, which parameters it takes."""

    module: str
    factory: str
    package: str
    extra: str
    live: bool
    parameters: tuple[str, ...] | None  # None: a URL whose own query belongs to the camera
    watched: bool = False  # a camera, which may fall silent and is opened anew then


_CAMERA = ("width", "height", "fps", "fourcc")

# One line a source. The class is called with (address, clock).
REGISTRY: dict[str, SourceEntry] = {
    "folder": SourceEntry("folder", "FolderSource", "PIL", "", False, ("part_id",)),
    "video": SourceEntry("video", "VideoSource", "cv2", "camera", False, ()),
    "v4l2": SourceEntry("camera", "CameraSource", "cv2", "camera", True, _CAMERA, True),
    "rtsp": SourceEntry("camera", "CameraSource", "cv2", "camera", True, None, True),
    "rtsps": SourceEntry("camera", "CameraSource", "cv2", "camera", True, None, True),
    "http": SourceEntry("camera", "CameraSource", "cv2", "camera", True, None, True),
    "https": SourceEntry("camera", "CameraSource", "cv2", "camera", True, None, True),
    "csi": SourceEntry("csi", "CsiSource", "", "", True, ("width", "height", "fps", "flip"), True),
    "genicam": SourceEntry("genicam", "GenicamSource", "harvesters", "genicam", True, ("cti", "format"), True),
    "watch": SourceEntry("watch", "WatchSource", "PIL", "", False, ("settle", "poll", "existing", "part_id")),
    "receive": SourceEntry("receive", "ReceiveSource", "PIL", "", True, ("token_file",)),
    "synthetic": SourceEntry(
        "synthetic", "SyntheticSource", "", "", True, ("width", "height", "fps", "frames", "seed", "defects")
    ),
}


def named_parts(parameters: Parameters) -> bool:
    """Say whether ``?part_id=file`` is given: then an image's part id is its file's name without the suffix."""
    return parameters.choice("part_id", "none", ("none", "file")) == "file"


_DELIVERY = ("policy", "max_age", "silence")
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"})


def open_source(uri: str | Path, *, clock: Clock = time.monotonic_ns, bits: int = ALL_BITS) -> Source:
    """Open a camera, stream, video, folder, image or the synthetic source.

    Args:
        uri: see the module docstring.
        clock: monotonic clock in ns that stamps the frames at capture.
        bits: of 16-bit image files, see `read_image`; those of the inspector, which a `Stream` gives by itself.

    Raises:
        ConfigError: unknown scheme or parameter, or ``bits`` out of range.
        SourceError: it cannot be opened, or the package it needs is missing; secrets in the URI are not shown.
    """
    address = replace(parse_address(str(uri)), bits=require_bits(bits))
    entry = REGISTRY[address.scheme]
    if entry.package and find_spec(entry.package) is None:
        package = "opencv-python-headless" if entry.package == "cv2" else entry.package
        raise SourceError(f"{address.source_id}: {missing_extra(package, entry.extra)}")
    factory: Callable[[Address, Clock], Source]
    factory = getattr(import_module(f"edgead.runtime.sources.{entry.module}"), entry.factory)
    return factory(address, clock)


def parse_address(uri: str) -> Address:
    """Take a source URI apart; raises as `open_source` does."""
    if not uri:
        raise ConfigError("the source is empty; write a folder, a video file, a camera number or a URI")
    scheme, location, pieces = _resolve(uri)
    entry = REGISTRY[scheme]
    own = [piece for piece in pieces if piece.partition("=")[0] in _DELIVERY]
    other = [piece for piece in pieces if piece not in own]
    base = split_query(uri)[0] if pieces else uri
    source_id = redact(redact_uri(base) + ("?" + "&".join(other) if other else ""))
    delivery = Parameters.parse(source_id, own, _DELIVERY)
    if entry.parameters is None:
        _refuse_misspelt(source_id, other)
        location += "?" + "&".join(other) if other else ""
        parameters = Parameters(source_id, {})
    else:
        known = (*entry.parameters, *_DELIVERY)
        parameters = Parameters.parse(source_id, other, known)
    return Address(scheme, location, source_id, _delivery(delivery, entry), parameters)


def _delivery(parameters: Parameters, entry: SourceEntry) -> Delivery:
    default: Policy = "newest" if entry.live else "every"
    policy: Policy = parameters.choice("policy", default, ("newest", "every"))
    free = entry.live and policy == "newest"
    max_age = parameters.seconds("max_age")
    if "silence" not in parameters.values:
        silence = SILENCE_S if free and entry.watched else None
    elif not entry.watched:
        raise ConfigError(f"{parameters.where}: only a camera has 'silence'; omit it")
    else:
        silence = None if parameters.values["silence"] == "off" else parameters.seconds("silence")
    return Delivery(policy, MAX_AGE_S if max_age is None and free else max_age, silence)


def _resolve(uri: str) -> tuple[str, str, list[str]]:
    """Return registry name, location and query pieces."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if match is None:
        return _resolve_path(uri)
    scheme = match[1].lower()
    if scheme == "file":
        location, pieces = split_query(uri)
        return (*_by_suffix(unquote(urlsplit(location).path)), pieces)
    if scheme not in REGISTRY:
        raise ConfigError(f"unknown source '{scheme}://'.{suggest(scheme, REGISTRY)}")
    location, pieces = split_query(uri)
    if REGISTRY[scheme].parameters is None:
        return scheme, location, pieces
    return scheme, location[match.end() :], pieces


def _resolve_path(text: str) -> tuple[str, str, list[str]]:
    # A file may have a `?` in its name; what exists is taken as it is.
    location, pieces = (text, []) if Path(text).exists() else split_query(text)
    if re.fullmatch(r"[0-9]+", location) or location.startswith("/dev/"):
        return "v4l2", location, pieces
    if location.rstrip(":") in REGISTRY and not Path(location).exists():
        raise ConfigError(f"no file or folder '{location}'. Did you mean '{location.rstrip(':')}://'?")
    return (*_by_suffix(location), pieces)


def _by_suffix(location: str) -> tuple[str, str]:
    path = Path(location)
    suffix = path.suffix.lower()
    if path.is_dir() or location.endswith(("/", "\\")) or suffix in IMAGE_SUFFIXES:
        return "folder", location
    if suffix in VIDEO_SUFFIXES:
        return "video", location
    if path.exists():
        raise SourceError(
            f"{redact_uri(location)} is neither an image nor a video by its name; rename it or convert it"
        )
    raise SourceError(f"no file or folder {redact_uri(location)}; a camera is 0, /dev/video0 or rtsp://…")


def _refuse_misspelt(where: str, pieces: list[str]) -> None:
    # A camera's own parameters are not known here, but `polcy=every` passed on to it would be ignored in silence.
    for piece in pieces:
        near = difflib.get_close_matches(piece.partition("=")[0], _DELIVERY, n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"{where}: unknown parameter '{piece.partition('=')[0]}'. Did you mean '{near[0]}'?")
