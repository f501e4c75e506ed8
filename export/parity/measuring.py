"""Every graph file on every runtime beside the trained model, and what each precision must keep to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgead.export.exportable import Exportable
from edgead.export.options import CPU, FP16, FP32
from edgead.export.parity.comparison import Comparison
from edgead.export.precision.simulate_fp16 import SIMULATED, HalfRange, SimulatedFp16
from edgead.export.precision.simulate_int8 import SIMULATED_INT8
from edgead.export.precision.variants import GraphFiles, open_graphs
from edgead.runtime.backends import REGISTRY, Backend, available, unavailable
from edgead.runtime.backends.routed_backend import FusedBackend, RoutedBackend
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.decision.verdict import Limits, Verdict
from edgead.runtime.errors import BackendUnavailable
from edgead.runtime.progress import Progress

# Rounding to half moves scores by less of the score margin, 0.04 at most in all that was measured but SLSG's
# (0.107; with its first convolutions in FP32 less than this). A graph that moves them this far has another fault,
# though it may flip none of the few images at hand.
FP16_DROP = 0.05
_TAKES_NO_FUNCTIONS = "openvino"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One precision on one runtime; ``widest`` is the half tensor nearest to overflow, of a simulation."""

    precision: str
    runtime: str
    comparison: Comparison
    widest: HalfRange | None = None

    @property
    def margin(self) -> float | None:
        return None if self.widest is None else self.widest.margin


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


def counts(measurement: Measurement) -> bool:
    """Whether a runtime's drop is evidence; a CPU computes FP16 in FP32, which proves nothing of half arithmetic."""
    return measurement.precision != FP16 or measurement.runtime == SIMULATED


def fails(measurement: Measurement, max_drop: float) -> bool:
    """Whether a precision broke its promise: FP32 changes nothing, FP16 only rounds, INT8 moves scores little."""
    comparison = measurement.comparison
    if measurement.runtime.endswith("-bf16"):
        return False  # recorded, and refused at opening where it changed a decision
    if not comparison.finite or (measurement.margin is not None and measurement.margin < 1.0):
        return True
    if not counts(measurement):
        return False
    if measurement.precision == FP32:
        return bool(comparison.changed)
    if measurement.precision == FP16:
        return comparison.record().flips > 0 or comparison.drop > FP16_DROP
    return comparison.drop > max_drop


def note(measurement: Measurement, files: GraphFiles) -> str | None:
    """Return what to say beside a record that proves less, or something else, than one of FP32 does."""
    if measurement.runtime.endswith("-bf16"):
        return "reduced precision, not gated"
    if measurement.precision == FP16:
        proof = "half arithmetic, simulated" if measurement.runtime == SIMULATED else "weights rounded only"
        return f"{proof}, {_leading(files)}" if files.leading else proof
    choice = files.choice
    if choice is None:
        return None
    kept = f"{choice.method} ranges, {len(choice.kept)} of {choice.layers} convolutions in fp32"
    return f"exact integer sums, simulated; {kept}" if measurement.runtime == SIMULATED_INT8 else kept


def complaint(measurement: Measurement, max_drop: float, made: Sequence[GraphFiles]) -> str:
    """Return the one line of the `ParityError`."""
    comparison = measurement.comparison
    runtime = measurement.runtime
    where = runtime if measurement.precision == FP32 else f"{runtime} in {measurement.precision}"
    widest = measurement.widest
    if widest is not None and widest.margin < 1.0:
        return (
            f"{where}: tensor '{widest.tensor}' reaches {widest.maximum:.4g} and overflows half (65504); nothing was "
            "written; export without --fp16"
        )
    if not comparison.finite:
        return f"{where} gives scores that are not finite; nothing was written"
    if measurement.precision == FP16 and not comparison.record().flips:
        files = next(one for one in made if one.precision == FP16)
        kept = f" with {_leading(files)}" if files.leading else ""
        return (
            f"{where} moves scores by {comparison.drop:.3f} of the score margin{kept}, which is no rounding "
            f"(at most {FP16_DROP:g}); nothing was written (--allow-drift overrides)"
        )
    if measurement.precision not in (FP32, FP16):
        choice = next(one.choice for one in made if one.precision == measurement.precision)
        kept = f"{len(choice.kept)} of {choice.layers}" if choice is not None else "0"
        return (
            f"{where} moves scores by {comparison.drop:.3f} of the score margin, allowed are {max_drop:g}, "
            f"with {kept} convolutions kept in fp32; nothing was written (try more images with --calibration; "
            "--max-drop and --allow-drift override)"
        )
    changed = comparison.changed
    reference, candidate = comparison.reference[changed[0]], comparison.candidate[changed[0]]
    return (
        f"{len(changed)} of {len(comparison.names)} decisions change on {where}, first "
        f"{comparison.names[changed[0]]} ({_describe(reference)} became {_describe(candidate)}); "
        "nothing was written (--allow-drift overrides)"
    )


def _leading(files: GraphFiles) -> str:
    return f"first {files.leading} of {files.layers} convolutions in fp32"


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


def _describe(verdict: Verdict) -> str:
    category = f" as {verdict.category}" if verdict.category else ""
    return f"{verdict.decision}{category} with score {verdict.score:.6g} at threshold {verdict.threshold:.6g}"
