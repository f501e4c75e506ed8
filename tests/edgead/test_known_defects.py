"""What defects at hand teach: that the term helps where it is kept, moves nothing where it is not, and is exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from edgead.data import open_category
from edgead.export.exporting import export_bundle
from edgead.features.scoring import DefectTerm
from edgead.fitting import fit
from edgead.fitting.known_defects import LEAST, ONE_KIND, STRENGTHS, _choose
from edgead.metrics.metrics import image_auroc
from edgead.model.model import load_model
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.inspection.inspector import Inspector
from edgead.tuning.refitting import Refitting

QUICK = {"detector": "patchcore", "settings": {"bank_size": 400}, "size": 96}


def part(rng: np.random.Generator, *, spots: bool = True, scratch: bool = False) -> Image.Image:
    """A grey part whose dark spots, of any size, a detector of what is unusual finds as odd as its faint scratches."""
    pixels = rng.normal(130, 6, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for _ in range(3 if spots else 0):
        x, y, r = *rng.integers(12, 84, 2), int(rng.integers(2, 9))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(70, 70, 70))
    if scratch:
        x, y = rng.integers(20, 60, 2)
        draw.line((x, y, x + 18, y + int(rng.integers(-8, 8))), fill=(215, 205, 190), width=2)
    return image


@pytest.fixture(scope="module")
def spotted(tmp_path_factory) -> Path:
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("known") / "spotted"
    for folder, count, scratch in (("train/good", 30, False), ("test/good", 25, False), ("test/scratch", 37, True)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            part(rng, scratch=scratch).save(root / folder / f"{number:02d}.png")
    (root / "hand" / "scratch").mkdir(parents=True)
    for path in sorted((root / "test" / "scratch").iterdir())[:12]:
        shutil.move(path, root / "hand" / "scratch" / path.name)
    return root


def judge(model, root):
    category = open_category(root, need_test=True)
    with model.inspector() as inspect:
        scores = np.array([inspect(read_image(sample.path)).score for sample in category.test])
    return scores, np.array([sample.anomalous for sample in category.test])


@pytest.fixture(scope="module")
def taught(spotted):
    return fit(spotted, defects=spotted / "hand", **QUICK)


def test_what_defects_teach_finds_more_of_them(spotted, taught):
    alone = fit(spotted, defects=spotted / "hand", learn_defects=False, **QUICK)
    assert alone.card.defects.learned is None
    learned = taught.card.defects.learned
    assert (learned.images, learned.reason) == (12, None)
    assert learned.strength == ONE_KIND  # no other kind says what more would cost
    assert learned.normal_share[str(learned.strength)] < learned.normal_share["0.0"]
    before, after = (image_auroc(*judge(model, spotted), bootstrap=0).value for model in (alone, taught))
    assert after > before
    # No score falls, and none rises by more than the strength.
    ratio = judge(taught, spotted)[0] / judge(alone, spotted)[0]
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1 + learned.strength + 1e-6
    assert ratio.max() > 1.01


def test_the_scores_it_is_judged_by_are_of_images_that_it_has_not_seen(spotted, taught):
    # Unseen normals of the same kind score alike; those that a term was fitted on would score lower.
    scores, anomalous = judge(taught, spotted)
    held_out = np.array(taught.card.normal_scores)
    assert len(held_out) == 30
    assert np.median(held_out) == pytest.approx(np.median(scores[~anomalous]), rel=0.05)
    # The defects at hand as well: the model itself, which has seen them, finds them more anomalous.
    with taught.inspector() as inspect:
        seen = [inspect(read_image(path)).score for path in sorted((spotted / "hand" / "scratch").iterdir())]
    (own,) = [point for point in taught.card.defects.points if point.own]
    assert own.escapes >= sum(score <= taught.threshold.value for score in seen)


def test_it_is_saved_loaded_and_exported_as_it_is(taught, tmp_path):
    taught.save(tmp_path / "m.model")
    loaded = load_model(tmp_path / "m.model")
    assert loaded.card == taught.card
    images = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for one, other in zip(taught.module(images), loaded.module(images), strict=True):
            assert torch.equal(one, other)
    export_bundle(
        loaded.exportable("spotted"), tmp_path / "m.edgead", precisions=["fp16", "int8-cpu"], allow_drift=True
    )
    with Inspector.open(tmp_path / "m.edgead") as inspect, loaded.inspector() as own:
        for image in images.numpy():
            assert inspect(image).score == pytest.approx(own(image).score, rel=1e-4)


def test_variants_that_would_not_have_learned_are_refused(spotted, taught, tmp_path):
    taught.save(tmp_path / "m.model")
    export_bundle(taught.exportable("spotted"), tmp_path / "m.edgead")
    with pytest.raises(ConfigError, match="learned from defects, which its variants would not"):
        Refitting(tmp_path / "m.edgead", tmp_path / "m.model", spotted)


def test_few_defects_are_judged_and_nothing_is_learned(spotted, tmp_path):
    for path in sorted((spotted / "hand" / "scratch").iterdir())[: LEAST - 1]:
        shutil.copy(path, tmp_path / path.name)
    model = fit(spotted, defects=tmp_path, **QUICK)
    assert model.card.defects.learned.strength == 0
    assert "too few to show that it helps: 4 of the 5" in model.card.defects.learned.reason
    assert model.module.defects is None
    plain = fit(spotted, **QUICK)
    assert model.card.normal_scores == pytest.approx(plain.card.normal_scores, rel=1e-6)
    assert model.threshold == plain.threshold


def test_copies_of_a_defect_count_once(spotted, tmp_path, caplog):
    for path in (spotted / "hand" / "scratch").iterdir():
        shutil.copy(path, tmp_path / path.name)
        with Image.open(path) as image:
            brighter = Image.eval(image, lambda value: min(255, value + 12))
            brighter.save(tmp_path / f"again-{path.name}")
    model = fit(spotted, defects=tmp_path, **QUICK)
    assert model.card.defects.images == 12
    assert "12 of 24 defects at hand show the same as others and are omitted" in caplog.text


def test_a_normal_image_is_no_defect_and_that_is_said_before_anything_is_fitted(spotted, tmp_path):
    shutil.copy(spotted / "train" / "good" / "03.png", tmp_path / "bad.png")
    told = []
    with pytest.raises(DataError, match=r"bad\.png is also among the normal images .*03\.png"):
        fit(spotted, defects=tmp_path, progress=lambda *step: told.append(step), **QUICK)
    assert told == []


def test_an_image_in_both_places_counts_once(spotted, tmp_path):
    root = tmp_path / "spotted"
    shutil.copytree(spotted / "train", root / "train")
    shutil.copytree(spotted / "hand" / "scratch", root / "train" / "scratch")
    model = fit(root, defects=root / "train" / "scratch", learn_defects=False, **QUICK)
    assert model.card.defects.images == 12


def test_tiles_and_other_detectors_learn_too(spotted):
    tiled = fit(spotted, defects=spotted / "hand", tiles=(1, 2), **QUICK)
    assert tiled.card.defects.learned.images == 12
    padim = fit(spotted, defects=spotted / "hand", detector="padim", settings={"dimensions": 24}, size=96)
    assert padim.card.defects.learned.images == 12
    assert len(padim.card.normal_scores) == 30


def scores(found, unseen=None):
    """Of 99 normals 1 to 99, and of defects at each strength, alike for both terms unless told."""
    normal = np.broadcast_to(np.arange(1.0, 100.0)[:, None, None], (99, 3, len(STRENGTHS)))
    found = np.array(found, float)
    other = found if unseen is None else np.array(unseen, float)
    return normal, np.stack([found, other], axis=1)


def test_the_strength_is_the_one_that_gains_most_and_none_where_a_kind_left_out_would_lose():
    own, kinds = ["a", "a", "b", "b"], ["a", "b"]
    gaining = [[90.5, 95.5, 98.5], [80.5, 85.5, 97.5], [85.5, 92.5, 97.5], [95.5, 98.5, 99.5]]
    assert _choose(*scores(gaining), own, kinds)[0] == 2
    losing = [[90.5, 91.5, 60.5], [80.5, 81.5, 50.5], [85.5, 86.5, 40.5], [95.5, 96.5, 70.5]]
    assert _choose(*scores(gaining, losing), own, kinds)[0] == 1
    gone = [[90.5, 60.5, 60.5], [80.5, 50.5, 50.5], [85.5, 40.5, 40.5], [95.5, 70.5, 70.5]]
    chosen, card = _choose(*scores(gaining, gone), own, kinds)
    assert chosen == 0
    assert "a kind left out" in card.reason
    # Of one kind alone no more than the least strength is tried.
    assert _choose(*scores(gaining), ["a"] * 4, [])[0] == 1
    # A gain that one image makes alone is no gain.
    lucky = [[90.5, 97.5, 98.5], [80.5] * 3, [85.5] * 3, [95.5, 94.5, 94.5]]
    assert _choose(*scores(lucky), own, kinds)[0] == 0
    level = [[value] * 3 for value in (90.5, 80.5, 85.5, 95.5)]
    chosen, card = _choose(*scores(level), own, kinds)
    assert chosen == 0
    assert card.reason == "no gain of more than a standard error"
    assert card.strength == 0


def test_the_term_raises_by_its_strength_where_a_patch_looks_like_a_defect():
    term = DefectTerm(torch.tensor([10.0, 0.0]), torch.tensor(0.0), torch.tensor(0.2))
    features = torch.tensor([[[[-9.0, 0.0, 9.0]], [[1.0, 5.0, 7.0]]]])
    assert term(features).tolist() == [[[pytest.approx(1.0), pytest.approx(1.1), pytest.approx(1.2)]]]
