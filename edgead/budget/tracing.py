"""Graphs of many heads on one backbone, which is traced once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgead.export.graph.tracing import export_onnx, export_part, join
from edgead.export.ops.nodes import inline_nodes
from edgead.features.features import FeatureExtractor
from edgead.features.folding import Backbone

if TYPE_CHECKING:
    import onnx


class SharedBackbone:
    """Exports modules as `export_onnx` does, in a third of the time: the backbone's graph is put before each head's.

    Args:
        backbone: of every module that will come.
        height, width: network size in pixels.
    """

    def __init__(self, backbone: Backbone, height: int, width: int) -> None:
        with torch.inference_mode():
            taps = backbone(torch.zeros(2, height, width, 3, dtype=torch.uint8))
        self._shapes = [tuple(tap.shape) for tap in taps]
        self._names = [f"tap_{number}" for number in range(len(taps))]
        self._graph = export_onnx(backbone, height, width, self._names)

    def export(self, module: nn.Module, height: int, width: int, outputs: Sequence[str]) -> onnx.ModelProto:
        """Return the graph of a module; arguments and errors as `export_onnx`."""
        del height, width  # those of the backbone
        # Without its backbone a module takes what the backbone would have given.
        with _bare(module):
            head = export_part(module, [torch.zeros(shape) for shape in self._shapes], self._names, outputs)
        return join(self._graph, inline_nodes(head))


@contextmanager
def _bare(module: nn.Module) -> Iterator[None]:
    """Let the feature extractors in a module hand through what they are given."""
    held = [(part, part.backbone) for part in module.modules() if isinstance(part, FeatureExtractor)]
    try:
        for part, _ in held:
            part.add_module("backbone", nn.Identity())
        yield
    finally:
        for part, backbone in held:
            part.backbone = backbone
