"""Smaller sizes and banks for ``edgead tune``: what is tried, on which images, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from edgead.export.exporting import export_bundle
from edgead.fitting import fit
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.check import check_bundle
from edgead.runtime.device.tuning.tune import TuneOptions
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.inspection.device_profile import Choice
from edgead.tuning.refitting import Refitting

CHOICE = Choice(backend="onnxruntime", precision="fp32", threads=1, native_code="absent")
SETUP = ("--backend", "onnxruntime", "--threads", "1", "--frames", "10", "--frame-size", "320x240")


@pytest.fixture
def again(plate: Path, plate_model: Path, plate_bundle: Path) -> Refitting:
    """A PaDiM model of 16 images, 64 pixels a side, 20 dimensions."""
    return Refitting(plate_bundle, plate_model, plate)


def changed(model: Path, target: Path, **fields: object) -> Path:
    """A copy of a model directory whose card says something else."""
    shutil.copytree(model, target)
    card = json.loads((target / "model.json").read_text())
    (target / "model.json").write_text(json.dumps(card | fields))
    return target


def test_sizes_and_settings_below_the_models_are_tried(plate, plate_model, plate_bundle, tmp_path):
    larger = Refitting(plate_bundle, changed(plate_model, tmp_path / "m", height=128, width=192), plate)
    variants = larger.plan()
    # Three quarters and a half of it, in the model's shape and multiples of 32.
    assert [(one.size, one.settings["dimensions"]) for one in variants] == [
        (size, dimensions) for size in ((64, 96), (96, 128), (128, 192)) for dimensions in (2, 10, 20)
    ]
    assert (variants[0].label, variants[-1].label) == ("64x96 dimensions=2", "128x192 dimensions=20")
    assert {one.size for one in larger.plan([128])} == {(128, 192)}
    for side, expected in ((160, "larger than the model's 128"), (100, "multiple of 32")):
        with pytest.raises(ConfigError, match=expected):
            larger.plan([side])


def test_variants_are_compared_on_parts_that_they_have_not_seen(again, monkeypatch):
    monkeypatch.setattr("edgead.export.parity.measuring.available", lambda: ["onnxruntime"])  # one proof is enough here
    small, *_, whole = again.plan()
    options = TuneOptions(budget_ms=1000.0, frames=4, frame_size=(320, 240))
    refit = again.compare([small, whole], CHOICE, options)
    assert (refit.fitted, refit.held_out, refit.skipped) == (12, 4, {})
    assert [Path(one.path).stem for one in refit.report.bundles] == [small.label, whole.label]
    assert [one.detector["settings"]["dimensions"] for one in refit.report.bundles] == [2, 20]
    assert [one.setup.choice for one in refit.report.candidates] == [CHOICE, CHOICE]
    for one in refit.report.candidates:
        assert one.judgement.held_out
        assert one.judgement.excluded is None
        assert one.fits
    assert refit.chosen in (small, whole)
    assert refit.changed is (refit.chosen == small)


def test_what_the_model_did_not_learn_from_its_variants_do_not_either(plate, tmp_path):
    folder = tmp_path / "plate"
    shutil.copytree(plate, folder)
    with Image.open(next((folder / "train" / "good").iterdir())) as image:
        Image.new("RGB", image.size).save(folder / "train" / "good" / "dark.png")
    excluded = sorted(path.name for path in (folder / "train" / "good").iterdir())[0]
    model = fit(folder, detector="padim", settings={"dimensions": 20}, size=64, exclude=[excluded])
    model.save(tmp_path / "m.model")
    export_bundle(model.exportable("plate"), tmp_path / "m.edgead")
    refitting = Refitting(tmp_path / "m.edgead", tmp_path / "m.model", folder)
    used = {path.name for path in [*refitting._fitted, *refitting._held_out]}
    assert len(used) == 15
    assert not used & {excluded, "dark.png"}
    output = tmp_path / "new.edgead"
    refitting.write(refitting.plan([64])[0], output)
    with Bundle.open(output) as bundle:
        assert bundle.manifest.categories["plate"].n_train == 15
        assert bundle.manifest.threshold.n_normals == 15


def test_what_does_not_belong_together_is_refused(parts, plate, plate_model, plate_bundle, tmp_path):
    with pytest.raises(DataError, match="fitted on other images"):
        Refitting(plate_bundle, plate_model, parts)
    with pytest.raises(ConfigError, match="was not exported from"):
        Refitting(plate_bundle, changed(plate_model, tmp_path / "other", detector="fre"), plate)
    with pytest.raises(ConfigError, match="is not fitted again here"):
        Refitting(plate_bundle, changed(plate_model, tmp_path / "pooled", detector="dfc"), plate)
    with pytest.raises(BundleError, match="no model directory"):
        Refitting(plate_bundle, tmp_path, plate)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train", "DATA"], "belong to --model"),
        (["-o", "NEW"], "belong to --model"),
        (["--model", "MODEL", "--train", "DATA"], "-o NEW.edgead"),
        (["--model", "MODEL", "-o", "NEW"], "--train CATEGORY_DIR"),
        (["--model", "MODEL", "--train", "DATA", "-o", "BUNDLE"], "another file than the bundle"),
        (["--model", "MODEL", "--train", "DATA", "-o", "new.zip"], "ends in .edgead"),
    ],
)
def test_half_of_what_fitting_again_takes_is_2(edgead, plate, plate_model, plate_bundle, tmp_path, arguments, expected):
    places = {"DATA": plate, "MODEL": plate_model, "BUNDLE": plate_bundle, "NEW": tmp_path / "new.edgead"}
    outcome = edgead("tune", plate_bundle, *(places.get(argument, argument) for argument in arguments))
    assert outcome.code == 2
    assert expected in outcome.error


@pytest.mark.slow
def test_the_chosen_variant_is_fitted_on_all_images_and_proved(again, plate_bundle, tmp_path):
    small, *_ = again.plan()
    output = tmp_path / "small.edgead"
    again.write(small, output)
    with Bundle.open(output) as bundle, Bundle.open(plate_bundle) as before:
        assert bundle.manifest.detector.settings["dimensions"] == 2
        counts = [[one.n_train for one in opened.manifest.categories.values()] for opened in (bundle, before)]
        assert counts == [[16], [16]]
        assert bundle.manifest.provenance["data_fingerprint"] == before.manifest.provenance["data_fingerprint"]
    assert check_bundle(output).passed


@pytest.mark.slow
def test_tune_with_a_model_compares_and_writes_what_the_budget_asks_for(
    edgead, plate, plate_model, plate_bundle, tmp_path
):
    output, place = tmp_path / "new.edgead", tmp_path / "profiles"
    more = ("--model", plate_model, "--train", plate, "-o", output)
    outcome = edgead("tune", plate_bundle, *SETUP, *more, "--profile", place, "--json")
    assert outcome.code == 0, outcome.err
    report, refit = outcome.json, outcome.json["refit"]
    assert len(refit["report"]["bundles"]) == len(refit["variants"]) == 3
    other = refit["chosen"] != refit["variants"][-1]["label"]
    assert output.exists() is other
    assert report["bundles"][0]["bundle"] == str(output if other else plate_bundle)
    assert len(list(place.iterdir())) == 1
    outcome = edgead("run", report["bundles"][0]["bundle"], "--source", plate / "test" / "good", "--profile", place)
    assert "backend: device profile: onnxruntime fp32, 1 thread " in outcome.err
    outcome = edgead("tune", plate_bundle, *SETUP, *more, "--profile", "off")
    assert outcome.code == 0
    assert "Sizes and settings" in outcome.out
    assert "judged by 4 others" in outcome.out
