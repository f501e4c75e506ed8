"""Ranges of activations on good images, by three methods, kept in a cache under the digest of what they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgead.runtime.backends.common import INPUT, first_line, load_onnxruntime
from edgead.runtime.errors import ConfigError, ExportError
from edgead.runtime.files import atomic_write

METHODS = ("min-max", "percentile", "entropy")
Ranges = Mapping[str, tuple[float, float]]

_NO_IMAGES = "INT8 needs good images to calibrate on; give some with --calibration DIR"
_FORMAT = 1  # of the cache; another way to compute a range gets another number
_log = logging.getLogger("edgead.export")

_BINS = 2048
_LEVELS = 128  # of magnitude in INT8
_PERCENTILE = 99.99
_SAMPLE = 100_000  # values of one tensor and image that enter its histogram; the range itself sees all


def activation_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: NDArray[np.uint8],
    *,
    cache: Path | None = None,
) -> dict[str, Ranges]:
    """Return method -> tensor -> (low, high), both finite, with low <= 0 <= high.

    *min-max* takes the extremes. *percentile* cuts off 0.01 % of the values on either side. *entropy* takes the
    magnitude above which clipping changes the distribution least (least Kullback-Leibler divergence of 128 levels from
    the histogram; Migacz, 8-bit Inference with TensorRT, GTC 2017).

    Args:
        model: FP32 graph with its weights.
        tensors: names of float tensors in it.
        images: ``(N, h, w, 3)`` uint8 at network size, N >= 1.
        cache: folder for results; a file that is there and whole is used, a damaged one is made anew, and where
            nothing can be written the cache is not used.

    Raises:
        ConfigError: there is no image.
        ExportError: a value is not finite, or ONNX Runtime fails.
    """
    if not len(images):
        raise ConfigError(_NO_IMAGES)
    tensors = list(dict.fromkeys(tensors))
    digest = _digest(model, tensors, images)
    files = {} if cache is None else {name: cache / f"{digest}-{name}.json" for name in METHODS}
    found = {name: _read(file, tensors) for name, file in files.items()}
    complete = {name: ranges for name, ranges in found.items() if ranges is not None}
    if len(complete) == len(METHODS):
        return complete
    measured = _measure(model, tensors, images)
    try:
        for name, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file, ExportError, durable=False) as stream:
                stream.write(json.dumps({"format": _FORMAT, "ranges": measured[name]}, sort_keys=True).encode())
    except (OSError, ExportError) as error:
        # The ranges are right all the same; only the next export takes as long.
        _log.warning("the cache of calibrated ranges is not used: %s", error)
    return measured


def tensor_values(
    model: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield tensor -> values on each image, as the FP32 graph gives them. Arguments and errors as above."""
    if not len(images):
        raise ConfigError(_NO_IMAGES)
    tensors = list(dict.fromkeys(tensors))
    session = _session(model, tensors)
    for image in images:
        yield dict(zip(tensors, _run(session, tensors, image), strict=True))


def _digest(model: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {tensors} {images.shape}".encode())
    digest.update(model.SerializeToString(deterministic=True))
    digest.update(np.ascontiguousarray(images).tobytes())
    return digest.hexdigest()


def _read(file: Path, tensors: Sequence[str]) -> Ranges | None:
    try:
        content = json.loads(file.read_text())
        ranges = {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = content.get("format") == _FORMAT and set(ranges) == set(tensors)
    finite = all(math.isfinite(low) and math.isfinite(high) and low <= 0 <= high for low, high in ranges.values())
    return ranges if whole and finite else None


def _measure(model: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8]) -> dict[str, Ranges]:
    session = _session(model, tensors)
    low, high = np.zeros(len(tensors)), np.zeros(len(tensors))
    for image in images:
        values = _run(session, tensors, image)
        low = np.minimum(low, [float(one.min()) for one in values])
        high = np.maximum(high, [float(one.max()) for one in values])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        worst = tensors[int(np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))[0])]
        raise ExportError(f"tensor '{worst}' is not finite on a calibration image; check the model in FP32 first")
    counts = np.zeros((len(tensors), _BINS), np.int64)
    for image in images:
        for index, one in enumerate(_run(session, tensors, image)):
            flat = one.ravel()
            # An odd step meets all columns of an image whose width is a power of two.
            flat = flat[:: max(1, flat.size // _SAMPLE) | 1]
            counts[index] += np.histogram(flat, _BINS, (low[index], max(high[index], low[index] + 1e-12)))[0]
    by_method: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in METHODS}
    for index, name in enumerate(tensors):
        whole = (float(low[index]), float(high[index]))
        by_method["min-max"][name] = whole
        by_method["percentile"][name] = _percentile(counts[index], *whole)
        by_method["entropy"][name] = _entropy(counts[index], *whole)
    return {name: dict(ranges) for name, ranges in by_method.items()}


def _session(model: onnx.ModelProto, tensors: Sequence[str]) -> Any:
    onnxruntime = load_onnxruntime()
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in tensors:
        if name != INPUT:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot calibrate this graph: {first_line(error)}") from error


def _run(session: Any, tensors: Sequence[str], image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    found: list[NDArray[np.float32]] = session.run(list(tensors), {INPUT: image[None]})
    return found


def _percentile(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    edges = np.linspace(low, high, _BINS + 1)
    share = np.cumsum(counts) / max(int(counts.sum()), 1)
    cut = 1.0 - _PERCENTILE / 100.0
    first = int(np.searchsorted(share, cut, side="right"))
    last = int(np.searchsorted(share, 1.0 - cut))
    return min(float(edges[min(first, _BINS - 1)]), 0.0), max(float(edges[min(last + 1, _BINS)]), 0.0)


def _entropy(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    largest = max(-low, high)
    if largest <= 0.0 or not counts.sum():
        return low, high
    centers = np.abs((np.linspace(low, high, _BINS + 1)[:-1] + np.linspace(low, high, _BINS + 1)[1:]) / 2)
    # The zeros of a rectifier cost nothing to represent, and would drown the rest.
    bins = np.minimum((centers / largest * _BINS).astype(int), _BINS - 1)
    magnitudes = np.asarray(np.bincount(bins, counts, minlength=_BINS), np.float64)
    magnitudes[0] = magnitudes[1]
    best, least = _BINS, math.inf
    for stop in range(_LEVELS, _BINS + 1, 16):
        divergence = _divergence(magnitudes, stop)
        if divergence < least:
            best, least = stop, divergence
    limit = largest * best / _BINS
    return max(low, -limit), min(high, limit)


def _divergence(magnitudes: NDArray[np.float64], stop: int) -> float:
    """Kullback-Leibler divergence of the first ``stop`` bins at 128 levels from themselves with the tail clipped in."""
    reference = magnitudes[:stop].astype(np.float64)
    present = reference > 0
    groups = np.arange(stop) * _LEVELS // stop
    total = np.bincount(groups, reference, minlength=_LEVELS)
    filled = np.bincount(groups, present, minlength=_LEVELS)
    candidate = np.where(present, (total / np.maximum(filled, 1))[groups], 0.0)
    reference[-1] += magnitudes[stop:].sum()
    if not candidate.sum() or not reference.sum():
        return math.inf
    reference /= reference.sum()
    candidate /= candidate.sum()
    # A bin that only the clipped tail filled is missing from the candidate; a small mass keeps the divergence finite.
    used = reference > 0
    return float((reference[used] * np.log(reference[used] / np.maximum(candidate[used], 1e-9))).sum())
