"""An anomalib model, ready for the export layer: module, threshold with its meaning, real images for the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgead.data.training_images import encode_png
from edgead.export.exportable import Exportable
from edgead.export.torch_backend import TorchBackend
from edgead.features.backbones import BackboneInfo, BackboneSpec, describe_backbone
from edgead.importing.checkpoint import read_checkpoint
from edgead.importing.model import AnomalibModel
from edgead.importing.scoring import scoring_module
from edgead.runtime.decision.baseline import Normals, map_level, picture_signals
from edgead.runtime.decision.threshold import DEFAULT_FALSE_ALARM_RATE, Threshold, calibrate
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import file_sha256
from edgead.runtime.imaging.decode import find_images, read_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.version import __version__

PROVENANCE_KEY = "imported"
REFERENCE_IMAGES = 8
_JUDGED = 64  # images that say what a good one scores, where no good parts are given
NOT_CALIBRATED = "imported from anomalib, not calibrated"


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported model and what is to be said about it.

    Attributes:
        exportable: for `edgead.export.exporting.export_bundle`.
        decision: how anomalib decided, as it goes into the manifest.
        remarks: sentences for the user.
    """

    exportable: Exportable
    decision: Mapping[str, Any]
    remarks: Sequence[str]


def import_anomalib(
    path: str | Path,
    name: str,
    *,
    images: Sequence[Path],
    calibration: Sequence[Path] = (),
    false_alarm_rate: float | None = None,
) -> Imported:
    """Rebuild an anomalib PatchCore or PaDiM as a scoring module that gives anomalib's raw scores.

    Args:
        path: a checkpoint (``.ckpt``) or the ONNX export of one (``.onnx``), both of anomalib 2.7.
        name: of the bundle.
        images: files or folders of real images; a few become the bundle's references.
        calibration: files or folders of good parts that the model has not seen: what the drift watch compares with,
            the scale of score differences, and the threshold where a rate is given.
        false_alarm_rate: sets the threshold from them in place of anomalib's.

    Raises:
        ConfigError, DataError: what is wrong with model, images or arguments, in one line; nothing of a file is run.
    """
    path = Path(path)
    if not images:
        raise ConfigError("an imported model brings no image to prove it with; give real ones with --images DIR")
    if false_alarm_rate is not None and not calibration:
        raise ConfigError("a false-alarm rate needs good parts that the model has not seen; give --calibration DIR")
    files = find_images(images)
    model = _read(path)
    module, grid = scoring_module(model)
    judged = _Judge(module, model)
    chosen = [files[index] for index in _evenly(len(files), REFERENCE_IMAGES)]
    references = [(f"image-{number}.png", encode_png(read_image(file))) for number, file in enumerate(chosen)]
    normals: dict[str, Normals] = {}
    own = model.decision.value
    if calibration:
        good = [judged(file) for file in find_images(calibration, normals=True)]
        scores = [one["score"] for one in good]
        normals[name] = Normals.of({signal: [one[signal] for one in good] for signal in good[0]})
        if false_alarm_rate is None and own is None:
            raise DataError(f"{path} has no threshold (it met no validation image); set one with --false-alarm-rate")
    else:
        if own is None:
            raise DataError(
                f"{path} has no threshold (it met no validation image); set one from good parts with "
                "--calibration DIR --false-alarm-rate 0.01"
            )
        scores = _good_scores([judged(files[index])["score"] for index in _evenly(len(files), _JUDGED)], own)
    threshold = _threshold(scores, own, false_alarm_rate)
    exportable = Exportable(
        name=name,
        module=module,
        height=model.preparation.height,
        width=model.preparation.width,
        grid=grid,
        threshold=threshold,
        normal_scores=scores,
        detector=f"anomalib-{model.kind}",
        settings=_settings(model),
        categories={name: 0},  # the file does not say how many images it was fitted on
        references=references,
        provenance=_provenance(path, model, own is not None and false_alarm_rate is None),
        normals=normals,
    )
    return Imported(exportable, model.decision.to_dict(), _remarks(model, threshold))


def _good_scores(found: Sequence[float], own: float) -> list[float]:
    """Return the scores that anomalib's threshold takes for those of good parts."""
    scores = [score for score in found if score <= own]
    if not scores:
        raise DataError(
            f"none of {len(found)} images is good at anomalib's threshold {own:.6g} (scores {min(found):.6g} "
            f"to {max(found):.6g}); set another one with --calibration DIR --false-alarm-rate 0.01"
        )
    return scores


def _threshold(scores: Sequence[float], own: float | None, false_alarm_rate: float | None) -> Threshold:
    if false_alarm_rate is not None:
        return calibrate(scores, false_alarm_rate)
    assert own is not None
    # It comes from no good parts alone, so it promises no rate; the target is for a calibration to come.
    return Threshold(own, DEFAULT_FALSE_ALARM_RATE, 0, 0.0, 1.0, supported=False)


class _Judge:
    """Scores an image file, and measures what the drift watch looks at."""

    def __init__(self, module: nn.Module, model: AnomalibModel) -> None:
        self._backend = TorchBackend(module)
        self._size = model.preparation.height, model.preparation.width

    def __call__(self, file: Path) -> dict[str, float]:
        picture = resize(read_image(file), *self._size)
        found = self._backend.run(picture[None])
        score = float(found.score[0])
        if not np.isfinite(score):
            raise DataError(f"the model gives {file} no finite score; the file of the model is damaged")
        return {"score": score, "level": map_level(found.map[0]), **picture_signals(picture)}


def _read(path: Path) -> AnomalibModel:
    if path.suffix.lower() == ".onnx":
        from edgead.importing.onnx_file import read_onnx

        return read_onnx(path)
    return read_checkpoint(path)


def _evenly(count: int, most: int) -> list[int]:
    """Return at most so many of ``count`` places, evenly taken, in order."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _settings(model: AnomalibModel) -> dict[str, Any]:
    preparation = model.preparation
    found: dict[str, Any] = {"backbone": model.backbone_name, "layers": list(model.layers)}
    found |= {"mean": list(preparation.mean), "std": list(preparation.std)}
    if preparation.crop is not None:
        found["center_crop"] = list(preparation.crop)
    if "memory_bank" in model.tensors:
        return found | {"num_neighbors": model.neighbours, "bank_size": len(model.tensors["memory_bank"])}
    return found | {"n_features": len(model.tensors["idx"])}


def _provenance(path: Path, model: AnomalibModel, kept: bool) -> dict[str, Any]:
    import timm

    spec = BackboneSpec(model.backbone_name or "not stated by the file", "anomalib", ())
    info: BackboneInfo = describe_backbone(spec, model.backbone)
    return {
        "backbone": asdict(info),
        "random_weights": False,
        "versions": {
            "edgead": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        PROVENANCE_KEY: {
            "from": "anomalib",
            "model": model.kind,
            "sha256": file_sha256(path),
            **model.about,
            **model.decision.to_dict(),
            "threshold": NOT_CALIBRATED if kept else "set from good parts, not anomalib's",
        },
    }


def _remarks(model: AnomalibModel, threshold: Threshold) -> list[str]:
    found = []
    if model.about.get("precision") == "float16":
        found.append("anomalib computed this model in half; it is imported in float32, so its scores move a little")
    if threshold.n_normals == 0:
        found.append(
            f"{threshold.explain()}: run 'edgead calibrate' with your own good parts, or import again with "
            "--calibration DIR --false-alarm-rate 0.01"
        )
    elif not threshold.supported:
        found.append(threshold.explain())
    return found
