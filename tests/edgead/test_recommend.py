"""``edgead recommend``: what it sees of a part, what it tries, how it chooses, and when it stops."""

from __future__ import annotations

import itertools
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.data import open_category
from edgead.fitting import FitConfig
from edgead.metrics.shares import Share
from edgead.recommending import recommendation, trying
from edgead.recommending.looking import look_at
from edgead.recommending.recommendation import choose, recommend
from edgead.recommending.trying import Candidate, Trial, short_list
from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.errors import DataError

SMALL = (96, 96)
FEW = 16
LONG = 1000.0  # minutes, which no machine takes


@pytest.fixture(scope="module")
def recommended(plate: Path):
    """What is said of the plate, which is turned and moved, with its real defects."""
    said = []
    config = FitConfig(size=SMALL, defects=plate / "test" / "defect")
    found = recommend(plate, minutes=LONG, config=config, announce=lambda *one: said.append(one))
    return found, said


@pytest.fixture
def few(plate: Path, tmp_path: Path) -> Path:
    """The plate with as many normal images as trials need, for what depends on no figure."""
    copy = tmp_path / "few"
    shutil.copytree(plate, copy)
    for path in sorted((copy / "train" / "good").iterdir())[FEW:]:
        path.unlink()
    return copy


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the fits, for what depends on no figure."""
    monkeypatch.setattr(trying, "ROUNDS", 2)
    monkeypatch.setattr(recommendation, "short_list", lambda *seen: short_list(*seen)[:3])


def test_turned_plates_are_a_part_that_lies_anyhow(made_images):
    look, _ = look_at(open_category(made_images / "plate", train_only=True), SMALL)
    assert not look.texture
    assert look.lies_anyhow
    assert 10 < look.turned_deg < 26  # drawn from -25.8 to 25.8 degrees
    assert look.parts == look.images == 40
    assert (look.width, look.height) == (192, 192)
    assert look.lost_detail > 0
    assert {one.align for one in short_list(look, None)} == {True, False}


def test_solar_cells_are_a_texture_without_a_pose(made_images):
    look, _ = look_at(open_category(made_images / "cell", train_only=True), (256, 256))
    assert look.texture
    assert look.turned_deg is None
    assert look.no_pose
    assert not look.one_size
    assert not any(one.align for one in short_list(look, None))


def test_a_still_part_needs_no_align(parts):
    look, _ = look_at(open_category(parts, train_only=True), SMALL)
    assert not look.lies_anyhow


def test_fine_detail_brings_a_larger_network_into_the_list(tmp_path):
    folder = tmp_path / "fine" / "train" / "good"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(random.integers(0, 256, (512, 512, 3), np.uint8)).save(folder / f"{index}.png")
    look, _ = look_at(open_category(tmp_path / "fine", train_only=True), (256, 256))
    assert look.lost_detail > 0.4
    assert any(one.size == 384 for one in short_list(look, None))
    assert all(one.size == SMALL for one in short_list(look, SMALL))


def test_every_normal_is_judged_once_by_models_that_had_not_seen_it(recommended):
    found, said = recommended
    ((candidates, _),) = said
    assert [one.candidate for one in found.tried.trials] == candidates
    assert found.tried.rounds == 4
    for trial in found.tried.trials:
        assert trial.false_alarms.n == 16
        assert trial.real_escapes.n <= 4
        # The same planted defects for all.
        assert len(trial.ranking.copies) == 16
    assert len({trial.escapes.n for trial in found.tried.trials}) == 1


def test_the_command_at_the_end_fits_what_was_chosen(recommended, edgead, tmp_path, monkeypatch):
    found, _ = recommended
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(found.to_dict()["command"])
    assert program == "edgead"
    done = edgead(*words, "--json")
    assert done.code == 0, done.err
    assert done.json["detector"] == found.trial.candidate.detector
    assert ("align" in done.json) == found.trial.candidate.align
    assert done.json["size"] == {"height": 96, "width": 96}
    assert (tmp_path / "plate.model").is_dir()


def test_three_sentences_carry_figures_and_their_doubt(recommended):
    found, _ = recommended
    taken = found.trial
    assert f"{taken.ranking.auroc:.3f} ± " in found.why[0]
    assert f"rejects {taken.false_alarms.count} (95 % interval" in found.why[1]
    assert f"of {taken.real_escapes.n} real ones" in found.why[1]
    assert "planted defects are no real ones" in found.why[2]


@pytest.mark.usefixtures("_quick")
def test_no_test_image_is_opened(few):
    for path in (few / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    shutil.rmtree(few / "ground_truth")
    found = recommend(few, minutes=LONG, config=FitConfig(size=SMALL))
    assert found.trial.real_escapes is None
    assert "no real defect" in found.why[2]


@pytest.mark.usefixtures("_quick")
def test_it_stops_in_time_with_what_it_has(few):
    # A clock that goes on by a second whenever somebody looks: the trials look at every step.
    whole = itertools.count()
    everything = recommend(few, minutes=LONG, config=FitConfig(size=SMALL), clock=lambda: float(next(whole)))
    ticks = next(whole)
    part = itertools.count()
    minutes = 0.4 * ticks / 60
    found = recommend(few, minutes=minutes, config=FitConfig(size=SMALL), clock=lambda: float(next(part)))
    assert next(part) < 0.6 * ticks
    assert found.tried.rounds == 1 < everything.tried.rounds
    for one in found.tried.trials:
        (same,) = [other for other in everything.tried.trials if other.candidate == one.candidate]
        assert one.false_alarms.n < same.false_alarms.n
    shown = [one.candidate.label for one in found.tried.trials] + list(found.tried.omitted)
    assert sorted(shown) == sorted(one.candidate.label for one in everything.tried.trials)


def test_too_little_time_for_one_detector_is_said(plate, edgead):
    done = edgead("recommend", plate, "--minutes", "0.001")
    assert done.code == 2
    assert "Error: not one detector could be tried in 0.001 minutes; give more --minutes" in done.err


def _trial(detector: str, scores, *, align: bool = False, size: int = 100, escapes: int = 10) -> Trial:
    normal, planted = scores
    owners = np.arange(len(planted)) % len(normal)
    ranking = Ranking.of(np.asarray(normal, float), np.asarray(planted, float), owners)
    return Trial(Candidate(detector, align), ranking, Share(0, 40), Share(escapes, 40), None, size, 1.0)


def test_a_clear_winner_is_taken_whatever_its_size():
    random = np.random.default_rng(0)
    normal = random.normal(size=40)
    good = _trial("patchcore", (normal, random.normal(4.0, 1.0, 160)), align=True, size=10**6, escapes=40)
    poor = _trial("fre", (normal, random.normal(0.5, 1.0, 160)), escapes=0)
    assert choose([poor, good]) == (1, ())


def test_of_equals_the_fewest_mistakes_count_and_then_what_is_small():
    random = np.random.default_rng(0)
    scores = random.normal(size=40), random.normal(2.0, 1.0, 160)
    large, small = _trial("padim", scores, size=1000), _trial("fre", scores, size=10)
    assert choose([large, small]) == (1, ("padim",))
    aligned = _trial("fre", scores, size=1, align=True)
    assert choose([large, small, aligned])[0] == 1
    sure = _trial("npad", scores, size=10**6, escapes=0)
    assert choose([large, small, sure])[0] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "0"], "--minutes must be a number above 0"),
        (["--minutes", "nan"], "--minutes must be a number above 0"),
        (["--size", "100"], "multiple"),
        (["--false-alarm-rate", "2"], "between 0 and 1"),
        (["--defects", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line(plate, edgead, options, said):
    done = edgead("recommend", plate, *options)
    assert done.code == 2
    assert said in done.error
    assert done.out == ""


def test_a_folder_that_is_not_there_is_one_line(edgead, tmp_path):
    assert edgead("recommend", tmp_path / "missing").code == 2


def test_too_few_images_are_refused_before_any_fit(plate, tmp_path):
    folder = tmp_path / "few" / "train" / "good"
    folder.mkdir(parents=True)
    paths = sorted((plate / "train" / "good").iterdir())[:7]
    for path in paths:
        shutil.copy(path, folder)
    for number in range(4):  # copies count once
        shutil.copy(paths[0], folder / f"copy{number}.png")
    with pytest.raises(DataError, match=r"7 good images .* too few"):
        recommend(tmp_path / "few", minutes=LONG)


@pytest.mark.usefixtures("_quick")
def test_json_is_one_object_and_people_get_the_command_last(few, edgead):
    arguments = ("recommend", few, "--size", "96", "--minutes", str(LONG))
    found = edgead(*arguments, "--json")
    assert found.code == 0, found.err
    content = found.json
    assert content["schema"] == "edgead.recommend/1"
    assert content["chosen"] in content["trials"]
    assert "no test image" in content["chosen_by"]
    people = edgead(*arguments)
    assert people.out.splitlines()[-1] == f"Next: {content['command']}"
    assert "will try, in this order" in people.err
