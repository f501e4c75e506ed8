"""What is asked for when a model is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from edgead.runtime.errors import ConfigError, suggest

FP32, FP16, TRT, CPU = "fp32", "fp16", "int8-trt", "int8-cpu"
PRECISIONS = (FP32, FP16, TRT, CPU)
DEFAULT_MAX_DROP = 0.05


class ExportKeywords(TypedDict, total=False):
    """The fields of `ExportOptions`, as keywords."""

    precisions: Sequence[str]
    images: Sequence[str | Path]
    calibration: Sequence[str | Path]
    max_drop: float
    allow_drift: bool
    fused: bool
    plain: bool
    cache: Path | None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is asked for when a model is exported; shared by the API and the command line.

    Attributes:
        precisions: of ``fp32`` (always there), ``fp16``, ``int8-trt``, ``int8-cpu``.
        images: files or folders that the proof is made on; none means the model's own references.
        calibration: files or folders of normal images that set the ranges of INT8; none means the model's own.
        max_drop: 99th percentile of the score differences of INT8 over the score margin (threshold minus median normal
            score); convolutions stay in FP32, the most sensitive first, until it holds.
        allow_drift: write the bundle although a decision changed, and say so in its manifest.
        fused: write one graph that routes and scores, in place of a router and a head for each category; it computes
            the features once, and holds all heads in memory either way.
        plain: write plain operators only; else the files for TensorRT have nodes of the domain ``edgead``, with plain
            operators as their bodies.
        cache: folder that keeps calibrated ranges; None keeps none.

    Raises:
        ConfigError: an unknown precision, or a ``max_drop`` that is not above 0.
    """

    precisions: Sequence[str] = (FP32,)
    images: Sequence[str | Path] = ()
    calibration: Sequence[str | Path] = ()
    max_drop: float = DEFAULT_MAX_DROP
    allow_drift: bool = False
    fused: bool = False
    plain: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in self.precisions:
            if name not in PRECISIONS:
                raise ConfigError(f"unknown precision '{name}'.{suggest(name, PRECISIONS)}")
        if not self.max_drop > 0:
            raise ConfigError(f"--max-drop must be above 0, got {self.max_drop}")
        ordered = tuple(name for name in PRECISIONS if name == FP32 or name in self.precisions)
        object.__setattr__(self, "precisions", ordered)
        for field in ("images", "calibration"):
            paths = tuple(Path(path).expanduser() for path in getattr(self, field))
            object.__setattr__(self, field, paths)
