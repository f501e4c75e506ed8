"""The FP32 graphs of a model, and graph files with their weights as they lie in a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx
from torch import nn

from edgead.export.exportable import Exportable
from edgead.export.graph.external_weights import LARGE_BYTES, split_weights
from edgead.export.graph.lint import require_clean
from edgead.export.graph.native_split import split
from edgead.export.graph.tracing import OUTPUTS, export_onnx
from edgead.export.ops.nodes import inline_nodes
from edgead.export.options import CPU, FP32
from edgead.export.precision.variants import GraphFiles
from edgead.runtime.backends import REGISTRY
from edgead.runtime.backends.routed_backend import FUSED_OUTPUTS, ROUTER_OUTPUTS
from edgead.runtime.bundle.layout import head_file, native_files
from edgead.runtime.bundle.manifest_schema import PrecisionSection
from edgead.runtime.progress import Progress

FP32_FILE = "model.fp32.onnx"
ROUTER_FILE = "router.fp32.onnx"
SHARED_BYTES = 16 << 10  # weights above are stored once where several graphs have them
Trace = Callable[[nn.Module, int, int, Sequence[str]], onnx.ModelProto]


def fp32_graphs(model: Exportable, fused: bool, tell: Progress, trace: Trace = export_onnx) -> GraphFiles:
    """Return the FP32 graphs: one, or a router and a head for each category."""
    routing = model.routing
    modules: dict[str, tuple[nn.Module, Sequence[str]]]
    if routing is None:
        modules = {FP32_FILE: (model.module, OUTPUTS)}
    elif fused:
        modules = {FP32_FILE: (model.module, FUSED_OUTPUTS)}
    else:
        modules = {ROUTER_FILE: (routing.router, ROUTER_OUTPUTS)}
        modules |= {head_file(name, FP32): (head, OUTPUTS) for name, head in routing.heads.items()}
    traced = {}
    for done, (name, (module, outputs)) in enumerate(modules.items()):
        tell("graph", done, len(modules))
        traced[name] = trace(module, model.height, model.width, outputs)
        require_clean(traced[name], outputs)
    tell("graph", len(modules), len(modules))
    section = PrecisionSection(file=next(iter(traced)), runtimes=tuple(REGISTRY))
    named = {name: outputs for name, (_, outputs) in modules.items()}
    return GraphFiles(FP32, inline_all(traced), named, section, traced=traced)


def inline_all(models: Mapping[str, onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """Return the graphs with plain operators in the place of scoring nodes."""
    return {name: inline_nodes(graph) for name, graph in models.items()}


def split_files(made: Sequence[GraphFiles], *, parts: bool = True) -> dict[str, bytes]:
    """Return all graph files and, once each, the weights that several of them may share.

    With ``parts`` a graph that native code speeds up is there in two parts as well (`edgead.runtime.backends.native`).
    """
    graphs = [pair for one in made for pair in one.models.items()]
    files: dict[str, bytes] = {}
    # Only backends for CPUs have native code, and they run no other precisions.
    for one in made if parts else ():
        for file in one.models if one.precision in (FP32, CPU) else ():
            bits: Literal[16, 32] = 16 if one.precision == CPU else 32
            found = split(one.models[file], bits) if tuple(one.outputs[file]) == OUTPUTS else None
            if found is not None:
                queries, score, described = native_files(file)
                graphs += [(queries, found.queries), (score, found.score)]
                files |= {described: found.description.model_dump_json().encode(), **found.weights}
    for name, graph in graphs:
        # Router and heads have one backbone, and precisions one bank: a low limit lets them share it.
        data, weights = split_weights(graph, LARGE_BYTES if len(graphs) == 1 else SHARED_BYTES)
        files |= {name: data, **weights}
    return files


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files by their names, which may have folders in them."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
