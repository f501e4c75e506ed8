"""The normal images of a fit: read at network size pass after pass, and a few of them kept in the model."""

from __future__ import annotations

import io
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgead.data import Category, Sample, load_views
from edgead.data.survey import Survey, survey
from edgead.probes import SMALLEST_SIDE, STRUCTURAL, plant_in_region
from edgead.runtime.bundle.manifest_schema import NormalsSection
from edgead.runtime.bundle.reference_names import ReferenceName
from edgead.runtime.decision.baseline import Normals, picture_signals
from edgead.runtime.decision.known_images import fingerprint, pack_known
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.view import View
from edgead.runtime.progress import Progress, StepProgress, silent

REFERENCE_IMAGES = 4
CALIBRATION_IMAGES = 16
_SHIFT = 0.02  # of the longer side
_TURN = 1.0  # degrees
_KEPT_BYTES = 512 << 20
_PLANTING = 16  # seeds that are tried for a probe that does not lie in what is ignored


# Of an image of any size; nothing is made at this size.
_WHOLE = View(SMALLEST_SIDE, SMALLEST_SIDE)


class TrainingImages:
    """The good images of a category at network size; how they look is measured in the first pass.

    Of few images the pixels are kept after the first pass, of more they are read anew in each.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        view: View,
        signals: dict[Path, dict[str, float]] | None = None,
        known: dict[Path, bytes] | None = None,
    ) -> None:
        self._samples = samples
        self._view = view
        self._tiles = 1 if view.tiles is None else view.tiles.count
        self._signals = {} if signals is None else signals
        self._known = {} if known is None else known
        self._kept: list[NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self._samples) * self._tiles

    def select(self, indices: Sequence[int]) -> TrainingImages:
        tiles = self._tiles
        pictures = [index // tiles for index in indices[::tiles]]
        if list(indices) != [picture * tiles + tile for picture in pictures for tile in range(tiles)]:
            raise ConfigError("tiles of one picture are not told apart")
        chosen = [self._samples[picture] for picture in pictures]
        return TrainingImages(chosen, self._view, self._signals, self._known)

    def survey(
        self, counts: Sequence[int], progress: Progress = silent, stage: str = "looking at the images"
    ) -> list[Survey]:
        """Look at all images once for copies and odd ones, at each category's ``counts`` images by themselves."""
        sizes = [_size(sample.path) for sample in self._samples]
        found, first = [], 0
        with closing(self._pictures()) as decoded:
            pictures = _counted(decoded, len(sizes), partial(progress, stage))
            for count in counts:
                found.append(survey(islice(pictures, count), sizes[first : first + count]))
                first += count
            next(pictures, None)  # past the end, which keeps the pixels
        return found

    def _pictures(self) -> Generator[NDArray[np.uint8], None, None]:
        """Yield each image at network size, its tiles below each other."""
        if self._kept is not None:
            yield from self._kept
            return
        pixels = len(self) * self._view.height * self._view.width * 3
        kept: list[NDArray[np.uint8]] | None = [] if pixels <= _KEPT_BYTES else None
        with closing(load_views(self._samples, self._view)) as images:
            for image in images:
                if kept is not None:
                    kept.append(image)
                yield image
        self._kept = kept

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        held: list[NDArray[np.uint8]] = []
        shape = -1, self._view.height, self._view.width, 3
        with closing(self._pictures()) as images:
            for sample, image in zip(self._samples, images, strict=True):
                if sample.path not in self._signals:
                    self._signals[sample.path] = picture_signals(image)
                    self._known[sample.path] = fingerprint(image)
                for one in image.reshape(shape):
                    held.append(one)
                    if len(held) == size:
                        yield np.stack(held)
                        held = []
        if held:
            yield np.stack(held)

    def known(self) -> str:
        """Return by what these images are recognised, once they were read."""
        return pack_known(self._known[sample.path] for sample in self._samples)

    def normals(
        self, indices: Sequence[int] | None, scores: NDArray[np.float64], levels: NDArray[np.float64]
    ) -> NormalsSection:
        """Return what the drift watch compares with, of images that were read before.

        Args:
            indices: of the images whose light and focus count; None: of all.
            scores, levels: of those that were judged, which may be fewer.
        """
        chosen = self._samples if indices is None else [self._samples[index] for index in indices]
        pictures = [self._signals[sample.path] for sample in chosen]
        values = {name: [picture[name] for picture in pictures] for name in pictures[0]}
        return NormalsSection.from_normals(Normals.of({"score": scores, "level": levels, **values}))


def _counted(
    images: Iterable[NDArray[np.uint8]], total: int, step: StepProgress
) -> Generator[NDArray[np.uint8], None, None]:
    step(0, total)
    for done, image in enumerate(images, 1):
        yield image
        step(done, total)


def _size(path: Path) -> tuple[int, int]:
    """Return the height and width that a file claims; ``(0, 0)`` where it is unreadable, which reading it explains."""
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except Exception:  # noqa: BLE001 - Pillow raises a dozen types for damaged files
        return 0, 0


