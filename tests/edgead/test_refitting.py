"""Smaller sizes and banks for ``edgead tune``: what is tried, on which images, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from edgead.cli import run
from edgead.model import load_model
from edgead.refitting import Refitting
from edgead.runtime.bundle import Bundle
from edgead.runtime.check import check_bundle
from edgead.runtime.device_profile import Choice
from edgead.runtime.errors import BundleError, ConfigError, DataError

CHOICE = Choice(backend="onnxruntime", precision="fp32", threads=1, native_search="absent")


class Fitted(NamedTuple):
    model: Path
    bundle: Path


@pytest.fixture(scope="module")
def fitted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A PatchCore model of `parts`, 96 pixels a side, with a bank of 64."""
    folder = tmp_path_factory.mktemp("refit")
    found = Fitted(folder / "parts.model", folder / "parts.edgead")
    assert run(["fit", str(parts), "--size", "96", "--set", "bank_size=64", "-o", str(found.model)]) == 0
    assert run(["export", str(found.model), "-o", str(found.bundle)]) == 0
    return found


def test_sizes_and_banks_below_the_models_are_tried(fitted: Fitted, parts: Path) -> None:
    again = Refitting(fitted.bundle, fitted.model, parts)
    variants = again.plan()
    assert [(one.size, one.settings["bank_size"]) for one in variants] == [
        ((size, size), bank) for size in (64, 96) for bank in (4, 16, 64)
    ]
    assert [one.label for one in variants][::5] == ["64x64 bank_size=4", "96x96 bank_size=64"]
    assert {one.size for one in again.plan([96])} == {(96, 96)}
    for side, expected in ((128, "larger than the model's 96"), (100, "multiple of 32")):
        with pytest.raises(ConfigError, match=expected):
            again.plan([side])


def test_variants_are_compared_on_parts_they_have_not_seen_and_the_chosen_one_is_fitted_on_all(
    fitted: Fitted, parts: Path, tmp_path: Path
) -> None:
    again = Refitting(fitted.bundle, fitted.model, parts)
    small, *_, whole = again.plan()
    limits = {"budget_mb": None, "frames": 4, "frame_size": (90, 72)}
    refit = again.compare([small, whole], CHOICE, budget_ms=1000.0, **limits)
    assert (refit.fitted, refit.held_out, refit.skipped) == (8, 4, {})
    assert [Path(one.path).stem for one in refit.report.bundles] == [small.label, whole.label]
    assert [(one.height, one.detector["settings"]["bank_size"]) for one in refit.report.bundles] == [(64, 4), (96, 64)]
    assert [one.setup.choice for one in refit.report.candidates] == [CHOICE, CHOICE]
    for one in refit.report.candidates:
        assert one.judgement.held_out
        assert one.judgement.excluded is None
    assert refit.chosen in (small, whole)
    assert refit.changed is (refit.chosen == small)

    output = tmp_path / "small.edgead"
    again.write(small, output)
    with Bundle.open(output) as bundle, Bundle.open(fitted.bundle) as before:
        assert (bundle.manifest.input.height, bundle.manifest.detector.settings["bank_size"]) == (64, 4)
        counts = [[one.n_train for one in opened.manifest.categories.values()] for opened in (bundle, before)]
        assert counts == [[12], [12]]
        assert bundle.manifest.provenance["data_fingerprint"] == before.manifest.provenance["data_fingerprint"]
    assert check_bundle(output).passed


def test_what_does_not_belong_together_is_refused(
    fitted: Fitted, parts: Path, plate: Path, plate_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="fitted on other images"):
        Refitting(fitted.bundle, fitted.model, plate)
    with pytest.raises(ConfigError, match="was not exported from"):
        Refitting(plate_bundle, fitted.model, parts)
    with pytest.raises(BundleError, match="no model directory"):
        Refitting(fitted.bundle, tmp_path, parts)
    card = load_model(fitted.model).card
    assert card.detector == "patchcore"


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
def test_half_of_what_fitting_again_takes_is_2(edgead, fitted, parts, tmp_path, arguments, expected):
    places = {"DATA": parts, "MODEL": fitted.model, "BUNDLE": fitted.bundle, "NEW": tmp_path / "new.edgead"}
    outcome = edgead("tune", fitted.bundle, *(places.get(argument, argument) for argument in arguments))
    assert outcome.code == 2
    assert expected in outcome.error


@pytest.mark.slow
def test_tune_writes_a_smaller_bundle_where_the_budget_asks_for_one(edgead, fitted, parts, tmp_path):
    output, place = tmp_path / "new.edgead", tmp_path / "profiles"
    again = ("--model", fitted.model, "--train", parts, "--size", "96", "-o", output)
    setup = ("--backend", "onnxruntime", "--threads", "1", "--frames", "10", "--frame-size", "90x72")
    outcome = edgead("tune", fitted.bundle, *setup, *again, "--profile", place, "--json")
    assert outcome.code == 0, outcome.err
    report, refit = outcome.json, outcome.json["refit"]
    assert len(refit["report"]["bundles"]) == len(refit["variants"]) == 3
    changed = refit["chosen"] != refit["variants"][-1]["label"]
    assert output.exists() is changed
    assert report["bundles"][0]["bundle"] == str(output if changed else fitted.bundle)
    assert len(list(place.iterdir())) == 1
    outcome = edgead("run", report["bundles"][0]["bundle"], "--source", parts / "test" / "good", "--profile", place)
    assert "backend: device profile: onnxruntime fp32, 1 thread " in outcome.err
    outcome = edgead("tune", fitted.bundle, *setup, *again, "--profile", "off")
    assert outcome.code == 0
    assert "Sizes and settings" in outcome.out
    assert "judged by 4 others" in outcome.out
