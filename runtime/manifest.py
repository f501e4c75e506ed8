"""``manifest.json``: what a bundle is, what it decides and what proves it. Parsed as untrusted input."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from edgead.runtime.errors import BundleError
from edgead.runtime.limits import Limits
from edgead.runtime.normals import QUANTILES, SIGNALS, Normals
from edgead.runtime.preprocess import RESIZE_RULE
from edgead.runtime.region import Box, Region, decode_mask, make_region
from edgead.runtime.threshold import Threshold
from edgead.runtime.tiling import MOST_TILES, Tiles

FORMAT_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"
MASK_NAME = "mask.png"
SIGNATURE_NAME = "signature.ed25519"
MAX_MANIFEST_BYTES = 1 << 20

_RESERVED = frozenset({MANIFEST_NAME, SIGNATURE_NAME})
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)
_EXPORT_AGAIN = "export it again with 'edgead export'"


def check_member_name(name: str) -> str:
    """Return ``name`` where it is safe to extract on Linux, Windows and macOS; raises `ValueError` where not.

    Forward slashes separate components; nothing may be absolute, empty, ``.``, ``..``, longer than 240 bytes,
    or hold a backslash, a colon, a control character or another character that Windows refuses.
    """
    encoded = name.encode("utf-8", "surrogatepass")
    if not name or len(encoded) > 240:
        raise ValueError(f"unsafe member name {name[:60]!r}: it must have 1 to 240 bytes")
    if any(character in '\\:*?"<>|' or not character.isprintable() for character in name):
        raise ValueError(f"unsafe member name {name!r}: it holds a character that is not allowed")
    for component in name.split("/"):
        if component in ("", ".", "..") or component[-1] in ". ":
            raise ValueError(f"unsafe member name {name!r}: it is absolute or leaves its folder")
        if component.split(".")[0].casefold() in _WINDOWS_DEVICES:
            raise ValueError(f"unsafe member name {name!r}: '{component}' is a device on Windows")
    return name


def fold_name(name: str) -> str:
    """Return the form in which two names collide on a file system that ignores case or Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _component(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} must not hold a slash")
    return check_member_name(name)


def _listed_member(name: str) -> str:
    if fold_name(name) in _RESERVED:
        raise ValueError(f"{name!r} is never listed")
    return check_member_name(name)


def _graph_file(name: str) -> str:
    if not name.endswith(".onnx"):
        raise ValueError(f"{name!r} must end in .onnx")
    return _component(name)


def _mask_member(name: str) -> str:
    if name != MASK_NAME:
        raise ValueError(f"{name!r} must be {MASK_NAME}")
    return name


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds a control character")
    return text


def _as_tuple(value: object) -> object:
    # Strict validation takes no list for a tuple, and pydantic 2.5 cannot switch that off for one field.
    return tuple(value) if isinstance(value, list) else value


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _finite(child)
    return value


_Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
_Json = Annotated[JsonValue, AfterValidator(_finite)]
_Pixels = Annotated[int, Field(ge=1, le=8192)]
_FramePixels = Annotated[int, Field(ge=1, le=65535)]
_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Rate = Annotated[float, Field(ge=0.0, le=1.0)]
_Change = Annotated[float, Field(ge=-1.0, le=1.0)]
_Difference = Annotated[float, Field(ge=0.0)]
_ComponentName = Annotated[str, AfterValidator(_component)]
_GraphFile = Annotated[str, AfterValidator(_graph_file)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DetectorSection(_Section):
    """Which detector was fitted, with the settings it was fitted with."""

    name: _Text
    settings: dict[_Text, _Json] = {}


class RegionSection(_Section):
    """The part of a frame that is judged, in pixels of frames of ``frame_width`` x ``frame_height``.

    ``mask`` is the member that says what of it is ignored: a PNG of the frame's size, ignored where it is white.
    """

    frame_width: _FramePixels
    frame_height: _FramePixels
    x: Annotated[int, Field(ge=0, le=65535)]
    y: Annotated[int, Field(ge=0, le=65535)]
    width: _FramePixels
    height: _FramePixels
    mask: Annotated[str, AfterValidator(_mask_member)] | None = None

    @classmethod
    def from_region(cls, region: Region) -> RegionSection:
        """Return the section of a region; where it ignores something, its mask is the member `MASK_NAME`."""
        (width, height), box = region.frame_size, region.box
        return cls(
            frame_width=width,
            frame_height=height,
            x=box.x,
            y=box.y,
            width=box.width,
            height=box.height,
            mask=None if region.ignore is None else MASK_NAME,
        )

    def to_region(self, mask: bytes | None) -> Region:
        """Return the region; ``mask`` is the content of its mask member.

        Raises:
            ConfigError, DataError: it does not lie in its frame, or the mask is none of it.
        """
        size = self.frame_width, self.frame_height
        box = Box(self.x, self.y, self.width, self.height)
        found = make_region(size, box, None if mask is None else decode_mask(mask, MASK_NAME, size))
        assert found is not None
        return found


class TilesSection(_Section):
    """Into how many tiles a frame or its region is cut, which share ``overlap`` cells of the manifest's ``map``."""

    rows: Annotated[int, Field(ge=1, le=MOST_TILES)]
    columns: Annotated[int, Field(ge=1, le=MOST_TILES)]
    overlap: Annotated[int, Field(ge=1, le=8192)]


class InputSection(_Section):
    """What the network sees: size in pixels, colour order, and the resize rule that makes it from a frame.

    ``region`` is what of a frame is resized; None: all of it. With ``tiles`` each of them is resized to this size.
    """

    height: _Pixels
    width: _Pixels
    color: Literal["RGB"] = "RGB"
    resize: _Text
    region: RegionSection | None = None
    tiles: TilesSection | None = None


class MapSection(_Section):
    """The grid of the anomaly map, in cells; with tiles, of one tile."""

    height: _Pixels
    width: _Pixels


class ThresholdSection(_Section):
    """A threshold with its meaning; the fields of `edgead.runtime.threshold.Threshold`."""

    value: float
    target_false_alarm_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    n_normals: _Count
    low: _Rate
    high: _Rate
    supported: bool

    @model_validator(mode="after")
    def _ordered(self) -> ThresholdSection:
        if self.low > self.high:
            raise ValueError("low lies above high")
        return self

    @classmethod
    def from_threshold(cls, threshold: Threshold) -> ThresholdSection:
        return cls(
            value=float(threshold.value),
            target_false_alarm_rate=float(threshold.target_false_alarm_rate),
            n_normals=int(threshold.n_normals),
            low=float(threshold.low),
            high=float(threshold.high),
            supported=bool(threshold.supported),
        )

    def to_threshold(self) -> Threshold:
        return Threshold(self.value, self.target_false_alarm_rate, self.n_normals, self.low, self.high, self.supported)


class NormalsSection(_Section):
    """What good parts looked like; the fields of `edgead.runtime.normals.Normals`."""

    images: _Count
    quantiles: dict[_Text, Annotated[tuple[float, ...], BeforeValidator(_as_tuple)]]

    @model_validator(mode="after")
    def _complete(self) -> NormalsSection:
        if set(self.quantiles) != set(SIGNALS):
            raise ValueError(f"the signals are {', '.join(SIGNALS)}")
        for name, values in self.quantiles.items():
            if len(values) != QUANTILES or any(low > high for low, high in pairwise(values)):
                raise ValueError(f"{name} needs {QUANTILES} ascending quantiles")
        return self

    @classmethod
    def from_normals(cls, normals: Normals) -> NormalsSection:
        return cls(images=normals.images, quantiles=dict(normals.quantiles))

    def to_normals(self) -> Normals:
        return Normals(self.images, dict(self.quantiles))


class CategorySection(_Section):
    """One category the model was fitted on.

    Where the model is routed it has a threshold of its own, and the similarity to its parts below which an image is
    not inspected. ``normals`` is what the drift watch compares with; a bundle of an earlier version has none.
    """

    threshold: ThresholdSection | None = None
    minimum_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    n_train: _Count
    normals: NormalsSection | None = None


class MemberRecord(_Section):
    """SHA-256 (lower-case hex) and size in bytes of one member."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: _Count


class PrecisionSection(_Section):
    """One graph file: the backends it is for, and its own threshold (None: the bundle's).

    ``runtimes`` holds backend names. In a routed bundle ``file`` is the router, and the heads of the same precision
    are the members ``head-<category>.<precision>.onnx``; without such members ``file`` routes and scores. A routed
    precision other than fp32 has the thresholds of its ``categories`` here. ``max_drop`` is how far its scores may lie
    from those of the trained model, as a share of the way from the median normal score to the threshold (None: what is
    usual for the precision).
    """

    file: _GraphFile
    runtimes: Annotated[tuple[_Text, ...], BeforeValidator(_as_tuple)]
    threshold: ThresholdSection | None = None
    categories: dict[_ComponentName, ThresholdSection] = {}
    max_drop: Annotated[float, Field(gt=0.0)] | None = None


class ParityRecord(_Section):
    """How one graph file on one runtime compared with the torch model; scores and maps in raw units.

    ``flips`` are decisions that changed with both scores farther than ``epsilon`` from their thresholds,
    ``borderline`` the other changed ones; ``note`` labels evidence that proves less than it seems to. ``drop`` is the
    99th percentile of the score differences over the way from the median normal score to the threshold;
    ``half_margin`` the least number of times that a tensor in half fits into 65504 (0: it overflowed). Where the images
    lie in folders of good and bad ones there is the image AUROC, its change from the torch model's and the 95 %
    interval of the change.
    """

    max_score_difference: _Difference
    p99_score_difference: _Difference
    max_map_difference: _Difference
    flips: _Count
    borderline: _Count
    images: _Count
    epsilon: _Difference | None = None
    rank_correlation: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    worst_image: _Text | None = None
    drop: _Difference | None = None
    half_margin: _Difference | None = None
    auroc: _Rate | None = None
    auroc_change: _Change | None = None
    auroc_change_low: _Change | None = None
    auroc_change_high: _Change | None = None
    drift_allowed: bool = False
    note: _Text | None = None


class Manifest(_Section):
    """The manifest of a bundle (design section 2). `write_bundle` fills in ``members``."""

    format_version: Literal[1] = FORMAT_VERSION
    name: _Text
    graph: Literal["single", "routed"] = "single"
    score_direction: Literal["higher is more anomalous"] = "higher is more anomalous"
    detector: DetectorSection
    input: InputSection
    map: MapSection | None = None
    threshold: ThresholdSection
    categories: dict[_ComponentName, CategorySection] = {}
    members: dict[Annotated[str, AfterValidator(_listed_member)], MemberRecord] = {}
    precisions: Annotated[dict[_ComponentName, PrecisionSection], Field(min_length=1)]
    parity: dict[_GraphFile, dict[_Text, ParityRecord]] = {}
    provenance: dict[_Text, _Json] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.graph == "single" and self.map is None:
            raise ValueError("a single graph must state its map grid")
        if self.input.tiles is not None:
            if self.graph != "single":
                raise ValueError("only a single graph judges tiles")
            self.tiles()
        if self.graph == "routed":
            if not self.categories:
                raise ValueError("a routed graph must state its categories")
            for name, category in self.categories.items():
                if category.threshold is None or category.minimum_similarity is None:
                    raise ValueError(f"category {name!r} of a routed graph lacks its threshold or minimum_similarity")
            for key, entry in self.precisions.items():
                if unknown := sorted(entry.categories.keys() - self.categories.keys()):
                    raise ValueError(f"precision {key!r} has a threshold of the category {unknown[0]!r}, which is none")
        return self

    def limits(self, precision: str = "fp32") -> Limits:
        """Return the thresholds that the scores of a precision are held against."""
        entry = self.precisions.get(precision)
        own = entry.categories if entry is not None else {}
        sections = {name: own.get(name, category.threshold) for name, category in self.categories.items()}
        routed = self.graph == "routed"
        return Limits(
            ((entry.threshold if entry is not None else None) or self.threshold).value,
            {name: section.value for name, section in sections.items() if routed and section is not None},
        )

    def normals(self) -> dict[str | None, Normals]:
        """Return what good parts looked like, by category where the graph is routed, else under None."""
        known: dict[str | None, Normals] = {
            name: category.normals.to_normals()
            for name, category in self.categories.items()
            if category.normals is not None
        }
        if self.graph == "routed":
            return known
        return {None: next(iter(known.values()))} if known else {}

    def tiles(self) -> Tiles | None:
        """Return the tiles that frames are cut into, None where they are judged whole."""
        section = self.input.tiles
        if section is None or self.map is None:
            return None
        return Tiles(section.rows, section.columns, section.overlap, (self.map.height, self.map.width))

    def minimum_similarity(self) -> dict[str, float]:
        """Return the similarity below which an image is no part of a category, of each category; empty if single."""
        if self.graph == "single":
            return {}
        return {name: category.minimum_similarity or 0.0 for name, category in self.categories.items()}

    def to_json(self) -> bytes:
        """Return the canonical bytes of ``manifest.json``: UTF-8, sorted keys, two blanks of indent."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    def with_members(self, members: Mapping[str, MemberRecord]) -> Manifest:
        """Return a copy that lists ``members``; raises `BundleError` where a graph file is not among them."""
        for key, precision in self.precisions.items():
            if precision.file not in members:
                raise BundleError(f"precision '{key}' names {precision.file!r}, which the bundle does not hold")
        return self.model_copy(update={"members": dict(sorted(members.items()))})


def parse_manifest(data: bytes, label: str) -> Manifest:
    """Parse the bytes of ``manifest.json``.

    Args:
        data: UTF-8 JSON, at most 1 MiB.
        label: name of the bundle, for messages.

    Raises:
        BundleError: not JSON, made by a newer edgead, or a field is missing, unknown or out of range (it is named).
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{label}: the manifest has {len(data)} bytes, allowed are 1 MiB; {_EXPORT_AGAIN}")
    try:
        content = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{label}: the manifest is not valid JSON ({_line(error)}); {_EXPORT_AGAIN}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{label}: the manifest is not a JSON object; {_EXPORT_AGAIN}")
    # Before any field is judged: a newer format may have fields that this version rightly does not know.
    version = content.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise BundleError(f"{label}: the manifest has no format_version; {_EXPORT_AGAIN}")
    if version > FORMAT_VERSION:
        raise BundleError(f"{label} was made by a newer edgead (format {str(version)[:30]}); upgrade edgead")
    if version < 1:
        raise BundleError(f"{label} has an unknown format ({str(version)[:30]}); {_EXPORT_AGAIN}")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{label}: {explain(error)}; {_EXPORT_AGAIN}") from error
    if manifest.input.resize != RESIZE_RULE:
        # Another rule gives other pixels, and other pixels give other decisions.
        raise BundleError(
            f"{label} wants the resize rule '{manifest.input.resize}', this edgead has '{RESIZE_RULE}'; upgrade edgead"
        )
    return manifest


def explain(error: ValidationError) -> str:
    """Return one line on the first wrong field, and how many more there are."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in problems[0]["loc"] if part != "[key]") or "(whole)"
    reason = problems[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _line(f"manifest field {where[:120]!r}: {reason}") + more


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
