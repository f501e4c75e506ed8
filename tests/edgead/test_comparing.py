"""The plan of a comparison and what its rows say together, on rows whose figures are known."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from edgead.comparing.measure import Options, measure
from edgead.comparing.plan import make_jobs, open_subjects, parse_variants
from edgead.comparing.rows import read_row, row_path, write_row
from edgead.comparing.summary import group_rows, summarise
from edgead.comparing.tables import markdown, to_csv
from edgead.metrics.delong import compare_auroc
from edgead.metrics.metrics import image_auroc
from edgead.runtime.decision.threshold import share_interval
from edgead.runtime.errors import ConfigError, DataError


def scores(row):
    return [image.score for image in row.outcome.images]


# The plan.


def test_variants_take_common_and_own_settings():
    variants = parse_variants(
        "patchcore, big=patchcore,padim",
        ["bank_size=64", "big:bank_size=128", "smooth=false", "padim:smooth=true", "padim:dimensions=7"],
    )
    assert [(v.label, v.detector) for v in variants] == [
        ("patchcore", "patchcore"),
        ("big", "patchcore"),
        ("padim", "padim"),
    ]
    assert [v.settings.get("bank_size") for v in variants] == [64, 128, None]
    assert [v.settings["smooth"] for v in variants] == [False, False, True]
    assert variants[2].settings["dimensions"] == 7


def test_jobs_do_one_seed_of_everything_first(plate, parts):
    jobs = plan([plate, parts], "padim,patchcore", [3, 1])
    assert [job.name for job in jobs[:5]] == [
        "plate padim seed 3",
        "plate patchcore seed 3",
        "parts padim seed 3",
        "parts patchcore seed 3",
        "plate padim seed 1",
    ]
    assert len({key for job in jobs for key in job.keys}) == 8
    assert jobs[0].setups == jobs[4].setups
    assert jobs[0].keys != jobs[4].keys


def plan(paths, detectors, seeds=(0,), settings=(), size=64, backbone="efficientnet_lite0", taps=(8, 16)):
    variants = parse_variants(detectors, settings)
    return make_jobs(open_subjects(paths), variants, seeds, size=(size, size), backbone=backbone, taps=taps)


def test_a_key_is_of_all_that_decides_the_outcome(plate, tmp_path):
    def key(path=plate, **more):
        return plan([path], "padim", **more)[0].keys

    first = key()
    assert key() == first
    # Written otherwise, the same settings are the same.
    assert key(settings=["dimensions=100"]) == first
    moved = shutil.copytree(plate, tmp_path / "elsewhere" / "plate")
    assert key(moved) == first
    changed = {
        key(settings=["dimensions=99"]),
        key(size=96),
        key(seeds=(1,)),
        key(backbone="efficientnet_lite0@random"),
        key(taps=(8, 16, 32)),
    }
    assert len({first, *changed}) == 6
    image = sorted((moved / "train" / "good").iterdir())[0]
    image.unlink()
    fewer = key(moved)
    sorted((moved / "test" / "good").iterdir())[0].unlink()
    assert len({first, fewer, key(moved)}) == 3


def test_without_a_size_every_detector_gets_its_own(plate):
    variants = parse_variants("padim,sgsf,slsg")
    jobs = make_jobs(open_subjects([plate]), variants, (0,), size=None, backbone="efficientnet_lite0")
    assert [job.size for job in jobs] == [(256, 256), (128, 128), (128, 128)]
    assert len({key for job in jobs for key in job.keys}) == 3
    assert jobs[1].variant.settings["steps"] > 0  # what the profile fills in is part of the key


def test_the_backbone_is_named_without_its_folder(plate, tmp_path):
    (job,) = plan([plate], "padim", backbone="efficientnet_lite0@random")
    assert job.backbone_name == "efficientnet_lite0@random, taps 8 16"
    with pytest.raises((ConfigError, DataError)):
        plan([plate], "padim", backbone=f"efficientnet_lite0@{tmp_path / 'none.pth'}")


def test_a_pooling_detector_is_fitted_once_on_all_categories(plate, parts):
    settings = ["dfc:head=padim", "dfc:head.dimensions=20", "dfc:categories=2"]
    jobs = plan([plate, parts], "patchcore,dfc", settings=settings, size=64)
    assert [job.name for job in jobs] == [
        "plate patchcore seed 0",
        "plate + parts dfc seed 0",
        "parts patchcore seed 0",
    ]
    rows = measure(jobs[1], Options(frames=0, bootstrap=50), lambda *_: None)
    assert [row.category for row in rows] == ["plate", "parts"]
    assert [row.pooled for row in rows] == [["plate", "parts"]] * 2
    assert len({row.key for row in rows}) == 2
    one, other = (row.outcome for row in rows)
    assert (one.fit_seconds, one.bytes) == (other.fit_seconds, other.bytes)
    assert one.parity["onnxruntime"].images == 16  # the test images of both
    assert len(one.images) == len(other.images) == 8
    assert (one.metrics["aupro"] is None, other.metrics["aupro"] is None) == (False, True)
    assert one.latency is None
    assert "(one model of 2)" in markdown(summarise(rows))


# Rows.


def test_a_row_reads_back_as_it_was(make_row, tmp_path):
    for row in (make_row("a", 1), make_row("b", error="no luck")):
        write_row(tmp_path, row)
        path = row_path(tmp_path, row.category, row.label, row.seed, row.key)
        assert read_row(path) == row


@pytest.mark.parametrize(
    "category", ["../../etc", "a/b", "ä ö", "." * 80, "<img src=x onerror=alert(1)>", "con|:*", "\udcff"]
)
def test_a_row_lies_in_its_folder_whatever_the_category_is_called(make_row, tmp_path, category):
    row = make_row(category=category)
    write_row(tmp_path, row)
    (path,) = (tmp_path / "rows").iterdir()
    assert read_row(path).category == category
    assert all(letter.isascii() and (letter.isalnum() or letter in "_.+-") for letter in path.name)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"schema": "edgead.compare-row/2"}'])
def test_a_damaged_row_is_one_line(tmp_path, content):
    path = tmp_path / "row.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"row\.json is damaged") as caught:
        read_row(path)
    assert "\n" not in str(caught.value)


def test_a_row_with_neither_outcome_nor_error_is_damaged(make_row, tmp_path):
    content = make_row().model_dump_json(by_alias=True, exclude={"outcome"})
    (tmp_path / "row.json").write_text(content)
    with pytest.raises(DataError, match="damaged"):
        read_row(tmp_path / "row.json")


# The summary.


def test_seed_mean_and_range(make_row):
    rows = [make_row("a", seed) for seed in (2, 0, 1)]
    (one,) = summarise(rows)["summary"]
    values = [image_auroc(scores(row), np.arange(40) >= 20).value for row in sorted(rows, key=lambda row: row.seed)]
    metric = one["metrics"]["image_auroc"]
    assert one["seeds"] == [0, 1, 2]
    assert metric["seeds"] == values
    assert metric["mean"] == pytest.approx(np.mean(values))
    assert (metric["min"], metric["max"]) == (min(values), max(values))
    assert one["metrics"]["pixel_auroc"] is None
    assert one["decisions"]["false_alarms"] == 6
    assert (one["fit_seconds"], one["fit_peak_rss_bytes"]) == (3.0, 10**9)
    assert one["latency_ms"]["onnxruntime"]["network_p50"] == 2.0
    assert one["parity"]["onnxruntime"]["changed"] == 3


def test_interval_of_the_seed_mean_resamples_images_jointly(make_row):
    rows = [make_row("a", seed) for seed in range(3)]
    metric = summarise(rows)["summary"][0]["metrics"]["image_auroc"]
    assert metric["interval"] == "seed mean"
    # The same by hand: one draw of images for all seeds.
    random, matrix, draws = np.random.default_rng(0), np.array([scores(row) for row in rows]), []
    for _ in range(4000):
        good, bad = matrix[:, random.integers(0, 20, 20)], matrix[:, random.integers(20, 40, 20)]
        draws.append(np.mean(bad[:, :, None] > good[:, None, :]))
    low, high = np.percentile(draws, (2.5, 97.5))
    assert metric["low"] == pytest.approx(low, abs=0.015)
    assert metric["high"] == pytest.approx(high, abs=0.015)
    alone = [row.outcome.metrics["image_auroc"] for row in rows]
    assert metric["high"] - metric["low"] < max(one.high - one.low for one in alone)


def test_differences_are_paired_and_tested(make_row):
    weak, strong = [[make_row(label, seed, strength=s) for seed in (0, 1)] for label, s in (("weak", 1.0), ("ok", 2.0))]
    found = summarise([*weak, *strong], ["weak", "ok"])["summary"]
    assert [one["first"] for one in found] == [True, False]
    assert found[0]["difference"] is None
    difference = found[1]["difference"]
    labels = np.arange(40) >= 20
    expected = compare_auroc([scores(r) for r in strong], [scores(r) for r in weak], labels).to_dict()
    assert {key: difference["image_auroc"][key] for key in expected} == expected
    assert difference["image_auroc"]["p_holm"] == expected["p"]
    assert difference["f1_max"]["low"] <= difference["f1_max"]["value"] <= difference["f1_max"]["high"]
    assert difference["pixel_auroc"] is None
    turned = summarise([*weak, *strong], ["ok", "weak"])["summary"]
    assert turned[0]["label"] == "ok"
    assert turned[1]["difference"]["image_auroc"]["value"] == pytest.approx(-expected["value"])


def test_p_is_adjusted_for_all_comparisons_of_the_table(make_row):
    rows = [make_row(label, 0, category) for category in ("x", "y") for label in ("a", "b", "c")]
    found = [one["difference"]["image_auroc"] for one in summarise(rows)["summary"] if one["difference"]]
    assert len(found) == 4
    assert min(one["p_holm"] for one in found) == pytest.approx(min(1.0, 4 * min(one["p"] for one in found)))


def test_images_that_were_left_out_leave_both(make_row):
    rows = [make_row("a", 0), make_row("b", 0, left_out=(25, 31))]
    payload = summarise(rows)
    one = payload["summary"][1]
    assert one["difference"]["image_auroc"]["images"] == 38
    assert one["difference"]["f1_max"] is None  # their resamples are not of the same images
    assert one["decisions"]["not_inspected"] == 2
    assert "| 2 of 40 |" in markdown(payload)
    mixed = summarise([make_row("b", 0, left_out=(25, 31)), make_row("b", 1)])["summary"][0]["metrics"]["image_auroc"]
    assert mixed["interval"] == "mean of the seeds' intervals"
    assert mixed["low"] <= mixed["mean"] <= mixed["high"]


def test_escapes_and_false_alarms_are_means_over_seeds(make_row, tmp_path):
    write_row(tmp_path, make_row("a", 0))
    (path,) = (tmp_path / "rows").iterdir()
    rows = [read_row(path), make_row("a", 1)]  # a row holds scores and decisions, whatever version wrote it
    (one,) = summarise(rows[:1])["summary"]
    low, high = share_interval(1, 20)
    assert one["escape_rate"]["mean"] == 1 / 20
    assert (one["escape_rate"]["low"], one["escape_rate"]["high"]) == (low, high)
    assert one["escape_rate"]["interval"] == "exact"
    assert one["false_alarm_rate"]["mean"] == 2 / 20
    (one,) = summarise(rows)["summary"]
    # The same images twice make no narrower interval.
    assert (one["escape_rate"]["low"], one["escape_rate"]["high"]) == (low, high)
    assert (one["escape_rate"]["count"], one["escape_rate"]["images"]) == (2, 40)
    expected = []
    for row in rows:
        good = sorted(image.score for image in row.outcome.images if not image.anomalous)
        bad = [image.score for image in row.outcome.images if image.anomalous]
        expected.append([sum(score <= good[-1 - most] for score in bad) for most in (0, 0, 1)])
    assert [point["at_false_alarm_rate"] for point in one["allowed"]] == [0.0, 0.01, 0.05]
    for point, counts in zip(one["allowed"], np.transpose(expected), strict=True):
        assert point["escape_rate"]["count"] == counts.sum()
        assert point["escape_rate"]["mean"] == pytest.approx(counts.mean() / 20)


def test_tables_begin_with_escapes_and_false_alarms(make_row):
    payload = summarise([make_row("a")])
    heading, _, line = markdown(payload).splitlines()[:3]
    order = ("escapes at the threshold", "false alarms at the threshold", "allow at 5 % false alarms", "image AUROC")
    assert sorted(order, key=heading.index) == list(order)
    assert "| 5.0 % (0.1–24.9 %) | 10.0 % (1.2–31.7 %) |" in line
    names = to_csv([make_row("a")]).splitlines()[0].split(",")
    assert max(map(names.index, ("escapes", "false_alarms", "escapes_allowed_at_5_percent"))) < names.index(
        "image_auroc"
    )
    keys = list(payload["summary"][0])
    assert max(map(keys.index, ("escape_rate", "false_alarm_rate", "allowed"))) < keys.index("metrics")


def test_a_category_without_an_inspected_good_image_has_no_shares(make_row):
    row = make_row("a", left_out=range(19))
    decisions = row.outcome.decisions.model_copy(update={"normal": 0, "false_alarms": 0})
    images = [image.model_copy(update={"decision": "NOT_INSPECTED"}) for image in row.outcome.images[:20]]
    update = {"decisions": decisions, "images": [*images, *row.outcome.images[20:]]}
    (one,) = summarise([row.model_copy(update={"outcome": row.outcome.model_copy(update=update)})])["summary"]
    assert (one["false_alarm_rate"], one["allowed"]) == (None, [])
    assert "| – | – | – | – |" in markdown({"summary": [one], "failed": []})


def test_too_few_shared_images_give_a_reason(make_row):
    rows = [make_row("a", 0, images=4), make_row("b", 0, images=4, left_out=(3,))]
    difference = summarise(rows)["summary"][1]["difference"]
    assert difference["image_auroc"] is None
    assert "at least two" in difference["reason"]


def test_without_its_first_detector_a_category_compares_nothing(make_row):
    rows = [make_row("a", 0, "x"), make_row("b", 0, "x"), make_row("a", 0, "y", error="no"), make_row("b", 0, "y")]
    found = {(one["category"], one["label"]): one for one in summarise(rows, ["a", "b"])["summary"]}
    assert found["x", "b"]["difference"] is not None
    assert found["y", "b"]["difference"] is None
    assert found["y", "b"]["first"] is False
    assert summarise(rows, ["a", "b"])["failed"] == [{"category": "y", "label": "a", "seed": 0, "error": "no"}]
    lines = markdown(summarise(rows, ["a", "b"])).splitlines()
    assert lines[-1] == "Failed: y, a, seed 0: no"
    assert lines[4].endswith("| – |")


def test_mean_over_categories_is_of_those_that_have_all(make_row):
    rows = [make_row("a", 0, "x"), make_row("a", 0, "y", strength=3), make_row("b", 0, "x")]
    payload = summarise(rows)
    (overall,) = payload["overall"]
    means = [one["metrics"]["image_auroc"]["mean"] for one in payload["summary"] if one["label"] == "a"]
    assert (overall["label"], overall["categories"]) == ("a", 2)
    assert overall["metrics"]["image_auroc"]["mean"] == pytest.approx(np.mean(means))
    assert overall["metrics"]["aupro"] is None


def test_other_setups_under_a_label_are_other_groups(make_row):
    other = make_row("a", 0).model_copy(update={"setup": "f" * 64})
    groups = group_rows([make_row("a", 0), make_row("a", 1), other])
    assert [(group.label, len(group.rows)) for group in groups] == [("a [000000]", 2), ("a [ffffff]", 1)]


def test_markdown_keeps_names_from_being_markup(make_row):
    line = markdown(summarise([make_row(category="a|b`<i>*")])).splitlines()[2]
    assert line.startswith("| a\\|b\\`&lt;i&gt;\\* | a |")


def test_csv_of_failures_has_no_figures(make_row):
    text = to_csv([make_row("a"), make_row("b", error='said "no", twice')])
    assert text.count("\n") == 3
    assert '"said ""no"", twice"' in text
