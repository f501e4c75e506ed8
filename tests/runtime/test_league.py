"""Rows of the league of devices: measured for a time, signed, refused where anything was changed; their page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import league as page
from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device import bench_turns
from edgead.runtime.device.bench import bench
from edgead.runtime.device.league import (
    LeagueEntry,
    check_place,
    league_signer,
    make_entry,
    read_entry,
    write_entry,
)
from edgead.runtime.errors import ConfigError, DataError, EdgeadError
from edgead.runtime.signing import Signer, make_key

pytest.importorskip("cryptography")
pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")
SMALL = (64, 48)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    make_key(tmp_path / "own.key")
    return Signer(tmp_path / "own.key")


@pytest.fixture
def entry(make_bundle: Any) -> LeagueEntry:
    report = bench(make_bundle(), backends=["onnxruntime"], precisions=["fp32"], duration_s=1, frame_size=SMALL)
    return make_entry(report, 0.0)


def test_a_time_is_measured_and_not_a_number_of_frames(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_turns, "_SAMPLE_S", 0.3)
    steps: list[tuple[int, int]] = []
    begun = time.monotonic()
    report = bench(
        make_bundle(),
        backends=["onnxruntime"],
        duration_s=1,
        frame_size=SMALL,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert time.monotonic() - begun >= 1.0
    (row,) = report.rows
    assert report.frames == row.inspected + row.failed >= 20
    assert report.frames % 20 == 0  # whole turns
    assert report.board["during"]
    assert steps[-1] == (1, 1)
    assert report.to_dict()["duration_s"] == 1


@pytest.mark.parametrize("seconds", [0.5, -1, 1e9, float("nan")])
def test_a_time_out_of_range_is_refused(make_bundle: Any, seconds: float) -> None:
    with pytest.raises(ConfigError, match="--duration must lie between 1 and 86400 seconds"):
        bench(make_bundle(), duration_s=seconds)


def test_a_row_is_what_was_measured(entry: LeagueEntry, make_bundle: Any) -> None:
    with Bundle.open(make_bundle()) as bundle:
        assert entry.bundle.sha256 == bundle.sha256
    assert entry.duration_s == 1
    assert entry.frames >= 20
    assert entry.latency_ms.p50 <= entry.latency_ms.p99 <= entry.latency_ms.max
    assert entry.accuracy["decision_changes"] == []
    assert entry.load_before == 0.0
    assert entry.idle
    text = entry.model_dump_json()
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text


def test_a_busy_machine_says_so(make_bundle: Any) -> None:
    report = bench(make_bundle(), backends=["onnxruntime"], precisions=["fp32"], duration_s=1, frame_size=SMALL)
    assert not make_entry(report, 1000.0).idle


def test_several_backends_are_no_row(make_bundle: Any) -> None:
    report = bench(make_bundle(), backends=["onnxruntime"], frames=3, frame_size=SMALL)
    with pytest.raises(ConfigError, match="one backend and one precision, measured for a time"):
        make_entry(report, 0.0)


def test_a_signed_row_comes_back_as_it_was(entry: LeagueEntry, signer: Signer, tmp_path: Path) -> None:
    made = write_entry(entry, signer, tmp_path / "row.json")
    found = read_entry(tmp_path / "row.json")
    assert found == made
    assert found.entry == entry
    assert found.signature.public_key == signer.public


def _set(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value


TAMPERED: list[tuple[tuple[Any, ...], Any]] = [
    (("entry", "latency_ms", "p50"), 0.001),
    (("entry", "device"), "Jetson Orin Nano"),
    (("entry", "board", "after"), {"power_mode": "7W"}),
    (("entry", "idle"), True),
    (("entry", "bundle", "sha256"), "0" * 64),
    (("entry", "accuracy", "decision_changes"), ["x"]),
    (("signature", "public_key"), "0" * 64),
    (("signature", "signature"), "0" * 128),
]


@pytest.mark.parametrize(("path", "value"), TAMPERED, ids=[".".join(map(str, path)) for path, _ in TAMPERED])
def test_an_altered_row_is_refused(
    entry: LeagueEntry, signer: Signer, tmp_path: Path, path: tuple[Any, ...], value: Any
) -> None:
    file = tmp_path / "row.json"
    write_entry(entry.model_copy(update={"idle": False}), signer, file)
    data = json.loads(file.read_text())
    _set(data, path, value)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="was altered after it was signed"):
        read_entry(file)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no row of the league"),
        ("{}", "no row of the league: field 'schema'"),
        ('{"schema": "edgead.bench/1"}', "no row of the league"),
        ("[" * 100_000, "no row of the league"),
        (None, "cannot read"),
        (" " * (1 << 21), "larger than a row"),
    ],
    ids=["empty", "object", "schema", "deep", "missing", "large"],
)
def test_what_is_no_row_is_one_line(tmp_path: Path, text: str | None, match: str) -> None:
    file = tmp_path / "row.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        read_entry(file)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_refused(entry: LeagueEntry, signer: Signer, tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    write_entry(entry, signer, file)
    text = file.read_text()
    file.write_text(text.replace(f'"load_before": {entry.load_before}', '"load_before": NaN'))
    with pytest.raises(DataError, match="no row of the league"):
        read_entry(file)
    data = json.loads(text)
    data["entry"]["machine"]["cores"] = float("inf")
    file.write_text(json.dumps(data))
    with pytest.raises(DataError):
        read_entry(file)


def test_a_signature_of_something_else_counts_for_nothing(entry: LeagueEntry, signer: Signer, tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    write_entry(entry, signer, file)
    data = json.loads(file.read_text())
    bare = json.dumps(entry.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()
    data["signature"]["signature"] = signer.sign(bare)  # the same row, without the word that says what it is
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="was altered"):
        read_entry(file)


def test_watts_are_the_most_of_any_look(entry: LeagueEntry) -> None:
    def with_board(**board: Any) -> float | None:
        return entry.model_copy(update={"board": board}).watts

    assert with_board(before={}, after={}) is None
    rails = {"VDD_IN": 7.5, "VDD_SOC": 2.0}
    assert with_board(before={"watts": {"VDD_IN": 4.0}}, during=[{"watts": rails}], after={}) == 7.5
    assert with_board(before={}, after={"watts": {"VDD_GPU_SOC": 6.0, "VIN_SYS_5V0": 3.0}}) == 9.0
    assert with_board(before={"gpus": [{"watts": 70.0}, {"name": "x"}]}, after={}) == 70.0
    assert with_board(before={"watts": {"VDD_IN": "a lot"}}, during="x", after=[]) is None  # a stranger's file


def test_a_key_of_ones_own_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = league_signer(None).public
    assert league_signer(None).public == first
    assert (tmp_path / "edgead" / "league.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="cannot read the key"):
        league_signer(tmp_path / "none.key")


def test_the_place_is_tried_before_ten_minutes_are_spent(tmp_path: Path) -> None:
    check_place(tmp_path / "row.json")
    with pytest.raises(ConfigError, match="is a folder"):
        check_place(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        check_place(tmp_path / "none" / "row.json")


def test_one_command_writes_a_row(make_bundle: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    command = [sys.executable, "-m", "edgead", "bench", str(make_bundle()), "--backend", "onnxruntime"]
    file = tmp_path / "row.json"
    league = ["--duration", "1", "--frame-size", "64x48", "--league", str(file), "--json"]
    done = subprocess.run([*command, *league], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(file.read_text())
    assert read_entry(file).entry.backend["name"] == "onnxruntime"
    for wrong, said in (
        (["--precision", "fp32", "--precision", "fp16", *league], "one backend and one precision"),
        (["--key", str(tmp_path / "x.key")], "add --league FILE"),
        (["--league", str(file), "--duration", "0"], "--duration must lie between"),
        (["--league", str(tmp_path / "none" / "row.json")], "does not exist"),
    ):
        refused = subprocess.run([*command, *wrong], env=environment, capture_output=True, text=True, timeout=300)
        assert refused.returncode == 2
        assert said in " ".join(refused.stderr.split())


# The page


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of rows and the page beside it, in place of the repository's."""
    (tmp_path / "docs" / "league").mkdir(parents=True)
    (tmp_path / "docs" / "league.md").write_text(f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n")
    monkeypatch.setattr(page, "FOLDER", tmp_path / "docs" / "league")
    monkeypatch.setattr(page, "PAGE", tmp_path / "docs" / "league.md")
    return tmp_path / "docs" / "league.md"


def test_the_page_is_made_of_verified_rows(
    entry: LeagueEntry, signer: Signer, tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = entry.model_copy(update={"device": "a | b\n<script>`[x](y)", "load_before": 9.0, "idle": False})
    slow = entry.model_copy(
        update={"latency_ms": entry.latency_ms.model_copy(update={"p50": 99.0, "p99": 100.0, "max": 101.0})}
    )
    for name, one in (("slow", slow), ("evil", evil)):
        write_entry(one, signer, tmp_path / f"{name}.json")
    assert page.main([str(tmp_path / "slow.json"), str(tmp_path / "evil.json")]) == 0
    text = place.read_text()
    assert text.startswith("before\n\n<!--")
    assert text.endswith("-->\n\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert r"a \| b \<script\>\`\[x\](y)" in rows[2]  # the faster one first
    assert "**not idle** (load 9)" in rows[2]
    assert "| 99.00 | 100.00 |" in rows[3]
    # A stranger's file that was altered changes nothing.
    data = json.loads((tmp_path / "slow.json").read_text())
    data["entry"]["latency_ms"]["p50"] = 1.0
    (tmp_path / "altered.json").write_text(json.dumps(data))
    assert page.main([str(tmp_path / "altered.json")]) == 2
    assert "was altered after it was signed" in capsys.readouterr().err
    assert len(list(page.FOLDER.glob("*.json"))) == 2
    # Nor does one that was altered where it lies.
    next(page.FOLDER.glob("*.json")).write_text(json.dumps(data))
    assert page.main([]) == 2
    assert place.read_text() == text


def test_the_page_of_this_repository_is_that_of_its_rows() -> None:
    rows = page.collect(page.FOLDER)
    text = page.PAGE.read_text()
    between = text.partition(page.BEGIN)[2].partition(page.END)[0].strip()
    assert between == page.table(rows)
    with pytest.raises(EdgeadError):
        page.write_page(rows, page.FOLDER.parent / "kernels.md")
