"""Bundles prove themselves: parity on real runtimes, refusal on drift, nothing half-written."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgead.export.exporting import export_bundle
from edgead.export.parity.comparison import Comparison
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.verdict import Verdict, decide
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import ConfigError, DataError, ParityError
from edgead.runtime.inspection.inspector import Inspector


class Drifting(nn.Module):
    """Exports something else than it computes: what a wrong resize or a swapped channel does."""

    def __init__(self, inner: nn.Module, damage: str) -> None:
        super().__init__()
        self.inner = inner
        self.damage = damage
        self.swapped = copy.deepcopy(inner)
        self.swapped.conv.weight.data = inner.conv.weight.data.flip(1).contiguous()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.compiler.is_exporting():
            return self.inner(images)
        score, grid = (self.swapped if self.damage == "channels" else self.inner)(images)
        if self.damage == "nan":
            grid = torch.sqrt(grid - grid - 1.0)
            score = grid.amax((1, 2))
        return score, grid


def test_every_installed_runtime_is_compared(exportable, tmp_path):
    report = export_bundle(exportable, tmp_path / "small.edgead")
    records = report.parity["model.fp32.onnx"]
    assert {"onnxruntime", "openvino"} <= set(records)
    for runtime in ("onnxruntime", "openvino"):
        assert records[runtime].images == 6
        assert records[runtime].flips == records[runtime].borderline == 0
        assert records[runtime].max_score_difference < 1e-3
    assert report.passed
    with Bundle.open(tmp_path / "small.edgead") as bundle:
        assert bundle.sha256 == report.sha256
        assert bundle.manifest.parity["model.fp32.onnx"] == dict(records)
        assert [name for name, _ in bundle.references()] == [f"good-{n}.png" for n in range(6)]
    for backend in ("onnxruntime", "openvino"):
        assert check_bundle(tmp_path / "small.edgead", backend=backend).passed


@pytest.mark.parametrize("damage", ["channels", "nan"])
def test_a_drifting_graph_is_refused_and_the_old_bundle_stays(exportable, tmp_path, damage):
    out = tmp_path / "small.edgead"
    out.write_bytes(b"the bundle of yesterday")
    drifting = replace(exportable, module=Drifting(exportable.module, damage).eval())
    with pytest.raises(ParityError, match="nothing was written") as caught:
        export_bundle(drifting, out)
    assert "\n" not in str(caught.value)
    assert caught.value.report is not None
    assert caught.value.report["passed"] is False
    assert caught.value.report["parity"]["model.fp32.onnx"]["onnxruntime"]["flips"] > 0
    assert out.read_bytes() == b"the bundle of yesterday"
    assert list(tmp_path.iterdir()) == [out]


def test_allowed_drift_is_written_into_the_manifest(exportable, tmp_path):
    drifting = replace(exportable, module=Drifting(exportable.module, "channels").eval())
    report = export_bundle(drifting, tmp_path / "small.edgead", allow_drift=True)
    assert not report.passed
    record = report.parity["model.fp32.onnx"]["onnxruntime"]
    assert record.drift_allowed
    assert record.flips > 0
    assert not check_bundle(tmp_path / "small.edgead", backend="onnxruntime").passed


def test_reduced_precision_needs_its_evidence(exportable, tmp_path):
    out = tmp_path / "small.edgead"
    report = export_bundle(exportable, out)
    record = report.parity["model.fp32.onnx"].get("openvino-bf16")
    if record is None:
        pytest.skip("this CPU has no bf16")
    if record.flips + record.borderline:
        with pytest.raises(ConfigError, match="openvino-bf16"):
            Inspector.open(out, backend="openvino-bf16")
    else:
        Inspector.open(out, backend="openvino-bf16").close()


def test_wrong_arguments(exportable, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.edgead"):
        export_bundle(exportable, tmp_path / "small.onnx")
    with pytest.raises(DataError, match="does not exist"):
        export_bundle(exportable, tmp_path / "small.edgead", images=[tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        export_bundle(exportable, tmp_path / "small.edgead", images=[tmp_path / "empty"])
    (tmp_path / "bad.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"bad\.png"):
        export_bundle(exportable, tmp_path / "small.edgead", images=[tmp_path / "bad.png"])
    assert not (tmp_path / "small.edgead").exists()


def judged(score: float, category: str | None = None) -> Verdict:
    decision, reason = decide(score, 1.0)
    return Verdict(score, 1.0, decision, category, reason)


def test_flips_and_borderline_changes_are_told_apart():
    grid = np.zeros((2, 2), np.float32)
    comparison = Comparison(scale=0.5)
    scores = [(0.2, 0.201), (0.999, 1.001), (0.5, 0.501), (0.9, 1.1)] + [(0.1, 0.1)] * 100
    for number, (reference, candidate) in enumerate(scores):
        comparison.add(f"{number}.png", (judged(reference), grid), (judged(candidate), grid))
    record = comparison.record()
    assert comparison.changed == [1, 3]
    assert (record.flips, record.borderline) == (1, 1)
    assert record.epsilon is not None
    assert record.epsilon <= 0.02 * 0.5
    assert record.worst_image == "3.png"
    assert record.max_score_difference == pytest.approx(0.2)


def test_a_score_that_is_not_finite_is_never_hidden():
    grid = np.zeros((2, 2), np.float32)
    comparison = Comparison(0.5)
    comparison.add("a.png", (judged(0.5), grid), (judged(float("nan")), grid))
    assert not comparison.finite
    assert comparison.record().flips == 1


def test_a_part_taken_for_another_category_is_a_flip_even_where_the_decision_stays():
    grid = np.zeros((2, 2), np.float32)
    comparison = Comparison(0.5)
    comparison.add("a.png", (judged(0.5, "plate"), grid), (judged(0.5, "tile"), grid))
    assert comparison.changed == [0]
    assert comparison.record().flips == 1


def test_labelled_images_tell_what_a_graph_does_to_the_auroc():
    grid = np.zeros((2, 2), np.float32)
    rng = np.random.default_rng(0)
    comparison, plain = Comparison(0.5), Comparison(0.5)
    for number in range(40):
        good = number % 2 == 0
        score = rng.normal() + (0.0 if good else 1.0)
        moved = score + 0.8 * rng.normal()
        folder = "good" if good else "scratch"
        comparison.add(f"test/{folder}/{number}.png", (judged(score), grid), (judged(moved), grid))
        plain.add(f"{number}.png", (judged(score), grid), (judged(moved), grid))
    record = comparison.record()
    pairs = [(a.score, b.score) for a in comparison.candidate[1::2] for b in comparison.candidate[::2]]
    assert record.auroc == pytest.approx(np.mean([bad > good for bad, good in pairs]))
    assert None not in (record.auroc_change, record.auroc_change_low, record.auroc_change_high)
    assert record.auroc_change_low < record.auroc_change < record.auroc_change_high
    assert record.auroc_change < 0
    assert plain.record().auroc is None
