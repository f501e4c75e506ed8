"""What a user types: fit, look, evaluate, export. Everything else is imported from its room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from edgead.data import open_category
from edgead.evaluation.evaluation import CategoryReport
from edgead.evaluation.evaluation import evaluate as evaluate_category
from edgead.export.exporting import export_bundle
from edgead.export.options import CPU, FP16, FP32, TRT, ExportKeywords
from edgead.export.parity.gate import ExportReport
from edgead.fitting import FitConfig, FitOptions
from edgead.fitting import fit as fit_model
from edgead.model.model import TrainedModel
from edgead.model.model import load_model as load_directory
from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import find_images, read_image
from edgead.runtime.inspection.judged import JudgedResult
from edgead.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Unpack

Image = str | Path | NDArray[np.uint8]


class Model(TrainedModel):
    """A fitted detector: look at it with `predict`, measure it with `evaluate`, send it to a device with `export`.

    Example:
        >>> model = edgead.fit("data/screw")
        >>> model.predict("data/screw/test/scratch/000.png").save("scratch.png")
        >>> print(model.evaluate("data/screw").image_auroc.value)
        >>> model.export("screw.edgead", fp16=True)
    """

    @overload
    def predict(self, images: NDArray[np.uint8]) -> JudgedResult: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: str | Path) -> JudgedResult | list[JudgedResult]: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Iterable[Image]) -> list[JudgedResult]: ...

    def predict(self, images: Image | Iterable[Image]) -> JudgedResult | list[JudgedResult]:
        """Judge images as the camera loop would.

        Args:
            images: an image ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey, the path of one, a folder, or several of
                these. ``~`` is the home folder.

        Returns:
            One result for one image, else a list in order (a folder's by relative path); each with its image, so that
            ``result.heatmap()`` and ``result.save("x.png")`` work. An image that cannot be judged is `NOT_INSPECTED`.

        Raises:
            DataError: a path is missing, a folder holds no image, or a file is no readable image.

        Example:
            >>> model.predict("data/screw/test/good/000.png").decision
        """
        single = isinstance(images, np.ndarray) or (
            isinstance(images, str | Path) and not Path(images).expanduser().is_dir()
        )
        given = [images] if isinstance(images, np.ndarray | str | Path) else list(images)
        with self.inspector() as inspect:
            found = [inspect(image) for one in given for image in _load(one, self.card.bits)]
        return found[0] if single else found

    def evaluate(
        self, folder: str | Path, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> CategoryReport:
        """Judge every test image of a category and compare with its labels.

        Args:
            folder: with ``test/good`` and ``test/<defect>``, and masks in ``ground_truth`` where there are any.
            seed: of the bootstrap intervals; progress: called with (images done, images in all).

        Raises:
            DataError: no normal or no defective test image, or an unreadable one.

        Example:
            >>> report = model.evaluate("data/screw")
            >>> report.decisions.escapes, report.decisions.false_alarms
        """
        category = open_category(Path(folder).expanduser(), need_test=True)
        with self.inspector() as inspect:
            return evaluate_category(inspect, category, seed=seed, progress=progress)

    def export(
        self,
        path: str | Path,
        *,
        fp16: bool = False,
        int8: bool = False,
        progress: Progress | None = None,
        **options: Unpack[ExportKeywords],
    ) -> ExportReport:
        """Write one bundle for every device, and prove on real images that it decides the same.

        Args:
            path: ends in ``.edgead``; replaced at the end or left as it was. Its stem becomes the bundle's name.
            fp16, int8: add graphs of these precisions, each with its own threshold and proof.
            progress: called with ``(stage, done, total)``.
            options: fields of `edgead.export.options.ExportOptions`, such as ``images=["data/screw/test"]``.

        Raises:
            ParityError: a decision changed, or a score moved too far; nothing was written.
            ConfigError, DataError, BundleError: wrong arguments, unreadable image, unwritable path.

        Example:
            >>> report = model.export("screw.edgead", int8=True)
            >>> report.passed
            True
        """
        if (fp16 or int8) and "precisions" in options:
            raise ConfigError("give fp16 and int8, or precisions, not both")
        if "precisions" not in options:
            options["precisions"] = [FP32, *([FP16] if fp16 else []), *([TRT, CPU] if int8 else [])]
        return export_bundle(self.exportable(Path(path).stem), path, progress=progress, **options)


def fit(
    categories: str | Path | Sequence[str | Path],
    config: FitConfig | None = None,
    *,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    **options: Unpack[FitOptions],
) -> Model:
    """Fit a detector on normal images and set its threshold from them; no test image is read.

    Args:
        categories: one category folder (MVTec or LOCO layout), a plain folder of normal images, or a CSV list;
            several for a detector that pools categories (``dfc``). ``~`` is the home folder.
        config: how; None: the defaults of `FitConfig`.
        checkpoint: file from which an interrupted training of a learned detector continues; None: none.
        progress: called with ``(stage, done, total)``.
        options: fields of `FitConfig`, such as ``detector="padim"``, which count more than ``config``.

    Raises:
        ConfigError, DataError: what is wrong and what to do, in one line.

    Example:
        >>> model = edgead.fit("data/screw", detector="patchcore", size=256)
        >>> print(model.threshold.explain())
    """
    return _as_model(fit_model(categories, config, checkpoint=checkpoint, progress=progress, **options))


def load_model(path: str | Path) -> Model:
    """Load what ``edgead fit -o`` or `Model.save` wrote.

    Args:
        path: a model directory. ``~`` is the home folder.

    Raises:
        BundleError: no model there, one from another version, or a damaged one.

    Example:
        >>> model = edgead.load_model("screw.model")
    """
    return _as_model(load_directory(Path(path).expanduser()))


def _as_model(trained: TrainedModel) -> Model:
    return Model(**{field.name: getattr(trained, field.name) for field in fields(TrainedModel)})


def _load(image: Image, bits: int) -> list[NDArray[np.uint8]]:
    return [image] if isinstance(image, np.ndarray) else [read_image(file, bits) for file in find_images([image])]
