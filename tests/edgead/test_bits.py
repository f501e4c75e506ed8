"""16-bit files of 12 bits: a model fitted with ``--bits 12`` is that of the same pictures saved with 8, everywhere."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import edgead as sdk
from edgead.data import open_category
from edgead.evaluation.probing import ProbePlan, probe
from edgead.evaluation.validation_normals import find_normals, read_training_record
from edgead.evaluation.worst_images import worst_images
from edgead.runtime import Inspector, Stream
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest_schema import InputSection
from edgead.runtime.device.check import check_bundle
from edgead.runtime.device.recalibration import calibrate_bundle
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.roi import Box
from edgead.runtime.inspection.loading import require_same_input
from edgead.tuning.tuning import good_pictures, other_pictures

SETTINGS = {"detector": "padim", "settings": {"dimensions": 20}, "size": 64}


class Made(NamedTuple):
    """The same pictures as 16-bit files of 12 bits and as 8-bit files, with a model and a bundle of each."""

    wide: Path
    plain: Path
    wide_model: sdk.Model
    plain_model: sdk.Model
    wide_bundle: Path
    plain_bundle: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("bits")
    random = np.random.default_rng(0)
    pattern = random.integers(1000, 3000, (80, 90))
    for split, count in (("train/good", 12), ("test/good", 4), ("test/scratch", 4)):
        for kind in ("wide", "plain"):
            (root / kind / "parts" / split).mkdir(parents=True)
        for index in range(count):
            values = pattern + random.integers(-200, 200, pattern.shape)
            if split == "test/scratch":
                values[30:42, 20:70] = 4095
            values = values.astype(np.uint16)
            name = f"{split}/{index:03d}.png"
            Image.fromarray(values).save(root / "wide" / "parts" / name)
            Image.fromarray((values >> 4).astype(np.uint8)).save(root / "plain" / "parts" / name)
    wide, plain = root / "wide" / "parts", root / "plain" / "parts"
    models = sdk.fit(wide, bits=12, **SETTINGS), sdk.fit(plain, **SETTINGS)
    bundles = root / "wide.edgead", root / "plain.edgead"
    for folder, model, bundle in zip((wide, plain), models, bundles, strict=True):
        model.export(bundle, images=[folder / "test"])
    return Made(wide, plain, *models, *bundles)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "edgead.fit")
    return caplog


def judged(bundle: Path, source: Path | str, **options: object) -> list[tuple[str | None, str, str]]:
    with Inspector.open(bundle, backend="onnxruntime") as inspector, Stream(inspector, source, **options) as stream:
        return sorted((one.name, one.decision.value, one.score.hex()) for one in stream)


# Fitting


def test_files_of_12_bits_are_warned_of_unless_the_bits_are_said(made, said):
    def messages(**options: object) -> list[str]:
        said.clear()
        sdk.fit(made.wide, **SETTINGS, **options)
        return [record.getMessage() for record in said.records]

    (found,) = messages()
    assert found.startswith("12 training images are 16-bit files with values up to 3")
    assert "as a 12-bit camera gives: only 13 grey levels are left of them; fit with --bits 12 (or --bits 16" in found
    assert messages(bits=12) == messages(bits=16) == []


@pytest.mark.parametrize(
    ("top", "expected"),
    [(200, "an 8-bit camera gives: only 1 grey level is left"), (1023, "a 10-bit camera gives: only 4 grey levels")],
)
def test_the_warning_names_the_fewest_bits_that_hold_the_largest_value(tmp_path, said, top, expected):
    random = np.random.default_rng(1)
    for index in range(4):
        values = random.integers(0, top, (80, 90)).astype(np.uint16)
        values[0, 0] = top
        Image.fromarray(values).save(tmp_path / f"{index}.tif")
    if top < 256:
        # Nothing is left of them, so that all of them are copies of one black picture.
        with pytest.raises(DataError, match="no near-duplicates"):
            sdk.fit(tmp_path, **SETTINGS, bits=None)
    else:
        sdk.fit(tmp_path, **SETTINGS, bits=None)
    assert expected in said.text


@pytest.mark.parametrize("bright", [4096, 65535])
def test_files_that_use_the_upper_bits_and_8_bit_files_are_not_warned_of(made, tmp_path, said, bright):
    for index, path in enumerate(sorted((made.wide / "train/good").iterdir())[:4]):
        values = np.asarray(Image.open(path)).astype(np.uint16)
        values[3, 3] = bright if index == 2 else values[3, 3]
        Image.fromarray(values).save(tmp_path / path.name)
    sdk.fit(tmp_path, **SETTINGS)
    sdk.fit(made.plain, **SETTINGS)
    assert "16-bit" not in said.text


def test_the_command_warns_once_and_takes_the_bits(edgead, made, fit_arguments, tmp_path):
    outcome = edgead("fit", made.wide, *fit_arguments, "-o", tmp_path / "m", "--json")
    assert outcome.code == 0
    assert outcome.err.count("16-bit files") == 1
    assert "Warning: 12 training images are 16-bit files" in outcome.err
    assert "bits" not in outcome.json
    outcome = edgead("fit", made.wide, *fit_arguments, "--bits", "12", "-o", tmp_path / "m", "--json")
    assert (outcome.json["bits"], "16-bit" in outcome.err) == (12, False)
    assert sdk.load_model(tmp_path / "m").card.bits == 12
    for wrong in ("7", "17"):
        outcome = edgead("fit", made.wide, *fit_arguments, "--bits", wrong, "-o", tmp_path / "n")
        assert outcome.code == 2
        assert f"a whole number from 8 to 16, got {wrong}" in outcome.error
    outcome = edgead("fit", made.wide, *fit_arguments, "--bits", "11", "-o", tmp_path / "n")
    assert outcome.code == 2
    assert "and the model takes 11 bits" in outcome.error


def test_the_model_is_that_of_8_bit_files(made):
    wide, plain = made.wide_model, made.plain_model
    assert (wide.card.bits, plain.card.bits) == (12, 16)
    same = {"bits": 0, "fingerprint": {}}
    assert wide.card.model_copy(update=same) == plain.card.model_copy(update=same)
    assert (wide.references, wide.calibration) == (plain.references, plain.calibration)
    tensors = wide.module.state_dict(), plain.module.state_dict()
    assert all(tensors[0][name].equal(tensors[1][name]) for name in tensors[1])


def test_a_region_reads_the_bits_too(made):
    options = {"roi": Box(8, 8, 64, 64), **SETTINGS}
    found = [sdk.fit(made.wide, bits=12, **options), sdk.fit(made.plain, **options)]
    assert found[0].card.normal_scores == found[1].card.normal_scores


def test_a_model_that_says_nothing_of_bits_takes_all_16(made, tmp_path):
    made.wide_model.save(tmp_path / "m")
    assert sdk.load_model(tmp_path / "m").exportable("m").bits == 12
    card = tmp_path / "m" / "model.json"
    content = json.loads(card.read_text())
    del content["bits"]
    card.write_text(json.dumps(content))
    assert sdk.load_model(tmp_path / "m").exportable("m").bits == 16


def test_predict_and_evaluate_read_the_bits(made):
    wide, plain = made.wide_model, made.plain_model
    scores = [[one.score for one in m.predict(f / "test")] for m, f in ((wide, made.wide), (plain, made.plain))]
    assert scores[0] == scores[1]
    reports = wide.evaluate(made.wide), plain.evaluate(made.plain)
    assert reports[0].images == reports[1].images
    assert reports[0].image_auroc.value == 1.0


# The bundle


def test_the_bundle_keeps_the_bits_only_where_they_are_not_16(made):
    def of_input(path: Path) -> dict[str, object]:
        with Bundle.open(path) as bundle:
            return json.loads(bundle.manifest.to_json())["input"]

    assert of_input(made.wide_bundle)["bits"] == 12
    assert set(of_input(made.plain_bundle)) == {"height", "width", "color", "resize", "region", "tiles"}


def test_the_input_section_reads_what_it_writes():
    for bits in (8, 12, 16):
        section = InputSection(height=64, width=64, resize="r", bits=bits)
        assert InputSection.model_validate_json(section.model_dump_json()) == section
    for wrong in (7, 17, 12.5):
        with pytest.raises(ValueError, match="bits"):
            InputSection.model_validate({"height": 64, "width": 64, "resize": "r", "bits": wrong})


def test_check_judges_files_as_those_of_8_bits(made):
    wide, plain = (
        check_bundle(bundle, images=[folder / "test"], backend="onnxruntime")
        for bundle, folder in ((made.wide_bundle, made.wide), (made.plain_bundle, made.plain))
    )
    assert wide.passed
    assert wide.images == plain.images
    assert set(wide.images.decisions.values()) == {0, 4}
    assert [one.score for one in wide.references] == [one.score for one in plain.references]


def test_a_folder_is_judged_as_one_of_8_bit_files(made):
    found = judged(made.wide_bundle, made.wide / "test")
    assert found == judged(made.plain_bundle, made.plain / "test")
    assert {decision for _, decision, _ in found} == {"OK", "ANOMALY"}


def test_a_watched_folder_is_judged_as_one_of_8_bit_files(made, tmp_path):
    expected = judged(made.plain_bundle, made.plain / "test")
    shutil.copytree(made.wide / "test", tmp_path / "in")
    uri = f"watch://{tmp_path / 'in'}?existing=yes&settle=50ms&poll=50ms"
    assert judged(made.wide_bundle, uri, max_frames=len(expected)) == expected


def test_a_value_of_more_bits_is_not_inspected(made, tmp_path):
    values = np.asarray(Image.open(sorted((made.wide / "test/good").iterdir())[0])).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "0.png")
    values[5, 5] = 5000
    Image.fromarray(values).save(tmp_path / "1.png")
    with Inspector.open(made.wide_bundle, backend="onnxruntime") as inspector, Stream(inspector, tmp_path) as stream:
        good, bad = stream
    assert good.decision is Decision.OK
    assert bad.decision is Decision.NOT_INSPECTED
    assert "holds values up to 5000, and the model takes 12 bits" in (bad.reason or "")
    report = check_bundle(made.wide_bundle, images=[tmp_path], backend="onnxruntime")
    assert "up to 5000" in next(iter(report.images.unreadable.values()))
    with pytest.raises(DataError, match="up to 5000"):
        calibrate_bundle(made.wide_bundle, tmp_path, tmp_path / "out.edgead", backend="onnxruntime")


def test_a_bundle_of_other_bits_does_not_take_over(made):
    with Inspector.open(made.wide_bundle, backend="onnxruntime") as inspector:
        before = inspector.bundle
        with pytest.raises(ConfigError, match=r"takes 16 bits of 16-bit image files, this model 12; stop the stream"):
            inspector.swap(made.plain_bundle)
        assert (inspector.bundle, inspector.bits) == (before, 12)
        require_same_input("x", inspector, inspector)
        inspector.swap(made.wide_bundle)


def test_calibration_reads_the_bits(made, tmp_path):
    reports = [
        calibrate_bundle(bundle, folder / "test" / "good", tmp_path / bundle.name, backend="onnxruntime")
        for bundle, folder in ((made.wide_bundle, made.wide), (made.plain_bundle, made.plain))
    ]
    assert reports[0].new == reports[1].new
    with Bundle.open(tmp_path / "wide.edgead") as bundle:
        assert bundle.manifest.input.bits == 12


# What else reads files for a model


def test_probes_and_pictures_of_tune_read_the_bits(made, tmp_path):
    files = [sorted((folder / "test/good").iterdir()) for folder in (made.wide, made.plain)]
    for pictures in (good_pictures, lambda paths, _region=None, bits=16: other_pictures(paths, bits)):
        wide, plain = list(pictures(files[0], None, bits=12)), list(pictures(files[1], None))
        assert len(wide) == len(plain) > 3
        assert all(np.array_equal(one.image, other.image) for one, other in zip(wide, plain, strict=True))
    found = []
    for bundle, folder in ((made.wide_bundle, made.wide), (made.plain_bundle, made.plain)):
        shutil.copytree(folder / "test" / "good", tmp_path / bundle.stem / "new")
        normals = find_normals(open_category(tmp_path / bundle.stem / "new"), read_training_record(bundle))
        with Inspector.open(bundle, backend="onnxruntime") as inspector:
            found.append(probe(inspector, normals, ProbePlan(per_kind=2, bootstrap=0)))
    assert found[0] == found[1]


def test_the_report_reads_the_bits(edgead, made, tmp_path):
    found = []
    for bundle, folder in ((made.wide_bundle, made.wide), (made.plain_bundle, made.plain)):
        outcome = edgead("report", bundle, folder, "-o", tmp_path / f"{bundle.stem}.html", "--no-latency", "--json")
        assert outcome.code == 0, outcome.err
        found.append([(one["path"], one["score"]) for one in outcome.json["images"]])
    assert found[0] == found[1]
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("wide", "plain")]
    photos = [re.findall(r"data:image/jpeg;base64,[^\"']+", page) for page in pages]
    assert photos[0] == photos[1] != []


def test_an_array_of_16_bits_is_refused_with_what_to_do(made):
    with made.wide_model.inspector() as inspect, pytest.raises(DataError, match=r"uint16; shift its values as those"):
        inspect(np.zeros((80, 90), np.uint16))


def test_the_image_that_a_precision_moved_most_is_read_by_the_bits(made, tmp_path):
    found = []
    for model, folder in ((made.wide_model, made.wide), (made.plain_model, made.plain)):
        bundle = tmp_path / f"{folder.parent.name}.edgead"
        model.export(bundle, fp16=True, images=[folder / "test"])
        found.append(worst_images(bundle, sorted((folder / "test").rglob("*.png"))))
    assert found[0] == found[1]
    assert found[0][0].name.startswith("test/")
