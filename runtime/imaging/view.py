"""From a frame to the network's input: region, then alignment or tiles, then the resize. One code for all who judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Layout, Placement
from edgead.runtime.imaging.alignment import Alignment
from edgead.runtime.imaging.anomaly_map import place_map
from edgead.runtime.imaging.roi import Region, prepare
from edgead.runtime.imaging.tiling import Tiles


class Seen(NamedTuple):
    """What the network gets, ``(height, width, 3)`` uint8 RGB, and where that lies; None: it is the whole region."""

    pixels: NDArray[np.uint8]
    placement: Placement | None


@dataclass(frozen=True, slots=True)
class View:
    """What a network sees of a frame.

    Attributes:
        height, width: network size in pixels.
        region: the part of a frame that is judged; None: all of it.
        tiles: how that part is cut; None: not at all.
        align: how the pose of the part in it is found and undone; None: frames are judged as they are.

    Raises:
        ConfigError: tiles or ignored areas, which lie on the frame, with an alignment, which turns it; frames of the
            alignment that are not of the region's size.
    """

    height: int
    width: int
    region: Region | None = None
    tiles: Tiles | None = None
    align: Alignment | None = None

    def __post_init__(self) -> None:
        if self.align is None:
            return
        if self.tiles is not None or (self.region is not None and self.region.ignore is not None):
            raise ConfigError("a model that aligns its frames has neither tiles nor a mask; fit it without")
        if self.region is not None and self.align.frame_size != (self.region.box.width, self.region.box.height):
            raise ConfigError("the model was aligned on another region than it judges; fit it anew")

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """``(width, height)`` of the frames, None where any is taken."""
        if self.region is not None:
            return self.region.frame_size
        return None if self.align is None else self.align.frame_size

    def prepare(self, image: NDArray[np.uint8], layout: Layout = "rgb") -> NDArray[np.uint8]:
        """Return a frame as the network gets it.

        Args:
            image: ``(H, W, 3)`` uint8, or ``(H, W)`` where the layout is ``"gray"``.

        Returns:
            ``(height, width, 3)`` uint8 RGB, of tiles as many below each other; may be read-only.

        Raises:
            PartNotFound: the part to align is not there. DataError: another shape, dtype or frame size.
        """
        return self.see(image, layout).pixels

    def see(self, image: NDArray[np.uint8], layout: Layout = "rgb") -> Seen:
        """Return a frame as the network gets it, and where on the frame that lies; as `prepare`."""
        if self.align is None:
            return Seen(prepare(image, self.height, self.width, layout, self.region, self.tiles), None)
        canvas = self.align.to_canvas(image if self.region is None else self.region.cut(image), layout)
        found = self.align.require(canvas)
        return Seen(self.align.undo(canvas, found, self.height, self.width), self.align.place(found.pose))

    def judged(self, image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Return which pixels of an image's region are near enough to the part to be judged, for who plants defects.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            Bool of the region's size; None where nothing is aligned.

        Raises:
            PartNotFound, DataError: as `prepare`.
        """
        if self.align is None:
            return None
        placement = self.see(image).placement
        assert placement is not None
        width, height = self.align.frame_size
        near = (~self.align.plain(self.height, self.width)).astype(np.float32)
        values, inside = place_map(near, placement, height, width)
        return (values > 0.5) & inside
