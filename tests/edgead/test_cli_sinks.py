"""``edgead run`` with sinks that need libraries, and with the live page."""

from __future__ import annotations

import json
import os
import signal
from urllib.request import Request, urlopen

import pytest

from tests.waiting import LONG_S, lines, wait_for

posix = pytest.mark.skipif(os.name == "nt", reason="no signals to another process on Windows")


@posix
def test_the_live_page_is_there_while_it_runs_and_changes_the_threshold(launch, plate_bundle, tmp_path):
    camera = "synthetic://?fps=10&width=64&height=64"
    arguments = ["run", plate_bundle, "--source", camera, "--serve", "127.0.0.1:0", "--backend", "onnxruntime"]
    with launch([*arguments, "--serve-audit", tmp_path / "audit.jsonl", "--sink", tmp_path / "r.jsonl"]) as child:
        url = next(line.split()[-1] for line in child.stderr if line.startswith("live page: "))
        wait_for(lambda: len(lines(tmp_path / "r.jsonl")) > 3)
        with urlopen(f"{url}api/state", timeout=LONG_S) as answer:
            state = json.load(answer)
        assert state["cameras"][0]["name"] == camera
        assert state["frames"]["captured"] > 3
        old = state["control"]["thresholds"][0]["value"]
        assert old == lines(tmp_path / "r.jsonl")[0]["threshold"]
        body = {"value": old + 1, "expected": old, "category": None, "who": "Ada"}
        headers = {"Content-Type": "application/json", "X-Edgead-Word": state["word"], "Origin": url.rstrip("/")}
        with urlopen(Request(f"{url}api/threshold", json.dumps(body).encode(), headers), timeout=LONG_S) as answer:
            assert answer.status == 200
        wait_for(lambda: lines(tmp_path / "r.jsonl")[-1]["threshold"] == old + 1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(LONG_S) == 0
    assert [line["who"] for line in lines(tmp_path / "audit.jsonl")] == ["Ada"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--serve", "0.0.0.0:0"], "--serve-token FILE"),
        (["--serve", "nonsense address"], "such as 127.0.0.1:8080"),
        (["--serve", "127.0.0.1:0", "--serve-token", "/nowhere"], "cannot read the page's token"),
        (["--serve", "127.0.0.1:0", "--serve-audit", "/proc/nothing/x"], "cannot write the audit log"),
        (["--serve-audit", "x.jsonl"], "belong to --serve"),
        (["--sink", "mqtt://me:secret@broker"], "no topic to write to"),
    ],
)
def test_a_page_or_sink_that_cannot_be_is_one_line_and_2(edgead, plate_bundle, arguments, said):
    outcome = edgead("run", plate_bundle, "--source", "synthetic://?frames=1", *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert "secret" not in outcome.error


def test_the_token_may_come_from_the_environment(edgead, plate_bundle, monkeypatch):
    monkeypatch.setenv("EDGEAD_SERVE_TOKEN", "short")
    outcome = edgead("run", plate_bundle, "--source", "synthetic://?frames=1", "--serve", "127.0.0.1:0")
    assert outcome.code == 2
    assert "16 characters" in outcome.error
    assert "short" not in outcome.error


@pytest.mark.parametrize(
    ("missing", "uri", "command"),
    [
        ("paho", "mqtt://broker/x", "pip install 'edgead[mqtt]'"),
        ("pymodbus", "modbus://plc/coil/1", "pip install 'edgead[modbus]'"),
        ("asyncua", "opcua://127.0.0.1", "pip install 'edgead[opcua]'"),
        ("cv2", "video:out", "pip install 'edgead[camera]'"),
    ],
)
def test_a_sink_names_the_missing_extra(process, plate_bundle, missing, uri, command):
    outcome = process("run", plate_bundle, "--source", "synthetic://?frames=1", "--sink", uri, without=[missing])
    assert outcome.code == 2
    assert command in outcome.error
