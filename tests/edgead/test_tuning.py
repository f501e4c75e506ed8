"""``edgead tune``, the pictures it compares by, and the profile that ``run`` and ``check`` use."""

from __future__ import annotations

import json
import shutil
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from edgead.probes import KINDS
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import DataError
from edgead.runtime.imaging.roi import Box, make_region
from edgead.tuning.tuning import MOST_NORMALS, find_good, good_pictures, other_pictures

ONE = ("--backend", "onnxruntime", "--threads", "1", "--frames", "4", "--frame-size", "320x240")


def test_each_good_picture_has_painted_copies_of_different_kinds(plate):
    files = sorted((plate / "test" / "good").iterdir())
    found = list(good_pictures(files, None))
    assert [picture.name for picture in found if picture.kind == "good"] == [str(file) for file in files]
    good = {picture.name: picture.image for picture in found if picture.kind == "good"}
    for owner, group in groupby(found, key=lambda picture: picture.owner or picture.name):
        _, *copies = group
        assert len(copies) == 3
        for copy in copies:
            assert copy.kind == "planted"
            assert copy.image.shape == good[owner].shape
            assert 0 < (copy.image != good[owner]).any(axis=2).mean() < 0.5
    kinds = {kind for kind in KINDS for picture in found if f"planted {kind} " in picture.name}
    assert len(kinds) > 3
    again = list(good_pictures(files, None))
    assert all(np.array_equal(one.image, other.image) for one, other in zip(found, again, strict=True))


