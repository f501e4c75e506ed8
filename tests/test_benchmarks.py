"""The logic of the benchmarks: what they count, what they report, and how two programs take turns. Never a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import deciding
from benchmarks.floor import Ceilings, count_work
from benchmarks.peer_report import print_report, summary
from benchmarks.worker import Worker, WorkerError

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = Ceilings(threads=1, gemm=100.0, gemm_int8=400.0, convolution=50.0, depthwise=10.0, read_gb=5.0)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], kind: int = TensorProto.FLOAT) -> Any:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", kind, ["batch", 8, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", None, None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_the_floor_counts_each_kind_of_arithmetic_at_its_ceiling() -> None:
    work = count_work(
        graph(
            [
                helper.make_node("Conv", ["images", "dense"], ["a"], pads=[1] * 4, strides=[2, 2]),
                helper.make_node("Conv", ["a", "thin"], ["b"], pads=[1] * 4, group=12),
                helper.make_node("Conv", ["b", "point"], ["c"]),
                helper.make_node("Relu", ["c"], ["d"]),
                helper.make_node("MatMul", ["d", "matrix"], ["out"]),
            ],
            {
                "dense": zeros(12, 8, 3, 3),
                "thin": zeros(12, 1, 3, 3),
                "point": zeros(20, 12, 1, 1),
                "matrix": zeros(8, 6),
            },
        ),
        CEILINGS,
    )
    dense, thin = 2 * 12 * 64 * 8 * 9, 2 * 12 * 64 * 9
    products = 2 * 20 * 64 * 12 + 2 * 20 * 8 * 6 * 8
    assert work.operations == pytest.approx(
        {"convolution": dense / 1e9, "depthwise": thin / 1e9, "gemm": products / 1e9}
    )
    assert work.weights_mb == pytest.approx(4 * (12 * 8 * 9 + 12 * 9 + 20 * 12 + 8 * 6) / 1e6)
    assert work.arithmetic_ms == pytest.approx((dense / 50e9 + thin / 10e9 + products / 100e9) * 1e3)
    assert max(work.arithmetic_ms, work.weights_ms) <= work.floor_ms <= work.arithmetic_ms + work.weights_ms


def test_weights_that_are_read_once_can_set_the_floor() -> None:
    work = count_work(
        graph([helper.make_node("MatMul", ["images", "factors"], ["out"])], {"factors": zeros(1, 8, 16, 500)}), CEILINGS
    )
    assert work.floor_ms == work.weights_ms == pytest.approx(4 * 8 * 16 * 500 / 5e9 * 1e3)


def test_integer_layers_count_at_the_integer_ceiling() -> None:
    constants: dict[str, np.ndarray] = {
        "w8": np.zeros((20, 8, 1, 1), np.int8),
        "scale": np.float32(1.0),
        "zero": np.uint8(0),
        "none": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w8", "scale", "none"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["out"]),
    ]
    work = count_work(graph(nodes, constants), CEILINGS)
    assert set(work.operations) == {"gemm_int8"}
    assert work.arithmetic_ms == pytest.approx(2 * 20 * 256 * 8 / 400e9 * 1e3)
    assert work.weights_mb == pytest.approx(20 * 8 / 1e6)


def route(ms: float, auroc: float = 0.9) -> dict[str, float]:
    return {"network": ms / 2, "decision": ms, "image_auroc": auroc}


def row(category: str, detector: str, rows: int | None, ours: dict[str, float], theirs: float) -> dict[str, Any]:
    return {
        "part": f"{category}-{detector}",
        "category": category,
        "detector": detector,
        "bank_rows": rows,
        "training_images": 100,
        "fit": {"anomalib": {"fit_s": 60.0}, "edgead": {"fit_s": 10.0}},
        "anomalib_raw_image_auroc": 0.91,
        "anomalib": {"torch": route(3 * theirs), "onnx": route(theirs), "openvino": route(2 * theirs)},
        "edgead": {name: route(ms, 0.92) for name, ms in ours.items()},
    }


def test_ratios_are_flat_and_those_of_the_worst_category(capsys: pytest.CaptureFixture[str]) -> None:
    ours = {"onnxruntime": 12.0, "onnxruntime-native": 10.0, "openvino-int8-cpu": 5.0, "plain-onnxruntime": 30.0}
    rows = [
        row("tile", "patchcore", 1000, ours, 40.0),
        row("screw", "patchcore", 1000, ours, 30.0),
        row("tile", "patchcore", 10_000, ours, 80.0),
        row("tile", "padim", None, {"openvino": 8.0}, 24.0),
    ]
    side = {
        "import_s": 5.0,
        "first_decision_s": 6.0,
        "peak_mb": 1000.0,
        "installed_mb": 6000.0,
        "of_it_cuda_mb": 4000.0,
    }
    own = {"import_s": 0.1, "first_decision_s": 0.5, "peak_mb": 100.0, "installed_mb": 100.0, "of_it_cuda_mb": 0.0}
    document = summary(rows, {"anomalib": side, "edgead": own})
    ratios = document["ratios"]
    assert all(isinstance(value, float) for value in ratios.values())
    for detector in ("patchcore", "padim"):
        for runtime in ("openvino", "onnx", "torch"):
            assert f"{detector}_camera_to_decision_vs_anomalib_{runtime}" in ratios
    assert ratios["patchcore_camera_to_decision_vs_anomalib_onnx"] == pytest.approx(3.0)
    assert ratios["patchcore_camera_to_decision_vs_anomalib_openvino_int8"] == pytest.approx(12.0)
    assert ratios["patchcore_camera_to_decision_vs_anomalib_torch_large_bank"] == pytest.approx(24.0)
    assert ratios["patchcore_camera_to_decision_vs_plain_onnxruntime"] == pytest.approx(3.0)
    assert ratios["padim_camera_to_decision_vs_anomalib_onnx"] == pytest.approx(3.0)
    assert ratios["patchcore_image_auroc_minus_anomalib"] == pytest.approx(0.01)
    assert ratios["padim_fit_vs_anomalib"] == pytest.approx(6.0)
    assert ratios["installed_mb_vs_anomalib"] == pytest.approx(60.0)
    json.dumps(document)
    print_report(document)
    assert "| tile, patchcore, bank 10000 | edgead onnxruntime-native |" in capsys.readouterr().out


def test_a_worker_answers_in_turn_and_says_what_went_wrong(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom benchmarks.worker import serve\n"
        "print('libraries print on import')\n"
        "def double(value):\n    print('and later')\n    return 2 * value\n"
        "def fail():\n    raise ValueError('no such model')\n"
        "serve({'double': double, 'fail': fail, 'leave': lambda: sys.exit(3)})\n"
    )
    with Worker([sys.executable, str(script)], tmp_path / "log", folder=tmp_path) as worker:
        assert worker.ask("double", value=21) == 42
        with pytest.raises(WorkerError, match="fail: ValueError: no such model"):
            worker.ask("fail")
        assert worker.ask("double", value="ab") == "abab"
        with pytest.raises(WorkerError, match="ended with code 3"):
            worker.ask("leave")
    assert "and later" in (tmp_path / "log").read_text()


def decided(seed: int, escapes: int, allowed: tuple[int, ...] = (9, 9, 4), auroc: float = 0.9) -> deciding.Row:
    return deciding.Row("plate", "padim", seed, 26, 71, escapes, 1, escapes - 1, 2, allowed, auroc)


def test_decisions_are_medians_over_seeds_with_their_range() -> None:
    rows = [decided(0, 5), decided(1, 8, (9, 7, 4), 0.95), decided(2, 6)]
    heading, _, line = deciding.markdown(rows).splitlines()
    cells = ["plate", "padim", "3", "6 (5–8) of 71", "1 of 26", "5 (4–7) of 71", "2 of 26"]
    cells += ["9 of 71", "9 (7–9) of 71", "4 of 71", "0.9000 (0.9000–0.9500)"]
    assert line == "| " + " | ".join(cells) + " |"
    assert heading.count("|") == line.count("|")
    assert heading.index("escapes") < heading.index("image AUROC")


def test_a_fit_is_judged_at_both_thresholds(made_images: Path) -> None:
    from edgead.data import open_category
    from edgead.evaluation.evaluation import evaluate
    from edgead.fitting import fit

    category = open_category(made_images / "plate", need_test=True)
    row = deciding.measure(category, "padim", 0, 64)
    for rate, escapes, alarms in (
        (0.01, row.escapes, row.false_alarms),
        (0.05, row.other_escapes, row.other_false_alarms),
    ):
        with fit(category.root, detector="padim", size=64, false_alarm_rate=rate).inspector() as inspector:
            found = evaluate(inspector, category, bootstrap=0).decisions
        assert (found.escapes, found.false_alarms) == (escapes, alarms)
        assert (found.anomalous, found.normal) == (row.anomalous, row.normal)
    assert list(row.allowed) == sorted(row.allowed, reverse=True)


def test_deciding_says_how_it_is_called() -> None:
    command = [sys.executable, "-m", "benchmarks.deciding"]
    told = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    for option in ("--detectors", "--seeds", "--solar-cells"):
        assert option in told.stdout
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert refused.returncode == 2
    assert "give a category folder" in refused.stderr
