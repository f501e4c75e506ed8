"""One INT8 bundle on several processors: this one, and others under user-mode emulation.

Haswell has AVX2 and neither AVX-512 nor VNNI, as most industrial PCs. The emulator (Debian's ``qemu-user``) knows no
AVX-512: the server models run with what of them it does know, and AVX-512 is tested where this machine has it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgead.export.exportable import Exportable
from edgead.export.exporting import export_bundle
from edgead.export.graph.saturation import probe_graph
from edgead.export.options import CPU
from edgead.export.precision.simulate_int8 import SimulatedInt8
from edgead.export.torch_backend import TorchBackend
from edgead.runtime.backends import open_backend
from edgead.runtime.backends import saturation_probe as saturation
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.writing import replace_manifest
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import BackendUnavailable
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector
from tests import aarch64

EMULATOR = shutil.which("qemu-x86_64")
RUNTIMES = ("onnxruntime", "openvino")
needs_emulator = pytest.mark.skipif(
    EMULATOR is None or platform.machine() != "x86_64",
    reason="processors are emulated on x86-64 with qemu-user: apt-get install qemu-user",
)


class Loud(nn.Module):
    """Convolutions whose weights are nearly alike, on bright images: rounded plainly, every pair would saturate."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.mix = nn.Conv2d(32, 24, 1)
        self.last = nn.Conv2d(24, 16, 3, stride=2, padding=1)
        for conv in (self.first, self.depth, self.mix, self.last):
            size = conv.weight[0].numel()
            noise = torch.rand(conv.weight.shape, generator=generator)
            conv.weight.data = (0.9 + 0.2 * noise) / size
            conv.weight.data[::3] *= -0.3
            conv.bias.data = 0.3 * torch.rand(conv.bias.shape, generator=generator)
        self.target = nn.Parameter(torch.full((1, 16, 1, 1), 2.0), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.first(images.to(torch.float32).permute(0, 3, 1, 2) / 40.0))
        x = torch.relu(self.mix(torch.relu(self.depth(x))))
        grid = (self.last(x) - self.target).square().sum(1).sqrt()
        return grid.amax((1, 2)), grid


@pytest.fixture
def loud(exportable: Exportable) -> Exportable:
    module = Loud().eval()
    scores = TorchBackend(module).run(network_images(exportable)).score
    return replace(
        exportable,
        module=module,
        threshold=calibrate(scores, 0.5),
        normal_scores=(scores - np.ptp(scores)).tolist(),
        calibration=exportable.references,
    )


def network_images(model: Exportable) -> np.ndarray:
    return np.stack([resize(decode_image(data, name), 64, 64) for name, data in model.references])


@pytest.fixture
def bundle(loud: Exportable, tmp_path: Path) -> Path:
    report = export_bundle(loud, tmp_path / "loud.edgead", precisions=[CPU], max_drop=0.2)
    assert report.passed
    np.save(tmp_path / "images.npy", network_images(loud))
    return tmp_path / "loud.edgead"


def run_here(bundle: Path, cpu: str | None, runtimes: tuple[str, ...] = RUNTIMES) -> dict[str, np.ndarray]:
    """Run `run_int8.py` on this processor, or on an emulated one."""
    out = bundle.with_name(f"{cpu or 'here'}.npz")
    root = str(Path(__file__).parents[2])
    python, path = [sys.executable], os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    if cpu in aarch64.PROCESSORS:
        python, path = aarch64.command(cpu), aarch64.path(root)
    elif cpu is not None:
        python = [str(EMULATOR), "-cpu", cpu, *python]
    program = [*python, str(Path(__file__).with_name("run_int8.py"))]
    done = subprocess.run(
        [*program, str(bundle), str(bundle.with_name("images.npy")), str(out), *runtimes],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as stored:
        return dict(stored)


@needs_emulator
@pytest.mark.parametrize(
    "cpu",
    [
        "Haswell",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Skylake-Server", "Cascadelake-Server")),
    ],
)
def test_an_int8_graph_gives_the_same_integers_and_decisions(bundle: Path, cpu: str) -> None:
    here, there = run_here(bundle, None), run_here(bundle, cpu)
    # So the emulated processor is one on which an unbounded graph saturates.
    assert all(there[f"{name}/saturates"] for name in RUNTIMES)
    tensors = [name for name in here if name.startswith("tensor/")]
    assert len(tensors) >= 4
    for name in tensors:
        assert np.array_equal(here[name], there[name]), name
    for name in RUNTIMES:
        assert here[f"{name}/decisions"].tolist() == there[f"{name}/decisions"].tolist()
        scale = np.ptp(here[f"{name}/score"])
        assert np.abs(here[f"{name}/score"] - there[f"{name}/score"]).max() < 1e-3 * scale


@pytest.mark.slow
@pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))
@pytest.mark.parametrize("cpu", aarch64.PROCESSORS)
def test_arm_gives_the_same_integers_and_decisions(bundle: Path, cpu: str) -> None:
    here, there = run_here(bundle, None), run_here(bundle, cpu)
    for name in (name for name in here if name.startswith("tensor/")):
        assert np.array_equal(here[name], there[name]), name
    for name in RUNTIMES:
        assert not there[f"{name}/saturates"]
        assert here[f"{name}/decisions"].tolist() == there[f"{name}/decisions"].tolist()
        scale = np.ptp(here[f"{name}/score"])
        assert np.abs(here[f"{name}/score"] - there[f"{name}/score"]).max() < 2e-2 * scale


