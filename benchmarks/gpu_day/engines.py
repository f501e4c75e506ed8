"""Stage `engines`: does TensorRT-RTX take this card, and are its engines right and fast?

Each packed bundle is built, checked and timed by the command line, as a user does it, each command in a process of its
own, for some of what a vendor's library does wrong ends the process. Scores on all test images of the category are held
against the same precision simulated on the CPU. RTX has no plugins, so that scoring nodes are built from their bodies.
In a dry run ONNX Runtime stands for the engines, and one is built where the library is here, for another GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_day.half import category_of, changed, difference, test_images
from benchmarks.gpu_day.machine import ROOT
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results
from edgead.export.precision.simulate_fp16 import SimulatedFp16
from edgead.export.precision.simulate_int8 import SimulatedInt8
from edgead.runtime.backends import Backend
from edgead.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import ConfigError

PRECISIONS = ("fp32", "fp16", "int8-trt")
_LIMIT_S = 100  # of one command
_FRAMES = 1000


def run(options: Options, results: Results) -> None:
    """Ask the library, then build, check, compare and time each bundle."""
    backend = "onnxruntime" if options.dry else "tensorrt-rtx"
    os.environ["EDGEAD_ENGINE_CACHE"] = str(options.out / "engines")
    results.do("library", partial(library, options.dry))
    for path in options.bundles[:1] if options.dry else options.bundles:
        results.do(f"{path.stem}: build", partial(build, path, options.dry))
        with Bundle.open(path) as bundle:
            precisions = [name for name in PRECISIONS if name in bundle.manifest.precisions]
        for precision in precisions[:1] if options.dry else precisions:
            name = f"{path.stem} {precision}"
            results.do(f"{name}: check", partial(check, path, backend, precision))
            results.do(f"{name}: scores", partial(compare, path, backend, precision, options))
            results.do(f"{name}: latency", partial(latency, path, backend, precision, options.dry))


def library(dry: bool) -> dict[str, Any]:
    """Return what the library says of itself and of this card."""
    if find_spec("tensorrt_rtx") is None:
        if dry:
            return {"found": False}
        raise ConfigError("tensorrt_rtx cannot be imported; was the kit unpacked, and is its site on the path?")
    from edgead.export.engines.isolation import ask_library

    found = ask_library({"action": "describe", "target": "tensorrt-rtx"}, doing="starting", timeout_s=60)
    return {"found": True, **found}


def build(path: Path, dry: bool) -> Any:
    """Build all precisions, for this GPU where the library knows it, else the portable engine."""
    if dry and find_spec("tensorrt_rtx") is None:
        return "not built: the library is not here"
    target = ["--target", "tensorrt-rtx", *(["--compute-capability", "8.6", "--precision", "fp32"] if dry else [])]
    return edgead("build", str(path), *target)


def check(path: Path, backend: str, precision: str) -> Any:
    """Replay the references on the device."""
    return edgead("check", str(path), "--backend", backend, "--precision", precision)


def latency(path: Path, backend: str, precision: str, dry: bool) -> Any:
    """Time it from camera to decision: one frame after the other, and 30 a second."""
    frames = 3 if dry else _FRAMES
    asked = ["bench", str(path), "--backend", backend, "--precision", precision]
    rated = ["--rate", "30", "--frames", str(frames if dry else 300)]
    return {"one after the other": edgead(*asked, "--frames", str(frames)), "30 fps": edgead(*asked, *rated)}


def compare(path: Path, backend: str, precision: str, options: Options) -> dict[str, Any]:
    """Compare the engine's scores and maps with the same precision simulated, and its decisions with FP32's."""
    scored = options.out / f"scores-{path.stem}-{precision}.npz"
    command = [sys.executable, "-m", "benchmarks.gpu_day.engine_scores", str(path), backend, precision]
    category = category_of(path, options)
    extra = ["--dry-run"] if options.dry else []
    _run([*command, str(category), str(scored), *extra])
    with np.load(scored) as found:
        device = found["score"], found["map"]
    with Bundle.open(path) as bundle:
        images = test_images(bundle, path, options)
        thresholds = [bundle.manifest.limits(name).value for name in ("fp32", precision)]
        wide = _simulate(bundle, "fp32", images)
        same = wide if precision == "fp32" else _simulate(bundle, precision, images)
    return {
        "images": len(images),
        "engine beside simulated": difference(same, device),
        "simulated beside fp32": difference(wide, same),
        "decisions beside fp32": changed(wide[0], thresholds[0], device[0], thresholds[1]),
    }


def _simulate(bundle: Bundle, precision: str, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    with bundle.model_files(precision, native_code=False) as file:
        backend: Backend
        if precision == "fp32":
            backend = OnnxRuntimeBackend(file)
        else:
            backend = SimulatedFp16(file) if precision == "fp16" else SimulatedInt8(file)
        found = backend.run(images)
    return np.asarray(found.score), np.asarray(found.map)


def edgead(*arguments: str) -> Any:
    """Run a command of edgead with ``--json`` and return what it printed; raises `ConfigError` with its message."""
    return json.loads(_run([sys.executable, "-m", "edgead", *arguments, "--json"]))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{' '.join(command[2:5])} did not end in {_LIMIT_S} s") from error
    if done.returncode:
        raise ConfigError(f"{' '.join(command[2:])} ends with {done.returncode}: {(done.stderr + done.stdout)[-1500:]}")
    return done.stdout
