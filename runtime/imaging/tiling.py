"""Large frames judged in overlapping tiles, so that a defect of a few pixels is not resized away.

A frame (or its region) is laid out on the grid that its whole anomaly map will have: ``rows`` x ``columns`` tiles of
``gh`` x ``gw`` cells that share ``overlap`` cells with their neighbours. Each tile is cut at the edges of its cells and
resized to network size by itself; the tiles of one picture stand below each other in one array. The score of the
picture is the highest of its tiles, and its map is put together from theirs, the higher value where they overlap.

A seam hides nothing: whatever is at most ``overlap`` cells wide lies wholly within one tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import BackendError, ConfigError, DataError

if TYPE_CHECKING:
    from edgead.runtime.frame import Inference

MOST_TILES = 64
DEFAULT_OVERLAP = 4


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a picture is cut.

    Attributes:
        rows, columns: of tiles, at least one of them above 1.
        overlap: cells that neighbours share, at least 1, and less than half a tile.
        grid: ``(gh, gw)`` cells of the map of one tile.

    Raises:
        ConfigError: a number out of range.
    """

    rows: int
    columns: int
    overlap: int
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or not 2 <= self.count <= MOST_TILES:
            raise ConfigError(f"tiles are 2 to {MOST_TILES} in all, such as 2x2, not {self.rows}x{self.columns}")
        if self.overlap < 1 or 2 * self.overlap >= min(self.grid):
            raise ConfigError(
                f"tiles overlap by 1 to {(min(self.grid) - 1) // 2} cells of their {self.grid[0]}x{self.grid[1]}, "
                f"not {self.overlap}"
            )

    @property
    def count(self) -> int:
        """Tiles in all."""
        return self.rows * self.columns

    @property
    def whole_grid(self) -> tuple[int, int]:
        """Cells of the map of the whole picture."""
        height, width = self.grid
        return self._extent(self.rows, height), self._extent(self.columns, width)

    def cut(
        self, picture: NDArray[np.uint8], resize: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Return the tiles of a picture below each other, row by row.

        Args:
            picture: ``(H, W, 3)`` or ``(H, W)`` uint8.
            resize: makes ``(h, w, 3)`` uint8 of a part of it.

        Raises:
            DataError: the picture has fewer pixels than cells.
        """
        rows, columns = self.whole_grid
        height, width = picture.shape[:2]
        if height < rows or width < columns:
            raise DataError(
                f"a picture of {width}x{height} is too small for {self.rows}x{self.columns} tiles; "
                f"it needs {columns}x{rows} pixels at least"
            )
        return np.concatenate(
            [
                resize(picture[top:bottom, left:right])
                for top, bottom in self._edges(self.rows, self.grid[0], height)
                for left, right in self._edges(self.columns, self.grid[1], width)
            ]
        )

    def join(self, inference: Inference) -> Inference:
        """Return score and map of whole pictures from those of their tiles; NaN stays NaN.

        Args:
            inference: of ``N * count`` tiles.
        """
        height, width = self.grid
        if inference.map.shape[1:] != self.grid or len(inference.score) % self.count:
            raise BackendError(f"the network gives maps of {inference.map.shape[1:]} cells, not {self.grid}")
        number = len(inference.score) // self.count
        maps = inference.map.reshape(number, self.rows, self.columns, height, width)
        whole = np.full((number, *self.whole_grid), -np.inf, np.float32)
        for row in range(self.rows):
            for column in range(self.columns):
                top, left = row * (height - self.overlap), column * (width - self.overlap)
                place = whole[:, top : top + height, left : left + width]
                np.maximum(place, maps[:, row, column], out=place)
        return inference._replace(score=inference.score.reshape(number, self.count).max(axis=1), map=whole)

    def _extent(self, tiles: int, cells: int) -> int:
        return tiles * cells - (tiles - 1) * self.overlap

    def _edges(self, tiles: int, cells: int, pixels: int) -> list[tuple[int, int]]:
        """Return first and last pixel of each tile along one side, at the edges of cells, rounded half up."""
        total = self._extent(tiles, cells)

        def pixel(cell: int) -> int:
            return (2 * cell * pixels + total) // (2 * total)

        starts = [number * (cells - self.overlap) for number in range(tiles)]
        return [(pixel(start), pixel(start + cells)) for start in starts]


def parse_tiles(text: str) -> tuple[int, int]:
    """Return ``(rows, columns)`` of ``2x3``; raises `ConfigError`."""
    rows, cross, columns = text.strip().partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal() and len(rows) < 3 and len(columns) < 3):
        raise ConfigError(f"--tiles takes ROWSxCOLUMNS, such as 2x3, not '{text}'")
    return int(rows), int(columns)
