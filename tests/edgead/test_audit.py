"""Stray images and copies in a training set: named, left out of the threshold, and omitted where that is asked for."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.fitting import fit
from edgead.fitting.audit import odd_scores
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


def test_a_stray_image_is_named_and_moves_no_threshold(plate, stray, caplog):
    clean = fit(plate, **QUICK)
    assert clean.card.audit.odd == {}
    with caplog.at_level(logging.WARNING):
        model = fit(stray, **QUICK)
    assert list(model.card.audit.odd) == ["train/good/dark.png"]
    (said,) = [one.getMessage() for one in caplog.records if "unlike" in one.getMessage()]
    assert "train/good/dark.png" in said
    assert "--exclude" in said
    # The model has seen the black frame, the threshold has not.
    assert model.threshold.n_normals == clean.threshold.n_normals == 16
    assert model.threshold.value < 1.25 * clean.threshold.value


def test_excluded_and_robust_fits_are_those_of_the_clean_set(plate, stray):
    clean = fit(plate, **QUICK)
    excluded = fit(stray, exclude=["dark.png"], **QUICK)
    robust = fit(stray, robust=True, **QUICK)
    assert excluded.threshold == robust.threshold == clean.threshold
    assert excluded.card.normal_scores == robust.card.normal_scores == clean.card.normal_scores
    assert excluded.card.audit.excluded == {"dark.png": "as asked for"}
    assert list(robust.card.audit.excluded) == ["train/good/dark.png"]
    assert robust.card.categories == {"stray": 16}


def test_a_robust_fit_of_clean_images_omits_none(plate):
    model = fit(plate, robust=True, **QUICK)
    assert model.card.audit.excluded == {}
    assert model.card.categories == {"plate": 16}


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


def test_a_score_far_beyond_the_tail_is_odd_and_a_heavy_tail_is_not():
    random = np.random.default_rng(0)
    for _ in range(20):
        scores = random.standard_t(5, 200) + 20
        assert len(odd_scores(scores)) <= 1
        assert 200 in odd_scores(np.append(scores, 60.0))
    assert odd_scores(np.full(10, 3.0)) == {}
    assert odd_scores(np.array([1.0, 2.0])) == {}


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
    assert list(report["odd"]) == ["train/good/dark.png"]
    assert next(iter(report["unusual"])) == "train/good/dark.png"
    text = page.read_text()
    assert text.count("<figure>") == len({*report["odd"], *report["unusual"]})
    assert "it shows nothing" in text
    assert sorted(path.name for path in stray.iterdir()) == ["ground_truth", "test", "train"]


def test_audit_of_nothing_is_one_line(edgead, tmp_path):
    outcome = edgead("audit", tmp_path / "missing")
    assert outcome.code == 2
    assert "does not exist" in outcome.error
    assert edgead("audit", tmp_path, "-o", tmp_path / "no" / "a.html").code == 2
