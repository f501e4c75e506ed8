"""A result that can be looked at: its heat map drawn, saved, and shown by a notebook."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.decision.verdict import Verdict
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.frame import Frame, Placement, Result
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import WIDE_HINT
from edgead.runtime.imaging.heatmap import annotate, colormap, heat, overlay
from edgead.runtime.imaging.view import View

_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True, slots=True)
class JudgedResult(Result):
    """What an `Inspector` returns: a `Result` with pictures.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB of the frame, where a single image was given; None in a stream, which keeps none.
    """

    image: NDArray[np.uint8] | None = None

    def heatmap(self, image: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the anomaly map in colours, drawn over the image where there is one.

        Args:
            image: ``(H, W, 3)`` uint8 RGB to draw it over; None takes the result's own.

        Returns:
            ``(H, W, 3)`` uint8 RGB of the image's size; without an image, of the map's own grid. The scale is anchored
            at the threshold: green at it, yellow at twice the threshold.

        Raises:
            DataError: nothing was computed for this frame, so there is no map.

        Example:
            >>> Image.fromarray(inspect(image).heatmap()).show()
        """
        image = self.image if image is None else image
        if self.map is None:
            raise DataError(f"there is no anomaly map: {self.reason or self.decision}")
        if image is not None:
            return overlay(image, self)
        level = heat(self, *self.map.shape)
        return colormap()[np.zeros(self.map.shape, np.uint8) if level is None else level]

    def save(self, path: str | Path, image: NDArray[np.uint8] | None = None) -> Path:
        """Write the image with its heat map and a strip that names the decision; returns the path.

        Args:
            path: a ``.png`` or ``.jpg`` file; replaced at the end or left as it was.
            image: as of `heatmap`.

        Raises:
            ConfigError: another suffix. DataError: no image and no map, or the file cannot be written.
        """
        path = Path(path).expanduser()
        kind = _SUFFIXES.get(path.suffix.lower())
        if kind is None:
            raise ConfigError(f"{path} must end in .png or .jpg")
        with atomic_write(path, DataError) as stream:
            stream.write(self._encoded(kind, image))
        return path

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        return self._encoded("PNG", None)

    def _repr_html_(self) -> str:
        """Return decision, score and threshold; a notebook that shows HTML shows the picture beside it."""
        parts = [self.decision.value, f"score {self.score:.4g}", f"threshold {self.threshold:.4g}"]
        parts += [part for part in (self.category, self.reason, self.name) if part]
        return f"<b>{html.escape(parts[0])}</b> {html.escape(' · '.join(parts[1:]))}"

    def _encoded(self, kind: str, image: NDArray[np.uint8] | None) -> bytes:
        from PIL import Image

        image = self.image if image is None else image
        drawn = self.heatmap() if image is None else annotate(image, self)
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, kind)
        return buffer.getvalue()


def array_frame(image: object) -> Frame:
    """Return an array as the frame of no source.

    Args:
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey, C-contiguous or not.

    Raises:
        DataError: a path, a Pillow image, a tensor or something else; an array of another shape or dtype.
    """
    if isinstance(image, str | Path):
        raise DataError(f"an inspector takes arrays, not the path {image}; give edgead.runtime.read_image(path)")
    if not isinstance(image, np.ndarray):
        kind = f"{type(image).__module__.partition('.')[0]}.{type(image).__name__}"
        raise DataError(f"an inspector takes numpy arrays (H, W, 3) or (H, W) uint8, not a {kind}; convert it")
    if image.dtype != np.uint8:
        hint = "; bring its values to 0 to 255 as the training images have them" if image.dtype.kind in "fiu" else ""
        hint = WIDE_HINT if image.dtype == np.uint16 else hint
        raise DataError(f"an image is (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}{hint}")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
        hint = "; its channels come first, give image.transpose(1, 2, 0)" if image.shape[:1] == (3,) else ""
        hint = "; omit the fourth channel: image[:, :, :3]" if image.shape[2:] == (4,) else hint
        raise DataError(f"an image is (H, W, 3) or (H, W) uint8, got {image.shape}{hint}")
    return Frame(np.ascontiguousarray(image), 0, time.monotonic_ns(), "array", "gray" if image.ndim == 2 else "rgb")


class Sight(NamedTuple):
    """What was seen of a frame: where that lies, as in `Result`; ``missing``: why there is nothing to judge."""

    area: tuple[float, float, float, float] | None = None
    placement: Placement | None = None
    missing: str | None = None


def look(view: View, frames: Sequence[Frame]) -> tuple[NDArray[np.uint8], list[Sight]]:
    """Return the frames as the network gets them, one below the other in a batch, and what was seen of each.

    The place of a frame whose part was not found is black: batches keep the size that a backend was compiled for.

    Raises:
        DataError: a frame of another size than the view's.
    """
    rows = view.height * (1 if view.tiles is None else view.tiles.count)
    images = np.zeros((len(frames), rows, view.width, 3), np.uint8)
    area = None if view.region is None else view.region.area
    sights = []
    for slot, frame in zip(images, frames, strict=True):
        try:
            slot[...], placement = view.see(frame.image, frame.layout)
        except PartNotFound as error:
            sights.append(Sight(missing=str(error)))
        else:
            sights.append(Sight(area, placement))
    return images, sights


def judged(
    frame: Frame,
    verdict: Verdict,
    grid: NDArray[np.float32],
    timings: Mapping[str, float],
    sight: Sight,
    bundle: str | None = None,
) -> Result:
    """Return the result of a frame: its verdict, the anomaly map ``(gh, gw)``, where that lies, and who judged.

    What the network said of a frame on which nothing is to be judged counts for nothing.
    """
    if sight.missing is not None:
        return replace(Result.not_inspected(frame, sight.missing, verdict.threshold), bundle=bundle)
    return JudgedResult(
        score=verdict.score,
        threshold=verdict.threshold,
        decision=verdict.decision,
        frame_index=frame.index,
        timestamp_ns=frame.timestamp_ns,
        source_id=frame.source_id,
        category=verdict.category,
        map=grid,
        timings=timings,
        reason=verdict.reason,
        name=frame.name,
        area=sight.area,
        placement=sight.placement,
        p_value=verdict.p_value,
        part_id=frame.part_id,
        bundle=bundle,
    )


def with_image(result: Result, image: NDArray[np.uint8]) -> JudgedResult:
    """Return a result with its image ``(H, W, 3)`` uint8 RGB."""
    values = {field.name: getattr(result, field.name) for field in fields(Result)}
    return JudgedResult(**values, image=image)