@needs_emulator
def test_a_graph_that_may_saturate_gives_others_there(loud: Exportable, tmp_path: Path, monkeypatch) -> None:
    # What the bound is for: the same model rounded without it.
    monkeypatch.setattr("edgead.export.precision.gptq.bounds_after", lambda _: (-127, 127))
    monkeypatch.setattr("edgead.export.precision.gptq.largest_pair", lambda values: np.zeros(len(values)))
    monkeypatch.setattr("edgead.export.graph.lint_precision.may_saturate", lambda _: False)
    # Where this processor is one of those, its own runtime shows the fault already.
    export_bundle(loud, tmp_path / "loud.edgead", precisions=[CPU], max_drop=0.2, allow_drift=True)
    np.save(tmp_path / "images.npy", network_images(loud))
    there = run_here(tmp_path / "loud.edgead", "Haswell", ("onnxruntime",))
    exact = simulated(tmp_path / "loud.edgead", network_images(loud))
    assert np.abs(there["onnxruntime/map"] - exact).max() > 0.1 * np.ptp(exact)


def simulated(bundle: Path, images: np.ndarray) -> np.ndarray:
    with Bundle.open(bundle) as opened, opened.model_files(CPU) as model:
        found: np.ndarray = SimulatedInt8(model).run(images).map
    return found


def test_this_processor_agrees_with_exact_sums(bundle: Path, loud: Exportable) -> None:
    exact = simulated(bundle, network_images(loud))
    for name in RUNTIMES:
        assert check_bundle(bundle, backend=name, precision=CPU).passed
        with Bundle.open(bundle) as opened, opened.model_files(CPU) as model:
            found = open_backend(name, model).run(network_images(loud)).map
        # One step of 8 bits here and there: where a product lies half-way, runtimes round in another order.
        assert np.abs(found - exact).max() < 0.05 * np.ptp(exact), name


def test_the_probe_is_the_graph_that_is_built() -> None:
    assert saturation.PROBE.read_bytes() == probe_graph().SerializeToString(deterministic=True)
    onnx.checker.check_model(onnx.load(str(saturation.PROBE)))


def test_a_bundle_of_an_earlier_version_is_refused_where_sums_saturate(
    bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    old = tmp_path / "old.edgead"
    with Bundle.open(bundle) as opened:
        section = opened.manifest.precisions[CPU]
        precisions = {**opened.manifest.precisions, CPU: section.model_copy(update={"saturation_free": False})}
        replace_manifest(bundle, old, opened.manifest.model_copy(update={"precisions": precisions}))
    monkeypatch.setattr(saturation, "saturates", lambda _: True)
    with pytest.raises(BackendUnavailable, match=r"saturate on this processor .* use --precision fp32"):
        Inspector.open(old, backend="onnxruntime", precision=CPU)
    with pytest.raises(BackendUnavailable, match="exported by an earlier version"):
        check_bundle(old, backend="openvino", precision=CPU)
    Inspector.open(old, backend="onnxruntime").close()
    Inspector.open(bundle, backend="onnxruntime", precision=CPU).close()
    monkeypatch.setattr(saturation, "saturates", lambda _: False)
    Inspector.open(old, backend="onnxruntime", precision=CPU).close()
