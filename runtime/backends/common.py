"""What every backend does alike: quiet imports, checks of what goes in and comes out, batches of another size."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError, missing_extra
from edgead.runtime.frame import Inference

INPUT = "images"
OUTPUTS = ("score", "map")
# This optimiser of ONNX Runtime quantises float weights between two 8-bit tensors, one scale for all channels (seen in
# 1.31): the very layers that an export kept in FP32 because INT8 cost most there. Versions without it ignore the name.
UNWANTED_OPTIMISERS = ["WeightBiasQuantization"]


def load_onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry; raises `BackendUnavailable` where it is missing or broken.

    Its newer Linux builds (seen in 1.31) write an identifier into the home folder and report to Microsoft from the
    import on; a camera on a factory network must do neither. A value that the environment already holds is respected.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise not_importable("onnxruntime", "cpu", error) from error
    # Older versions read no variable; this also covers a process that had imported it before.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry; raises `BackendUnavailable` where it is missing or broken.

    Its ``__init__`` imports the model converter, which starts a thread, writes an identifier into the home folder and
    reports the import to Google Analytics. Where the telemetry package is missing it uses a stub of its own, so the
    package is hidden while OpenVINO is imported for the first time.
    """
    hidden = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise not_importable("openvino", "openvino", error) from error
    finally:
        if hidden:
            sys.modules.pop("openvino_telemetry", None)
    return openvino


@cache
def openvino_core() -> Any:
    """Return the process's one OpenVINO core; raises as `load_openvino`.

    Each core gives its thread a stack for signal handlers and takes it away at its end, without asking whether another
    core still counts on it (seen with 2026.4): after two that overlapped, the next Ctrl-C is a segmentation fault.
    """
    return load_openvino().Core()


def not_importable(package: str, extra: str, error: ImportError) -> BackendUnavailable:
    """Return the error for a package that is missing, or there and broken."""
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return BackendUnavailable(missing_extra(package, extra))
    fix = f"run: pip install --force-reinstall 'edgead[{extra}]'"
    return BackendUnavailable(f"{package} is installed but cannot be loaded ({first_line(error)}); {fix}")


def check_settings(threads: int | None, batch: int) -> None:
    """Raise `ConfigError` for a number of threads below 1 or a negative batch size."""
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}; omit it for the library's own choice")
    if batch < 0:
        raise ConfigError(f"batch must be at least 1, or 0 for any size, got {batch}")


def check_graph(
    model: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shape: Sequence[int | None],
    wanted: Sequence[str] = OUTPUTS,
) -> None:
    """Raise `BackendError` unless the graph keeps the contract ``images (N, h, w, 3) -> wanted``.

    Args:
        model: file name, for messages.
        inputs, outputs: names of the graph's inputs and outputs.
        shape: shape of the first input, None where an axis is dynamic.
        wanted: outputs that will be asked for.
    """
    if list(inputs) != [INPUT] or not set(wanted) <= set(outputs):
        raise BackendError(
            f"{model} maps {', '.join(inputs)} to {', '.join(outputs)}; "
            f"this graph must map {INPUT} to {' and '.join(wanted)}"
        )
    if len(shape) != 4 or shape[3] != 3 or None in shape[1:3]:
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise BackendError(f"{model} takes images of shape ({shown}); a scoring graph takes (N, h, w, 3)")


def check_images(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return ``images`` C-contiguous; raises `BackendError` unless they are ``(N >= 1, height, width, 3)`` uint8."""
    if not isinstance(images, np.ndarray):
        raise BackendError(f"the network takes a numpy array, got {type(images).__name__}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3) or not len(images):
        raise BackendError(
            f"the network takes (N, {height}, {width}, 3) uint8 with N >= 1, got {images.shape} {images.dtype}"
        )
    return np.ascontiguousarray(images)


def run_batches(
    images: NDArray[np.uint8], batch: int, run: Callable[[NDArray[np.uint8]], Sequence[Any]]
) -> list[NDArray[np.float32]]:
    """Run any number of images through a network compiled for ``batch`` (0: any size); returns its outputs.

    A last, smaller batch is filled up with copies of its last image, whose results are dropped: images are scored
    independently of each other. Raises `BackendError` where an output is not float32 with one entry an image.
    """
    step = batch or len(images)
    parts: list[list[NDArray[np.float32]]] = []
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        count = len(chunk)
        if count < step:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], step - count, axis=0)])
        outputs = run(chunk)
        for values in outputs:
            if values.dtype != np.float32 or values.ndim < 1 or len(values) != step:
                raise BackendError(
                    f"the network gave {values.shape} {values.dtype} for {step} images; "
                    "a graph gives one float32 entry an image"
                )
        parts.append([values[:count] for values in outputs])
    if len(parts) == 1:
        return parts[0]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def as_inference(outputs: Sequence[NDArray[np.float32]]) -> Inference:
    """Return score and map; raises `BackendError` unless they are ``(N,)`` and ``(N, gh, gw)``."""
    score, grid = outputs
    if score.ndim != 1 or grid.ndim != 3:
        raise BackendError(
            f"the network gave score {score.shape} and map {grid.shape}; a scoring graph gives (N,) and (N, gh, gw)"
        )
    return Inference(score, grid)


def first_line(error: Exception) -> str:
    """Return the line of a library's message that says what happened, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO opens with the places in its source through which the error came.
    telling = [line for line in lines if not line.startswith("Exception from ")] or lines
    return telling[0][:300] if telling else type(error).__name__
