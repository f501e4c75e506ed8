"""Engines: what the vendor library may do to us, what is kept, and real builds with TensorRT-RTX where it is here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from edgead.export.engines import building
from edgead.export.engines.building import BuildOptions, build_engines
from edgead.export.engines.layer_precision import Layer, count, engine_layers, require_precision
from edgead.runtime.backends.engine_cache import EngineCache
from edgead.runtime.backends.gpu_driver import CudaDevice
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError, ParityError
from edgead.runtime.imaging.preprocess import RESIZE_RULE
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32


def graph(precision: str = "fp32", *, extra: tuple[str, ...] = ()) -> bytes:
    """A convolution, a product with a bank in FP32, a map and its maximum; ``precision`` is that of the convolution."""
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(16, 3, 3, 3)).astype(np.float32) / 100
    bank = generator.normal(size=(16, 8)).astype(np.float32)
    narrow = np.float16 if precision == "fp16" else np.float32
    constants: dict[str, NDArray[Any]] = {"kernel": kernel.astype(narrow), "bank": bank}
    constants |= {"last": np.array([3]), "cells": np.array([1, 2])}
    to_narrow = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=to_narrow),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    source, weights = "planes", "kernel"
    if precision.startswith(("int8", "uint8")):
        kind: Any = np.uint8 if precision.startswith("uint8") else np.int8
        constants |= {"scale": np.float32(2.0), "zero": kind(0), "fine": np.float32(0.001), "none": np.int8(0)}
        for value, scale, zero in (("planes", "scale", "zero"), ("kernel", "fine", "none")):
            nodes += [
                helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}_q"]),
                helper.make_node("DequantizeLinear", [f"{value}_q", scale, zero], [f"{value}_dq"]),
            ]
        source, weights = "planes_dq", "kernel_dq"
    nodes += [
        helper.make_node("Conv", [source, weights], ["features"], pads=[1] * 4, strides=[4, 4], name="the_conv"),
        helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.FLOAT),
        *[helper.make_node(name, ["wide"], ["odd"], domain="odd", name="the_odd_one") for name in extra],
        helper.make_node("Transpose", ["odd" if extra else "wide"], ["cells_last"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["cells_last", "bank"], ["products"], name="the_product"),
        helper.make_node("ReduceMax", ["products", "last"], ["map"], keepdims=0),
        helper.make_node("ReduceMax", ["map", "cells"], ["score"], keepdims=0),
    ]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", SIDE // 4, SIDE // 4]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("odd", 1)] if extra else [])]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    if not extra:
        checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """A factory of bundles: precision -> graph bytes."""

    def make(**graphs: bytes) -> Path:
        files = {f"model.{name.replace('_', '-')}.onnx": data for name, data in graphs.items()}
        manifest = Manifest.model_validate(
            {
                "name": "small",
                "detector": {"name": "patchcore"},
                "input": {"height": SIDE, "width": SIDE, "resize": RESIZE_RULE},
                "map": {"height": SIDE // 4, "width": SIDE // 4},
                "threshold": Threshold(1.0, 0.01, 9, 0.0, 0.1, True).to_dict(),
                "precisions": {
                    name.split(".")[1]: {"file": name, "runtimes": ["tensorrt", "tensorrt-rtx"]} for name in files
                },
            }
        )
        path = tmp_path / "small.edgead"
        write_bundle(path, manifest, dict(files))
        return path

    return make


def build_rtx(path: Path, cache: Path, *capabilities: str, **options: Any) -> Any:
    return build_engines(
        path,
        target="tensorrt-rtx",
        cache=EngineCache(cache),
        options=BuildOptions(compute_capabilities=capabilities, **options),
    )


# What a vendor library needs before it can misbehave.
FAKE = """
import enum, os, sys, time
__version__ = "9.9"
class ILogger:
    WARNING = 2
class ComputeCapability(enum.IntEnum):
    SM86 = 1
