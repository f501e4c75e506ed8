"""``edgead run``, ``capture`` and ``calibrate``: with files, the synthetic camera, signals and lost sources."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.imaging.decode import read_image
from tests.waiting import LONG_S, lines, wait_for

posix = pytest.mark.skipif(os.name == "nt", reason="no signals to another process on Windows")


def test_run_judges_a_folder_as_eval_does(edgead, process, plate, plate_bundle, tmp_path):
    sinks = ("--sink", tmp_path / "r.jsonl", "--sink", f"images:{tmp_path}/i")
    outcome = process("run", plate_bundle, "--source", plate / "test", *sinks, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert report["schema"] == "edgead.run/1"
    assert {k: report["frames"][k] for k in ("captured", "inspected", "dropped", "failed", "in_flight")} == {
        "captured": 8, "inspected": 8, "dropped": 0, "failed": 0, "in_flight": 0,
    }  # fmt: skip
    assert set(report["latency_ms"]) >= {"p50", "p95", "p99", "max", "stages"}
    assert set(report["latency_ms"]["stages"]) == {"wait", "preprocess", "network", "decide"}
    results = lines(tmp_path / "r.jsonl")
    assert [r["frame_index"] for r in results] == list(range(8))
    assert report["decisions"]["ANOMALY"] == sum(r["decision"] == "ANOMALY" for r in results)
    assert len(list((tmp_path / "i").iterdir())) == report["decisions"]["ANOMALY"]
    decisions = edgead("eval", plate_bundle, plate, "--json").json["categories"]["plate"]["decisions"]
    escapes = sum(r["decision"] == "OK" and str(r["name"]).startswith("defect/") for r in results)
    assert escapes == decisions["escapes"]


def test_run_shows_people_a_summary(edgead, plate, plate_bundle, tmp_path):
    good, defect = plate / "test" / "good", plate / "test" / "defect"
    outcome = edgead("run", plate_bundle, "--source", good, "--source", defect, "--sink", tmp_path / "r.jsonl")
    assert outcome.code == 0
    for expected in (str(good), str(defect), "all", "NOT_INSPECTED", "camera to decision", "network", "r.jsonl"):
        assert expected in outcome.out


def test_run_says_of_known_good_parts_whether_the_promise_holds_and_how_unusual_each_is(
    edgead, plate, plate_bundle, tmp_path
):
    good = edgead("run", plate_bundle, "--source", plate / "test" / "good", "--known-good", "--json").json["promise"]
    with Bundle.open(plate_bundle) as bundle:
        promised = bundle.manifest.promised()[None]
        n = len(bundle.manifest.provenance["held_out_scores"]["fp32"])
    assert [(one["parts"], one["rate"], one["broken"]) for one in good] == [(4, promised.high, False)]
    results = tmp_path / "r.jsonl"
    outcome = edgead("run", plate_bundle, "--source", plate / "test", "--sink", results)
    assert outcome.code == 0
    found = {one["name"]: one for one in lines(results)}
    for one in found.values():
        assert 1 / (n + 1) <= one["p_value"] <= 1.0
        if one["score"] > promised.value:
            assert one["p_value"] <= 2 / (n + 1)  # at most one normal lies above the threshold


def test_results_on_stdout_leave_the_summary_to_stderr(process, plate, plate_bundle):
    outcome = process("run", plate_bundle, "--source", plate / "test", "--sink", "jsonl:-")
    assert outcome.code == 0
    assert [json.loads(line)["frame_index"] for line in outcome.out.splitlines()] == list(range(8))
    assert "camera to decision" in outcome.err


def test_results_and_json_cannot_both_have_stdout(edgead, plate, plate_bundle):
    for sink in ("jsonl:-", "JSONL://-"):
        outcome = edgead("run", plate_bundle, "--source", plate / "test", "--sink", sink, "--json")
        assert outcome.code == 2
        assert outcome.out == ""
        assert "both want stdout" in outcome.error


def test_run_ends_after_duration_or_frames(edgead, plate_bundle):
    report = edgead("run", plate_bundle, "--source", "synthetic://?fps=200", "--max-frames", "5", "--json").json
    assert report["frames"]["inspected"] == 5
    report = edgead("run", plate_bundle, "--source", "synthetic://", "--duration", "0.3", "--json").json
    assert report["frames"]["captured"] > 0
    assert report["frames"]["in_flight"] == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_prints_the_summary(launch, plate_bundle, tmp_path, number):
    arguments = ["--source", "synthetic://?policy=every", "--sink", tmp_path / "r.jsonl", "--json"]
    with launch(["run", plate_bundle, *arguments]) as child:
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > 3)
        child.send_signal(number)
        out, err = child.communicate(timeout=LONG_S)
    assert child.returncode == 0, err
    frames = json.loads(out)["frames"]
    assert frames["in_flight"] == 0
    assert frames["captured"] == frames["inspected"] + frames["dropped"] + frames["failed"]
    assert len(lines(tmp_path / "r.jsonl")) == frames["inspected"] + frames["failed"]


@posix
def test_wait_begins_when_the_source_is_there(launch, plate, plate_bundle, tmp_path):
    source = tmp_path / "camera"
    with launch(["run", plate_bundle, "--source", source, "--wait", "--json"]) as child:
        assert child.stderr is not None
        assert "Warning: waiting: no file or folder" in child.stderr.readline()
        shutil.copytree(plate / "test" / "good", tmp_path / "copy")
        (tmp_path / "copy").rename(source)
        out, err = child.communicate(timeout=LONG_S)
    assert child.returncode == 0, err
    assert json.loads(out)["frames"]["inspected"] == 4
    assert err == ""


@posix
def test_a_signal_while_waiting_ends_it_well(launch, plate_bundle, tmp_path):
    with launch(["run", plate_bundle, "--source", tmp_path / "camera", "--wait", "--json"]) as child:
        assert child.stderr is not None
        assert "waiting" in child.stderr.readline()
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=LONG_S)
    assert (child.returncode, err) == (0, "")
    report = json.loads(out)
    assert (report["frames"]["captured"], report["latency_ms"]["p50"]) == (0, None)


def test_a_source_that_is_not_there_is_2_without_wait(edgead, plate_bundle, tmp_path):
    for source, expected in (
        (tmp_path / "no", "no file or folder"),
        ("synthetik://", "Did you mean 'synthetic'?"),
        ("synthetic://?polcy=every", "Did you mean 'policy'?"),
        ("csi://left", "a CSI camera is a number"),
    ):
        outcome = edgead("run", plate_bundle, "--source", source)
        assert outcome.code == 2
        assert expected in outcome.err
    outcome = edgead("run", plate_bundle, "--source", "synthetic://", "--sink", "webhook://broker/x")
    assert outcome.code == 2
    assert "write webhook+https" in outcome.error


def test_a_lost_source_is_4_after_the_summary(edgead, plate_bundle, tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for image in np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8):
        writer.write(image)
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome = edgead("run", plate_bundle, "--source", path, "--json")
    assert outcome.code == 4
    assert outcome.json["frames"]["inspected"] > 10
    assert "ended after" in outcome.json["sources"][str(path)]["error"]
    # Said when it happens, with the time, and again as the reason of the exit code.
    said = outcome.err.splitlines()
    assert "WARNING" in said[0]
    assert said[-1].startswith(f"Error: {path} ended after")


def test_an_unreadable_image_is_not_inspected_and_the_line_goes_on(edgead, plate, plate_bundle, tmp_path):
    for path in (plate / "test" / "good").iterdir():
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "000.png").write_bytes(b"")
    report = edgead("run", plate_bundle, "--source", tmp_path, "--json").json
    assert report["decisions"]["NOT_INSPECTED"] == report["frames"]["failed"] == 1


def test_a_sink_that_fails_is_told_and_is_no_reason_to_stop(edgead, plate, plate_bundle):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    outcome = edgead("run", plate_bundle, "--source", plate / "test", "--sink", f"jsonl:{full}", "--json")
    assert outcome.code == 0
    assert outcome.json["sinks"][0]["failed"] == 8
    assert "Warning: jsonl:/dev/full failed 8" in outcome.err


def test_capture_takes_photos_and_tells_what_is_wrong_with_them(edgead, tmp_path):
    folder = tmp_path / "plate" / "train" / "good"
    arguments = ("capture", "--source", "synthetic://?fps=100", "-o", folder, "--json")
    report = edgead(*arguments, "-n", "3").json
    assert (report["schema"], report["saved"], report["wanted"]) == ("edgead.capture/1", 3, 3)
    report = edgead(*arguments, "-n", "2", "--interval", "0.1").json
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:06d}.png" for number in range(5)]
    assert read_image(folder / "000004.png").shape == (480, 640, 3)
    outcome = edgead("capture", "--source", "synthetic://?frames=2&fps=100", "-o", folder, "-n", "9")
    assert outcome.code == 0
    assert "ended after 2 of 9 images" in outcome.err


def test_capture_of_nothing_is_2(edgead, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    outcome = edgead("capture", "--source", tmp_path / "in", "-n", "1", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "gave no image (1 frames could not be read)" in outcome.error


def test_calibrate_writes_a_bundle_that_passes_the_check(edgead, unseen, plate_bundle, tmp_path):
    out = tmp_path / "line3.edgead"
    outcome = edgead("calibrate", plate_bundle, "--source", unseen, "--false-alarm-rate", "0.2", "-o", out, "--json")
    assert outcome.code == 0
    report = outcome.json
    assert (report["schema"], report["images"]) == ("edgead.calibrate/1", 24)
    with Bundle.open(plate_bundle) as old, Bundle.open(out) as new:
        threshold = report["thresholds"]["fp32"]
        assert threshold["value"] == new.manifest.threshold.value != old.manifest.threshold.value
        assert threshold["old"]["value"] == old.manifest.threshold.value
        assert "24 held-out good parts, aiming at 20.00%" in threshold["meaning"]
    assert edgead("check", out).code == 0
    # It decides with the new threshold, which lies above the score of rank ceil(25 * 0.8) = 20.
    run = edgead("run", out, "--source", unseen, "--json").json
    assert run["decisions"]["ANOMALY"] == 4


def test_calibrate_refuses_what_the_model_was_fitted_on(edgead, plate, plate_bundle, tmp_path):
    outcome = edgead("calibrate", plate_bundle, "--source", plate / "train" / "good", "-o", tmp_path / "a.edgead")
    assert outcome.code == 2
    assert "images that the model was fitted on are among those" in outcome.error
    assert not (tmp_path / "a.edgead").exists()


@pytest.mark.parametrize("taken", [1, 7])
def test_calibrate_refuses_a_single_image_that_the_model_was_fitted_on(edgead, plate, plate_bundle, tmp_path, taken):
    shown = tmp_path / "shown"
    shutil.copytree(plate / "test" / "good", shown)
    fitted = sorted((plate / "train" / "good").iterdir())[5 : 5 + taken]
    for path in fitted:
        shutil.copy(path, shown / f"again-{path.name}")
    new, again = tmp_path / "new.edgead", tmp_path / "again.edgead"
    outcome = edgead("calibrate", plate_bundle, "--source", shown, "-o", new)
    assert outcome.code == 2
    assert f"({taken} of {4 + taken}: again-{fitted[0].name}" in outcome.error
    assert not new.exists()
    # It is known still after a calibration, by whose own images it may be calibrated again.
    assert edgead("calibrate", plate_bundle, "--source", plate / "test" / "good", "-o", new).code == 0
    assert edgead("calibrate", new, "--source", plate / "test" / "good", "-o", again).code == 0
    assert edgead("calibrate", new, "--source", shown, "-o", tmp_path / "third.edgead").code == 2


def test_good_test_images_that_the_model_was_fitted_on_are_said(edgead, plate, plate_model, plate_bundle, tmp_path):
    folder = tmp_path / "plate"
    shutil.copytree(plate, folder)
    shutil.copy(sorted((plate / "train" / "good").iterdir())[3], folder / "test" / "good" / "zz.png")
    for judge in (plate_model, plate_bundle):
        outcome = edgead("eval", judge, folder, "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.json["categories"]["plate"]["fitted_on"] == ["test/good/zz.png"]
        assert "the model was fitted on 1 of the 5 good test images (test/good/zz.png)" in outcome.err.replace(
            "\n", " "
        )
    assert edgead("eval", plate_bundle, plate, "--json").json["categories"]["plate"]["fitted_on"] == []


def test_a_sign_off_takes_no_part_that_the_model_was_fitted_on(edgead, plate, plate_bundle, tmp_path):
    for kind in ("good", "defect"):
        for number, path in enumerate(sorted((plate / "test" / kind).iterdir())):
            (tmp_path / "study" / kind / str(number)).mkdir(parents=True)
            shutil.copy(path, tmp_path / "study" / kind / str(number))
    assert edgead("signoff", plate_bundle, tmp_path / "study", "--json").code == 0
    (tmp_path / "study" / "good" / "known").mkdir()
    shutil.copy(next((plate / "train" / "good").iterdir()), tmp_path / "study" / "good" / "known")
    outcome = edgead("signoff", plate_bundle, tmp_path / "study", "--json")
    assert outcome.code == 2
    assert "the model was fitted on" in outcome.error
    assert "known" in outcome.error


def test_sign_off_and_serve_take_the_profile_that_run_takes(edgead, plate, plate_bundle, tmp_path):
    study = tmp_path / "study"
    for kind in ("good", "defect"):
        for number, path in enumerate(sorted((plate / "test" / kind).iterdir())):
            (study / kind / str(number)).mkdir(parents=True)
            shutil.copy(path, study / kind / str(number))
    place = tmp_path / "profiles"
    tuned = edgead("tune", plate_bundle, "--normals", plate / "test" / "good", "--profile", place, "--frames", "20")
    assert tuned.code == 0, tuned.err
    run = edgead("run", plate_bundle, "--source", plate / "test" / "good", "--profile", place, "--json")
    signed = edgead("signoff", plate_bundle, study, "--profile", place, "--json")
    assert signed.code == 0, signed.err
    assert signed.json["backend"]["name"] == run.json["backend"]["name"]
    assert signed.json["profile_omitted"] is None
    # The same name, another bundle: the profile is of the old one, and that is said.
    new = tmp_path / "new.edgead"
    assert edgead("calibrate", plate_bundle, "--source", plate / "test" / "good", "-o", new).code == 0
    signed = edgead("signoff", new, study, "--profile", place, "--json")
    assert "runs without a device profile: that of 'plate'" in signed.json["profile_omitted"]
    assert "edgead tune" in signed.err
    missing = edgead("run", plate_bundle, "--source", plate / "test" / "good", "--profile", tmp_path / "typo")
    assert missing.code == 2
    assert "there is no folder of device profiles" in missing.error


def test_calibrate_says_what_the_numbers_cannot_bear(edgead, plate, plate_bundle, tmp_path):
    outcome = edgead("calibrate", plate_bundle, "--source", plate / "test" / "good", "-o", tmp_path / "a.edgead")
    assert outcome.code == 0
    assert "4 held-out good parts, which cannot support a false-alarm rate of 1.00%" in outcome.err
    assert "threshold" in outcome.out


@pytest.mark.parametrize("count", [0, 1])
def test_calibrate_refuses_too_few_images_and_writes_nothing(edgead, plate, plate_bundle, tmp_path, count):
    (tmp_path / "good").mkdir()
    for path in sorted((plate / "test" / "good").iterdir())[:count]:
        shutil.copy(path, tmp_path / "good")
    outcome = edgead("calibrate", plate_bundle, "--source", tmp_path / "good", "-o", tmp_path / "a.edgead")
    assert outcome.code == 2
    assert ("showed 1 images" if count else "no image in") in outcome.error
    assert not (tmp_path / "a.edgead").exists()


def test_a_full_disk_leaves_the_bundle_that_is_calibrated_in_place(edgead, plate, plate_bundle, tmp_path):
    resource = pytest.importorskip("resource", reason="no RLIMIT_FSIZE here")
    bundle = Path(shutil.copy(plate_bundle, tmp_path))
    data = bundle.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) - 1000, before[1]))
    try:
        outcome = edgead("calibrate", bundle, "--source", plate / "test" / "good", "-o", bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 2
    assert f"cannot write {bundle}" in outcome.err
    assert bundle.read_bytes() == data
    assert list(tmp_path.iterdir()) == [bundle]


def test_run_warns_of_a_lamp_that_has_aged_and_changes_no_decision(process, plate, plate_bundle, unseen, tmp_path):
    good, bundle, dim = sorted(unseen.iterdir()), tmp_path / "c.edgead", tmp_path / "dim"
    with Bundle.open(plate_bundle) as opened:
        assert opened.manifest.normals()[None].images == len(list((plate / "train/good").iterdir()))
    assert process("calibrate", plate_bundle, "--source", good[0].parent, "-o", bundle).code == 0
    dim.mkdir()
    for number in range(60):
        pixels = read_image(good[number % len(good)]) * 0.7
        Image.fromarray(pixels.astype(np.uint8)).save(dim / f"{number:02}.png")
    outcome = process("run", bundle, "--source", dim, "--sink", tmp_path / "r.jsonl", "--json")
    assert outcome.code == 0, outcome.err
    states = {state["signal"]: state for state in outcome.json["drift"]}
    assert states["brightness"]["drifting"]
    assert states["brightness"]["median"] < states["brightness"]["low"]
    assert "Warning: " in outcome.err
    assert "brightness has drifted below" in outcome.err
    assert outcome.json["decisions"]["NOT_INSPECTED"] == 0
    healthy = process("run", bundle, "--source", good[0].parent, "--json").json
    assert not any(state["drifting"] for state in healthy["drift"])


# Under load


@posix
@pytest.mark.parametrize("policy", ["newest", "every"])
def test_a_signal_under_load_ends_it_with_the_summary(launch, plate_bundle, tmp_path, policy):
    source = f"synthetic://?policy={policy}&fps=2000&width=640&height=480"
    sinks = ["--sink", tmp_path / "r.jsonl", "--sink", f"images:{tmp_path}/i?only=all"]
    with launch(["run", plate_bundle, "--source", source, *sinks, "--json"]) as child:
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > 5)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=LONG_S)
    assert child.returncode == 0, err
    frames = json.loads(out)["frames"]
    assert frames["in_flight"] == 0
    assert frames["captured"] == frames["inspected"] + frames["dropped"] + frames["failed"]
    assert len(lines(tmp_path / "r.jsonl")) == frames["inspected"] + frames["failed"]


@posix
def test_hanging_up_goes_on_with_the_bundle_as_it_is_now(launch, plate_bundle, tmp_path):
    from edgead.runtime.bundle.writing import replace_manifest

    bundle = tmp_path / "line.edgead"
    shutil.copy(plate_bundle, bundle)
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    # Low enough to differ, and so little that no reference is decided otherwise.
    section = manifest.threshold.model_copy(update={"value": manifest.threshold.value * (1 + 1e-9)})
    changed = manifest.model_copy(update={"threshold": section})
    source = "synthetic://?policy=every&fps=50&width=64&height=64"
    page = ["--serve", "127.0.0.1:0", "--serve-audit", tmp_path / "audit.jsonl"]
    with launch(["run", bundle, "--source", source, "--sink", tmp_path / "r.jsonl", *page, "--json"]) as child:
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > 3)
        replace_manifest(bundle, bundle, changed)
        child.send_signal(signal.SIGHUP)
        wait_for(lambda: lines(tmp_path / "r.jsonl")[-1]["threshold"] == section.value)
        bundle.write_bytes(b"damaged")
        child.send_signal(signal.SIGHUP)
        count = len(lines(tmp_path / "r.jsonl"))
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > count + 20)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=LONG_S)
    assert child.returncode == 0, err
    assert "continues with" in err
    assert "was not reloaded, and the old one goes on" in err
    audited = [record["event"] for record in lines(tmp_path / "audit.jsonl")]
    assert audited == ["reload", "reloaded", "reload", "not reloaded"]
    results = lines(tmp_path / "r.jsonl")
    assert [r["frame_index"] for r in results] == list(range(len(results)))
    assert results[-1]["threshold"] == section.value
    counted = json.loads(out)["frames"]
    assert counted["inspected"] + counted["failed"] == len(results)


def test_frames_of_a_video_get_the_scores_of_the_same_images_to_the_bit(edgead, plate, plate_bundle, tmp_path):
    cv2 = pytest.importorskip("cv2")
    from PIL import Image

    from edgead.opening import open_inspector
    from edgead.runtime.sources import open_source

    photos = [read_image(path) for path in sorted((plate / "test").rglob("*.png"))]
    rows, columns = (side // 2 * 2 for side in photos[0].shape[:2])
    video = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (columns, rows))
    for photo in photos:
        writer.write(np.ascontiguousarray(photo[:rows, :columns, ::-1]))
    writer.release()
    (tmp_path / "frames").mkdir()
    with open_source(video) as source:
        for frame in source.frames():
            Image.fromarray(frame.to_rgb()).save(tmp_path / "frames" / f"{frame.index:03d}.png")
    ran = edgead("run", plate_bundle, "--source", video, "--sink", tmp_path / "r.jsonl", "--json")
    assert ran.json["frames"]["inspected"] == len(photos)
    results = lines(tmp_path / "r.jsonl")
    with open_inspector(plate_bundle) as judge:
        for path, result in zip(sorted((tmp_path / "frames").iterdir()), results, strict=True):
            found = judge(read_image(path))
            assert (found.score, found.threshold, str(found.decision)) == (
                result["score"],
                result["threshold"],
                result["decision"],
            )
    assert {result["decision"] for result in results} == {"OK", "ANOMALY"}


def test_several_cameras_are_judged_together(edgead, plate_bundle):
    sources = [f"synthetic://?seed={seed}&frames=10&policy=every&width=64&height=64" for seed in range(3)]
    arguments = [item for source in sources for item in ("--source", source)]
    report = edgead("run", plate_bundle, *arguments, "--batch", "3", "--batch-deadline-ms", "20", "--json").json
    assert report["frames"]["captured"] == 30
    assert report["frames"]["inspected"] + report["frames"]["failed"] == 30
    assert report["state"] == "ended"


def test_the_pipeline_of_a_csi_camera_is_shown(edgead, plate_bundle):
    outcome = edgead("run", plate_bundle, "--source", "csi://1?width=1920&height=1080", "--show-pipeline", "--json")
    (text,) = outcome.json["pipelines"].values()
    assert text.startswith("nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080")
    assert edgead("run", plate_bundle, "--source", "0", "--show-pipeline").code == 2


@posix
def test_run_replays_the_references_when_asked_to(launch, plate_bundle, tmp_path):
    source = "synthetic://?policy=every&fps=50&width=64&height=64"
    bundle = tmp_path / "line.edgead"
    shutil.copy(plate_bundle, bundle)
    with launch(["run", bundle, "--source", source, "--sink", tmp_path / "r.jsonl", "--self-test-every", "1"]) as child:
        wait_for(lambda: lines(tmp_path / "r.jsonl"))
        bundle.write_bytes(b"something else")
        child.send_signal(signal.SIGUSR1)
        count = len(lines(tmp_path / "r.jsonl"))
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > count + 20)
        child.send_signal(signal.SIGTERM)
        err = child.communicate(timeout=LONG_S)[1]
    assert child.returncode == 0, err
    assert "the self-test could not run" in err
    # A busy machine may be too slow for the camera, which is said.
    assert {line["reason"] for line in lines(tmp_path / "r.jsonl")} <= {None, "not judged in time"}
