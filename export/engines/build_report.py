"""What ``edgead build`` made, found or could not make."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgead.export.engines.layer_precision import Layer, count
from edgead.runtime.backends.engine_cache import StoredEngine

SCHEMA = "edgead.build/1"


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine; ``reused`` where it was in the cache already, and ``seconds`` are then those of its build."""

    graph: str
    stored: StoredEngine
    reused: bool

    @property
    def layers(self) -> list[Layer]:
        """Its layers with their precisions, as ``info["layers_from"]`` tells them: the engine, or the network."""
        return [Layer(*map(str, layer)) for layer in self.stored.info["layers"]]

    def to_dict(self) -> dict[str, Any]:
        info = dict(self.stored.info)
        layers = self.layers
        return {
            "graph": self.graph,
            "engine": str(self.stored.path),
            "key": {**asdict(self.stored.key), "digest": self.stored.key.digest},
            "sha256": self.stored.sha256,
            "bytes": self.stored.size,
            "reused": self.reused,
            "parse_seconds": info["parse_seconds"],
            "build_seconds": info["build_seconds"],
            "layer_precisions": {
                "from": info["layers_from"],
                "counts": count(layers),
                "heavy": [layer._asdict() for layer in layers if layer.heavy],
            },
            "warnings": info["warnings"],
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """A graph that cannot be built for a GPU that nobody asked for by name, and why."""

    graph: str
    compute_capability: str
    reason: str


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `edgead.export.engines.building.build_engines` made or found.

    ``refused`` holds what it could not make without having been asked.
    """

    bundle: Path
    model_sha256: str
    target: str
    version: str
    device: str | None
    cache: Path
    engines: tuple[EngineRow, ...]
    refused: tuple[Refused, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bundle": str(self.bundle),
            "model_sha256": self.model_sha256,
            "target": self.target,
            "version": self.version,
            "device": self.device,
            "cache": str(self.cache),
            "engines": [row.to_dict() for row in self.engines],
            "refused": [asdict(row) for row in self.refused],
        }