@dataclass(frozen=True, slots=True)
class KeptImages:
    """A few good images of a category that a model keeps, and copies of them with planted defects.

    Attributes:
        seed: chooses the images, and plants the defects.
        view: what of an image is judged.
        prefix: of the images' names.
        seen: whether the model is fitted on all images; these are moved a little then, see `second_shot`. A detector
            that holds images out holds out the first of the same permutation.
    """

    category: Category
    seed: int
    view: View = _WHOLE
    prefix: str = ""
    seen: bool = True

    def references(self) -> tuple[tuple[str, bytes], ...]:
        """Return PNGs of `REFERENCE_IMAGES` images at native size, and of the same with planted defects."""
        chosen = np.random.default_rng(self.seed).permutation(len(self.category.train))[:REFERENCE_IMAGES]
        references = []
        for number, index in enumerate(sorted(chosen)):
            image = self._read(index, number)
            label, kind = f"{self.prefix}{number}", STRUCTURAL[number % len(STRUCTURAL)]
            references.append((ReferenceName.normal(label).name, encode_png(image)))
            planted = _plant(image, self.view, kind, self.seed + number)
            references.append((ReferenceName.planted(label, kind).name, encode_png(planted)))
        return tuple(references)

    def calibration(self, view: View) -> tuple[tuple[str, bytes], ...]:
        """Return PNGs of `CALIBRATION_IMAGES` images as a network sees them, and of every second with a planted defect.

        They are others than the references' where there are enough.
        """

        def prepared(image: NDArray[np.uint8]) -> bytes:
            return encode_png(view.prepare(image))

        order = np.random.default_rng(self.seed).permutation(len(self.category.train))
        chosen = np.roll(order, -REFERENCE_IMAGES)[:CALIBRATION_IMAGES]
        kept = []
        for number, index in enumerate(sorted(chosen)):
            image = self._read(index, REFERENCE_IMAGES + number)
            label = f"{self.prefix}{number:02}"
            kept.append((ReferenceName.normal(label).name, prepared(image)))
            if number % 2:
                kind = STRUCTURAL[number // 2 % len(STRUCTURAL)]
                planted = _plant(image, self.view, kind, self.seed + number)
                kept.append((ReferenceName.planted(label, kind).name, prepared(planted)))
        return tuple(kept)

    def _read(self, index: int, number: int) -> NDArray[np.uint8]:
        sample = self.category.train[index]
        path, image = sample.path, read_image(sample.path, sample.bits)
        if min(image.shape[:2]) < SMALLEST_SIDE:
            raise DataError(
                f"{path} has {image.shape[1]}x{image.shape[0]} pixels, and images of at least {SMALLEST_SIDE} a side "
                "are inspected; scale them up, or put narrow strips below each other"
            )
        if not self.seen:
            return image
        moved = second_shot(image, self.seed + number)
        # Moved towards the border, a part that was only just found may not be found.
        return moved if _shows_part(moved, self.view) else image


def _shows_part(image: NDArray[np.uint8], view: View) -> bool:
    if view.align is not None:
        try:
            view.prepare(image)
        except PartNotFound:
            return False
    return True


def second_shot(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return an image ``(h, w, 3)`` uint8 as if the part had been photographed again, a little moved and turned.

    A model knows the image it was fitted on: with fewer images than dimensions its Mahalanobis distances are near zero
    there, where no other image lies and where INT8 moves scores many times as far as on test images (PaDiM on metal
    plate, docs/precision.md). What it makes of the moved one is what it makes of a camera's pictures. The picture
    is shifted by up to 2 % of its longer side and turned by up to 1 degree, mirrored at its border.
    """
    random = np.random.default_rng(seed)
    height, width = image.shape[:2]
    right, down = random.uniform(-_SHIFT, _SHIFT, 2) * max(height, width)
    angle = random.uniform(-_TURN, _TURN)
    margin = math.ceil(max(height, width) * (_SHIFT + math.radians(_TURN)))
    padded = Image.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect"))
    turned = padded.rotate(angle, Image.Resampling.BICUBIC, translate=(round(right), round(down)))
    return np.asarray(turned.crop((margin, margin, margin + width, margin + height)))


def _plant(image: NDArray[np.uint8], view: View, kind: str, seed: int) -> NDArray[np.uint8]:
    """Return an image with a defect in what is judged.

    Another seed is tried where it lies in what is ignored or too far from the part, or the part is not found with it.
    """
    region, again = view.region, view.align is not None or (view.region is not None and view.region.ignore is not None)
    judged = view.judged(image)
    for attempt in (*range(_PLANTING - 1), _PLANTING):
        try:
            planted, mask = plant_in_region(image, region, kind, seed + attempt * 1000)
        except DataError:
            if not again or attempt == _PLANTING:
                raise
        else:
            if judged is None or ((mask & judged).any() and _shows_part(planted, view)):
                return planted
    raise DataError(f"no '{kind}' could be planted on the part so that it is found still; fit without --align")


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return an image ``(h, w, 3)`` uint8 RGB as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
