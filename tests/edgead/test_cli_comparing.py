"""``edgead compare``: what it measures, how it goes on where it stopped, and what it says of what failed."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import time

import pytest

from edgead.comparing import running
from edgead.comparing.measure import Options
from edgead.comparing.plan import make_jobs, open_subjects, parse_variants
from edgead.comparing.rows import read_row, row_path
from edgead.metrics.metrics import image_auroc
from edgead.runtime.errors import DataError

DETECTORS, SETTINGS = "padim,small=padim", ("dimensions=20", "small:dimensions=10")
VARIANTS = ("--detectors", DETECTORS, "--set", SETTINGS[0], "--set", SETTINGS[1])
QUICK = (*VARIANTS, "--size", "64", "--seeds", "1", "--frames", "3", "--keep")


@pytest.fixture(scope="module")
def results(plate, tmp_path_factory):
    """One category, two detectors, one seed; do not change it, copy it."""
    from edgead.cli import run

    folder = tmp_path_factory.mktemp("compare") / "results"
    assert run(["compare", str(plate), *QUICK, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(results, tmp_path):
    """A copy of the results that a test may change."""
    ignored = shutil.ignore_patterns("models")
    return shutil.copytree(results, tmp_path / "results", copy_function=shutil.copy2, ignore=ignored)


@pytest.fixture
def jobs_done(results, monkeypatch):
    """Replaces a fit by what it gave before, and lists the jobs that asked for one."""
    asked = []

    def measure(job, *_):
        asked.append(job.name)
        return [
            read_row(row_path(results, subject.name, job.variant.label, job.seed, key))
            for subject, key in zip(job.subjects, job.keys, strict=True)
        ]

    monkeypatch.setattr(running, "measure", measure)
    return asked


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}


def test_rows_hold_what_was_measured(results):
    payload = json.loads((results / "compare.json").read_text())
    assert payload["schema"] == "edgead.compare/1"
    assert payload["labels"] == ["padim", "small"]
    assert [(row["category"], row["label"]) for row in payload["rows"]] == [("plate", "padim"), ("plate", "small")]
    assert payload["failed"] == []
    for row in payload["rows"]:
        outcome = row["outcome"]
        assert row["settings"]["dimensions"] == (10 if row["label"] == "small" else 20)
        assert (row["height"], row["width"], row["detector"], row["pooled"]) == (64, 64, "padim", None)
        assert outcome["fit_seconds"] > 0
        assert outcome["bytes"] > 1e6
        assert outcome["fit_peak_rss_bytes"] is None or outcome["fit_peak_rss_bytes"] > 50e6
        assert 0 <= outcome["metrics"]["aupro"]["low"] <= outcome["metrics"]["aupro"]["value"]
        for runtime in ("onnxruntime", "openvino"):
            record = outcome["parity"][runtime]
            assert (record["images"], record["flips"] + record["borderline"]) == (8, 0)
            assert outcome["bundle_metric_differences"][runtime] < 1e-3


def test_scores_in_the_rows_give_the_figures(results):
    for path in (results / "rows").iterdir():
        outcome = json.loads(path.read_text())["outcome"]
        scores = [image["score"] for image in outcome["images"]]
        labels = [image["anomalous"] for image in outcome["images"]]
        assert outcome["metrics"]["image_auroc"] == image_auroc(scores, labels).to_dict()
        assert len(outcome["draws"]["image_auroc"]) == 1000
        decided = [image["score"] > image["threshold"] for image in outcome["images"]]
        assert outcome["decisions"]["false_alarms"] == sum(d and not a for d, a in zip(decided, labels, strict=True))


def test_latency_is_measured_on_every_runtime(results):
    payload = json.loads((results / "compare.json").read_text())
    for row, one in zip(payload["rows"], payload["summary"], strict=True):
        latency = row["outcome"]["latency"]
        assert (latency["frames"], latency["frame_size"]) == (3, [1280, 1024])
        for runtime in ("onnxruntime", "openvino"):
            speed = latency["runtimes"][runtime]
            assert 0 < speed["network"]["p50"] < speed["end_to_end"]["p50"] <= speed["end_to_end"]["p99"]
            assert one["latency_ms"][runtime]["network_p50"] == speed["network"]["p50"]
            assert runtime in row["outcome"]["versions"]


def test_kept_models_are_those_measured(edgead, results, plate):
    (row,) = map(read_row, (results / "rows").glob("plate-padim-*"))
    (bundle,) = (results / "models").glob("plate-padim-*.edgead")
    assert bundle.stat().st_size == row.outcome.bytes
    found = edgead("eval", bundle, plate, "--json").json["categories"]["plate"]
    assert found["decisions"] == row.outcome.decisions.model_dump()
    assert found["image_auroc"]["value"] == pytest.approx(row.outcome.metrics["image_auroc"].value, abs=1e-6)
    assert (results / "models" / f"{bundle.stem}.model" / "model.json").is_file()


def test_csv_reads_back(results):
    lines = list(csv.DictReader(io.StringIO((results / "compare.csv").read_text())))
    rows = json.loads((results / "compare.json").read_text())["rows"]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (line["category"], line["label"], int(line["seed"])) == (row["category"], row["label"], row["seed"])
        assert float(line["image_auroc"]) == row["outcome"]["metrics"]["image_auroc"]["value"]
        assert (line["aupro"] == "") == (row["outcome"]["metrics"]["aupro"] is None)
        assert int(line["openvino_changed_decisions"]) == 0
        assert float(line["openvino_network_p50_ms"]) > 0
        assert float(line["fit_seconds"]) == row["outcome"]["fit_seconds"]


def test_markdown_has_a_line_each(results):
    lines = (results / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "onnxruntime 0 of 8, openvino 0 of 8" in lines[2]
    assert "(first)" in lines[2]
    assert "p = " in lines[3]


def test_nothing_is_measured_twice(edgead, plate, copied, jobs_done):
    before, payload = times(copied), (copied / "compare.json").read_text()
    (copied / "compare.json").unlink()
    outcome = edgead("compare", plate, *QUICK, "-o", copied)
    assert outcome.code == 0
    assert jobs_done == []
    assert times(copied) == before
    assert "2 of 2 fits are there already" in outcome.err
    assert (copied / "compare.json").read_text() == payload


@pytest.mark.parametrize("damage", ["cut", "another key", "no row", "a folder"])
def test_a_damaged_row_is_measured_again_and_only_that(plate, copied, jobs_done, damage):
    paths = sorted((copied / "rows").iterdir())
    contents = [path.read_bytes() for path in paths]
    damaged = {
        "cut": contents[0][:-200],
        "another key": json.dumps({**json.loads(contents[0]), "key": "0" * 64}).encode(),
        "no row": b"[]",
    }
    if damage == "a folder":
        paths[0].unlink()
        paths[0].mkdir()
    else:
        paths[0].write_bytes(damaged[damage])
    warnings = []
    listener = running.Listener(lambda _: None, warnings.append, lambda *_: None)
    jobs = make_jobs(
        open_subjects([plate]), parse_variants(DETECTORS, SETTINGS), [0], size=(64, 64), backbone="efficientnet_lite0"
    )
    if damage == "a folder":
        with pytest.raises(DataError, match="cannot write"):
            running.run_jobs(copied, jobs, Options(0, 0), listener)
        return
    running.run_jobs(copied, jobs, Options(0, 0), listener)
    assert jobs_done == ["plate padim seed 0"]
    (warning,) = warnings
    assert paths[0].name in warning
    assert "it is measured again" in warning
    assert [path.read_bytes() for path in paths] == contents


def test_interrupted_it_keeps_what_is_done(edgead, plate, results, tmp_path, jobs_done, monkeypatch):
    real = running.measure

    def impatient(job, *more):
        if len(jobs_done) == 1:
            raise KeyboardInterrupt
        return real(job, *more)

    monkeypatch.setattr(running, "measure", impatient)
    arguments = ("compare", plate, *QUICK, "-o", tmp_path / "r")
    outcome = edgead(*arguments)
    assert outcome.code == 130
    assert "the same command goes on from there" in outcome.err
    before = times(tmp_path / "r")
    assert len(before) == 1
    monkeypatch.setattr(running, "measure", real)
    assert edgead(*arguments).code == 0
    assert jobs_done == ["plate padim seed 0", "plate small seed 0"]
    assert before.items() <= times(tmp_path / "r").items()
    assert sorted(times(tmp_path / "r")) == sorted(times(results))


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_process_killed_in_the_middle_goes_on(launch, edgead, parts, tmp_path, end):
    folder = tmp_path / "r"
    arguments = ["compare", parts, *QUICK, "--seeds", "3", "--no-latency", "-o", folder]
    with launch(arguments) as child:
        deadline = time.monotonic() + 120
        while not (folder / "rows").is_dir() or not list((folder / "rows").glob("*.json")):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(end)
        _, err = child.communicate(timeout=300)
    assert child.returncode == (130 if end is signal.SIGINT else -end)
    assert "Traceback" not in err
    before = times(folder)
    assert 1 <= len(before) < 6
    outcome = edgead(*arguments, "--json")
    assert outcome.code == 0
    assert len(outcome.json["rows"]) == 6
    assert before.items() <= times(folder).items()


def test_one_failing_category_leaves_the_others(edgead, plate, copied, tmp_path):
    # The failure is a real one; the rows of the other category are there already.
    broken = shutil.copytree(plate, tmp_path / "broken")
    image = sorted((broken / "train" / "good").iterdir())[3]
    image.write_bytes(b"no image")
    outcome = edgead("compare", broken, plate, *QUICK, "-o", copied, "--json")
    assert outcome.code == 3
    failed = outcome.json["failed"]
    assert [(one["category"], one["label"]) for one in failed] == [("broken", "padim"), ("broken", "small")]
    assert image.name in failed[0]["error"]
    assert [one["category"] for one in outcome.json["summary"]] == ["plate", "plate"]
    assert "2 of 4 rows failed: broken padim seed 0: " in outcome.err.splitlines()[-1]
    assert image.name in (copied / "compare.html").read_text()
    assert "Failed: broken, padim, seed 0: " in (copied / "table.md").read_text()
    failures = [read_row(path) for path in (copied / "rows").glob("broken-*")]
    assert [row.outcome for row in failures] == [None, None]


def test_failed_rows_are_tried_again_and_nothing_but_failures_is_2(edgead, plate, tmp_path, jobs_done, monkeypatch):
    real = running.measure
    monkeypatch.setattr(running, "measure", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory\nmore")))
    outcome = edgead("compare", plate, *QUICK, "-o", tmp_path / "r")
    assert outcome.code == 2
    assert "nothing could be measured: plate padim seed 0: RuntimeError: out of memory more" in outcome.err
    monkeypatch.setattr(running, "measure", real)
    assert edgead("compare", plate, *QUICK, "-o", tmp_path / "r").code == 0
    assert len(jobs_done) == 2


def test_no_fit_shows_what_is_there(edgead, copied):
    people = edgead("compare", "plate", "--no-fit", "--detectors", "small,padim", "-o", copied)
    assert people.code == 0
    for expected in ("plate", "small", "image AUROC", "(first)", "0 of 8"):
        assert expected in people.out
    payload = json.loads((copied / "compare.json").read_text())
    assert payload["labels"] == ["small", "padim"]
    assert [one["first"] for one in payload["summary"]] == [True, False]
    damaged = sorted((copied / "rows").iterdir())[0]
    damaged.write_bytes(b"{")
    rest = edgead("compare", "--no-fit", "--json", "-o", copied)
    assert (rest.code, len(rest.json["rows"])) == (0, 1)
    assert f"{damaged.name} is damaged" in rest.err
    assert "Did you mean 'plate'?" in edgead("compare", "plates", "--no-fit", "-o", copied).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--detectors", "patchcor"], "Did you mean 'patchcore'?"),
        (["--detectors", "padim,padim"], "names 'padim' twice"),
        (["--detectors", "a/b=padim"], "'a/b' is no label"),
        (["--set", "bank_sise=3"], "Did you mean 'bank_size'?"),
        (["--set", "big:bank_size=3"], "no detector is called 'big'"),
        (["--set", "padim:bank_size=3"], "detector 'padim' has no setting 'bank_size'"),
        (["--set", "bank_size"], "--set takes key=value"),
        (["--set", "bank_size=-1"], "setting 'bank_size' of detector 'patchcore'"),
        (["--set", "smooth=true", "--set", "smooth=false"], "is given twice"),
        (["--seed-list", "0,x"], "--seed-list takes whole numbers"),
        (["--seed-list", "1,1"], "seeds must be different"),
        (["--size", "100"], "multiple of 32"),
        (["--backbone", "efficientnet_lite9"], "efficientnet_lite"),
        (["--no-fit"], "holds no rows"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(edgead, parts, tmp_path, arguments, said):
    outcome = edgead("compare", parts, "-o", tmp_path / "r", *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert not (tmp_path / "r").exists()


def test_categories_are_needed_once_each_and_whole(edgead, parts, tmp_path):
    assert "give at least one category" in edgead("compare", "-o", tmp_path).error
    assert "two categories are called 'parts'" in edgead("compare", parts, parts, "-o", tmp_path).error
    shutil.copytree(parts / "train", tmp_path / "part" / "train")
    assert edgead("compare", tmp_path / "part", "-o", tmp_path).code == 2


def test_an_output_that_is_a_file_is_refused(edgead, parts, tmp_path):
    (tmp_path / "r").write_text("")
    outcome = edgead("compare", parts, *QUICK, "-o", tmp_path / "r")
    assert outcome.code == 2
    assert "choose another -o" in outcome.error
