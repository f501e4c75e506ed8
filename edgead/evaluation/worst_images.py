"""The image that each reduced precision of a bundle moved most, as FP32 and that precision see it."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest_schema import ParityRecord
from edgead.runtime.errors import BackendUnavailable, DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.heatmap import overlay
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector

THUMBNAIL = 256  # pixels of the longer side
_JPEG_QUALITY = 82
_RUNTIME = "onnxruntime"  # executes every precision


@dataclass(frozen=True, slots=True)
class Worst:
    """The image with the largest score difference of a precision in its parity record.

    Attributes:
        name: as in the record.
        image, before, after: JPEG; the image, and the heat maps of FP32 and of the precision.
        scores, thresholds, decisions: of FP32 and of the precision.
    """

    precision: str
    name: str
    photo: bytes
    before: bytes
    after: bytes
    scores: tuple[float, float]
    thresholds: tuple[float, float]
    decisions: tuple[str, str]


def worst_images(bundle: Path, files: Sequence[Path]) -> tuple[Worst, ...]:
    """Return one for each reduced precision whose worst image is found, among ``files`` or the bundle's references.

    None are returned without ONNX Runtime. Raises `BundleError` for a damaged bundle.
    """
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        references = dict(opened.references())
    found = []
    for precision, section in manifest.precisions.items():
        name = _worst_name(manifest.parity.get(section.file, {}))
        if precision == "fp32" or name is None:
            continue
        # References are pictures already; files are read as the bundle reads them.
        kept, bits = references.get(name), manifest.input.bits
        data = kept or _read(name, files)
        if data is not None:
            pixels = decode_image(data, name) if kept else decode_image(data, name, bits)
            one = _compare(bundle, precision, name, pixels)
            found += [one] if one is not None else []
    return tuple(found)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image ``(H, W, 3)`` at the size of a page's pictures."""
    rows, columns = pixels.shape[:2]
    scale = min(1.0, THUMBNAIL / max(rows, columns))
    return resize(pixels, max(1, round(rows * scale)), max(1, round(columns * scale)))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image ``(H, W, 3)`` as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return stream.getvalue()


def _worst_name(records: Mapping[str, ParityRecord]) -> str | None:
    ranked = sorted(records.values(), key=lambda record: record.max_score_difference)
    return ranked[-1].worst_image if ranked else None


def _read(name: str, files: Sequence[Path]) -> bytes | None:
    """Return the content of the file whose last parts are ``name``."""
    parts = tuple(name.split("/"))
    path = next((file for file in files if file.parts[-len(parts) :] == parts), None)
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error


def _compare(bundle: Path, precision: str, name: str, pixels: NDArray[np.uint8]) -> Worst | None:
    results: list[Result] = []
    for one in ("fp32", precision):
        try:
            with Inspector.open(bundle, backend=_RUNTIME, precision=one) as inspector:
                results.append(inspector(Frame(pixels, 0, time.monotonic_ns(), name)))
        except BackendUnavailable:
            return None
    small = thumbnail(pixels)
    before, after = results
    return Worst(
        precision=precision,
        name=name,
        photo=jpeg(small),
        before=jpeg(overlay(small, before)),
        after=jpeg(overlay(small, after)),
        scores=(before.score, after.score),
        thresholds=(before.threshold, after.threshold),
        decisions=(before.decision.value, after.decision.value),
    )
