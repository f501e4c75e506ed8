"""What the export layer needs of a model, whatever trained it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgead.export.torch_backend import TorchBackend
from edgead.runtime.backends import Backend
from edgead.runtime.backends.routed_backend import RoutedBackend
from edgead.runtime.backends.tiled_backend import TiledBackend
from edgead.runtime.decision.baseline import Normals
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.imaging.alignment import Alignment
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.imaging.roi import Region
from edgead.runtime.imaging.tiling import Tiles
from edgead.runtime.imaging.view import View


@dataclass(frozen=True, slots=True)
class Routing:
    """What a routed model is made of.

    Attributes:
        router: ``images -> votes (N, K), similarity (N,)``, columns in the order of the categories' names.
        heads: category -> scoring module.
        thresholds, minimum_similarity: of each category.
    """

    router: nn.Module
    heads: Mapping[str, nn.Module]
    thresholds: Mapping[str, Threshold]
    minimum_similarity: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Exportable:
    """What the export layer needs of a model, whatever trained it.

    Attributes:
        name: name of the bundle.
        module: scoring module, see `edgead.export.graph.tracing.export_onnx`.
        height, width: network size in pixels; grid: ``(gh, gw)`` cells of the map.
        threshold: of the FP32 scores, with its meaning.
        normal_scores: raw scores of held-out normals; their median gives the scale of score differences.
        detector, settings, categories (name -> training images), provenance: recorded as they are.
        references: ``(name, PNG bytes)``, real images at native size; the bundle carries them.
        routing: of a routed model, whose ``module`` gives score, map, votes and similarity; None otherwise.
        calibration: ``(name, PNG bytes)``; normal ones set the ranges of INT8, others have planted defects, see
            `ReferenceName`. The bundle does not carry them.
        normals: category -> what its good parts looked like, for the drift watch.
        region: the part of a frame that is judged; None: all of it.
        tiles: how that part is cut; align: how the pose of the part in it is undone; None: not at all.
        bits: of a 16-bit image file's values, those that carry the picture.
    """

    name: str
    module: nn.Module
    height: int
    width: int
    grid: tuple[int, int]
    threshold: Threshold
    normal_scores: Sequence[float]
    detector: str
    settings: Mapping[str, Any]
    categories: Mapping[str, int]
    references: Sequence[tuple[str, bytes]]
    provenance: Mapping[str, Any]
    routing: Routing | None = None
    calibration: Sequence[tuple[str, bytes]] = ()
    normals: Mapping[str, Normals] = field(default_factory=dict)
    region: Region | None = None
    tiles: Tiles | None = None
    align: Alignment | None = None
    bits: int = ALL_BITS

    @property
    def scale(self) -> float:
        """Threshold minus median normal score: the way of a good part to a false alarm, in raw score units."""
        return max(self.threshold.value - float(np.median(self.normal_scores)), 0.0)

    @property
    def limits(self) -> Limits:
        """The thresholds of the FP32 scores."""
        own = {} if self.routing is None else self.routing.thresholds
        return Limits(self.threshold.value, {name: one.value for name, one in own.items()})

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image ``(H, W, 3)`` uint8 RGB as the network gets it, see `View.prepare`."""
        return View(self.height, self.width, self.region, self.tiles, self.align).prepare(image)

    def torch_backend(self) -> Backend:
        """Return the model itself as a backend, the reference of every comparison."""
        if self.routing is None:
            backend = TorchBackend(self.module)
            return backend if self.tiles is None else TiledBackend(backend, self.tiles)
        heads = {name: TorchBackend(head) for name, head in self.routing.heads.items()}
        return RoutedBackend(TorchBackend(self.routing.router), heads, self.routing.minimum_similarity)
