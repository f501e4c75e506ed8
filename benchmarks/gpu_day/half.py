"""Stage `half`: is the simulated FP16 what a GPU computes in half?

Each packed bundle's FP16 graph runs in half on the GPU (`torch_graph`), as simulated (`simulate_fp16`) and, the FP32
graph, in FP32, on the test images of its category. The simulation is right if the GPU is about as far from FP32 as it
said; decisions that change are counted as the gate counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results
from benchmarks.gpu_day.torch_graph import TorchGraph
from edgead.data import Sample, open_category
from edgead.data.loading import load_views
from edgead.export.precision.simulate_fp16 import SimulatedFp16
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import ConfigError

_DRY_IMAGES = 2
# Sums of half products in half: what a library may do where it is allowed, and an engine must not.
MODES = {"half": False, "half, reduced sums": True}


def run(options: Options, results: Results) -> None:
    """Compare each bundle that has an FP16 graph."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for path in options.bundles[:1] if options.dry else options.bundles:
        results.do(path.stem, partial(compare, path, options))


def test_images(bundle: Bundle, path: Path, options: Options) -> NDArray[np.uint8]:
    """Return the test images of a bundle's category at network size; the bundle is called after it."""
    folder = category_of(path, options)
    samples = pick(open_category(folder, need_test=True).test, options.dry)
    return np.stack(list(load_views(samples, bundle.view(), workers=4)))


def pick(samples: Sequence[Sample], dry: bool) -> list[Sample]:
    """Return the samples that are judged: all, in a dry run two."""
    if not dry:
        return list(samples)
    return [samples[round(place)] for place in np.linspace(0, len(samples) - 1, _DRY_IMAGES)]


def category_of(bundle: Path, options: Options) -> Path:
    """Return the packed category that a bundle was fitted on, ``CATEGORY-DETECTOR.edgead``."""
    folder = None if options.images is None else options.images / bundle.stem.rpartition("-")[0]
    if folder is None or not folder.is_dir():
        raise ConfigError(f"there is no category of {bundle.name} in the kit; pack writes CATEGORY-DETECTOR.edgead")
    return folder


def compare(path: Path, options: Options) -> dict[str, Any]:
    """Return differences and decisions of one bundle."""
    place = "cpu" if options.dry else "cuda"
    with Bundle.open(path) as bundle:
        images = test_images(bundle, path, options)
        limits = {name: bundle.manifest.limits(name).value for name in ("fp32", "fp16")}
        with bundle.model_files("fp32", native_code=False) as file:
            wide = TorchGraph(file, place).run(images)
        found: dict[str, Any] = {"images": len(images)}
        with bundle.model_files("fp16", native_code=False) as file:
            simulated = SimulatedFp16(file)
            inference = simulated.run(images)
            closest = min(simulated.ranges, key=lambda one: one.margin)
            found["least margin"] = {"tensor": closest.tensor, "margin": round(closest.margin, 2)}
            graph = TorchGraph(file, place)
            runs = {"simulated": (np.asarray(inference.score), np.asarray(inference.map))}
            for name, reduced in list(MODES.items())[: 1 if options.dry else None]:  # a CPU is slow in half
                torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = reduced
                runs[name] = graph.run(images)
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
        for name, scored in runs.items():
            found[name] = {
                "beside fp32": difference(wide, scored),
                "beside simulated": difference(runs["simulated"], scored),
                "changed decisions": changed(wide[0], limits["fp32"], scored[0], limits["fp16"]),
            }
        beside = {name: found[name]["beside fp32"]["p99_score"] for name in ("half", "simulated")}
        # Above 1 the simulation is too kind.
        found["half over simulated, p99"] = beside["half"] / beside["simulated"] if beside["simulated"] else None
    return found


def difference(one: tuple[NDArray[Any], NDArray[Any]], other: tuple[NDArray[Any], NDArray[Any]]) -> dict[str, Any]:
    """Return the differences of scores and maps, and how many scores are not finite."""
    scores, maps = np.abs(one[0] - other[0]), np.abs(one[1] - other[1])
    return {
        "max_score": float(scores.max()),
        "p99_score": float(np.percentile(scores, 99)),
        "max_map": float(maps.max()),
        "relative": float((scores / np.maximum(np.abs(one[0]), 1e-12)).max()),
        "not_finite": int((~np.isfinite(other[0])).sum()),
    }


def changed(
    wide: NDArray[Any], wide_threshold: float, half: NDArray[Any], half_threshold: float
) -> dict[str, int | float]:
    """Return flips and borderline changes; epsilon is the p99 difference, as the gate of `edgead export` has it."""
    epsilon = float(np.percentile(np.abs(wide - half), 99))
    other = (wide > wide_threshold) != (half > half_threshold)
    near = (np.abs(wide - wide_threshold) <= epsilon) | (np.abs(half - half_threshold) <= epsilon)
    return {"flips": int((other & ~near).sum()), "borderline": int((other & near).sum()), "epsilon": epsilon}
