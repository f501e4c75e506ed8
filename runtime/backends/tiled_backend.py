"""A backend that judges tiles, as one that judges whole images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo
from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Inference
from edgead.runtime.imaging.tiling import Tiles


class TiledBackend:
    """A backend of tiles as one of whole pictures; their tiles stand below each other, as `Tiles.cut` puts them.

    Args:
        backend: judges tiles; closed together with this one.
        tiles: how pictures are cut.
    """

    def __init__(self, backend: Backend, tiles: Tiles) -> None:
        self._backend = backend
        self._tiles = tiles

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, count * h, w, 3)``."""
        if images.ndim != 4 or images.shape[1] % self._tiles.count:
            raise BackendError(f"pictures of {self._tiles.count} tiles are wanted, got {images.shape}")
        number, height, width, channels = images.shape
        count = self._tiles.count
        tiles = np.ascontiguousarray(images).reshape(number * count, height // count, width, channels)
        return self._tiles.join(self._backend.run(tiles))

    def describe(self) -> BackendInfo:
        return self._backend.describe()

    def close(self) -> None:
        self._backend.close()
