from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgead.export.engines.native import build_native
from edgead.runtime.backends import REGISTRY, available
from edgead.runtime.backends.engine_cache import CACHE_VARIABLE, EngineCache
from edgead.runtime.device import doctor
from edgead.runtime.device.doctor import (
    PROBE_GRAPH,
    Component,
    cpu_features,
    diagnose,
    jetson_release,
    opencv_video,
)
from edgead.runtime.errors import BackendUnavailable


def doctor_in_new_process(prelude: str = "") -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Rows by name, and the top-level modules that were imported."""
    program = (
        f"{prelude}\nimport json, sys\nfrom edgead.runtime.device.doctor import diagnose\n"
        "rows = [row.to_dict() for row in diagnose()]\n"
        "print(json.dumps([rows, [m for m in sys.modules if '.' not in m]]))\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    rows, modules = json.loads(done.stdout)
    return {row["name"]: row for row in rows}, modules


def test_every_component_has_one_row() -> None:
    rows = diagnose()
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    assert {*REGISTRY, "python", "cpu", "memory", "disk", "preprocess", "cuda driver", "opencv"} <= set(names)
    for row in rows:
        assert row.status in ("ok", "missing", "broken")
        assert row.detail
        assert "\n" not in row.detail + (row.fix or "")
        json.dumps(row.to_dict())


def test_what_the_other_tests_use_is_found_to_work() -> None:
    rows = {row.name: row for row in diagnose()}
    for name in ("python", "numpy", "pillow", "preprocess", *(n for n in available() if n != "openvino-bf16")):
        assert rows[name].status == "ok", rows[name]
    assert rows["numpy"].detail == np.__version__


def test_the_training_side_is_not_imported() -> None:
    rows, modules = doctor_in_new_process()
    assert "torch" in rows
    assert not {"torch", "torchvision", "timm", "onnx", "sklearn", "tensorrt", "openvino_telemetry"} & set(modules)


def test_what_is_missing_comes_with_its_command() -> None:
    hidden = ("onnxruntime", "openvino", "cv2", "torch", "onnx", "timm", "paho", "pymodbus", "asyncua", "gpiod", "ray")
    rows, _ = doctor_in_new_process(f"import sys\nfor name in {hidden}: sys.modules[name] = None")
    commands = {
        "onnxruntime": "pip install 'edgead[cpu]'",
        "openvino": "pip install 'edgead[openvino]'",
        "openvino-bf16": "pip install 'edgead[openvino]'",
        "opencv": "pip install 'edgead[camera]'",
        "torch": "pip install 'edgead[train]'",
        "onnx": "pip install 'edgead[export]'",
        "paho-mqtt": "pip install 'edgead[mqtt]'",
        "pymodbus": "pip install 'edgead[modbus]'",
        "asyncua": "pip install 'edgead[opcua]'",
        "gpiod": "pip install 'edgead[gpio]'",
        "ray": "pip install 'edgead[ray]'",
    }
    for name, command in commands.items():
        assert (rows[name]["status"], rows[name]["fix"]) == ("missing", command)
    assert rows["numpy"]["status"] == "ok"


def test_what_is_installed_but_does_not_load_is_broken(tmp_path: Path) -> None:
    for package in ("onnxruntime", "cv2"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open shared object')")
    rows, _ = doctor_in_new_process(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    for name in ("onnxruntime", "opencv"):
        assert rows[name]["status"] == "broken"
        assert "libGL.so.1" in rows[name]["detail"]
        assert rows[name]["fix"]
    assert "opencv-python-headless" in rows["opencv"]["fix"]


def test_a_backend_that_computes_nonsense_is_broken(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import numpy\n__version__ = '9.9'\n"
        "def disable_telemetry_events(): pass\n"
        "class SessionOptions:\n    def add_free_dimension_override_by_name(self, name, value): pass\n"
        "    def add_session_config_entry(self, name, value): pass\n"
        "class Value:\n    def __init__(self, name, shape=()): self.name, self.shape = name, shape\n"
        "class InferenceSession:\n"
        "    def __init__(self, *a, **k): pass\n"
        "    def get_inputs(self): return [Value('images', [1, 2, 2, 3])]\n"
        "    def get_outputs(self): return [Value('score'), Value('map')]\n"
        "    def get_providers(self): return ['CPU']\n"
        "    def run(self, *a): return numpy.zeros(1, 'f4'), numpy.zeros((1, 2, 2), 'f4')\n"
    )
    rows, _ = doctor_in_new_process(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    assert rows["onnxruntime"]["status"] == "broken"
    assert "9.9" in rows["onnxruntime"]["detail"]


def test_a_resize_that_is_not_exact_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    reduce = Image.Image.reduce
    monkeypatch.setattr(Image.Image, "reduce", lambda self, factor: reduce(self, factor).point(lambda x: x + 1))
    row = next(row for row in diagnose() if row.name == "preprocess")
    assert row.status == "broken"
    assert "pip install" in (row.fix or "")


def test_the_probe_graph_is_what_its_comment_says() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(PROBE_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "ReduceMean", "ReduceMax"]
    assert model.opset_import[0].version == 18
    assert model.ir_version <= 10


X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_tile amx_int8\n\n"
ORIN = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd fphp asimdhp cpuid asimddp\nCPU implementer\t: 0x41\n"


def test_cpu_features_of_both_families() -> None:
    assert cpu_features(X86) == ["avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"]
    assert cpu_features(ORIN) == ["asimd", "asimdhp", "asimddp"]
    assert cpu_features("") == []


@pytest.mark.parametrize(
    ("release", "version", "status"),
    [("R36", "11.4.1", "broken"), ("R36", "10.3.0", "ok"), ("R38", "11.4.1", "ok")],
)
def test_jetpack_6_is_told_that_tensorrt_11_is_not_for_it(
    monkeypatch: pytest.MonkeyPatch, release: str, version: str, status: str
) -> None:
    entry = SimpleNamespace(extra="tensorrt", package="tensorrt", distribution=None, installed=True)
    monkeypatch.setattr(doctor, "REGISTRY", {"tensorrt": entry})
    monkeypatch.setattr(doctor, "_read", lambda _path: f"# {release} (release), REVISION: 4.3, GCID: 1")
    monkeypatch.setattr(doctor, "_first_version", lambda _names: version)
    monkeypatch.setattr(doctor, "cuda_driver", lambda: SimpleNamespace(problem=None))
    monkeypatch.setattr(doctor, "find_spec", lambda _name: object())
    row = doctor._gpu_backend("tensorrt")
    assert row.status == status
    if status == "broken":
        assert row.detail == "11.4.1, but JetPack 6 supports TensorRT 10.x only"
        assert row.fix == "sudo apt-get install python3-libnvinfer"


def test_jetson_releases() -> None:
    line = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8"
    assert jetson_release(line) == "L4T 36.4.3 (JetPack 6)"
    assert jetson_release("# R99 (release), REVISION: 1.0") == "L4T 99.1.0"
    assert "unknown" in jetson_release("something else")


def test_opencv_build_information() -> None:
    text = "  Video I/O:\n    FFMPEG:   YES\n      avcodec: YES (62)\n    GStreamer:   NO\n    v4l/v4l2:  YES\n"
    assert opencv_video(text) == {"FFMPEG": True, "GStreamer": False, "v4l/v4l2": True}
    assert opencv_video(text.replace("GStreamer:   NO", "GStreamer:   YES (1.20.3)"))["GStreamer"] is True
    assert opencv_video("") == {"FFMPEG": False, "GStreamer": False, "v4l/v4l2": False}


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    program = "from edgead.runtime.device.doctor import diagnose; diagnose()"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_native_code_is_named_or_comes_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row() -> Component:
        (found,) = (row for row in diagnose() if row.name == "native code")
        return found

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert row().status == "missing"
    assert row().fix == "edgead build BUNDLE --target cpu"
    try:
        build_native(EngineCache(tmp_path))
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert row().status == "ok"
    assert "Gaussians (" in row().detail
    assert row().detail.endswith("from the cache")
