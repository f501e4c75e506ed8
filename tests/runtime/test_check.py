from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgead.runtime.backends import available
from edgead.runtime.bundle.references import EXPECTED_NAME, pack_expected
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import BackendUnavailable, BundleError, ConfigError, DataError
from edgead.runtime.frame import Decision

MakeBundle = Callable[..., Path]
SHARE = 1e-3  # of the margin, the promise of `edgead check` for FP32
BACKENDS = [name for name in ("onnxruntime", "openvino") if name in available()]


@pytest.fixture
def expected(tiny_references: dict[str, bytes], tiny_expected: Any) -> tuple[list[str], Any, Any]:
    names, score, grid = tiny_expected(tiny_references)
    # What the other tests rely on: two good parts, and one spot above the threshold of 20.
    assert [value > 20 for value in score] == [False, False, True]
    return names, score, grid


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_an_honest_bundle_passes(make_bundle: MakeBundle, backend: str) -> None:
    steps: list[tuple[int, int]] = []
    report = check_bundle(make_bundle(), backend=backend, progress=lambda done, total: steps.append((done, total)))
    assert report.passed
    assert report.problems == ()
    assert [r.name for r in report.references] == ["good_0.png", "good_1.png", "spot.png"]
    assert [r.decision for r in report.references] == [Decision.OK, Decision.OK, Decision.ANOMALY]
    assert report.max_score_difference < 1e-4
    assert report.max_map_difference < 1e-4
    assert report.backend.precision == "fp32"
    assert report.backend.name == (available()[0] if backend == "auto" else backend)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_the_report_is_json(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    content = json.loads(json.dumps(check_bundle(path).to_dict(), allow_nan=False))
    assert content["schema"] == "edgead.check/1"
    assert content["passed"] is True
    assert content["bundle"] == str(path)
    assert content["references"]["images"] == 3
    assert content["references"]["worst"]["name"] in ("good_0.png", "good_1.png", "spot.png")
    assert content["backend"]["name"] in available()
    assert content["images"] is None


@pytest.mark.parametrize(("factor", "passes"), [(0.5, True), (2.0, False)])
@pytest.mark.parametrize("index", [0, 1])
def test_the_tolerance_is_a_share_of_the_margin(
    make_bundle: MakeBundle, expected: tuple[list[str], Any, Any], factor: float, passes: bool, index: int
) -> None:
    names, score, grid = expected
    margin = 20.0 - float(np.median(score[:2]))
    moved = score.copy()
    moved[index] += factor * SHARE * margin
    report = check_bundle(make_bundle(files={EXPECTED_NAME: pack_expected(names, moved, grid)}))
    assert report.passed is passes
    if not passes:
        assert report.worst.name == names[index]
        assert len(report.problems) == 1
        assert names[index] in report.problems[0]
        assert report.max_score_difference == pytest.approx(factor * SHARE * margin, rel=0.1)


@pytest.mark.parametrize(("factor", "passes"), [(0.5, True), (2.0, False)])
def test_the_margin_is_that_of_good_parts(
    make_bundle: MakeBundle, tiny_references: dict[str, bytes], tiny_expected: Any, factor: float, passes: bool
) -> None:
    # More defects than good parts among the references, as probe defects easily are.
    references = {"good.png": tiny_references["good_0.png"]}
    references |= {f"spot_{index}.png": tiny_references["spot.png"] for index in range(2)}
    names, score, grid = tiny_expected(references)
    score[0] += factor * SHARE * (20.0 - score[0])
    files: dict[str, Any] = {f"references/{name}": None for name in tiny_references}
    files |= {f"references/{name}": data for name, data in references.items()}
    assert check_bundle(make_bundle(files={**files, EXPECTED_NAME: pack_expected(names, score, grid)})).passed is passes


def test_a_machine_whose_resize_is_not_exact_fails(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    reduce = Image.Image.reduce
    monkeypatch.setattr(Image.Image, "reduce", lambda self, factor: reduce(self, factor).point(lambda x: x + 1))
    report = check_bundle(make_bundle())
    assert any("Pillow" in problem for problem in report.problems)


@pytest.mark.usefixtures("expected")
def test_a_changed_decision_fails(make_bundle: MakeBundle, tiny_model: Any) -> None:
    # The graph is not the one that gave the expected results: it flips the spot to OK.
    weaker = type(tiny_model)(tiny_model.weights / 4)
    report = check_bundle(make_bundle(model=weaker))
    assert not report.passed
    assert "spot.png: ANOMALY became OK" in report.problems
    assert report.to_dict()["references"]["decision_changes"] == ["spot.png"]


def test_a_decision_changes_even_within_the_tolerance(
    make_bundle: MakeBundle, expected: tuple[list[str], Any, Any], tiny_threshold: Any
) -> None:
    names, score, grid = expected
    moved = score.copy()
    moved[2] -= 1e-4
    between = {**tiny_threshold.to_dict(), "value": float(score[2]) - 5e-5}
    path = make_bundle(threshold=between, files={EXPECTED_NAME: pack_expected(names, moved, grid)})
    report = check_bundle(path)
    assert report.worst.excess < 1
    assert report.problems == ("spot.png: OK became ANOMALY",)


def test_a_score_that_is_not_finite_fails(make_bundle: MakeBundle, tiny_model: Any) -> None:
    weights = tiny_model.weights.copy()
    weights[:, 0, 1, 1] = np.inf
    report = check_bundle(make_bundle(model=type(tiny_model)(weights)))
    assert not report.passed
    assert len(report.problems) == 3
    assert "not finite" in report.problems[0]
    content = report.to_dict()
    assert content["references"]["max_score_difference"] is None
    json.dumps(content, allow_nan=False)


def test_a_precision_has_its_own_threshold(make_bundle: MakeBundle, tiny_threshold: Any, tiny_model: Any) -> None:
    low = {**tiny_threshold.to_dict(), "value": 1.0}
    graph = next(iter(tiny_model.files().values()))
    precisions = {
        "fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime"]},
        "int8-cpu": {"file": "model.int8-cpu.onnx", "runtimes": ["onnxruntime"], "threshold": low},
    }
    path = make_bundle(precisions=precisions, files={"model.int8-cpu.onnx": graph})
    assert check_bundle(path).passed
    report = check_bundle(path, precision="int8-cpu")
    assert report.threshold == 1.0
    assert report.precision == "int8-cpu"
    assert report.problems == ("good_0.png: OK became ANOMALY", "good_1.png: OK became ANOMALY")
    with pytest.raises(ConfigError, match="no precision 'int8'"):
        check_bundle(path, precision="int8")


