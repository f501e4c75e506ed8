"""Benchmark and report on a GPU that is none, and what is said without one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_report, kernels
from benchmarks.kernels import Ceilings, Row
from edgead.export.kernels.gpu import Gpu
from edgead.runtime.backends.gpu_driver import CudaDriver, cuda_driver
from edgead.runtime.errors import ConfigError
from tests.cuda import fake_driver, toolchain

ROOT = Path(__file__).resolve().parents[2]
CEILINGS = Ceilings(2.0, 16.0, 32.0, 100.0)


def test_the_benchmark_checks_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(monkeypatch, toolchain.host_library())
    with Gpu() as gpu:
        ceilings = kernels.measure_ceilings(gpu, 2, turns=10, copy_bytes=1 << 20)
        # On this driver's clock a copy and a launch take a millisecond each.
        assert ceilings.bandwidth == pytest.approx(2.097, abs=0.001)
        assert ceilings.fp32 == pytest.approx(2 * 8 * 256 * 10 * 24 / 1e9)
        assert ceilings.int8 == 2 * ceilings.fp16 == pytest.approx(2 * 16 * 8 * 32 * 8 * 8 * 10 * 24 / 1e9)
        for precision in ("fp32", "fp16", "int8"):
            row = kernels.measure_search(gpu, CEILINGS, (70, 130, 33), precision, 2)  # type: ignore[arg-type]
            assert row.work == f"search {precision}, 70 x 130 x 33"
            assert row.milliseconds == 5.0  # prepare, scan, rank, exact scan, unpack
            assert row.error < 1e-6
            assert row.tflops == pytest.approx(2 * 70 * 130 * 33 / 5e9)
        row = kernels.measure_locations(gpu, CEILINGS, (6, 20), np.float16, 4, 2)
        assert (row.work, row.milliseconds) == ("locations float16, 6 x 20, 4 frames", 2.0)
        assert row.error < 1e-5
        assert row.floor_ms == pytest.approx(6 * (210 * 2 + 4 * 20 * 5) / 100e6)


ROW = Row(gpu_report._SHOWN[0], 0.4, 5.0, 7.0, 0.1, 1e-7)


def test_a_row_is_added_to_the_page(tmp_path: Path) -> None:
    board = {"power_mode": "MAXN", "gpus": [{"sm_mhz": 1020, "throttled": ["software power cap"]}]}
    tests = {"passed": 40, "failed": 0, "skipped": 2}
    line = gpu_report.page_row("Orin", "12.6", board, tests, CEILINGS, [ROW])
    assert line == (
        "| Orin | 12.6 | 1020 MHz; MAXN; throttled: software power cap | 40 of 42 tests, error 1e-07 "
        "| 2.00, 16.0, 32.0 | 100 | 0.400 (25%) |  |  |"
    )
    page = tmp_path / "kernels.md"
    page.write_text(gpu_report.PAGE.read_text())
    gpu_report.add_row(page, line)
    gpu_report.add_row(page, line)
    text = page.read_text()
    assert f"{line}\n{line}\n\n{gpu_report.END}" in text
    heading = text[: text.index(line)].splitlines()[-2]
    assert heading.count("|") == line.count("|")
    page.write_text("nothing")
    with pytest.raises(ConfigError, match="has no place for the row"):
        gpu_report.add_row(page, line)


def test_what_fails_the_report() -> None:
    good = {"passed": 40, "failed": 0, "skipped": 2}
    assert gpu_report.holds(good, [ROW])
    assert gpu_report.holds(None, [ROW])
    assert not gpu_report.holds({**good, "failed": 1}, [ROW])
    assert not gpu_report.holds({**good, "passed": 0}, [ROW])
    assert not gpu_report.holds(good, [ROW, replace(ROW, error=0.1)])


def test_the_whole_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_driver.install(monkeypatch, toolchain.host_library())
    page, report = tmp_path / "kernels.md", tmp_path / "report.json"
    page.write_text(f"| head |\n| --- |\n\n{gpu_report.END}\n")
    monkeypatch.setattr(gpu_report, "PAGE", page)
    monkeypatch.setattr(gpu_report, "REPORT", report)
    monkeypatch.setattr(gpu_report, "cuda_driver", lambda: CudaDriver(found=True, release="12.6"))
    monkeypatch.setattr(gpu_report, "run_tests", lambda: {"passed": 3, "failed": 0, "skipped": 0})
    monkeypatch.setattr(kernels, "SEARCHES", ((20, 70, 12),))
    monkeypatch.setattr(kernels, "LOCATIONS", (3, 10))
    monkeypatch.setattr(kernels, "_COPY_BYTES", 1 << 10)
    assert gpu_report.main(["--rounds", "1"]) == 0
    assert "search int8, 20 x 70 x 12" in capsys.readouterr().out
    written = json.loads(report.read_text())
    assert written["device"] == "a GPU that is none"
    assert len(written["rows"]) == 7
    assert "| a GPU that is none | 12.6 |" in page.read_text()


@pytest.mark.skipif(cuda_driver().problem is None, reason="there is a GPU")
@pytest.mark.parametrize("module", ["benchmarks.kernels", "benchmarks.gpu_report"])
def test_without_a_gpu_there_is_one_line_and_2(module: str) -> None:
    before = gpu_report.PAGE.read_bytes()
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("launching kernels needs an NVIDIA GPU: ")
    assert done.stderr.count("\n") == 1
    assert gpu_report.PAGE.read_bytes() == before
