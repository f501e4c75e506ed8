"""``edgead import-anomalib``: anomalib's raw scores, its threshold, and what is refused without being run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgead.importing import import_anomalib
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import EdgeadError
from edgead.runtime.imaging.decode import find_images, read_image
from edgead.runtime.imaging.preprocess import resize
from tests.edgead.anomalib_like import TINY, Model, Setup, checkpoint, export, fitted, save, sharper, step
from tests.edgead.conftest import Command

SETUPS = {
    "patchcore": Setup("patchcore"),
    "patchcore, unweighed and cropped": Setup("patchcore", crop=(48, 80), neighbours=1),
    "padim": Setup("padim"),
    "patchcore on a ResNet": Setup("patchcore", TINY),
}
EXPORTED = {
    "patchcore": (Setup("patchcore", TINY), (64, 96)),
    "padim": (Setup("padim", TINY), (100, 140)),
}


def pictures(folder: Path, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.stack([resize(read_image(file), *size) for file in find_images([folder])]))


@pytest.fixture(scope="module")
def models(plate: Path) -> dict[str, Model]:
    found = {}
    for name, setup in SETUPS.items():
        good, judged = (pictures(plate / part, setup.size) for part in ("train", "test"))
        found[name] = fitted(setup, good, judged)
    return found


@pytest.fixture(scope="module")
def saved(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: save(checkpoint(model), folder / f"{name}.ckpt") for name, model in models.items()}


def compare(path: Path, model: Model, plate: Path) -> None:
    """Hold an imported file against the formulas, on images that the model has not seen."""
    judged = pictures(plate / "test", model.setup.size)
    expected, picture = model.raw(judged)
    imported = import_anomalib(path, "plate", images=[plate / "test"]).exportable
    found = imported.torch_backend().run(judged.numpy())
    np.testing.assert_allclose(found.score, expected, rtol=1e-4)
    grid = [side // 8 for side in model.setup.crop or model.setup.size]
    means = F.adaptive_avg_pool2d(picture, grid)[:, 0].numpy()
    borders = [(whole - cells) // 2 for whole, cells in zip(imported.grid, grid, strict=True)]
    inner = found.map[:, borders[0] : borders[0] + grid[0], borders[1] : borders[1] + grid[1]]
    np.testing.assert_allclose(inner, means, atol=1e-4 * means.max())
    # What anomalib cropped away is not judged, and lies in the map where it lies in the image.
    assert found.map.sum() == pytest.approx(inner.sum())
    assert imported.grid == tuple(side // 8 for side in model.setup.size)
    assert imported.threshold.value == pytest.approx(float(model.threshold))


@pytest.mark.parametrize("name", SETUPS)
def test_a_checkpoint_gives_anomalibs_scores(
    name: str, saved: dict[str, Path], models: dict[str, Model], plate: Path
) -> None:
    compare(saved[name], models[name], plate)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_onnx_export_gives_them_too(name: str, plate: Path, tmp_path: Path) -> None:
    setup, frame = EXPORTED[name]
    good, judged = (pictures(plate / part, setup.size) for part in ("train", "test"))
    model = fitted(setup, good, judged)
    compare(export(model, tmp_path / "model.onnx", frame), model, plate)


def test_a_bundle_that_says_its_threshold_is_not_calibrated(
    edgead: Command, saved: dict[str, Path], models: dict[str, Model], plate: Path, tmp_path: Path
) -> None:
    name, bundle = "patchcore on a ResNet", tmp_path / "plate.edgead"
    done = edgead("import-anomalib", saved[name], "-o", bundle, "--images", plate / "test", "--json")
    assert done.code == 0, done.err
    assert "edgead calibrate" in done.err
    report = done.json
    assert report["schema"] == "edgead.import-anomalib/1"
    assert report["passed"]
    assert report["parity"]["model.fp32.onnx"]["onnxruntime"]["flips"] == 0
    assert report["threshold"]["value"] == pytest.approx(float(models[name].threshold))
    assert not report["threshold"]["supported"]
    assert "no false-alarm rate" in report["threshold"]["meaning"]
    assert report["model"]["detector"] == "anomalib-patchcore"
    with Bundle.open(bundle) as opened:
        record: Any = opened.manifest.provenance["imported"]
        assert record["threshold"] == "imported from anomalib, not calibrated"
        assert (opened.manifest.threshold.n_normals, opened.manifest.threshold.supported) == (0, False)
        assert len(opened.references()) == 8
    assert edgead("check", bundle).code == 0
    new = tmp_path / "new.edgead"
    found = edgead("calibrate", bundle, "--source", plate / "train", "-o", new, "--false-alarm-rate", "0.1")
    assert found.code == 0, found.err
    assert "imported with the model" in " ".join(found.out.split())
    with Bundle.open(new) as opened:
        assert opened.manifest.threshold.n_normals == 16
        assert opened.manifest.threshold.supported
        assert opened.manifest.provenance["imported"] == record


def test_good_parts_set_the_threshold_where_a_rate_is_asked_for(
    saved: dict[str, Path], models: dict[str, Model], plate: Path
) -> None:
    good = plate / "test" / "good"
    kept = import_anomalib(saved["padim"], "plate", images=[plate / "test"], calibration=[good]).exportable
    assert kept.threshold.value == pytest.approx(float(models["padim"].threshold))
    assert kept.normals["plate"].images == 4
    made = import_anomalib(
        saved["padim"], "plate", images=[plate / "test"], calibration=[good], false_alarm_rate=0.3
    ).exportable
    scores = np.sort(models["padim"].raw(pictures(good, models["padim"].setup.size))[0].numpy())
    assert scores[-2] < made.threshold.value < scores[-1] * 1.2
    assert (made.threshold.n_normals, made.threshold.target_false_alarm_rate) == (4, 0.3)


def test_its_sensitivity_moves_the_threshold_as_it_moves_its_labels(
    models: dict[str, Model], plate: Path, tmp_path: Path
) -> None:
    judged = pictures(plate / "test", models["padim"].setup.size)
    for sensitivity in (0.3, 0.6):
        model = sharper(models["padim"], sensitivity)
        path = save(checkpoint(model), tmp_path / "model.ckpt")
        imported = import_anomalib(
            path, "plate", images=[plate / "test"], calibration=[plate / "test" / "good"]
        ).exportable
        raw = model.raw(judged)[0]
        labels = model.normalise(raw) > 1 - sensitivity
        assert (raw > imported.threshold.value).tolist() == labels.tolist()
    assert imported.threshold.value != pytest.approx(float(models["padim"].threshold))


def test_a_precision_of_anomalibs_own_is_no_code_and_half_is_said(
    models: dict[str, Model], plate: Path, tmp_path: Path
) -> None:
    content = checkpoint(models["patchcore"])
    half = {name: one.half() if one.is_floating_point() else one for name, one in content["state_dict"].items()}
    path = save({**content, "state_dict": half}, tmp_path / "half.ckpt")
    imported = import_anomalib(path, "plate", images=[plate / "test"])
    assert any("half" in remark for remark in imported.remarks)
    judged = pictures(plate / "test", models["patchcore"].setup.size)
    expected = models["patchcore"].raw(judged)[0]
    found = imported.exportable.torch_backend().run(judged.numpy())
    np.testing.assert_allclose(found.score, expected, rtol=0.02)


class Harmful:
    """What a pickle may do: run any program of the machine that loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def broken(case: str, content: dict[str, Any], folder: Path) -> Path:
    """Return a file with one thing wrong."""
    path = folder / "model.ckpt"
    state = content["state_dict"]
    given = content["hyper_parameters"]
    bank = "model.memory_bank"
    transform = content["anomalib_pre_processor_config"]["transform"]["init_args"]["transforms"]
    changes: dict[str, dict[str, Any]] = {
        "runs code": {"state_dict": {**state, "x": Harmful(folder / "ran")}},
        "a whole model": {"model": torch.nn.Linear(1, 1)},
        "no state": {"state_dict": None},
        "another model": {"state_dict": {name: one for name, one in state.items() if name != bank}},
        "not fitted": {"state_dict": {**state, bank: torch.empty(0)}},
        "a bank of other features": {"state_dict": {**state, bank: state[bank][:, :-1]}},
        "a blur of its own": {
            "state_dict": {**state, "model.anomaly_map_generator.blur.kernel": torch.rand(1, 1, 33, 33)}
        },
        "numbers that are none": {"state_dict": {**state, bank: state[bank] * float("nan")}},
        "no layers": {"hyper_parameters": {key: value for key, value in given.items() if key != "layers"}},
        "unknown backbone": {"hyper_parameters": {**given, "backbone": "resnet1"}},
        "another backbone": {"hyper_parameters": {**given, "backbone": "resnet18", "layers": ["layer1"]}},
        "unknown layer": {"hyper_parameters": {**given, "layers": ["blocks.77"]}},
        "no preparation": {"anomalib_pre_processor_config": {"transform": None}},
        "one side": {"anomalib_pre_processor_config": {"transform": step("Resize", size=256)}},
        "bicubic": {
            "anomalib_pre_processor_config": {"transform": step("Resize", size=[64, 96], interpolation="bicubic")}
        },
        "another transform": {
            "anomalib_pre_processor_config": {
                "transform": step("Compose", transforms=[transform[0], step("RandomErasing")])
            }
        },
        "a crop amid patches": {
            "anomalib_pre_processor_config": {
                "transform": step("Compose", transforms=[transform[0], step("CenterCrop", size=[60, 90])])
            }
        },
        "no threshold": {"anomalib_components_enabled": {"post_processor": False}},
    }
    if case == "missing":
        return folder / "nothing.ckpt"
    if case == "truncated":
        save(content, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif case == "an image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    else:
        save({**content, **changes[case]}, path)
    return path


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", "is no file"),
        ("truncated", "damaged or no checkpoint"),
        ("an image", "damaged or no checkpoint"),
        ("runs code", "could run code, and was not loaded"),
        ("a whole model", "could run code, and was not loaded"),
        ("no state", "no Lightning checkpoint"),
        ("another model", "only PatchCore and PaDiM"),
        ("not fitted", "before the model was fitted"),
        ("a bank of other features", "does not fit features of 240 channels"),
        ("a blur of its own", "is not anomalib's"),
        ("numbers that are none", "NaN or infinite"),
        ("no layers", "does not say 'layers'"),
        ("unknown backbone", "the backbone 'resnet1', which timm"),
        ("another backbone", "other weights than those of 'resnet18'"),
        ("unknown layer", "takes features from blocks.77"),
        ("no preparation", "does not say how images are prepared"),
        ("one side", "keeps its shape"),
        ("bicubic", "resized bicubic"),
        ("another transform", "RandomErasing"),
        ("a crop amid patches", "whole patches"),
        ("no threshold", "has no threshold"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line(
    case: str, said: str, edgead: Command, models: dict[str, Model], plate: Path, tmp_path: Path
) -> None:
    path = broken(case, checkpoint(models["patchcore on a ResNet"]), tmp_path)
    out = tmp_path / "plate.edgead"
    done = edgead("import-anomalib", path, "-o", out, "--images", plate / "test" / "good")
    assert done.code == 2
    assert said in done.error
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--images DIR"),
        (["--images", "PLATE", "--int8"], "--calibration DIR"),
        (["--images", "PLATE", "--false-alarm-rate", "0.01"], "--calibration DIR"),
        (["--images", "PLATE", "--calibration", "GOOD", "--false-alarm-rate", "2"], "between 0 and 1"),
    ],
)
def test_what_is_missing_is_named(
    options: list[str], said: str, edgead: Command, saved: dict[str, Path], plate: Path, tmp_path: Path
) -> None:
    places = {"PLATE": str(plate / "test"), "GOOD": str(plate / "test" / "good")}
    given = [places.get(one, one) for one in options]
    done = edgead("import-anomalib", saved["patchcore on a ResNet"], "-o", tmp_path / "plate.edgead", *given)
    assert done.code == 2
    assert said in done.error