def test_a_reduced_precision_may_differ_more(make_bundle: MakeBundle, expected: tuple[list[str], Any, Any]) -> None:
    path = make_bundle()
    try:
        report = check_bundle(path, backend="openvino-bf16")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    margin = 20.0 - float(np.median(expected[1][:2]))
    assert report.max_score_difference > SHARE * margin
    assert report.backend.precision == "bf16"
    assert report.passed


def test_more_images_are_judged(make_bundle: MakeBundle, tiny_references: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "more" / "deep"
    folder.mkdir(parents=True)
    for name, data in tiny_references.items():
        (folder / name).write_bytes(data)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    single = tmp_path / "single.PNG"
    single.write_bytes(tiny_references["spot.png"])
    report = check_bundle(make_bundle(), images=[tmp_path / "more", single])
    assert report.passed, "a file that cannot be read is not the device's fault"
    content = report.to_dict()["images"]
    assert content["images"] == 5
    assert content["decisions"] == {"OK": 2, "ANOMALY": 2, "NOT_INSPECTED": 1}
    assert list(content["unreadable"]) == [str(folder / "broken.png")]


def test_an_image_without_a_finite_score_fails(make_bundle: MakeBundle, tiny_model: Any, tmp_path: Path) -> None:
    from PIL import Image

    # Weights that overflow float32 on white images only: black references pass.
    huge = type(tiny_model)(np.full((4, 3, 3, 3), 1e36, np.float32))
    dark, white = tmp_path / "dark.png", tmp_path / "white.png"
    Image.new("RGB", (12, 12)).save(dark)
    Image.new("RGB", (12, 12), "white").save(white)
    files: dict[str, Any] = {f"references/{name}.png": None for name in ("good_0", "good_1", "spot")}
    files["references/dark.png"] = dark.read_bytes()
    zeros = np.zeros(1, np.float32), np.zeros((1, 4, 5), np.float32)
    files[EXPECTED_NAME] = pack_expected(["dark.png"], *zeros)
    path = make_bundle(model=huge, files=files)
    assert check_bundle(path, images=[dark]).passed
    report = check_bundle(path, images=[dark, white])
    assert report.images is not None
    assert report.images.not_finite == (str(white),)
    assert report.images.decisions["NOT_INSPECTED"] == 1
    assert report.problems == (f"{white}: the score or map is not finite on this device",)


def test_what_proves_nothing_does_not_pass(
    make_bundle: MakeBundle, tiny_references: dict[str, bytes], expected: tuple[list[str], Any, Any]
) -> None:
    nothing: dict[str, Any] = {f"references/{name}": None for name in tiny_references}
    with pytest.raises(BundleError, match="nothing can be proved"):
        check_bundle(make_bundle(files=nothing))
    with pytest.raises(BundleError, match=r"expected\.npz"):
        check_bundle(make_bundle(files={EXPECTED_NAME: None}))
    names, score, grid = expected
    with pytest.raises(BundleError, match="differ in name"):
        check_bundle(make_bundle(files={EXPECTED_NAME: pack_expected(names[1:], score[1:], grid[1:])}))


def test_a_damaged_bundle_is_an_error_and_no_report(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated"):
        check_bundle(path)


def test_images_that_are_not_there_are_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = make_bundle()
    with pytest.raises(DataError, match=r"missing\.png does not exist"):
        check_bundle(path, images=[tmp_path / "missing.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        check_bundle(path, images=[tmp_path / "empty"])


def test_an_unknown_backend_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match="unknown backend"):
        check_bundle(make_bundle(), backend="abacus")
