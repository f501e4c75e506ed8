"""The kernels compile for all targets without spills and within budgets; what machine code holds is read from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import cases, nvrtc, sass, tables, targets, toolchain
from tests.cuda.knn import CODES
from tests.cuda.ptx.launch import PtxExecutor

# The others take as long again each.
QUICK = (75, 87)


@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=() if a in QUICK else pytest.mark.slow) for a in targets.ARCHITECTURES]
)
def test_machine_code_is_within_the_budgets(architecture: int) -> None:
    path = toolchain.cubin(architecture)  # fails where a register spills
    assert targets.complaints(sass.read(path), architecture) == []


def test_jetpack_6_compiles_the_same_source(tmp_path: Path) -> None:
    machine_code, _ = nvrtc.Nvrtc126().compile("sm_87")
    path = tmp_path / "kernels.cubin"
    path.write_bytes(machine_code)
    assert targets.complaints(sass.read(path), 87) == []


def test_what_jetpack_6_emits_is_executed(tmp_path: Path) -> None:
    _, ptx = nvrtc.Nvrtc126().compile("compute_87")
    path = tmp_path / "kernels.ptx"
    path.write_bytes(ptx)
    executor = PtxExecutor(path)
    for code in CODES.values():
        cases.check_search(executor, (9, 70, 70), code, 3, 2)
    cases.check_locations(executor, (2, 2), 35, dtype=np.float16, frames=5, window=3)


def test_a_spill_fails_the_build(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(toolchain.KERNELS, folder)
    path = folder / "knn_scan_mma.cuh"
    text = path.read_text()
    assert text.count("__launch_bounds__(kMmaThreads, 2)") == 1
    path.write_text(text.replace("__launch_bounds__(kMmaThreads, 2)", "__launch_bounds__(kMmaThreads, 6)"))
    with pytest.raises(RuntimeError, match="spilled to local memory"):
        toolchain.cubin(87, kernels=folder)


def test_budgets_find_what_is_over_them() -> None:
    codes = sass.read(toolchain.cubin(87))
    name = "knn_scan_mma<__half>"
    other = sass.Code(200, 8, codes["knn_scan_simt"].opcodes)
    found = targets.complaints({**codes, name: other}, 87)
    assert [text.removeprefix(f"{name}: ") for text in found] == [
        "200 registers, more than 128",
        "uses local memory",
        "0 x HMMA.16816.F32, fewer than 16",
        "0 x LDSM, fewer than 8",
        "0 x LDGSTS, fewer than 6",
    ]


def test_the_page_holds_what_is_computed() -> None:
    assert tables.read("roofline") == targets.roofline_table()


@pytest.mark.slow
def test_the_page_holds_what_the_machine_code_is() -> None:
    codes = {architecture: sass.read(toolchain.cubin(architecture)) for architecture in targets.ARCHITECTURES}
    assert tables.read("resources") == targets.resources_table(codes)
    assert tables.read("instructions") == targets.instructions_table(codes)
