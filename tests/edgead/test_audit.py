"""Stray images and copies in a training set: named, left out of the threshold, and omitted where that is asked for."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.data import open_category
from edgead.evaluation.evaluation import evaluate
from edgead.evaluation.validation_normals import UNSEEN, find_normals, read_training_record
from edgead.fitting import fit
from edgead.runtime.decision.stray import stray_scores
from edgead.runtime.errors import ConfigError, DataError

QUICK = {"detector": "padim", "settings": {"dimensions": 24}, "size": 96}


@pytest.fixture
def stray(plate: Path, tmp_path: Path) -> Path:
    """The plate, with a black first frame among its normal images."""
    folder = tmp_path / "stray"
    shutil.copytree(plate, folder)
    with Image.open(next((folder / "train" / "good").iterdir())) as image:
        size = image.size
    Image.new("RGB", size).save(folder / "train" / "good" / "dark.png")
    return folder


def escapes(model, folder: Path) -> int:
    with model.inspector("plate") as inspector:
        return evaluate(inspector, open_category(folder, need_test=True), bootstrap=0).decisions.escapes


def test_a_stray_image_is_named_and_not_learned_from(plate, stray, caplog):
    clean = fit(plate, **QUICK)
    assert clean.card.audit.stray == clean.card.audit.odd == clean.card.audit.excluded == {}
    with caplog.at_level(logging.WARNING):
        model = fit(stray, **QUICK)
    assert list(model.card.audit.excluded) == ["train/good/dark.png"]
    (said,) = [one.getMessage() for one in caplog.records if "stray" in one.getMessage()]
    assert "train/good/dark.png (it shows nothing" in said
    assert "--keep-stray" in said
    assert model.threshold == clean.threshold
    assert model.card.normal_scores == clean.card.normal_scores
    assert model.card.categories == {"stray": 16}
    assert escapes(model, plate) == escapes(clean, plate)


def test_a_stray_image_that_is_kept_moves_no_threshold(stray, caplog):
    with caplog.at_level(logging.WARNING):
        model = fit(stray, keep_stray=True, **QUICK)
    assert list(model.card.audit.stray) == ["train/good/dark.png"]
    assert model.card.audit.excluded == {}
    assert model.card.categories == {"stray": 17}
    # The model has seen the black frame, the threshold has not.
    assert model.threshold.n_normals == 16
    assert any("in the model, and left out of the threshold" in one.getMessage() for one in caplog.records)


def test_an_excluded_image_is_as_one_that_is_not_there(plate, stray):
    clean = fit(plate, **QUICK)
    excluded = fit(stray, exclude=["dark.png"], **QUICK)
    assert excluded.threshold == clean.threshold
    assert excluded.card.normal_scores == clean.card.normal_scores
    assert excluded.card.audit.excluded == {"dark.png": "as asked for"}


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (["dakr.png"], ConfigError, "there is no training image dakr.png to exclude. Did you mean"),
        ([f"{number:03}.png" for number in range(16)], DataError, "excluded; fitting needs at least 2"),
    ],
)
def test_what_cannot_be_excluded_is_named(stray, names, error, said):
    with pytest.raises(error, match=said):
        fit(stray, exclude=names, **QUICK)


def test_a_whole_path_is_meant_as_such(stray):
    good = stray / "train" / "good"
    (good / "sub").mkdir()
    shutil.copy(sorted(good.glob("*.png"))[0], good / "sub" / "dark.png")
    rows = [f"{path.relative_to(good).as_posix()},good,train" for path in sorted(good.rglob("*.png"))]
    (good / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    # The black frame is dark.png beside the list, and another image ends like it.
    model = fit(good / "list.csv", **QUICK)
    assert list(model.card.audit.excluded) == ["dark.png"]
    with pytest.raises(ConfigError, match=r"there is no training image ark\.png"):
        fit(good / "list.csv", exclude=["ark.png"], **QUICK)


def test_what_is_omitted_from_a_training_folder_is_said(plate, tmp_path, caplog):
    folder = tmp_path / "plate"
    shutil.copytree(plate / "train" / "good", folder)
    (folder / "notes.heic").write_bytes(b"x")
    (folder / "day2").mkdir()
    shutil.copy(sorted(folder.glob("*.png"))[0], folder / "day2")
    with caplog.at_level(logging.WARNING):
        fit(folder, **QUICK)
    assert "omitted: 1 .heic, 1 in folders below" in caplog.text


def test_a_score_far_beyond_the_tail_is_odd_and_a_heavy_tail_is_not():
    random = np.random.default_rng(0)
    for _ in range(20):
        scores = random.standard_t(5, 200) + 20
        assert len(stray_scores(scores)) <= 1
        assert 200 in stray_scores(np.append(scores, 60.0))
    assert stray_scores(np.full(10, 3.0)) == {}
    assert stray_scores(np.array([1.0, 2.0])) == {}


def test_audit_ranks_and_shows_what_should_be_looked_at(edgead, stray, tmp_path):
    copied = stray / "train" / "good"
    first = sorted(copied.glob("0*.png"))[0]
    shutil.copy(first, copied / "zz_copy.png")
    page = tmp_path / "audit.html"
    outcome = edgead("audit", stray, "--size", "96", "-o", page, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["schema"] == "edgead.audit/1"
    assert (report["images"], report["parts"]) == (18, 17)
    assert report["copies"] == [[f"train/good/{first.name}", "train/good/zz_copy.png"]]
    assert list(report["stray"]) == ["train/good/dark.png"]
    assert next(iter(report["unusual"])) == "train/good/dark.png"
    text = page.read_text()
    assert text.count("<figure>") == len({*report["stray"], *report["odd"], *report["unusual"]})
    assert "it shows nothing" in text
    assert sorted(path.name for path in stray.iterdir()) == ["ground_truth", "test", "train"]


@pytest.mark.parametrize("copies", [0, 2])
def test_audit_takes_what_a_fit_takes(edgead, plate, tmp_path, copies):
    folder = tmp_path / "few"
    folder.mkdir()
    first, second = sorted((plate / "train" / "good").iterdir())[:2]
    for number in range(1 + copies):
        shutil.copy(first, folder / f"{number}.png")
    shutil.copy(second, folder / "other.png")
    outcome = edgead("audit", folder, "--size", "96", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["parts"] == 2


def test_audit_of_nothing_is_one_line(edgead, tmp_path):
    outcome = edgead("audit", tmp_path / "missing")
    assert outcome.code == 2
    assert "does not exist" in outcome.error
    assert edgead("audit", tmp_path, "-o", tmp_path / "no" / "a.html").code == 2


def test_a_folder_with_a_stray_image_is_still_known_as_the_training_set(stray, tmp_path):
    model = fit(stray, **QUICK)
    model.save(tmp_path / "m.model")
    assert model.card.scored is not None
    names = sorted(path.name for path in (stray / "train" / "good").iterdir())
    assert [names[index] for index in model.card.scored] == [name for name in names if name != "dark.png"]
    record = read_training_record(tmp_path / "m.model")
    found = find_normals(open_category(stray), record)
    assert found.source == UNSEEN
    assert [sample.path.name for sample in found.samples] == [name for name in names if name != "dark.png"]
    assert len(found.scores) == 16


@pytest.mark.parametrize(
    "options",
    [
        {"detector": "dfc", "settings": {"head": "padim", "categories": 1, "head.dimensions": 24}, "size": 96},
        {"detector": "cutpaste", "settings": {"steps": 4, "batch": 2, "width": 8, "evaluations": 2}, "size": 64},
    ],
    ids=["dfc", "cutpaste"],
)
def test_a_detector_that_does_not_hold_copies_out_together_omits_them(plate, tmp_path, options, caplog):
    folder = tmp_path / "plate"
    shutil.copytree(plate, folder)
    good = folder / "train" / "good"
    for number, path in enumerate(sorted(good.iterdir())[:3]):
        shutil.copy(path, good / f"zz-{number}.png")
    with caplog.at_level(logging.WARNING):
        model = fit(folder, **options)
    assert sum(model.card.categories.values()) == 16
    assert set(model.card.audit.excluded) == {f"train/good/zz-{number}.png" for number in range(3)}
    assert "3 training images are omitted, for they are copies of others" in caplog.text


def test_copies_count_once_in_a_closed_form_threshold(plate, tmp_path, caplog):
    folder = tmp_path / "plate"
    shutil.copytree(plate, folder)
    good = folder / "train" / "good"
    for number, path in enumerate(sorted(good.iterdir())):
        for copy in range(5):
            shutil.copy(path, good / f"zz-{number}-{copy}.png")
    with caplog.at_level(logging.WARNING):
        model = fit(folder, **QUICK)
    clean = fit(plate, **QUICK)
    assert (model.threshold.n_normals, clean.threshold.n_normals) == (16, 16)
    assert "96 training images show 16 parts" in caplog.text
    with model.inspector("plate") as inspector:
        report = evaluate(inspector, open_category(plate, need_test=True), bootstrap=0)
    assert report.decisions.false_alarms <= 1
