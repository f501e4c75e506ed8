"""Every closed-form detector in INT8, fitted and exported here, judged alike on emulated processors."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EMULATOR = shutil.which("qemu-x86_64")
ROOT = Path(__file__).resolve().parents[1]
CLOSED_FORM = {
    "patchcore": [],
    "padim": ["--set", "dimensions=40"],
    "npad": ["--set", "centroids=64"],
    "fre": [],
    "protoad": [],
    "dfc": [],
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        EMULATOR is None or platform.machine() != "x86_64",
        reason="processors are emulated on x86-64 with qemu-user: apt-get install qemu-user",
    ),
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real solar cells in two categories: 40 normal ones each, and 25 normal and 25 defective ones to judge."""
    data = Path(pytest.importorskip("elpv_dataset").__file__).parent / "data"
    root = tmp_path_factory.mktemp("cells")
    with (data / "labels.csv").open() as stream:
        rows = [row for row in csv.reader(stream, delimiter=" ", skipinitialspace=True) if row]
    for kind in ("mono", "poly"):
        normal = [data / row[0] for row in rows if row[2] == kind and float(row[1]) == 0.0]
        defective = [data / row[0] for row in rows if row[2] == kind and float(row[1]) == 1.0]
        parts = {"train/good": normal[:40], "test/good": normal[40:65], "test/defective": defective[:25]}
        for folder, files in parts.items():
            (root / kind / folder).mkdir(parents=True)
            for file in files:
                with Image.open(file) as image:
                    image.resize((128, 128)).save(root / kind / folder / file.name)
    return root


def edgead(*arguments: str | Path, cpu: str | None = None) -> subprocess.CompletedProcess[str]:
    emulator = [] if cpu is None else [str(EMULATOR), "-cpu", cpu]
    return subprocess.run(
        [*emulator, sys.executable, "-m", "edgead", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def edgead_json(*arguments: str | Path, cpu: str | None = None) -> dict:
    done = edgead(*arguments, "--json", cpu=cpu)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("detector", CLOSED_FORM)
def test_int8_decides_alike_on_every_processor(detector: str, cells: Path, tmp_path: Path) -> None:
    categories = [cells / "mono", cells / "poly"] if detector == "dfc" else [cells / "mono"]
    model, bundle = tmp_path / "model", tmp_path / "m.edgead"
    settings = ["--detector", detector, "--size", "128", *CLOSED_FORM[detector]]
    edgead_json("fit", *categories, *settings, "-o", model)
    edgead_json("export", model, "-o", bundle, "--int8", "--max-drop", "0.2")
    images = cells / "mono" / "test"
    judged = {}
    for cpu in (None, "Haswell", "Cascadelake-Server"):
        for backend in ("onnxruntime", "openvino"):
            edgead_json("check", bundle, "--precision", "int8-cpu", "--backend", backend, cpu=cpu)
            out = tmp_path / f"{cpu}-{backend}.jsonl"
            arguments = ["--source", images, "--sink", f"jsonl:{out}", "--precision", "int8-cpu", "--backend", backend]
            edgead_json("run", bundle, *arguments, cpu=cpu)
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            judged[cpu, backend] = [row for row in rows if "decision" in row]
    for backend in ("onnxruntime", "openvino"):
        here = judged[None, backend]
        assert len(here) == 50
        for cpu in ("Haswell", "Cascadelake-Server"):
            there = judged[cpu, backend]
            assert [row["decision"] for row in there] == [row["decision"] for row in here]
            first, second = (np.array([row["score"] for row in rows], float) for rows in (here, there))
            assert np.abs(first - second).max() <= 1e-3 * np.ptp(first), (backend, cpu)