def test_defects_lie_where_the_model_looks_and_no_more_pictures_are_taken_than_needed(plate):
    file = sorted((plate / "test" / "good").iterdir())[0]
    (first,) = other_pictures([file])
    height, width = first.image.shape[:2]
    region = make_region((width, height), Box(width // 4, height // 4, width // 2, height // 2), None)
    found = list(good_pictures([file] * (MOST_NORMALS + 4), region))
    assert sum(picture.kind == "good" for picture in found) == MOST_NORMALS
    assert region is not None
    outside = np.ones((height, width), bool)
    x, y, w, h = region.box
    outside[y : y + h, x : x + w] = False
    for picture in found:
        assert not (picture.image != first.image).any(axis=2)[outside].any()


def test_pictures_that_the_model_was_trained_on_are_refused(plate, plate_bundle, tmp_path):
    with pytest.raises(DataError, match="it has not seen"):
        find_good([plate_bundle], [plate])
    with pytest.raises(DataError, match="does not exist"):
        find_good([plate_bundle], [tmp_path / "no"])
    files, unknown = find_good([plate_bundle], [plate / "test" / "good"])
    assert (len(files), unknown) == (4, [])
    assert find_good([plate_bundle], []) == ([], [])


def test_too_little_to_paint_on_is_one_line(tmp_path):
    from PIL import Image

    for index in range(2):
        Image.new("RGB", (20, 20), (90, 90, 90)).save(tmp_path / f"{index}.png")
    with pytest.raises(DataError, match=r"from 32 pixels a side on.* comparing takes 2"):
        list(good_pictures(sorted(tmp_path.iterdir()), None))


def test_tune_writes_the_profile_that_run_and_check_use(edgead, plate, plate_bundle, tmp_path, monkeypatch):
    place, good = tmp_path / "profiles", plate / "test" / "good"
    arguments = ("--normals", good, "--images", plate / "test" / "defect", "--profile", place)
    outcome = edgead("tune", plate_bundle, *ONE, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert report["schema"] == "edgead.tune/1"
    assert report["pictures"] == {"references": 8, "good": 4, "planted": 12, "other": 4}
    plain, tried = report["candidates"]
    assert (plain["plain"], plain["eligible"], tried["threads"]) == (True, False, 1)
    for one in (plain, tried):
        assert one["excluded"] is None
        assert one["accuracy"]["held_out"] is True
        assert 0.0 <= one["accuracy"]["auroc"] <= 1.0
        assert one["accuracy"]["images"] == 28
        assert one["latency_ms"]["count"] == 4
    assert (report["front"], report["choice"]) == ([1], 1)
    with Bundle.open(plate_bundle) as bundle:
        file = place / f"{bundle.sha256}.json"
    assert report["profile"] == str(file)
    assert json.loads(file.read_text())["choice"] == {
        "backend": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "native_code": "absent",
    }

    source = ("--source", good, "--max-frames", "2")
    said = "backend: device profile: onnxruntime fp32, 1 thread "
    for where in (place, file):
        outcome = edgead("run", plate_bundle, *source, "--profile", where)
        assert outcome.code == 0
        assert said in outcome.err
    summary = edgead("run", plate_bundle, *source, "--profile", place, "--json").json
    assert summary["backend"]["threads"] == 1
    # By name, without profiles, and in batches, which were not measured.
    for more in (("--threads", "2"), ("--profile", "off"), ("--batch", "2")):
        outcome = edgead("run", plate_bundle, *source, "--profile", place, *more)
        assert outcome.code == 0
        assert "device profile" not in outcome.err
    checked = edgead("check", plate_bundle, "--profile", place, "--json").json
    assert checked["backend"]["why"].startswith("device profile: ")
    assert checked["backend"]["threads"] == 1

    monkeypatch.setenv("EDGEAD_PROFILES", str(place))
    assert "plate: onnxruntime fp32, 1 thread" in edgead("doctor", "--json").json["components"][-1]["detail"]
    content = json.loads(file.read_text())
    content["device"]["cpu"] = "Another CPU"
    file.write_text(json.dumps(content))
    for call in (("run", plate_bundle, *source), ("check", plate_bundle)):
        outcome = edgead(*call, "--profile", place, "--json")
        assert outcome.code == 0
        (line,) = [line for line in outcome.err.splitlines() if line.startswith("Warning: the device profile")]
        assert "is omitted: it is of another device (Another CPU" in line
        assert outcome.json["backend"]["threads"] != 1
    last = edgead("doctor", "--json").json["components"][-1]
    assert (last["name"], last["status"]) == ("device profiles", "ok")
    assert "plate: it is of another device" in last["detail"]


def test_where_nothing_keeps_within_the_budget_it_is_3_and_no_profile(edgead, plate_bundle, tmp_path):
    place = tmp_path / "profiles"
    outcome = edgead("tune", plate_bundle, *ONE, "--budget-ms", "0.01", "--profile", place)
    assert outcome.code == 3
    assert "over the budget" in outcome.out
    assert "nothing keeps within 0.01 ms here: the nearest, onnxruntime fp32, 1 thread, takes " in outcome.error
    assert "raise the budget, or " in outcome.error
    assert not place.exists()


def test_several_bundles_need_good_parts(edgead, plate_bundle, tmp_path):
    other = shutil.copy(plate_bundle, tmp_path / "other.edgead")
    outcome = edgead("tune", plate_bundle, other, *ONE)
    assert outcome.code == 2
    assert "--normals DIR" in outcome.error


def test_without_scipy_the_good_parts_cannot_be_painted_on(process, plate, plate_bundle):
    outcome = process("tune", plate_bundle, *ONE, "--normals", plate / "test" / "good", without=["scipy"])
    assert outcome.code == 2
    assert "pip install scipy" in outcome.error


def test_a_user_without_a_home_runs_without_profiles(edgead, plate, plate_bundle, monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("EDGEAD_PROFILES", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert edgead("run", plate_bundle, "--source", plate / "test" / "good", "--max-frames", "1").code == 0
    outcome = edgead("tune", plate_bundle, *ONE)
    assert outcome.code == 2
    assert "no home folder" in outcome.error


def test_a_profile_that_is_named_and_not_there_is_2(edgead, plate, plate_bundle, tmp_path):
    for call in (("run", plate_bundle, "--source", plate / "test" / "good"), ("check", plate_bundle)):
        outcome = edgead(*call, "--profile", tmp_path / "no.json")
        assert outcome.code == 2
        assert "there is no device profile" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--budget-ms", "-1"], "--budget-ms"), (["--frame-size", "big"], "such as 1280x1024"), (["--threads", "0"], "1")],
)
def test_a_wrong_argument_is_2(edgead, plate_bundle, arguments, expected):
    outcome = edgead("tune", plate_bundle, *arguments)
    assert outcome.code == 2
    assert expected in outcome.error
