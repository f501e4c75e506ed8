"""How latency grows with the memory bank, the image and the number of cameras; curves as a PNG.

    python -m benchmarks.growth [--png docs/performance.png] [--json FILE] [--frames 60]

PatchCore with the default backbone on frames of noise, 1280x1024, from camera to decision with two threads. Banks are
patches of noise images, so nothing here says anything about accuracy. Every point is the median of interleaved turns:
one frame (or one batch, a camera each) of every configuration, then the next. The native search is used where
``edgead build --target cpu`` has been run. Fit time and memory against the number of images: ``benchmarks.memory``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from edgead.detectors.heads import NearestNeighbourHead
from edgead.export.graph.external_weights import split_weights
from edgead.export.graph.native_split import split
from edgead.export.graph.tracing import export_onnx
from edgead.export.ops.nodes import inline_nodes
from edgead.features.backbones import BackboneSpec, build_backbone
from edgead.features.features import build_extractor
from edgead.features.scoring import ScoringModule
from edgead.runtime.backends import available, open_backend
from edgead.runtime.bundle.layout import native_files
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.frame import Frame
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.machine import describe_machine
from edgead.runtime.scratch import private_directory

BANKS = (512, 2048, 4096, 8192, 16384, 32768)
SIZES = (128, 192, 256, 384, 512)
CAMERAS = (1, 2, 4, 8)
BACKENDS = ("onnxruntime", "openvino")
BANK, SIZE = 4096, 256


def write_graph(folder: Path, size: int, rows: int) -> Path:
    """Write PatchCore's graph, in parts too where it has enough rows; returns the whole one."""
    extractor = build_extractor(build_backbone(BackboneSpec(), (size, size)), (size, size))
    random = np.random.default_rng(0)
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        while sum(map(len, found)) < rows:
            noise = torch.from_numpy(random.integers(0, 256, (1, size, size, 3), dtype=np.uint8))
            found.append(extractor(noise)[0].flatten(1).T)
    module = ScoringModule(extractor, NearestNeighbourHead(torch.cat(found)[:rows])).eval()
    whole = inline_nodes(export_onnx(module, size, size))
    parts = split(whole)
    files = {"model.fp32.onnx": whole}
    (folder / "weights").mkdir()
    if parts is not None:
        before, after, described = native_files("model.fp32.onnx")
        files |= {before: parts.queries, after: parts.score}
        (folder / described).write_text(parts.description.model_dump_json())
        for member, content in parts.weights.items():
            (folder / member).write_bytes(content)
    for name, graph in files.items():
        data, weights = split_weights(graph, 16 << 10)
        for member, content in {name: data, **weights}.items():
            (folder / member).write_bytes(content)
    return folder / "model.fp32.onnx"


def measure(points: Sequence[tuple[int, int, int]], frames: int, threads: int) -> dict[str, list[float]]:
    """Return, a backend, the milliseconds a frame of each ``(size, bank rows, cameras)``, all of them interleaved."""
    image = np.random.default_rng(1).integers(0, 256, (1024, 1280, 3), dtype=np.uint8)
    with ExitStack() as stack:
        opened: list[tuple[str, int, int, Inspector]] = []
        for number, (size, rows, cameras) in enumerate(points):
            graph = write_graph(stack.enter_context(private_directory()), size, rows)
            for name in (one for one in BACKENDS if one in available()):
                backend = open_backend(name, graph, threads=threads, batch=cameras)
                inspector = Inspector(backend, height=size, width=size, threshold=1e9)
                opened.append((name, number, cameras, stack.enter_context(inspector)))
        times: dict[tuple[str, int], list[float]] = {(name, number): [] for name, number, _, _ in opened}
        for turn in range(frames + 5):
            for name, number, cameras, inspector in opened:
                batch = [Frame(image, turn, time.monotonic_ns(), f"camera {n}") for n in range(cameras)]
                started = time.perf_counter()
                inspector.inspect_batch(batch)
                if turn >= 5:
                    times[name, number].append((time.perf_counter() - started) * 1e3 / cameras)
    found: dict[str, list[float]] = {}
    for (name, _), values in sorted(times.items()):
        found.setdefault(name, []).append(median(values))
    return found


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the three curves side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, curve in zip(axes, document["curves"], strict=True):
        for name, values in curve["ms"].items():
            axis.plot(curve["values"], values, marker="o", label=name)
        axis.set_xlabel(curve["label"])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms a frame, camera to decision")
    axes[0].legend()
    with atomic_write(path, DataError) as stream:
        figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    curves = []
    for label, values, points in (
        ("rows of the bank (256 px)", BANKS, [(SIZE, rows, 1) for rows in BANKS]),
        (f"image side in pixels ({BANK} rows)", SIZES, [(size, BANK, 1) for size in SIZES]),
        (f"cameras in one batch ({BANK} rows)", CAMERAS, [(SIZE, BANK, cameras) for cameras in CAMERAS]),
    ):
        found = measure(points, arguments.frames, arguments.threads)
        curves.append({"label": label, "values": list(values), "ms": found})
        print(f"\n| {label} | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        for row, value in enumerate(values):
            print(f"| {value} | {' | '.join(f'{ms[row]:.2f} ms' for ms in found.values())} |", flush=True)
    document = {"schema": "edgead.growth/1", "machine": describe_machine(), "curves": curves}
    if arguments.png:
        draw(document, arguments.png)
    if arguments.json:
        with atomic_write(arguments.json, DataError) as stream:
            stream.write((json.dumps(document, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