def test_a_torch_that_is_not_safe_opens_nothing(
    saved: dict[str, Path], plate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(EdgeadError, match="safely; run: pip install 'torch>=2"):
        import_anomalib(saved["padim"], "plate", images=[plate / "test"])


def test_defects_alone_do_not_tell_what_is_good(saved: dict[str, Path], models: dict[str, Model], plate: Path) -> None:
    model = models["padim"]
    model = sharper(model, 0.5)
    model.threshold = torch.tensor(1e-3)
    path = save(checkpoint(model), saved["padim"].with_name("low.ckpt"))
    with pytest.raises(EdgeadError, match=r"none of 8 images is good at anomalib's threshold 0\.001"):
        import_anomalib(path, "plate", images=[plate / "test"])


def test_an_onnx_file_of_something_else_is_refused(edgead: Command, plate: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content, said in ((b"no graph", "damaged or no ONNX file"), (None, "only PatchCore and PaDiM")):
        if content is None:
            torch.onnx.export(
                torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),), str(path), dynamo=True, verbose=False
            )
        else:
            path.write_bytes(content)
        done = edgead("import-anomalib", path, "-o", tmp_path / "x.edgead", "--images", plate / "test")
        assert done.code == 2
        assert said in done.error


def test_a_degenerate_threshold_is_that_of_the_scores_middle(
    models: dict[str, Model], plate: Path, tmp_path: Path
) -> None:
    content = checkpoint(models["padim"])
    content["state_dict"]["post_processor._image_threshold"] = torch.tensor(math.nan)
    path = save(content, tmp_path / "model.ckpt")
    imported = import_anomalib(path, "plate", images=[plate / "test"]).exportable
    middle = float(models["padim"].low + models["padim"].high) / 2
    assert imported.threshold.value == pytest.approx(middle)
