"""From folders of good photos to a trained model: `fit` is what ``edgead fit`` runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgead.backbones import DEFAULT_BACKBONE, BackboneSpec, build_backbone, describe_backbone
from edgead.coreset import Progress, silent
from edgead.data import Category, Sample, load_images, open_category
from edgead.detectors import create_detector
from edgead.detectors.base import fit_closed_form
from edgead.features import build_extractor
from edgead.model import TrainedModel, check_size, make_card
from edgead.probes import STRUCTURAL, plant
from edgead.runtime.decode import read_image
from edgead.runtime.errors import ConfigError
from edgead.runtime.threshold import DEFAULT_FALSE_ALARM_RATE, calibrate

DEFAULT_SIZE = 256
REFERENCE_IMAGES = 4


def fit(
    categories: Sequence[str | Path],
    *,
    detector: str = "patchcore",
    settings: Mapping[str, Any] | None = None,
    backbone: str = DEFAULT_BACKBONE,
    size: int | tuple[int, int] = DEFAULT_SIZE,
    seed: int = 0,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    progress: Progress = silent,
) -> TrainedModel:
    """Fit a detector on good images and set its threshold from them; no test image is read.

    Args:
        categories: one category folder (MVTec or LOCO layout), plain folder of good images, or CSV list.
        detector, settings: registered name and its settings.
        backbone: ``NAME`` or ``NAME@WEIGHTS``, see `BackboneSpec.parse`.
        size: network size in pixels, a side or ``(height, width)``, multiples of 32.
        seed: decides every random choice.
        false_alarm_rate: share of good parts that may be rejected.
        progress: called with ``(stage, done, total)``.

    Raises:
        ConfigError, DataError: what is wrong and what to do, in one line.
    """
    height, width = check_size(*((size, size) if isinstance(size, int) else size))
    method = create_detector(detector, settings)
    if len(categories) != 1:
        raise ConfigError(f"detector '{detector}' takes one category, got {len(categories)}; fit one model for each")
    if not 0.0 < false_alarm_rate < 1.0:
        raise ConfigError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
    category = open_category(categories[0], train_only=True)
    spec = BackboneSpec.parse(backbone)
    network = build_backbone(spec, (height, width))
    info = describe_backbone(spec, network)
    images = _Normals(category.train, height, width)
    fitted = fit_closed_form(method, images, build_extractor(network, (height, width)), seed=seed, progress=progress)
    threshold = calibrate(fitted.normal_scores, false_alarm_rate)
    card = make_card(
        detector=method.name,
        settings=method.settings,
        backbone=spec,
        backbone_info=info,
        size=(height, width),
        grid=fitted.module.extractor.grid,
        seed=seed,
        threshold=threshold,
        normal_scores=fitted.normal_scores.tolist(),
        categories={category.name: len(category.train)},
        fingerprint={category.name: category.fingerprint("train")},
    )
    return TrainedModel(card, fitted.module, make_references(category, seed))


class _Normals:
    """The good images of a category at network size, read anew in each pass."""

    def __init__(self, samples: Sequence[Sample], height: int, width: int) -> None:
        self._samples = samples
        self._height = height
        self._width = width

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        held: list[NDArray[np.uint8]] = []
        with closing(load_images(self._samples, self._height, self._width)) as images:
            for image in images:
                held.append(image)
                if len(held) == size:
                    yield np.stack(held)
                    held = []
        if held:
            yield np.stack(held)


def make_references(category: Category, seed: int, count: int = REFERENCE_IMAGES) -> tuple[tuple[str, bytes], ...]:
    """Return PNGs of ``count`` good images at native size, and of the same images with planted defects."""
    chosen = np.random.default_rng(seed).permutation(len(category.train))[:count]
    references = []
    for number, index in enumerate(sorted(chosen)):
        image = read_image(category.train[index].path)
        kind = STRUCTURAL[number % len(STRUCTURAL)]
        references.append((f"good-{number}.png", _png(image)))
        references.append((f"probe-{number}-{kind}.png", _png(plant(image, kind, seed + number)[0])))
    return tuple(references)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
