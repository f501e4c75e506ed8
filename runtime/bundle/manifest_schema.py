"""The parts of a manifest, parsed as untrusted input."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from edgead.runtime.bundle.align_section import AlignSection
from edgead.runtime.bundle.field_types import (
    Change,
    ComponentName,
    Count,
    Difference,
    FileBits,
    FramePixels,
    GraphFile,
    Json,
    Pixels,
    Rate,
    Section,
    Text,
    as_tuple,
)
from edgead.runtime.bundle.layout import MASK_NAME
from edgead.runtime.decision.baseline import QUANTILES, SIGNALS, Normals
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.imaging.roi import Box, Region, decode_mask, make_region
from edgead.runtime.imaging.tiling import MOST_TILES


def _mask_member(name: str) -> str:
    if name != MASK_NAME:
        raise ValueError(f"{name!r} must be {MASK_NAME}")
    return name


class DetectorSection(Section):
    """Which detector was fitted, with the settings it was fitted with."""

    name: Text
    settings: dict[Text, Json] = Field(default_factory=dict)


class RegionSection(Section):
    """The part of a frame that is judged, in pixels of frames of ``frame_width`` x ``frame_height``.

    ``mask`` is the member that says what of it is ignored: a PNG of the frame's size, ignored where it is white.
    """

    frame_width: FramePixels
    frame_height: FramePixels
    x: Annotated[int, Field(ge=0, le=65535)]
    y: Annotated[int, Field(ge=0, le=65535)]
    width: FramePixels
    height: FramePixels
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


class TilesSection(Section):
    """Into how many tiles a frame or its region is cut, which share ``overlap`` cells of the manifest's ``map``."""

    rows: Annotated[int, Field(ge=1, le=MOST_TILES)]
    columns: Annotated[int, Field(ge=1, le=MOST_TILES)]
    overlap: Annotated[int, Field(ge=1, le=8192)]


class InputSection(Section):
    """What the network sees: size in pixels, colour order, and the resize rule that makes it from a frame.

    ``region`` is what of a frame is resized; None: all of it. With ``tiles`` each of them is resized to this size.
    ``align`` says how the part's pose is undone first. ``bits`` of a 16-bit image file's values carry the picture.
    """

    height: Pixels
    width: Pixels
    color: Literal["RGB"] = "RGB"
    resize: Text
    region: RegionSection | None = None
    tiles: TilesSection | None = None
    align: AlignSection | None = None
    bits: FileBits = ALL_BITS

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Versions before these fields refuse a bundle that has it, which they must only where it changes the pictures.
        found: dict[str, Any] = write(self)
        if self.bits == ALL_BITS:
            found.pop("bits", None)
        if self.align is None:
            found.pop("align", None)
        return found

    @model_validator(mode="after")
    def _alignable(self) -> InputSection:
        if self.align is not None and (self.tiles is not None or (self.region is not None and self.region.mask)):
            raise ValueError("what is aligned has neither tiles nor a mask")
        return self


class MapSection(Section):
    """The grid of the anomaly map, in cells; with tiles, of one tile."""

    height: Pixels
    width: Pixels


class ThresholdSection(Section):
    """A threshold with its meaning; the fields of `edgead.runtime.decision.threshold.Threshold`."""

    value: float
    target_false_alarm_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    n_normals: Count
    low: Rate
    high: Rate
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


class NormalsSection(Section):
    """What good parts looked like; the fields of `edgead.runtime.decision.baseline.Normals`."""

    images: Count
    quantiles: dict[Text, Annotated[tuple[float, ...], BeforeValidator(as_tuple)]]
    pictures: Count | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As in `InputSection`: only where it says something.
        found: dict[str, Any] = write(self)
        if self.pictures is None:
            found.pop("pictures", None)
        return found

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
        return cls(images=normals.images, quantiles=dict(normals.quantiles), pictures=normals.pictures)

    def to_normals(self) -> Normals:
        return Normals(self.images, dict(self.quantiles), self.pictures)


class CategorySection(Section):
    """One category the model was fitted on.

    Where the model is routed it has a threshold of its own, and the similarity to its parts below which an image is
    not inspected. ``normals`` is what the drift watch compares with; a bundle of an earlier version has none.
    """

    threshold: ThresholdSection | None = None
    minimum_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    n_train: Count
    normals: NormalsSection | None = None


class MemberRecord(Section):
    """SHA-256 (lower-case hex) and size in bytes of one member."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Count


class PrecisionSection(Section):
    """One graph file: the backends it is for, and its own threshold (None: the bundle's).

    ``runtimes`` holds backend names. In a routed bundle ``file`` is the router, and the heads of the same precision
    are the members ``head-<category>.<precision>.onnx``; without such members ``file`` routes and scores. A routed
    precision other than fp32 has the thresholds of its ``categories`` here. ``max_drop`` is how far its scores may lie
    from those of the trained model, as a share of the way from the median normal score to the threshold (None: what is
    usual for the precision). ``saturation_free`` says that an INT8 graph gives the same sums on processors that add
    byte products up in 16 bits; graphs of earlier versions may not.
    """

    file: GraphFile
    runtimes: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)]
    threshold: ThresholdSection | None = None
    categories: dict[ComponentName, ThresholdSection] = Field(default_factory=dict)
    max_drop: Annotated[float, Field(gt=0.0)] | None = None
    saturation_free: bool = False


class ParityRecord(Section):
    """How one graph file on one runtime compared with the torch model; scores and maps in raw units.

    ``flips`` are decisions that changed with both scores farther than ``epsilon`` from their thresholds,
    ``borderline`` the other changed ones; ``note`` labels evidence that proves less than it seems to. ``drop`` is the
    99th percentile of the score differences over the way from the median normal score to the threshold;
    ``half_margin`` the least number of times that a tensor in half fits into 65504 (0: it overflowed). Where the images
    lie in folders of good and bad ones there is the image AUROC, its change from the torch model's and the 95 %
    interval of the change.
    """

    max_score_difference: Difference
    p99_score_difference: Difference
    max_map_difference: Difference
    flips: Count
    borderline: Count
    images: Count
    epsilon: Difference | None = None
    rank_correlation: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None
    worst_image: Text | None = None
    drop: Difference | None = None
    half_margin: Difference | None = None
    auroc: Rate | None = None
    auroc_change: Change | None = None
    auroc_change_low: Change | None = None
    auroc_change_high: Change | None = None
    drift_allowed: bool = False
    note: Text | None = None
