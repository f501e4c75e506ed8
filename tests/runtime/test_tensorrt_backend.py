"""The order of calls in the TensorRT backends, on a GPU that is none (fake_gpu/README.md), and their refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgead.runtime.backends import available, choose
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.errors import BackendUnavailable

FAKE = Path(__file__).with_name("fake_gpu")
pytestmark = [
    pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])"),
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs gcc for the driver library"),
]

# Opens a backend on an engine that is put into the cache first.
PRELUDE = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from cuda.bindings import runtime as cudart
from edgead.runtime.backends import open_backend
from edgead.runtime.backends.engine_cache import EngineCache
from edgead.runtime.backends.engine_key import EngineKey, graph_digest
from edgead.runtime.errors import EdgeadError
model = Path(sys.argv[1])
key = EngineKey(graph_digest(model), "tensorrt", "10.3.0", "8.7", "fp32")
cache = EngineCache()
def put(key, plan=None):
    with cache.building(), cache.scratch() as engine:
        engine.write_bytes(model.read_bytes() if plan is None else plan)
        return cache.store(key, engine, {})
def refused(name, **arguments):
    try:
        open_backend(name, model, **arguments)
    except EdgeadError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(folder / "libcuda.so.1"), str(FAKE / "libcuda.c")]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def on_gpu(driver: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs a program on the fake GPU and returns the lines it prints; it must end well and say nothing else."""

    def run(program: str, *arguments: str | Path, prelude: str = PRELUDE, **variables: str) -> list[str]:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(driver),
            "PYTHONPATH": str(FAKE),
            "EDGEAD_ENGINE_CACHE": str(tmp_path / "engines"),
            **variables,
        }
        command = [sys.executable, "-W", "error", "-c", prelude + program, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture
def graph(tiny_model, tmp_path: Path) -> Path:
    return tiny_model.save(tmp_path / "model.fp32.onnx")


@pytest.mark.parametrize("axis", ["batch", 1])  # `edgead build` fixes it to 1 unless --batch says more
def test_engines_give_what_their_graph_gives_at_every_batch_size(
    on_gpu: Callable[..., list[str]], tiny_model, tmp_path: Path, axis: str | int
) -> None:
    graph = tiny_model.save(tmp_path / "model.fp32.onnx", axis)
    lines = on_gpu(
        """
put(key)
put(replace(key, library="tensorrt-rtx", version="1.7.1", compute_capability="portable"))
images = np.random.default_rng(0).integers(0, 256, (7, 8, 10, 3), dtype=np.uint8)
truth = open_backend("onnxruntime", model, batch=0).run(images)
for name in ("tensorrt", "tensorrt-rtx"):
    for batch in (1, 3, 0):
        backend = open_backend(name, model, batch=batch)
        for count in (7, 1, 4):
            found = backend.run(images[:count])
            assert np.array_equal(found.score, truth.score[:count]), (name, batch, count)
            assert np.array_equal(found.map, truth.map[:count]), (name, batch, count)
        kept = found.score.copy()
        backend.run(images[4:])
        assert np.array_equal(kept, found.score), "what was given is overwritten"
        backend.close()
        backend.close()
        assert not (cudart.device or cudart.pinned or cudart.streams), "memory is left"
    print(backend.describe(), cudart.launches)
    cudart.launches = 0
""",
        graph,
    )
    trt, rtx = lines
    assert "name='tensorrt'" in trt
    assert ", CUDA graph'" in trt
    assert "device='Fake Orin (compute capability 8.7)'" in trt
    assert "precision='fp32'" in trt
    assert "version='10.3.0'" in trt
    assert int(trt.rsplit(" ", 1)[1]) > 10  # the graph is replayed
    assert "name='tensorrt-rtx'" in rtx
    assert int(rtx.rsplit(" ", 1)[1]) == 0  # the library does so itself


def test_what_cannot_be_recorded_runs_without_a_graph(on_gpu: Callable[..., list[str]], graph: Path) -> None:
    (line,) = on_gpu(
        """
put(key)
cudart.cudaStreamEndCapture = lambda stream: (setattr(stream, "recorded", None) or cudart.cudaError_t(900), None)
backend = open_backend("tensorrt", model)
images = np.zeros((1, 8, 10, 3), np.uint8)
assert np.array_equal(backend.run(images).map, open_backend("onnxruntime", model).run(images).map)
print(backend.describe().provider)
""",
        graph,
    )
    assert line.endswith("no CUDA graph")


def test_refusals(on_gpu: Callable[..., list[str]], graph: Path) -> None:
    lines = on_gpu(
        """
refused("tensorrt")
put(replace(key, version="10.7.0"))
refused("tensorrt")
stored = put(key)
refused("tensorrt", batch=9)
stored.path.write_bytes(b"x" * stored.size)
refused("tensorrt")
put(key, b"an engine of another version")
refused("tensorrt")
assert not (cudart.device or cudart.pinned or cudart.streams), "memory is left"
""",
        graph,
    )
    missing, other, batch, altered, foreign = lines
    assert missing.startswith("EngineMissing")
    assert "edgead build NAME.edgead --target tensorrt --precision fp32" in missing
    assert "it has one for tensorrt 10.7.0, compute capability 8.7, fp32" in other
    assert "takes up to 4 images a run; build it with --batch 9" in batch
    assert "not what was built" in altered
    assert "Version tag does not match" in foreign


def test_the_command_in_the_message_names_the_bundle(
    on_gpu: Callable[..., list[str]], make_bundle: Callable[..., Path]
) -> None:
    path = make_bundle("my part.edgead")
    lines = on_gpu(
        """
from edgead.runtime.device.check import check_bundle
from edgead.runtime.inspection.inspector import Inspector
for opening in (Inspector.open, check_bundle):
    try:
        opening(sys.argv[1], backend="tensorrt")
    except EdgeadError as error:
        print(error)
with __import__("edgead.runtime.bundle.bundle", fromlist=["Bundle"]).Bundle.open(sys.argv[1]) as bundle:
    with bundle.model_files("fp32") as model:
        # The graph keeps its weights in another file, so that the engine here is the whole graph.
        key = replace(key, graph=graph_digest(model))
put(key, Path(sys.argv[2]).read_bytes())
report = check_bundle(sys.argv[1], backend="tensorrt")
print(report.passed, report.backend.name, report.max_score_difference)
""",
        path,
        path.parent / "whole.onnx",
        prelude=PRELUDE.replace("key = ", f"{WHOLE}\nkey = "),
    )
    command = f"run: edgead build '{path}' --target tensorrt --precision fp32"
    assert [command in line for line in lines[:2]] == [True, True]
    assert lines[2].startswith("True tensorrt ")


# Writes the graph of the bundle with its weights inside.
WHOLE = """
import onnx
from edgead.runtime.bundle.bundle import Bundle
with Bundle.open(sys.argv[1]) as bundle, bundle.model_files("fp32") as file:
    Path(sys.argv[2]).write_bytes(onnx.load(str(file)).SerializeToString())
"""


def test_states_of_the_driver(on_gpu: Callable[..., list[str]]) -> None:
    program = (
        "from edgead.runtime.backends import available, choose, unavailable\n"
        "from edgead.runtime.backends.gpu_driver import cuda_driver\n"
        "print(cuda_driver().problem)\nprint('tensorrt' in available(), choose('auto')[0])\nprint(unavailable())"
    )
    assert on_gpu(program, prelude="")[:2] == ["None", "True onnxruntime"]
    broken, refused, _ = on_gpu(program, prelude="", FAKE_CU_INIT="100")
    assert "cuInit fails with code 100" in broken
    assert refused == "False onnxruntime"
    none, refused, reasons = on_gpu(program, prelude="", FAKE_CU_DEVICES="0")
    assert none.endswith("it offers no GPU")
    assert refused == "False onnxruntime"
    assert "'tensorrt':" in reasons


def test_an_old_tensorrt_is_refused(on_gpu: Callable[..., list[str]], graph: Path) -> None:
    (line,) = on_gpu('refused("tensorrt")', graph, FAKE_TRT_VERSION="8.6.1")
    assert "TensorRT 8.6.1 is too old" in line


def test_onnxruntime_without_cuda_is_refused(on_gpu: Callable[..., list[str]], graph: Path) -> None:
    program = """
refused("onnxruntime-cuda")
from edgead.runtime.backends.onnxruntime_backend import OnnxRuntimeCudaBackend
try:
    OnnxRuntimeCudaBackend(model)
except EdgeadError as error:
    print(error)
"""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    by_name, directly = on_gpu(program, graph)
    assert "pip install 'edgead[gpu]'" in by_name
    assert "has no CUDA" in directly


def test_the_doctor_sees_driver_and_libraries(on_gpu: Callable[..., list[str]]) -> None:
    program = (
        "from edgead.runtime.device.doctor import diagnose\n"
        "for row in diagnose():\n    print(row.name, '|', row.status, '|', row.detail, '|', row.fix)"
    )
    rows = {line.split(" | ")[0]: line for line in on_gpu(program, prelude="")}
    assert "| ok | CUDA 12.6; Fake Orin (compute capability 8.7)" in rows["cuda driver"]
    assert "edgead check --backend tensorrt" in rows["tensorrt"]
    assert "missing" in rows["onnxruntime-cuda"]
    rows = {line.split(" | ")[0]: line for line in on_gpu(program, prelude="", FAKE_CU_DEVICES="0")}
    assert "offers no GPU" in rows["tensorrt"]
    assert "builds engines here" in rows["tensorrt-rtx"]


@pytest.mark.skipif(cuda_driver().found, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_without_a_driver_nothing_is_touched(name: str, graph: Path) -> None:
    with pytest.raises(BackendUnavailable, match=f"{name}: it needs an NVIDIA GPU: this machine has no NVIDIA driver"):
        choose(name)
    program = (
        "import sys\nfrom pathlib import Path\nfrom importlib import import_module\n"
        "from edgead.runtime.backends import REGISTRY\nfrom edgead.runtime.errors import BackendUnavailable\n"
        "entry = REGISTRY[sys.argv[1]]\n"
        "factory = getattr(import_module(f'edgead.runtime.backends.{entry.module}'), entry.factory)\n"
        "try:\n    factory(Path(sys.argv[2]))\nexcept BackendUnavailable as error:\n    print(error)\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'cuda'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, name, str(graph)]
    # The vendor's library is there, and would do harm.
    environment = {**os.environ, "PYTHONPATH": str(FAKE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"{name} needs an NVIDIA GPU" in done.stdout