class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0
def Builder(logger):
"""


@pytest.fixture
def fake_rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a ``tensorrt_rtx`` on the path whose builder does what it is told."""

    def make(deed: str) -> None:
        folder = tmp_path / "fake"
        (folder / "tensorrt_rtx").mkdir(parents=True)
        (folder / "tensorrt_rtx" / "__init__.py").write_text(FAKE + "    " + deed + "\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return make


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("print('Myelin CHECK failed', file=sys.stderr, flush=True); os.abort()", r"crashed \(SIGABRT\).*Myelin CHECK"),
        ("import ctypes; ctypes.string_at(0)", r"crashed \(SIGSEGV\) while building model.fp32.onnx for 8.6"),
        ("os.kill(os.getpid(), 9)", r"crashed \(SIGKILL\) \(out of memory\?\)"),
        ("time.sleep(600)", "not done after 2 s .*--timeout"),
        ("sys.exit(7)", "ended with code 7"),
        ("raise TypeError('factory function returned nullptr')", "cannot make a builder: factory function returned"),
    ],
)
def test_a_vendor_library_that_misbehaves_is_one_line(
    deed: str, message: str, fake_rtx: Callable[[str], None], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    fake_rtx(deed)
    with pytest.raises(BackendError, match=message) as caught:
        build_rtx(bundle(fp32=graph()), tmp_path / "cache", "8.6", timeout_s=2.0)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_the_command_ends_with_2_and_one_line(
    fake_rtx: Callable[[str], None], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    fake_rtx("os.abort()")
    done = run_cli("build", bundle(fp32=graph()), "--target", "tensorrt-rtx", "--cache", tmp_path / "c", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "crashed (SIGABRT)" in done.stderr


def run_cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgead", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ends_with_its_parent(
    fake_rtx: Callable[[str], None], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    fake_rtx(f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    command = [sys.executable, "-m", "edgead", "build", bundle(fp32=graph()), "--target", "tensorrt-rtx"]
    parent = subprocess.Popen([*command, "--cache", tmp_path / "cache"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: pid_file.is_file() and pid_file.read_text() != "")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
    worker = Path("/proc", pid_file.read_text())
    wait_for(lambda: not worker.exists() or "State:\tZ" in (worker / "status").read_text())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "tensort"}, ConfigError, "Did you mean 'tensorrt'"),
        ({"target": "tensorrt"}, BackendUnavailable, "no NVIDIA driver.*edgead doctor"),
        ({"target": "tensorrt", "options": {"compute_capabilities": ["8.6"]}}, ConfigError, "this machine's GPU only"),
        ({"target": "tensorrt-rtx", "options": {"plugin": Path("p.so")}}, ConfigError, "no plugins"),
        ({"target": "tensorrt-rtx", "options": {"dla": 0}}, ConfigError, "no DLA"),
        ({"target": "tensorrt-rtx", "options": {"precisions": ["fp61"]}}, ConfigError, "Did you mean"),
        ({"target": "tensorrt-rtx", "options": {"precisions": ["int8-cpu"]}}, ConfigError, "use 'int8-trt'"),
    ],
)
def test_wrong_input_is_refused_before_any_library_is_started(
    arguments: dict[str, Any], error: type[Exception], message: str, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    from edgead.runtime.backends.gpu_driver import cuda_driver

    if cuda_driver().found and error is BackendUnavailable:
        pytest.skip("this machine has an NVIDIA driver")
    options = BuildOptions(**arguments.pop("options", {}))
    path = bundle(fp32=graph(), int8_cpu=graph())
    with pytest.raises(error, match=message):
        build_engines(path, cache=EngineCache(tmp_path / "cache"), options=options, **arguments)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"workspace_mb": 0}, {"dla": -1}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        BuildOptions(**options)


def test_a_missing_library_names_the_extra(bundle: Callable[..., Path], tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("tensorrt_rtx") is not None:
        pytest.skip("TensorRT-RTX is installed")
    with pytest.raises(BackendUnavailable, match=r"pip install 'edgead\[rtx\]'"):
        build_rtx(bundle(fp32=graph()), tmp_path / "cache", "8.6")


def test_building_imports_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, edgead.export.engines.building, edgead.export.engines.engine_worker\n"
        "print([name for name in ('torch', 'onnx', 'onnxscript', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Records in the styles of the inspector's JSON that users have shown (NVIDIA/TensorRT issue 4020): sentences and names.
INSPECTED = [
    {
        "Name": "conv1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
        "Outputs": [{"Name": "b", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
    },
    {
        "Name": "conv2",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "b", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
        "Outputs": [{"Name": "c", "Format/Datatype": "Row major linear FP32"}],
    },
    {"Name": "head", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Float"}], "Outputs": [{"Datatype": "Float"}]},
    {"Name": "cast", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major UINT8"}], "Outputs": []},
    {"Name": "scores", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]},
    "only a name",
]


def test_precisions_are_read_from_the_inspector() -> None:
    layers = engine_layers(INSPECTED)
    assert [layer.precision for layer in layers] == ["fp16", "int8", "fp32", "uint8", "unknown", "unknown"]
    assert [layer.name for layer in layers if layer.heavy] == ["conv1", "conv2", "head", "scores"]
    assert count(layers) == {
        "caskconvolution": {"fp16": 1, "int8": 1},
        "gemm": {"fp32": 1, "unknown": 1},
        "other": {"uint8": 1, "unknown": 1},
    }


def test_an_engine_that_came_out_in_fp32_is_refused() -> None:
    layers = engine_layers(INSPECTED)
    for precision in ("fp32", "fp16", "int8-trt"):
        require_precision("model.onnx", precision, layers)
    wide = [layer for layer in layers if layer.precision not in ("fp16", "int8")]
    require_precision("model.onnx", "fp32", wide)
    for precision in ("fp16", "int8-trt"):
        with pytest.raises(ParityError, match="none of its layers computes in"):
            require_precision("model.onnx", precision, wide)
    # A type beside the convolutions is no proof, and an engine without details is none either.
    with pytest.raises(ParityError):
        require_precision("m", "fp16", [Layer("c", "convolution", "fp32"), Layer("r", "reformat", "fp16")])
    with pytest.raises(ParityError, match="unknown"):
        require_precision("m", "fp16", engine_layers(["a", "b"]))


@pytest.mark.usefixtures("rtx")
def test_rtx_builds_every_precision_and_reads_it_back(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = bundle(fp32=graph(), fp16=graph("fp16"), int8_trt=graph("int8"))
    report = build_rtx(path, tmp_path / "cache", "8.6")
    rows = [row.to_dict() for row in report.engines]
    found = {(row["graph"], row["key"]["compute_capability"]): row for row in rows}
    assert len(found) == 3
    for (name, _), row in found.items():
        own = name.split(".")[1].partition("-")[0]
        assert row["layer_precisions"]["counts"]["convolution"] == {own: 1}
        assert row["layer_precisions"]["counts"]["matrix_multiply"] == {"fp32": 1}
        assert row["bytes"] == Path(row["engine"]).stat().st_size > 1000
        assert row["reused"] is False
    assert len({row["sha256"] for row in rows}) == 3
    again = build_rtx(path, tmp_path / "cache", "8.6")
    assert [row.reused for row in again.engines] == [True] * 3
    assert [row.stored.sha256 for row in again.engines] == [row.stored.sha256 for row in report.engines]


@pytest.mark.usefixtures("rtx")
def test_fp16_and_int8_that_stay_fp32_exit_with_3(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = bundle(fp32=graph(), fp16=graph("fp32"), int8_trt=graph("fp16"))
    for precision in ("fp16", "int8-trt"):
        arguments = ("--precision", precision, "--compute-capability", "8.6", "--cache", tmp_path / "cache")
        done = run_cli("build", path, "--target", "tensorrt-rtx", *arguments)
        assert done.returncode == 3
        assert f"was built as {precision}, but none of its layers" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert list((tmp_path / "cache").glob("*.engine")) == []


@pytest.mark.usefixtures("rtx")
def test_rtx_says_which_node_it_refuses(bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"refuses model.fp32.onnx at node .*the_odd_one"):
        build_rtx(bundle(fp32=graph(extra=("Peculiar",))), tmp_path / "cache", "8.6")


@pytest.mark.usefixtures("rtx")
def test_unsigned_activations_are_refused_though_rtx_only_warns(bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="unsigned 8-bit activations"):
        build_rtx(bundle(int8_trt=graph("uint8")), tmp_path / "cache", "8.6")


@pytest.mark.usefixtures("rtx")
def test_all_gpus_means_those_that_can(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = bundle(fp32=graph())
    report = build_rtx(path, tmp_path / "cache")
    built = {row.stored.key.compute_capability for row in report.engines}
    refused = {row.compute_capability for row in report.refused}
    # Seen with 1.7: on Turing it has no FP32 matrix product.
    assert {"8.0", "8.6", "8.9", "12.0"} <= built
    assert refused <= {"7.5"}
    assert all("\n" not in row.reason for row in report.refused)
    with pytest.raises(ConfigError, match="for a Jetson"):
        build_rtx(path, tmp_path / "cache", "8.7")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("capability", "built"), [("9.0", "portable"), ("8.9", "8.9")])
def test_a_gpu_without_a_target_gets_the_portable_engine(
    bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, built: str
) -> None:
    device = CudaDevice("a GPU that is none", capability)
    monkeypatch.setattr(building, "_device", lambda *_: device)
    report = build_rtx(bundle(fp32=graph()), tmp_path / "cache")
    assert {row.stored.key.compute_capability for row in report.engines} == {built}


@pytest.mark.usefixtures("rtx")
def test_two_commands_at_once_give_one_engine_and_the_table(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path, cache = bundle(fp16=graph("fp16")), tmp_path / "cache"
    arguments = ["build", str(path), "--target", "tensorrt-rtx", "--compute-capability", "8.6", "--cache", str(cache)]
    command = [sys.executable, "-m", "edgead", *arguments, "--json"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    reports = [json.loads(out) for out, _ in outputs]
    rows = [report["engines"][0] for report in reports]
    assert sorted(row["reused"] for row in rows) == [False, True]
    assert rows[0]["sha256"] == rows[1]["sha256"]
    assert len(list(cache.glob("*.engine"))) == 1
    assert reports[0]["schema"] == "edgead.build/1"
    people = run_cli(*arguments)
    assert people.returncode == 0
    assert "convolution: 1 fp16" in people.stdout
    assert "in the cache" in people.stdout
    assert "EDGEAD_ENGINE_CACHE" in people.stderr


@pytest.mark.usefixtures("rtx")
def test_an_altered_engine_is_built_again(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = bundle(fp32=graph())
    (row,) = build_rtx(path, tmp_path / "cache", "8.6").engines
    row.stored.path.write_bytes(b"x" * row.stored.size)
    (again,) = build_rtx(path, tmp_path / "cache", "8.6").engines
    assert not again.reused
    assert EngineCache(tmp_path / "cache").read(again.stored)
    (other,) = build_rtx(path, tmp_path / "cache", "8.6", max_batch=4).engines
    assert not other.reused  # the key is the same, the settings are not
    assert other.stored.info["max_batch"] == 4


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.usefixtures("rtx")
def test_a_disk_that_fills_up_is_one_line(bundle: Callable[..., Path], tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from edgead.cli import run\nsys.exit(run(sys.argv[1:]))"
    )
    arguments = ["build", str(bundle(fp32=graph())), "--target", "tensorrt-rtx", "--compute-capability", "8.6"]
    command = [sys.executable, "-c", program, *arguments, "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot write" in done.stderr
    assert list((tmp_path / "cache").glob("*.engine")) == []
