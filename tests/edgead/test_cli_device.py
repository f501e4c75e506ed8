"""``edgead check``, ``bench`` and ``doctor``."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.layout import MANIFEST_NAME
from edgead.runtime.bundle.references import EXPECTED_NAME, pack_expected
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.device.doctor import diagnose


def rewritten(bundle: Path, target: Path, **members: bytes) -> Path:
    """The bundle with other members, listed as they should be: a whole bundle that says something else."""
    with Bundle.open(bundle) as opened:
        files = {name: opened.read(name) for name in opened.manifest.members}
        write_bundle(target, opened.manifest, {**files, **members})
    return target


def test_check_passes_on_each_backend(edgead, plate, plate_bundle):
    for backend in ("onnxruntime", "openvino"):
        outcome = edgead("check", plate_bundle, "--backend", backend, "--images", plate / "test", "--json")
        assert outcome.code == 0
        report = outcome.json
        assert (report["schema"], report["passed"], report["problems"]) == ("edgead.check/1", True, [])
        assert (report["backend"]["name"], report["backend"]["precision"]) == (backend, "fp32")
        assert report["references"]["images"] == 8
        assert report["references"]["decision_changes"] == []
        assert report["references"]["max_score_difference"] <= report["references"]["worst"]["tolerance"]
        assert report["images"]["images"] == 8
    outcome = edgead("check", plate_bundle)
    assert f"PASS: {plate_bundle}" in outcome.out
    assert "auto: " in outcome.out


def test_check_says_fail_and_3_where_this_device_decides_otherwise(edgead, plate_bundle, tmp_path):
    with Bundle.open(plate_bundle) as opened:
        expected = opened.expected()
        threshold = opened.manifest.threshold.value
    score = expected["score"].copy()
    changed = int(np.argmin(score))
    assert score[changed] < threshold
    score[changed] = 2 * threshold
    other = pack_expected(expected["names"].tolist(), score, expected["map"])
    bundle = rewritten(plate_bundle, tmp_path / "other.edgead", **{EXPECTED_NAME: other})
    name = expected["names"][changed]
    outcome = edgead("check", bundle)
    assert outcome.code == 3
    assert f"FAIL: {bundle}" in outcome.out
    assert f"{name}: ANOMALY became OK" in outcome.error
    outcome = edgead("check", bundle, "--json")
    assert outcome.code == 3
    assert outcome.json["passed"] is False
    assert outcome.json["references"]["decision_changes"] == [name]


def test_check_tells_of_unreadable_images_and_goes_on(edgead, plate, plate_bundle, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    outcome = edgead("check", plate_bundle, "--images", tmp_path)
    assert outcome.code == 2
    assert "none of the 1 images could be judged" in outcome.error
    shutil.copy(next((plate / "test" / "good").iterdir()), tmp_path / "good.png")
    outcome = edgead("check", plate_bundle, "--images", tmp_path, "--json")
    assert outcome.code == 0
    assert "Warning: " in outcome.err
    assert "a.png" in outcome.err
    assert outcome.json["images"]["decisions"]["NOT_INSPECTED"] == 1
    outcome = edgead("check", plate_bundle, "--images", tmp_path / "no")
    assert outcome.code == 2
    assert "does not exist" in outcome.error


def test_a_damaged_bundle_is_2_for_every_command(edgead, plate, plate_bundle, tmp_path):
    data = plate_bundle.read_bytes()
    middle = len(data) // 2
    damages = {
        "empty": b"",
        "cut": data[:middle],
        "one byte short": data[:-1],
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "no bundle": b"this is a text\n" * 100,
    }
    victim = tmp_path / "bad.edgead"
    good = plate / "test" / "good"
    for name, damaged in damages.items():
        victim.write_bytes(damaged)
        for call in (
            ("check", victim),
            ("run", victim, "--source", good),
            ("bench", victim),
            ("tune", victim),
            ("eval", victim, plate),
            ("calibrate", victim, "--source", good, "-o", tmp_path / "new.edgead"),
        ):
            outcome = edgead(*call)
            assert outcome.code == 2, (name, call)
            assert outcome.out == ""
            assert "bad.edgead" in outcome.error
        assert sorted(tmp_path.iterdir()) == [victim]


def test_a_bundle_of_a_newer_edgead_says_upgrade(edgead, plate_bundle, tmp_path):
    victim = tmp_path / "newer.edgead"
    with zipfile.ZipFile(plate_bundle) as source, zipfile.ZipFile(victim, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename == MANIFEST_NAME:
                data = json.dumps({**json.loads(data), "format_version": 2, "hologram": True}).encode()
            target.writestr(info, data)
    outcome = edgead("check", victim)
    assert outcome.code == 2
    assert "newer edgead (format 2); upgrade edgead" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backend", "onnxruntim"], "Did you mean 'onnxruntime'?"),
        (["--backend", "tensorrt"], "tensorrt"),
    ],
)
def test_an_unknown_backend_is_2(edgead, plate_bundle, arguments, expected):
    for verb in ("check", "bench", "tune"):
        outcome = edgead(verb, plate_bundle, *arguments)
        assert outcome.code == 2
        assert expected in outcome.error


def test_a_folder_or_nothing_is_no_bundle(edgead, tmp_path):
    for path, expected in ((tmp_path, "is a folder"), (tmp_path / "no.edgead", "does not exist")):
        outcome = edgead("check", path)
        assert outcome.code == 2
        assert expected in outcome.error


def test_a_full_disk_while_unpacking_is_one_line(edgead, plate_bundle):
    resource = pytest.importorskip("resource", reason="no RLIMIT_FSIZE here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        outcome = edgead("check", plate_bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 2
    assert "File too large" in outcome.error


def test_bench_reports_latency_and_accuracy(edgead, plate_bundle):
    size = ("--frames", "6", "--frame-size", "320x240")
    outcome = edgead("bench", plate_bundle, *size, "--json")
    assert outcome.code == 0
    report = outcome.json
    assert report["schema"] == "edgead.bench/1"
    assert report["frame_size"] == {"width": 320, "height": 240}
    assert {row["backend"]["name"] for row in report["results"]} == {"onnxruntime", "openvino"}
    for row in report["results"]:
        assert row["frames"] == {"captured": 6, "inspected": 6, "dropped": 0, "failed": 0}
        assert row["latency_ms"]["count"] == 6
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
        assert set(row["latency_ms"]["stages"]) >= {"preprocess", "network", "decide"}
        assert row["throughput_fps"] > 0
        assert row["accuracy"]["decision_changes"] == []
    outcome = edgead("bench", plate_bundle, *size, "--backend", "onnxruntime", "--rate", "200")
    assert outcome.code == 0
    for expected in ("camera to decision", "at 200 fps", "wait", "onnxruntime"):
        assert expected in outcome.out
    assert "openvino" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--frame-size", "big"], "such as 1280x1024"),
        (["--frame-size", "1x1"], "between 16x16"),
        (["--rate", "0"], "--rate"),
    ],
)
def test_bench_refuses_a_wrong_argument(edgead, plate_bundle, arguments, expected):
    outcome = edgead("bench", plate_bundle, *arguments)
    assert outcome.code == 2
    assert expected in outcome.error


def test_doctor_has_a_row_for_each_component(edgead):
    outcome = edgead("doctor", "--json")
    assert outcome.code == 0
    components = outcome.json["components"]
    assert [row["name"] for row in components] == [component.name for component in diagnose()]
    assert all(set(row) == {"name", "status", "detail", "fix"} for row in components)
    assert "onnxruntime" in edgead("doctor").out


def test_doctor_is_0_where_things_are_missing(process):
    outcome = process("doctor", without=["torch", "cv2", "onnxruntime"])
    assert outcome.code == 0
    assert "pip install 'edgead[cpu]'" in outcome.out
    assert outcome.err == ""


def test_signoff_prints_a_study_and_writes_page_json_and_signature(edgead, plate, plate_bundle, tmp_path):
    study = tmp_path / "study"
    for kind in ("good", "defect"):
        shutil.copytree(plate / "test" / kind, study / kind)
    page = tmp_path / "signoff.html"
    outcome = edgead("signoff", plate_bundle, study, "-o", page, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert report["schema"] == "edgead.signoff/1"
    assert json.loads(page.with_suffix(".json").read_text()) == {k: v for k, v in report.items() if k != "page"}
    assert report["claim"] in page.read_text()
    people = edgead("signoff", plate_bundle, study)
    assert "right in every trial" in " ".join(people.out.split())
    refused = edgead("signoff", plate_bundle, study, "--key", tmp_path / "no.pem")
    assert refused.code == 2
    assert "give the page with -o" in refused.err
    refused = edgead("signoff", plate_bundle, study, "-o", tmp_path / "report.json")
    assert (refused.code, "must end in .html" in refused.err) == (2, True)
    refused = edgead("signoff", plate_bundle, tmp_path, "-o", tmp_path / "x.html")
    assert refused.code == 2
    assert not (tmp_path / "x.html").exists()


def test_signoff_signs_the_json(edgead, plate, plate_bundle, tmp_path):
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization

    key = keys.Ed25519PrivateKey.generate()
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*private))
    study, page = tmp_path / "study", tmp_path / "s.html"
    for kind in ("good", "defect"):
        shutil.copytree(plate / "test" / kind, study / kind)
    outcome = edgead("signoff", plate_bundle, study, "-o", page, "--key", tmp_path / "key.pem")
    assert outcome.code == 0, outcome.err
    signature = (tmp_path / "s.json.sig").read_bytes()
    key.public_key().verify(signature, (tmp_path / "s.json").read_bytes())  # raises where it is another
    assert signature.hex() in page.read_text()
