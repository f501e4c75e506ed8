"""The study of a station: its statistics against other sources, the folder it reads, and whole studies."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import shutil

import numpy as np
import pytest

from edgead.pages.signoff_page import signoff_page
from edgead.runtime.backends import available
from edgead.runtime.device.signoff.agreement import (
    Share,
    cohen_kappa,
    fleiss_kappa,
    parts_needed,
    rating,
    upper_limit,
)
from edgead.runtime.device.signoff.changes import CHANGES, changed_pictures
from edgead.runtime.device.signoff.parts import read_parts
from edgead.runtime.device.signoff.study import study
from edgead.runtime.errors import DataError


def test_the_limit_is_where_so_few_escapes_become_a_chance_of_one_in_twenty() -> None:
    for count, n in [(0, 1), (0, 59), (1, 20), (3, 40), (7, 7)]:
        limit = upper_limit(count, n)
        if count == n:
            assert limit == 1.0
            continue
        chance = sum(math.comb(n, k) * limit**k * (1 - limit) ** (n - k) for k in range(count + 1))
        assert chance == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize(("rate", "parts"), [(0.1, 29), (0.05, 59), (0.02, 149), (0.01, 299)])
def test_parts_without_an_escape_support_a_rate(rate: float, parts: int) -> None:
    assert parts_needed(rate) == parts
    assert upper_limit(0, parts) <= rate < upper_limit(0, parts - 1)


def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        first = random.random(60) < share
        second = first ^ (random.random(60) < 0.1)
        assert cohen_kappa(first.tolist(), second.tolist()) == pytest.approx(metrics.cohen_kappa_score(first, second))


def test_kappa_of_trials_is_that_of_all_their_pairs() -> None:
    """Fleiss' agreement of a part is the share of the pairs of trials that say the same, counted here one by one."""
    random = np.random.default_rng(1)
    said = random.random((30, 4)) < 0.4
    agreed = np.mean([[a == b for a, b in itertools.combinations(row, 2)] for row in said])
    share = said.mean()
    expected = share**2 + (1 - share) ** 2
    assert fleiss_kappa(said.sum(axis=1).tolist(), 4) == pytest.approx((agreed - expected) / (1 - expected))
    assert fleiss_kappa([4, 0, 4, 0], 4) == 1.0


def test_where_all_say_the_same_there_is_no_kappa() -> None:
    assert cohen_kappa([True, True], [True, True]) is None
    assert cohen_kappa([], []) is None
    assert fleiss_kappa([0, 0], 3) is None
    assert fleiss_kappa([1, 0], 1) is None


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.90, 0.02, 0.05), "acceptable"),
        ((0.95, 0.03, 0.0), "marginal"),
        ((0.80, 0.05, 0.10), "marginal"),
        ((0.95, 0.0, 0.11), "unacceptable"),
        ((0.79, 0.0, 0.0), "unacceptable"),
        ((0.95, None, 0.0), None),
    ],
)
def test_the_rating_has_the_limits_of_the_manual(shares: tuple[float | None, ...], expected: str | None) -> None:
    assert rating(*shares) == expected


def test_nothing_seen_is_no_share() -> None:
    assert Share.of(0, 0).value is None
    assert "none seen" in Share.of(0, 0).explain()
    assert Share.of(1, 20).explain() == "1 of 20 (5.0%; 95 % interval 0.1% to 24.9%)"


def test_small_changes_are_what_they_are_called() -> None:
    random = np.random.default_rng(0)
    for shape in ((12, 16, 3), (12, 16)):
        image = random.integers(0, 256, shape, dtype=np.uint8)
        made = {name: make() for name, make in changed_pictures(image).items()}
        assert tuple(made) == CHANGES
        assert all(one.shape == shape and one.dtype == np.uint8 for one in made.values())
        assert np.array_equal(made["moved 2 pixels right"][:, 2:], image[:, :-2])
        assert np.array_equal(made["moved 2 pixels right"][:, 0], image[:, 0])
        assert np.array_equal(made["moved 2 pixels down"][2:], image[:-2])
        assert np.array_equal(made["light 5 % darker"], np.floor(image * 0.95 + 0.5).astype(np.uint8))
        assert made["light 5 % brighter"].max() == 255
        inner = image.astype(int)
        weights = np.outer([1, 2, 1], [1, 2, 1])
        at = sum(int(weights[y, x]) * inner[4 + y, 4 + x] for y in range(3) for x in range(3))
        assert np.array_equal(made["out of focus, 3x3 binomial"][5, 5], (at + 8) // 16)
        ramp = np.linspace(0, 255, shape[1]).astype(np.uint8)
        smooth = np.broadcast_to(ramp if len(shape) == 2 else ramp[:, None], shape)
        packed = changed_pictures(np.ascontiguousarray(smooth))["JPEG, quality 90"]()
        assert 0 < np.abs(packed.astype(int) - smooth).mean() < 6


# Folders


@pytest.fixture
def folder(tmp_path):
    """Six good parts of three captures, four with a bright spot of three, one of those captured once."""
    from PIL import Image

    random = np.random.default_rng(3)
    root = tmp_path / "study"
    for number, kind in enumerate(["good"] * 6 + ["spot"] * 4):
        part = root / kind / f"p{number}"
        part.mkdir(parents=True)
        for trial in range(3):
            picture = random.integers(95, 105, (31, 45, 3), dtype=np.uint8)
            if kind == "spot":
                picture[12:20, 14:24] = (255, 0, 255)
            Image.fromarray(picture).save(part / f"{trial}.png")
    (root / "spot" / "p9" / "0.png").rename(root / "spot" / "alone.png")
    for trial in (1, 2):
        (root / "spot" / "p9" / f"{trial}.png").unlink()
    return root


def test_a_folder_is_read_part_by_part(folder) -> None:
    found = read_parts(folder)
    assert [(one.name, one.defective, len(one.captures)) for one in found.parts] == [
        *((f"good/p{number}", False, 3) for number in range(6)),
        ("spot/alone", True, 1),
        *((f"spot/p{number}", True, 3) for number in range(6, 9)),
    ]


LIST = "part,appraiser,trial,decision\ngood/p0,Ann,1,OK\ngood/p0,Ann,2,NG\nspot/p6,Ann,1,ng\nspot/p6,Ann,2,reject\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part,appraiser,decision\n", "the header must be part,appraiser,trial,decision"),
        (LIST + "good/p77,Ann,1,OK\n", "line 6: 'good/p77' is no part of the study"),
        (LIST + "good/p1,Ann,1,maybe\n", "line 6: the decision 'maybe' is none of OK and NG"),
        (LIST + "good/p0,Ann,2,OK\n", "Ann, good/p0, trial 2 is there twice"),
    ],
)
def test_a_list_of_appraisers_that_cannot_be_used_is_one_line(folder, text: str, message: str) -> None:
    (folder / "appraisers.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_parts(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gone", ["good", "spot"])
