"""`bench` on small real bundles: what is counted, how latency is counted, and the accuracy beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.references import EXPECTED_NAME, pack_expected
from edgead.runtime.device.bench import bench
from edgead.runtime.errors import BackendUnavailable, BundleError, ConfigError

pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")
SMALL = (64, 48)


def test_every_installed_backend_of_full_precision_is_measured(make_bundle):
    path = make_bundle()
    steps = []
    report = bench(path, frames=50, frame_size=SMALL, progress=lambda done, total: steps.append((done, total)))
    names = [row.backend.name for row in report.rows]
    assert names == [name for name in available() if not name.endswith("-bf16")]
    for row in report.rows:
        assert (row.inspected, row.failed, row.queued, row.latency.count) == (50, 0, 0, 50)
        assert sum(row.decisions.values()) == 50
        # All three references are shown, in turn: one of them is a defect.
        assert 12 <= row.decisions["ANOMALY"] <= 20
        assert set(row.stages) == {"wait", "preprocess", "network", "decide"}
        assert sum(stage.p50 for stage in row.stages.values()) <= row.latency.max
        assert row.latency.p50 <= row.latency.p95 <= row.latency.p99 <= row.latency.max
        # One caller that waits for each decision: throughput is one over the mean latency, and a little overhead.
        assert row.throughput_fps <= 1.05e3 / min(row.latency.p50, row.latency.max)
        assert row.accuracy.decision_changes == ()
        assert row.accuracy.max_score_difference < 1e-4
    assert steps == sorted(steps)
    assert steps[-1] == (50 * len(names), 50 * len(names))
    with Bundle.open(path) as bundle:
        assert report.model_sha256 == bundle.sha256
    data = report.to_dict()
    assert data["schema"] == "edgead.bench/1"
    assert set(data["board"]) == {"before", "after"}
    assert set(data["versions"]) == {"edgead", "python", "numpy", "pillow"}
    json.dumps(data, allow_nan=False)


def test_a_schedule_that_cannot_be_kept_shows_in_every_frame_that_waited(make_bundle):
    # 100 000 frames a second: each frame waits for all before it, and its latency counts from its scheduled time.
    # Counted from its own start (coordinated omission), latency would be that of one frame for all of them.
    report = bench(make_bundle(), backends=["onnxruntime"], frames=200, rate_fps=100_000, frame_size=SMALL)
    row = report.rows[0]
    turn_ms = 100 * 1e3 / row.throughput_fps
    service_ms = sum(row.stages[name].p50 for name in ("preprocess", "network", "decide"))
    assert row.latency.max > 0.6 * turn_ms > 10 * service_ms
    assert row.stages["wait"].max > 0.6 * turn_ms
    assert row.queued >= 190


def test_a_schedule_that_can_be_kept_costs_no_waiting(make_bundle):
    report = bench(make_bundle(), backends=["onnxruntime"], frames=12, rate_fps=10, frame_size=SMALL)
    row = report.rows[0]
    # Half of the time between two frames; a frame takes a fraction of a millisecond.
    assert row.stages["wait"].p50 < 50
    assert row.throughput_fps < 1.2 * 10


def test_wrong_decisions_are_named(make_bundle, tiny_references, tiny_expected):
    names, score, grid = tiny_expected(tiny_references)
    score[names.index("spot.png")] = 0.0
    path = make_bundle(files={EXPECTED_NAME: pack_expected(names, score, grid)})
    row = bench(path, backends=["onnxruntime"], frames=2, frame_size=SMALL).rows[0]
    assert row.accuracy.decision_changes == ("spot.png",)
    assert row.accuracy.max_score_difference > 20


def test_each_precision_of_a_backend_has_a_row(make_bundle, tiny_model):
    precisions = {
        "fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime", "openvino"]},
        "fp16": {"file": "model.fp16.onnx", "runtimes": ["onnxruntime"]},
    }
    half = tiny_model.graph().SerializeToString()
    path = make_bundle(files={"model.fp16.onnx": half}, precisions=precisions)
    report = bench(path, backends=["auto", "onnxruntime"], frames=2, frame_size=SMALL)
    assert [(row.backend.name, row.precision) for row in report.rows] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
    ]


def test_frames_are_the_references_at_camera_size(make_bundle, tiny_references, tiny_expected):
    # Only the defect is left to make frames of, so every frame is one.
    spot = {"spot.png": tiny_references["spot.png"]}
    removed = {f"references/{name}": None for name in tiny_references if name != "spot.png"}
    path = make_bundle(files={**removed, EXPECTED_NAME: pack_expected(*tiny_expected(spot))})
    row = bench(path, backends=["onnxruntime"], frames=4, frame_size=(90, 62)).rows[0]
    assert row.decisions == {"OK": 0, "ANOMALY": 4, "NOT_INSPECTED": 0}


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"frames": 0}, ConfigError, "--frames"),
        ({"rate_fps": float("nan")}, ConfigError, "--rate"),
        ({"frame_size": (8, 8)}, ConfigError, "--frame-size"),
        ({"backends": ["onnxruntim"]}, ConfigError, "Did you mean 'onnxruntime'"),
        ({"backends": ["tensorrt"]}, BackendUnavailable, "needs an NVIDIA GPU|edgead build"),
        ({"threads": 0}, ConfigError, "threads"),
    ],
)
def test_wrong_arguments(make_bundle, arguments, error, match):
    with pytest.raises(error, match=match):
        bench(make_bundle(), **{"frames": 2, "frame_size": SMALL, **arguments})


def test_a_bundle_without_references_cannot_be_measured(make_bundle, tiny_references):
    files = {f"references/{name}": None for name in [*tiny_references, "expected.npz"]}
    with pytest.raises(BundleError, match="no reference images"):
        bench(make_bundle(files=files), frames=2)


def test_a_network_without_a_finite_score_is_an_error_and_not_fast(make_bundle, tiny_model):
    broken = type(tiny_model)(np.full_like(tiny_model.weights, np.nan))
    with pytest.raises(Exception, match=r"no valid score|not finite"):
        bench(make_bundle(model=broken), backends=["onnxruntime"], frames=2, frame_size=SMALL)
