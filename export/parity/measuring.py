"""Every graph file on every runtime beside the trained model, and what each precision must keep to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgead.export.exportable import Exportable
from edgead.export.options import CPU, FP16, FP32
from edgead.export.parity.comparison import Comparison
from edgead.export.parity.promise import Measurement
from edgead.export.precision.simulate_fp16 import SIMULATED, HalfRange, SimulatedFp16
from edgead.export.precision.simulate_int8 import SIMULATED_INT8
from edgead.export.precision.variants import open_graphs
from edgead.runtime.backends import REGISTRY, Backend, available, unavailable
from edgead.runtime.backends.routed_backend import FusedBackend, RoutedBackend
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.decision.verdict import Limits, Verdict
from edgead.runtime.errors import BackendUnavailable
from edgead.runtime.progress import Progress

_TAKES_NO_FUNCTIONS = "openvino"


# More than six parameters: a model, its files in both forms, the images, and which precisions.
def measure(
    model: Exportable,
    manifest: Manifest,
    whole: Path,
    inlined: Path,
    named: Sequence[tuple[str, NDArray[np.uint8]]],
    tell: Progress,
    only: Collection[str] = (),
) -> tuple[list[Measurement], dict[str, str]]:
    """Compare every precision on every installed runtime with torch, one image after the other through all of them.

    The graph files lie in ``whole``, and in ``inlined`` those without functions for runtimes that take none. With
    ``only``, these precisions alone.
    """
    refused = unavailable()
    with ExitStack() as stack:
        opened: dict[tuple[str, str], Backend] = {}
        for precision, section in manifest.precisions.items():
            for name in _runtimes(precision) if not only or precision in only else ():
                folder = inlined if name.startswith(_TAKES_NO_FUNCTIONS) else whole
                try:
                    backend = open_graphs(name, manifest, folder / section.file, precision)
                except BackendUnavailable as error:
                    refused[name] = str(error)
                else:
                    stack.callback(backend.close)
                    opened[precision, name] = backend
        if not only and not any(name in REGISTRY for _, name in opened):
            raise BackendUnavailable("no runtime to compare with is installed; run: pip install 'edgead[cpu]'")
        comparisons = {key: Comparison(model.scale) for key in opened}
        limits = {precision: manifest.limits(precision) for precision in manifest.precisions}
        trained = model.torch_backend()
        for done, (name, image) in enumerate(named, start=1):
            expected = _judge(trained, image, limits[FP32])
            for key, backend in opened.items():
                comparisons[key].add(name, expected, _judge(backend, image, limits[key[0]]))
            tell("parity", done, len(named))
        measured = [
            Measurement(precision, name, comparisons[precision, name], _widest(backend))
            for (precision, name), backend in opened.items()
        ]
    return measured, refused


def _runtimes(precision: str) -> list[str]:
    if precision == FP32:
        return available()
    # What runs in bfloat16 runs FP32 files; another reduction on top of one would not be meaningful.
    full = [name for name in available() if not name.endswith("-bf16")]
    if precision == FP16:
        return [SIMULATED, *full]
    # A CPU's kernels for the graph that is meant for TensorRT are used by nobody, and on some processors they saturate.
    return [SIMULATED_INT8, *full] if precision == CPU else [SIMULATED_INT8]


def _judge(backend: Backend, image: NDArray[np.uint8], limits: Limits) -> tuple[Verdict, NDArray[np.float32]]:
    found = backend.run(image[None])
    return limits.judge(found, 0), found.map[0].copy()


def _widest(backend: Backend) -> HalfRange | None:
    """Return the first tensor that overflows, else the one with the least margin; None where nothing is simulated."""
    ranges = [one for network in _networks(backend) if isinstance(network, SimulatedFp16) for one in network.ranges]
    over = [one for one in ranges if one.margin < 1.0]
    return over[0] if over else min(ranges, key=lambda one: one.margin, default=None)


def _networks(backend: Backend) -> list[object]:
    if isinstance(backend, (RoutedBackend, FusedBackend)):
        return list(backend.networks)
    return [backend]