def test_a_study_needs_good_and_defective_parts(folder, gone: str) -> None:
    (folder / gone).rename(folder.parent / gone)
    with pytest.raises(DataError, match="a study needs both"):
        read_parts(folder)
    with pytest.raises(DataError, match="is no folder"):
        read_parts(folder / "nowhere")


# Whole studies

needs_onnxruntime = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")


@needs_onnxruntime
def test_a_study_says_what_the_station_and_people_decide(make_bundle, folder) -> None:
    (folder / "appraisers.csv").write_text(LIST)
    found = study(make_bundle(), folder)
    station, ann = found.appraisers
    assert (station.parts, station.trials, station.rating) == (10, 1, "acceptable")
    assert (station.effectiveness.seen, station.miss.seen, station.false_alarm.seen) == (10, 0, 0)
    assert station.within == Share.of(9, 9)
    assert station.kappa == 1.0
    assert (ann.parts, ann.trials, ann.rating) == (2, 2, "unacceptable")
    assert (ann.effectiveness.seen, ann.false_alarm.seen, ann.miss.seen) == (1, 1, 0)
    assert ann.within == Share.of(1, 2)
    assert "Of 4 defective parts none passed: with 95 % confidence at most 52.7% of defects" in found.claim
    assert "29 without an escape would support 10%" in found.claim
    assert list(found.kinds) == ["spot"]
    assert set(found.changes) == set(CHANGES)
    assert found.provenance["check"]["passed"]
    scores = [np.array(one.scores) for one in found.parts if len(one.scores) > 1]
    pooled = math.sqrt(sum(((s - s.mean()) ** 2).sum() for s in scores) / sum(len(s) - 1 for s in scores))
    assert found.repeatability.deviation == pytest.approx(pooled)
    assert found.repeatability.near == ()


@needs_onnxruntime
def test_a_capture_that_passes_makes_its_part_an_escape(make_bundle, folder) -> None:
    from PIL import Image

    plain = np.random.default_rng(9).integers(95, 105, (31, 45, 3), dtype=np.uint8)
    Image.fromarray(plain).save(folder / "spot" / "p6" / "1.png")
    found = study(make_bundle(), folder)
    assert (found.station.miss.seen, found.station.miss.n) == (1, 4)
    assert found.station.within == Share.of(8, 9)
    assert found.claim.startswith("Of 4 defective parts 1 passed")
    assert "spot/p6" in found.repeatability.near


@needs_onnxruntime
def test_the_page_and_the_json_say_it_all(make_bundle, folder) -> None:
    found = study(make_bundle(), folder)
    text = signoff_page(found, datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc))
    for expected in (
        "acceptable",
        found.claim,
        "spot",
        "JPEG, quality 90",
        found.provenance["model_sha256"],
        "2026-01-02",
    ):
        assert expected in text
    assert "Quality, date, signature" in text
    signed = signoff_page(found, datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), {"signature": "ab12"})
    assert "ab12" in signed
    json.dumps(found.to_dict(), allow_nan=False)


@needs_onnxruntime
def test_one_picture_is_no_capture_of_two_parts(make_bundle, folder) -> None:
    """Copies would support a claim about parts that nobody saw."""
    shutil.copy(folder / "spot" / "p6" / "0.png", folder / "spot" / "p7" / "2.png")
    with pytest.raises(DataError, match=r"p7/2.png is also a capture of spot/p6"):
        study(make_bundle(), folder)
