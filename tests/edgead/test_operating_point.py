"""Thresholds judged by defects at hand, and chosen by what mistakes cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.data import open_category
from edgead.evaluation.costs import Costs, parse_costs
from edgead.evaluation.operating_point import _cheapest, _least
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.runtime.decision.threshold import share_interval, threshold_at
from edgead.runtime.errors import ConfigError, DataError

QUICK = {"detector": "padim", "settings": {"dimensions": 24}, "size": 96}


def test_exact_intervals_of_a_share():
    # Clopper and Pearson's own values, as every table of them has.
    assert share_interval(0, 10) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert share_interval(10, 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert share_interval(1, 10) == (pytest.approx(0.0025, abs=1e-4), pytest.approx(0.4450, abs=1e-4))
    assert share_interval(0, 59)[1] == pytest.approx(0.0606, abs=1e-4)


def test_a_chosen_threshold_says_what_the_normals_say_of_it():
    scores = np.arange(100.0)
    inside = threshold_at(89.5, scores)
    assert (inside.n_normals, inside.supported) == (100, True)
    assert inside.target_false_alarm_rate == pytest.approx(11 / 102)
    assert inside.low < 0.1 < inside.high
    assert not threshold_at(99.0, scores).supported
    assert threshold_at(-1.0, scores).high == 1.0


def test_the_cheapest_threshold_lies_in_the_widest_gap_of_least_cost():
    normal, defects = np.array([1.0, 2.0, 3.0]), np.array([7.0, 9.0])
    assert _least(normal, defects, Costs(1.0, 1.0, 0.5)) == 5.0
    # One normal lies among the defects: what a mistake costs decides on which side of it.
    normal = np.array([1.0, 2.0, 3.0, 8.0])
    assert _least(normal, defects, Costs(100.0, 1.0, 0.5)) == 5.0
    assert _least(normal, defects, Costs(1.0, 100.0, 0.5)) == 8.5


def test_costs_are_estimated_without_the_image():
    random = np.random.default_rng(0)
    seen, true = [], []
    costs = Costs(10.0, 1.0, 0.1)
    for _ in range(30):
        normal, defects = random.normal(0, 1, 60), random.normal(2, 1, 15)
        card = _cheapest(normal, defects, costs)
        fresh_normal, fresh_defects = random.normal(0, 1, 4000), random.normal(2, 1, 4000)
        seen.append(card.cost_per_1000)
        true.append(float(costs.of(np.mean(fresh_defects <= card.value), np.mean(fresh_normal > card.value))))
    assert np.mean(seen) == pytest.approx(np.mean(true), rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((1.0, None, 0.1), "give both"), ((0.0, 1.0, 0.1), "above 0"), ((1.0, 1.0, 1.0), "between 0 and 1")],
)
def test_costs_that_make_no_sense_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        parse_costs(*arguments)


@pytest.fixture
def with_defects(plate: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "plate"
    shutil.copytree(plate, folder)
    (folder / "train" / "scratch").mkdir()
    for path in sorted((folder / "test" / "defect").iterdir())[:2]:
        shutil.move(path, folder / "train" / "scratch" / path.name)
    shutil.rmtree(folder / "ground_truth")
    return folder


def test_defects_beside_the_training_images_are_judged_and_not_trained_on(with_defects, tmp_path):
    category = open_category(with_defects, train_only=True)
    assert (len(category.train), [one.label for one in category.defects]) == (16, ["scratch", "scratch"])
    model = fit(with_defects, defects=with_defects / "test" / "defect", **QUICK)
    assert model.card.categories == {"plate": 16}
    card = model.card.defects
    assert (card.images, sum(images for images, _ in card.kinds.values())) == (4, 4)
    assert set(card.kinds) == {"scratch", "defect"}
    (own,) = [point for point in card.points if point.own]
    assert own.threshold == model.threshold.value
    assert own.escapes == sum(escapes for _, escapes in card.kinds.values())
    assert [point.threshold for point in card.points] == sorted(
        (point.threshold for point in card.points), reverse=True
    )
    model.save(tmp_path / "m.model")
    assert load_model(tmp_path / "m.model").card.defects == card


def test_costs_move_the_threshold_and_need_defects(with_defects, plate):
    dear = fit(with_defects, costs=Costs(1000.0, 1.0, 0.5), **QUICK)
    assert dear.card.defects.costs.value == dear.threshold.value
    assert all(escapes == 0 for _, escapes in dear.card.defects.kinds.values())
    with pytest.raises(DataError, match="put some into train/defect"):
        fit(plate, costs=Costs(10.0, 1.0), **QUICK)


def test_a_category_is_no_folder_of_defects(plate):
    # Its good images would count as defects.
    with pytest.raises(DataError, match="is a category"):
        fit(plate, defects=plate, **QUICK)


def test_a_stray_image_that_is_kept_moves_none_of_the_thresholds(with_defects):
    clean = fit(with_defects, **QUICK)
    with Image.open(next((with_defects / "train" / "good").iterdir())) as image:
        Image.new("RGB", image.size).save(with_defects / "train" / "good" / "dark.png")
    kept = fit(with_defects, keep_stray=True, **QUICK)
    assert {point.normals for point in kept.card.defects.points} == {16}
    assert {point.normals for point in clean.card.defects.points} == {16}


def test_the_command_shows_what_passes(edgead, with_defects, tmp_path, fit_arguments):
    outcome = edgead("fit", with_defects, "-o", tmp_path / "m.model", *fit_arguments, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["defects"]
    assert found["images"] == 2
    assert {point["normals"] for point in found["points"]} == {16}
    one = edgead("fit", with_defects, "-o", tmp_path / "n.model", "--cost-escape", "5", *fit_arguments)
    assert one.code == 2
    assert "give both" in one.error
    none = edgead("fit", with_defects, "-o", tmp_path / "n.model", "--defects", tmp_path / "no", *fit_arguments)
    assert none.code == 2
    assert "there is no folder" in none.error
