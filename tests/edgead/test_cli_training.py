"""``edgead fit``, ``eval`` and ``export``: what they report, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from edgead.model.model import load_model
from edgead.opening import open_inspector
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import read_image


def copy(path: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    target = folder / path.name
    return Path(shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_fit_reports_what_it_made(edgead, plate, fit_arguments, tmp_path):
    outcome = edgead("fit", plate, *fit_arguments, "-o", tmp_path / "m", "--json")
    assert outcome.code == 0
    report = outcome.json
    assert report["schema"] == "edgead.fit/1"
    assert (report["images"], report["categories"]) == (16, {"plate": 16})
    assert (report["detector"], report["settings"]["dimensions"]) == ("padim", 20)
    assert report["size"] == {"height": 64, "width": 64}
    assert report["seconds"] > 0
    threshold = report["thresholds"]["plate"]
    assert threshold["value"] == pytest.approx(load_model(tmp_path / "m").threshold.value)
    assert (threshold["target_false_alarm_rate"], threshold["n_normals"]) == (0.01, 16)
    assert threshold["low"] < 0.01 < threshold["high"]
    # 16 good parts cannot support 1 %, and that is said, on stderr too.
    assert threshold["supported"] is False
    assert f"Warning: {threshold['meaning']}" in outcome.err
    assert "16 held-out good parts, which cannot support a false-alarm rate of 1.00%" in threshold["meaning"]
    planted = sorted((tmp_path / "m").glob("*/probe-*.png"))
    with open_inspector(tmp_path / "m") as inspector:
        results = [inspector(read_image(path)) for path in planted]
    passed = sum(result.decision is Decision.OK for result in results)
    assert report["planted_defects"] == {"images": len(planted), "passed": passed}
    # The same images at other targets; the first row is what the model does.
    scores, rows = load_model(tmp_path / "m").card.normal_scores, report["targets"]
    assert [row["target_false_alarm_rate"] for row in rows] == [0.01, 0.02, 0.05, 0.1]
    assert [row["own"] for row in rows] == [True, False, False, False]
    assert (rows[0]["threshold"], rows[0]["planted_passed"]) == (threshold["value"], passed)
    for row in rows:
        assert row["threshold"] == calibrate(scores, row["target_false_alarm_rate"]).value
        assert row["normals_above"] == sum(score > row["threshold"] for score in scores)
        assert row["planted_passed"] == sum(result.score <= row["threshold"] for result in results)
    assert ("most planted defects" in outcome.err) == (2 * passed > len(planted) > 0)


def test_fit_takes_rate_seed_and_two_sides(edgead, plate, tmp_path):
    arguments = ["--detector", "patchcore", "--set", "bank_size=8", "--set", "smooth=false", "--size", "64x96"]
    outcome = edgead(
        "fit", plate, *arguments, "--seed", "7", "--false-alarm-rate", "0.2", "-o", tmp_path / "m", "--json"
    )
    report = outcome.json
    assert (report["seed"], report["size"]) == (7, {"height": 64, "width": 96})
    assert (report["settings"]["bank_size"], report["settings"]["smooth"]) == (8, False)
    assert report["thresholds"]["plate"]["supported"] is True
    assert [row["target_false_alarm_rate"] for row in report["targets"] if row["own"]] == [0.2]
    assert report["targets"][-1]["own"]
    assert (report["targets"][0]["normals_above"], report["targets"][-1]["normals_above"]) == (0, 2)  # the 14th of 16
    assert "cannot support" not in outcome.err


def test_rates_that_few_images_cannot_tell_apart_share_a_row(edgead, plate, fit_arguments, tmp_path):
    few = tmp_path / "plate" / "train" / "good"
    few.mkdir(parents=True)
    for path in sorted((plate / "train" / "good").iterdir())[:5]:
        shutil.copy(path, few)
    outcome = edgead("fit", few.parent.parent, *fit_arguments, "-o", tmp_path / "m")
    assert outcome.code == 0, outcome.err
    (row,) = [line for line in outcome.out.splitlines() if "(the model's)" in line]
    assert row.split("│")[1].split() == ["1%", "(the", "model's),", "2%,", "5%,", "10%"]
    assert row.split("│")[3].strip() == "0 of 5"


def test_random_weights_are_said_loudly(edgead, plate, fit_arguments, tmp_path):
    backbone = ("--backbone", "efficientnet_lite0@random")
    outcome = edgead("fit", plate, *fit_arguments, *backbone, "-o", tmp_path / "m", "--json")
    assert outcome.code == 0
    assert "Warning: THE BACKBONE HAS RANDOM WEIGHTS" in outcome.err
    assert outcome.json["backbone"]["random_weights"] is True


def test_people_get_a_table(edgead, plate, plate_model, plate_bundle):
    outcome = edgead("eval", plate_model, plate)
    assert outcome.code == 0
    # A line lives on escapes and false alarms, so they come before every figure of separation.
    order = ("Decisions at the threshold", "Escapes that the scores allow", "at 5 % false alarms", "image AUROC")
    assert sorted(order, key=outcome.out.index) == list(order)
    assert "by kind of defect" not in outcome.out  # there is one kind
    assert "1,000 parts" not in outcome.out
    for expected in ("image AUROC", "AUPRO", "F1-max", "zero escapes", "of 4 good", "of 4 defective", " to "):
        assert expected in outcome.out
    outcome = edgead("eval", plate_bundle, plate)
    assert "backend: auto: " in outcome.err


def test_kinds_of_defects_and_costs_are_told(edgead, plate, plate_bundle, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(plate, two)
    for folder in ("test", "ground_truth"):
        (two / folder / "dent").mkdir()
        for path in sorted((two / folder / "defect").iterdir())[:1]:
            path.rename(two / folder / "dent" / path.name)
    costs = ("--cost-escape", "50", "--cost-false-alarm", "2", "--defect-rate", "0.02")
    outcome = edgead("eval", plate_bundle, two, *costs)
    assert outcome.code == 0, outcome.err
    order = ("cost of 1,000 parts", "by kind of defect", "dent", "image AUROC")
    assert sorted(order, key=outcome.out.index) == list(order)
    found = edgead("eval", plate_bundle, two, *costs, "--json").json["categories"]["two"]
    assert [(kind["label"], kind["images"]) for kind in found["defects"]] == [("defect", 3), ("dent", 1)]
    assert sum(kind["escapes"] for kind in found["defects"]) == found["decisions"]["escapes"]
    escapes, alarms = found["escape_rate"]["value"], found["false_alarm_rate"]["value"]
    assert found["cost_per_1000"] == pytest.approx(20 * escapes * 50 + 980 * alarms * 2)
    half = edgead("eval", plate_bundle, two, "--cost-escape", "50")
    assert half.code == 2
    assert "--cost-false-alarm" in half.error
    probed = edgead("eval", plate_bundle, two, *costs, "--probe")
    assert probed.code == 2
    assert "omit --probe or the costs" in probed.error


def test_eval_of_the_bundle_equals_eval_of_the_model(edgead, plate, plate_model, plate_bundle):
    by_model = edgead("eval", plate_model, plate, "--json").json
    assert by_model["schema"] == "edgead.eval/1"
    assert by_model["backend"]["name"] == "torch"
    for backend in ("onnxruntime", "openvino"):
        by_bundle = edgead("eval", plate_bundle, plate, "--backend", backend, "--json").json
        assert by_bundle["backend"]["name"] == backend
        found = by_bundle["categories"]["plate"]
        assert (found["n_normal"], found["n_anomalous"]) == (4, 4)
        assert found["decisions"] == by_model["categories"]["plate"]["decisions"]
        for name in ("image_auroc", "pixel_auroc", "aupro", "f1_max", "false_alarm_rate_at_zero_escapes"):
            for key in ("value", "low", "high"):
                expected = by_model["categories"]["plate"][name][key]
                assert found[name][key] == pytest.approx(expected, abs=1e-4), (backend, name)
                assert by_bundle["mean"][name][key] == found[name][key]


def test_eval_of_several_categories_has_a_mean(edgead, plate, plate_bundle, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(plate, other)
    outcome = edgead("eval", plate_bundle, plate, other)
    assert "mean" in outcome.out
    assert list(edgead("eval", plate_bundle, plate, other, "--json").json["categories"]) == ["plate", "other"]
    twice = edgead("eval", plate_bundle, plate, plate)
    assert twice.code == 2
    assert "'plate'" in twice.error


def test_export_reports_parity_of_every_runtime(plate_export):
    path, outcome = plate_export
    report = outcome.json
    assert (report["schema"], report["passed"]) == ("edgead.export/1", True)
    assert (report["bundle"], report["bytes"]) == (str(path), path.stat().st_size)
    for runtime in ("onnxruntime", "openvino"):
        record = report["parity"]["model.fp32.onnx"][runtime]
        assert (record["images"], record["flips"]) == (8, 0)
        assert 0 <= record["p99_score_difference"] <= record["max_score_difference"] < 1e-2
        assert record["max_map_difference"] >= 0


def test_a_changed_decision_is_3_and_writes_nothing(edgead, plate_model, plate_bundle, tmp_path):
    # A threshold between what torch and what a runtime say of one image: they cannot decide alike.
    model = copy(plate_model, tmp_path)
    _set_threshold(model, _between_torch_and_runtime(plate_model, plate_bundle))
    out = tmp_path / "out" / "plate.edgead"
    out.parent.mkdir()
    outcome = edgead("export", model, "-o", out, "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out)["passed"] is False
    assert "nothing was written (--allow-drift overrides)" in outcome.error
    assert list(out.parent.iterdir()) == []


def _set_threshold(model: Path, value: float) -> None:
    card = json.loads((model / "model.json").read_text())
    card["threshold"]["value"] = value
    (model / "model.json").write_text(json.dumps(card))


def _between_torch_and_runtime(model: Path, bundle: Path) -> float:
    from edgead.opening import open_inspector
    from edgead.runtime.imaging.decode import read_image

    for backend in ("onnxruntime", "openvino"):
        with open_inspector(model) as torch, open_inspector(bundle, backend=backend) as other:
            for path in sorted((model / "references").glob("*.png")):
                image = read_image(path)
                scores = torch(image).score, other(image).score
                if scores[0] != scores[1]:
                    return sum(scores) / 2
    return pytest.fail("no score differs between torch and any runtime")


def test_export_in_half_and_int8(edgead, plate, plate_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = ["--fp16", "--int8", "--calibration", plate / "train" / "good", "--max-drop", "5", "--json"]
    outcome = edgead("export", plate_model, "-o", tmp_path / "a.edgead", *flags)
    assert outcome.code == 0, outcome.err
    precisions = outcome.json["precisions"]
    assert list(precisions) == ["fp32", "fp16", "int8-trt", "int8-cpu"]
    assert precisions["int8-cpu"]["runtimes"] == ["onnxruntime", "openvino"]
    assert "simulated-fp16" in outcome.json["parity"]["model.fp16.onnx"]
    assert list((tmp_path / "cache" / "edgead" / "calibration").glob("*.json"))
    checked = edgead("check", tmp_path / "a.edgead", "--precision", "fp16", "--json")
    assert checked.json["precision"] == "fp16"
    measured = edgead("bench", tmp_path / "a.edgead", "--precision", "int8-cpu", "--frames", "1", "--json").json
    assert {row["precision"] for row in measured["results"]} == {"int8-cpu"}
    refused = edgead("export", plate_model, "-o", tmp_path / "b.edgead", "--int8", "--max-drop", "1e-9")
    assert refused.code == 3
    assert "convolutions kept in fp32" in refused.err
    assert not (tmp_path / "b.edgead").exists()


def test_export_writes_plain_graphs_and_says_how_to_build_them(edgead, plate_model, tmp_path):
    outcome = edgead("export", plate_model, "-o", tmp_path / "graphs", "--fp16", "--onnx-only", "--json")
    assert outcome.code == 0, outcome.err
    command = next(line for line in outcome.json["trtexec"] if "fp16" in line)
    assert f"--onnx={tmp_path / 'graphs' / 'model.fp16.onnx'} --stronglyTyped" in command
    assert (tmp_path / "graphs" / "model.fp16.onnx").is_file()


def test_export_writes_a_triton_repository(edgead, plate_model, tmp_path):
    outcome = edgead("export", plate_model, "-o", tmp_path / "repository", "--target", "triton", "--plain", "--json")
    assert outcome.code == 0, outcome.err
    assert "trtexec" not in outcome.json
    assert {path.name for path in (tmp_path / "repository").iterdir()} == {"README.md", "repository"}
    assert 'name: "repository"' in (tmp_path / "repository" / "repository" / "config.pbtxt").read_text()
    outcome = edgead("export", plate_model, "-o", tmp_path / "other", "--target", "tritton")
    assert (outcome.code, "Did you mean 'triton'?" in outcome.err) == (2, True)


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--detector", "patchcor"], "Did you mean 'patchcore'?"),
        (["--set", "bank_sise=8"], "Did you mean 'bank_size'?"),
        (["--set", "bank_size=many"], "setting 'bank_size'"),
        (["--set", "bank_size"], "such as --set bank_size=1024"),
        (["--set", "bank_size=8", "--set", "bank_size=9"], "given twice"),
        (["--size", "big"], "such as 256 or 256x320"),
        (["--size", "100"], "multiple of 32"),
        (["--backbone", "efficientnet_lite00"], "Did you mean"),
        (["--backbone", "efficientnet_lite0@no/such.pth"], "no/such.pth"),
        (["--false-alarm-rate", "1.5"], "between 0 and 1"),
    ],
)
def test_fit_refuses_a_wrong_argument(edgead, plate, tmp_path, arguments, expected):
    outcome = edgead("fit", plate, *arguments, "-o", tmp_path / "m")
    assert outcome.code == 2
    assert expected in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_place_is_refused_before_the_work(edgead, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("precious")
    # There is no such category either, but nobody has looked.
    outcome = edgead("fit", tmp_path / "no such category", "-o", tmp_path / "m")
    assert outcome.code == 2
    assert "is no model directory" in outcome.error
    assert content(tmp_path) == {"m/thesis.txt": b"precious"}


def test_what_lies_in_a_model_and_is_not_of_it_is_not_lost(edgead, plate, plate_model, fit_arguments, tmp_path):
    model = tmp_path / "m"
    shutil.copytree(plate_model, model)
    compared = edgead("compare", plate, "--detectors", "padim", "-o", model)
    assert compared.code == 2
    assert "holds something else than a comparison" in compared.error
    assert content(model) == content(plate_model)
    (model / "notes.txt").write_text("precious")
    outcome = edgead("fit", plate, *fit_arguments, "-o", model)
    assert outcome.code == 2
    assert "holds files that are not of its model (notes.txt) and would be lost" in outcome.error
    assert content(model) == content(plate_model) | {"notes.txt": b"precious"}
    (model / "notes.txt").unlink()
    assert edgead("fit", plate, *fit_arguments, "-o", model).code == 0


@pytest.mark.parametrize(
    ("name", "expected"), [("a.onnx", "ends in .edgead"), ("no/a.edgead", "create it first"), ("d.edgead", "a folder")]
)
def test_export_refuses_a_wrong_place(edgead, plate_model, tmp_path, name, expected):
    (tmp_path / "d.edgead").mkdir()
    outcome = edgead("export", plate_model, "-o", tmp_path / name)
    assert outcome.code == 2
    assert expected in outcome.error


# Bad data


@pytest.fixture
def bad_plate(plate, tmp_path):
    return copy(plate, tmp_path)


def refused_by_fit(edgead, category: Path, tmp_path: Path) -> str:
    outcome = edgead("fit", category, "--size", "64", "-o", tmp_path / "m")
    assert outcome.code == 2
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob(".*"))
    return outcome.error


def test_an_unreadable_image_is_named(edgead, bad_plate, tmp_path):
    victim = sorted((bad_plate / "train" / "good").iterdir())[3]
    victim.write_bytes(b"")
    assert victim.name in refused_by_fit(edgead, bad_plate, tmp_path)
    victim.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    assert victim.name in refused_by_fit(edgead, bad_plate, tmp_path)


def test_too_few_good_images_are_refused(edgead, bad_plate, tmp_path):
    good = sorted((bad_plate / "train" / "good").iterdir())
    for path in good[1:]:
        path.unlink()
    assert "holds one image" in refused_by_fit(edgead, bad_plate, tmp_path)
    good[0].unlink()
    assert "holds no images" in refused_by_fit(edgead, bad_plate, tmp_path)
    shutil.rmtree(bad_plate)
    assert "does not exist" in refused_by_fit(edgead, bad_plate, tmp_path)


def test_a_mask_of_another_size_is_named(edgead, bad_plate, plate_bundle):
    mask = next((bad_plate / "ground_truth" / "defect").iterdir())
    Image.new("L", (10, 10), 255).save(mask)
    outcome = edgead("eval", plate_bundle, bad_plate)
    assert outcome.code == 2
    assert mask.name in outcome.error
    assert "10x10" in outcome.error


def test_eval_refuses_an_unreadable_test_image(edgead, bad_plate, plate_bundle):
    victim = next((bad_plate / "test" / "good").iterdir())
    victim.write_bytes(b"")
    outcome = edgead("eval", plate_bundle, bad_plate)
    assert outcome.code == 2
    assert victim.name in outcome.error


def test_a_model_directory_of_another_version_is_refused(edgead, plate, plate_model, tmp_path):
    model = copy(plate_model, tmp_path)
    card = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**card, "format_version": 99}))
    for call in (("eval", model, plate), ("export", model, "-o", tmp_path / "a.edgead")):
        outcome = edgead(*call)
        assert outcome.code == 2
        assert "a newer edgead (model format 99)" in outcome.error


@pytest.mark.parametrize("victim", ["model.json", "weights.safetensors"])
def test_a_damaged_model_directory_is_refused(edgead, plate_model, tmp_path, victim):
    model = copy(plate_model, tmp_path)
    data = (model / victim).read_bytes()
    (model / victim).write_bytes(data[: len(data) // 2])
    outcome = edgead("export", model, "-o", tmp_path / "a.edgead")
    assert outcome.code == 2
    assert victim in outcome.error
    assert not (tmp_path / "a.edgead").exists()


# A full disk


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process can grow beyond ``room`` bytes, which fails as a full disk does."""
    resource = pytest.importorskip("resource", reason="no RLIMIT_FSIZE here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [4 << 10, 300 << 10], ids=["references", "weights"])
def test_a_full_disk_leaves_the_old_model(edgead, plate, plate_model, fit_arguments, tmp_path, room):
    model = copy(plate_model, tmp_path)
    before = content(tmp_path)
    with full_disk(room):
        outcome = edgead("fit", plate, *fit_arguments, "-o", model)
    assert outcome.code == 2
    assert f"cannot write {model}" in outcome.error
    assert content(tmp_path) == before


def test_a_full_disk_leaves_the_old_bundle(edgead, plate_model, plate_bundle, tmp_path):
    bundle, model = copy(plate_bundle, tmp_path), copy(plate_model, tmp_path)
    # A decision changes: only --allow-drift lets it come to writing.
    _set_threshold(model, _between_torch_and_runtime(plate_model, plate_bundle))
    before = content(tmp_path)
    with full_disk(bundle.stat().st_size - 1000):
        outcome = edgead("export", model, "-o", bundle, "--allow-drift")
    assert outcome.code == 2
    assert f"cannot write {bundle}" in outcome.error
    assert content(tmp_path) == before


def test_taps_are_taken_where_asked(edgead, parts, tmp_path):
    target = tmp_path / "m"
    fitted = edgead(
        "fit", parts, "--detector", "padim", "--set", "dimensions=8", "--size", 64, "--taps", "16,32", "-o", target
    )
    assert fitted.code == 0
    assert json.loads((target / "model.json").read_text())["backbone"]["strides"] == [16, 32]
    for taps, wrong in (("8,8", "'8,8'"), ("x", "'x'"), ("16,8", "'16,8'"), ("64", "no tap of stride 64")):
        refused = edgead("fit", parts, "--taps", taps, "-o", tmp_path / "n")
        assert refused.code == 2
        assert wrong in refused.error
