"""What each precision must keep to: FP32 changes nothing, FP16 only rounds, INT8 moves scores little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgead.export.options import FP16, FP32
from edgead.export.parity.comparison import Comparison
from edgead.export.precision.simulate_fp16 import SIMULATED, HalfRange
from edgead.export.precision.simulate_int8 import SIMULATED_INT8
from edgead.export.precision.variants import GraphFiles
from edgead.runtime.decision.verdict import Verdict

# Rounding to half moves scores by less of the score margin, 0.04 at most in all that was measured but SLSG's
# (0.107; with its first convolutions in FP32 less than this). A graph that moves them this far has another fault,
# though it may flip none of the few images at hand.
FP16_DROP = 0.05


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


def _describe(verdict: Verdict) -> str:
    category = f" as {verdict.category}" if verdict.category else ""
    return f"{verdict.decision}{category} with score {verdict.score:.6g} at threshold {verdict.threshold:.6g}"
