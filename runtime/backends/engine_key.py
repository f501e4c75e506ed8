"""What an engine was made of and for: the key under which the cache holds it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from edgead.runtime.errors import BackendError
from edgead.runtime.files import reason

PLUGIN_VARIABLE = "EDGEAD_TENSORRT_PLUGIN"
NO_PLUGIN = "none"
PORTABLE = "portable"  # a TensorRT-RTX engine for every GPU from Ampere on
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine was made of and for; two engines with one key are interchangeable.

    Attributes:
        graph: see `graph_digest`.
        library, version: ``tensorrt`` or ``tensorrt-rtx``, and its whole version: an engine loads in no other.
        compute_capability: such as ``8.7``, or `PORTABLE`.
        precision: of the graph file, such as ``fp16`` or ``int8-trt``.
        plugin: SHA-256 of the plugin library, or `NO_PLUGIN`.
    """

    graph: str
    library: str
    version: str
    compute_capability: str
    precision: str
    plugin: str = NO_PLUGIN

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all fields: the name of the engine in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        """Return what the engine is for, in a few words."""
        plugin = "" if self.plugin == NO_PLUGIN else f", plugin {self.plugin[:12]}"
        where = "any GPU" if self.compute_capability == PORTABLE else f"compute capability {self.compute_capability}"
        return f"{self.library} {self.version}, {where}, {self.precision}{plugin}"


def graph_digest(model: Path) -> str:
    """Return the hex SHA-256 of a graph file and of every file in the ``weights/`` beside it that it names.

    Raises:
        BackendError: a file cannot be read.
    """
    try:
        graph = model.read_bytes()
        digest = hashlib.sha256(graph)
        folder = model.parent / "weights"
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if f"{folder.name}/{file.name}".encode() in graph:
                digest.update(f"\n{file.name}:{hash_file(file)[0]}".encode())
    except OSError as error:
        raise BackendError(f"cannot read {model}: {reason(error)}") from error
    return digest.hexdigest()


def graph_precision(model: Path) -> str:
    """Return the precision in the name of a graph file: ``int8-trt`` of ``head-plate.int8-trt.onnx``, else ``fp32``."""
    parts = model.name.split(".")
    return parts[-2] if len(parts) > 2 else "fp32"


def plugin_digest(plugin: Path | None) -> str:
    """Return the hex SHA-256 of a plugin library, `NO_PLUGIN` for None; `BackendError` where it is unreadable."""
    if plugin is None:
        return NO_PLUGIN
    try:
        return hash_file(plugin)[0]
    except OSError as error:
        raise BackendError(f"cannot read the plugin library {plugin}: {reason(error)}") from error


def plugin_from_environment() -> Path | None:
    """Return the plugin library that ``EDGEAD_TENSORRT_PLUGIN`` names, None where it is not set."""
    chosen = os.environ.get(PLUGIN_VARIABLE)
    return Path(chosen) if chosen else None


def hash_file(file: Path) -> tuple[str, int]:
    """Return hex SHA-256 and size of a file, read piece by piece."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
