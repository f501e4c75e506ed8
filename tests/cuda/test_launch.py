"""Kernels launched from Python: what is launched is right on a GPU that is none; the calls exist in the real one."""

from __future__ import annotations

import ast
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgead.export.kernels import compiling
from edgead.export.kernels import gpu as gpu_module
from edgead.export.kernels.gpu import Gpu
from edgead.export.kernels.scoring import MemoryBank, mahalanobis_scores
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError
from tests.cuda import fake_driver, knn, mahalanobis, toolchain, wheels
from tests.cuda.fake_driver import FakeDriver

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return fake_driver.install(monkeypatch, toolchain.host_library())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("shape", "k"), [((1, 1, 1), 1), ((70, 130, 33), 3), ((150, 200, 40), 16)], ids=str)
def test_a_search_equals_brute_force(driver: FakeDriver, shape: tuple[int, int, int], k: int, precision: Any) -> None:
    features, rows, center = knn.features(0, *shape)
    with Gpu() as gpu:
        bank = MemoryBank(gpu, gpu.upload(rows), gpu.upload(center), precision)
        distance, index = bank.search(gpu.upload(features), k)
        squared, expected = knn.brute_force(features - center, rows - center, k)
        np.testing.assert_array_equal(distance.numpy(), np.sqrt(squared))
        np.testing.assert_array_equal(index.numpy(), expected)
        del bank, distance, index
        gc.collect()
        assert driver.allocations == 0
    assert not driver.modules


def test_halves_and_no_centre(driver: FakeDriver) -> None:
    features, rows, center = knn.features(1, 20, 40, 12)
    halves, half_rows = (features - center).astype(np.float16), (rows - center).astype(np.float16)
    with Gpu() as gpu:
        bank = MemoryBank(gpu, gpu.upload(half_rows))
        assert (len(bank), bank.channels) == (40, 12)
        distance, _ = bank.search(gpu.upload(halves))
        squared, _ = knn.brute_force(halves.astype(np.float32), half_rows.astype(np.float32), 1)
        np.testing.assert_array_equal(distance.numpy(), np.sqrt(squared))
    assert "knn_prepare<__half, __half>" in driver.launched


@pytest.mark.parametrize(("rank", "triangular"), [(None, True), (None, False), (6, False)])
@pytest.mark.usefixtures("driver")
def test_mahalanobis_distances_equal_float64(rank: int | None, triangular: bool) -> None:
    grid, channels = (4, 3), 40
    locations = mahalanobis.make(1, grid, channels, rank, np.float32)
    features = (locations.mean + np.random.default_rng(2).standard_normal((5, 12, channels))).astype(np.float32)
    factors = locations.factors
    if rank is None and not triangular:
        factors = np.zeros((12, channels, channels), np.float32)
        down, across = np.tril_indices(channels)
        factors[:, down, across] = locations.factors
    with Gpu() as gpu:
        precision = None if locations.precision is None else gpu.upload(locations.precision)
        arrays = (gpu.upload(features), gpu.upload(locations.mean), gpu.upload(factors))
        found = mahalanobis_scores(gpu, *arrays, precision).numpy()
    np.testing.assert_allclose(found, mahalanobis.reference(features, locations, 1), rtol=1e-4)


class Foreign:
    """An array of another library: an address and a description."""

    def __init__(self, array: Any, **described: Any) -> None:
        self.shape, self.dtype, self._array = array.shape, array.dtype, array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **described}


@pytest.mark.usefixtures("driver")
def test_arrays_of_others_are_taken_where_they_are() -> None:
    features, rows, _ = knn.features(3, 8, 30, 16)
    with Gpu() as gpu:
        bank = MemoryBank(gpu, Foreign(gpu.upload(rows), strides=(64, 4)))
        distance, _ = bank.search(Foreign(gpu.upload(features)))
        squared, _ = knn.brute_force(features, rows, 1)
        np.testing.assert_array_equal(distance.numpy(), np.sqrt(squared))
        with pytest.raises(ConfigError, match="must be C-contiguous"):
            bank.search(Foreign(gpu.upload(features), strides=(4, 32)))
        with pytest.raises(ConfigError, match="a ndarray is not in a GPU's memory"):
            bank.search(features)


def test_wrong_arguments_are_refused(driver: FakeDriver) -> None:
    with Gpu() as gpu:
        rows = gpu.upload(np.zeros((5, 4), np.float32))
        bank = MemoryBank(gpu, rows)
        launched = len(driver.launched)
        wrong = gpu.upload(np.zeros((5, 3), np.float32))
        whole = gpu.upload(np.zeros((5, 4), np.int32))
        for call, said in (
            (lambda: MemoryBank(gpu, rows, precision="fp8"), "a scan is in fp32, fp16, int8, not 'fp8'"),  # type: ignore[arg-type]
            (lambda: MemoryBank(gpu, rows, wrong), "the centre of 4 channels has not shape"),
            (lambda: MemoryBank(gpu, whole), "must be float32 or float16, got int32"),
            (lambda: bank.search(wrong), "queries of 3 channels do not fit a bank of 4"),
            (lambda: bank.search(rows, 6), "k must be 1 to 5, got 6"),
            (lambda: bank.search(gpu.empty((0, 4), np.float32)), "none of them empty"),
            (lambda: mahalanobis_scores(gpu, rows, rows, rows), "rows must have 3 axes"),
            (lambda: gpu.load("no_kernel"), "there is no kernel 'no_kernel'"),
        ):
            with pytest.raises(ConfigError, match=said):
                call()
        three = gpu.empty((1, 5, 4), np.float32)
        with pytest.raises(ConfigError, match="do not fit rows"):
            mahalanobis_scores(gpu, three, wrong, three)
        assert len(driver.launched) == launched


@pytest.mark.usefixtures("driver")
def test_an_error_of_the_driver_is_one_line() -> None:
    with Gpu() as gpu:
        with pytest.raises(BackendError, match=r"^CUDA fails at cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY$"):
            gpu.empty((1 << 40,), np.uint8)
        with pytest.raises(BackendError, match="cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"):
            gpu.launch("knn_unpack", (0, 1, 1), 256, 0, None, 0, None, None)


@pytest.mark.usefixtures("driver")
def test_runs_are_timed_on_the_gpus_clock() -> None:
    with Gpu() as gpu:
        source, target = gpu.upload(np.arange(4)), gpu.empty((4,), np.int64)
        assert gpu.milliseconds(lambda: gpu.copy(target, source), rounds=4) == [1.0] * 4
        np.testing.assert_array_equal(target.numpy(), np.arange(4))


@pytest.mark.skipif(cuda_driver().problem is None, reason="there is a GPU")
def test_without_a_gpu_there_is_one_line() -> None:
    with pytest.raises(BackendUnavailable, match=r"^launching kernels needs an NVIDIA GPU: "):
        Gpu()


def test_without_the_bindings_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(monkeypatch, toolchain.host_library())
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'edgead\[cuda1[23]\]'"):
        Gpu()


def called_names() -> dict[str, list[str]]:
    """What the two modules call of cuda-bindings, read off their source."""
    found: dict[str, set[str]] = {"driver": set(), "nvrtc": set()}
    for module in (gpu_module, compiling):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("nvrtc"):
                found["nvrtc"].add(node.attr)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("CU"):
                chain = ast.unparse(node)
                found["driver"].add(chain.partition("_driver.")[2])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".call"):
                found["driver"].add(ast.literal_eval(node.args[0]))
    return {name: sorted(values - {""}) for name, values in found.items()}


# Run with the real bindings and without a GPU: what the names are, how the driver answers, and machine code of NVRTC.
CONTRACT = """
import ctypes, json, sys
for library in sys.argv[3:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
from cuda.bindings import driver, nvrtc
names = json.loads(sys.argv[1])
def there(module, path):
    for part in path.split("."):
        module = getattr(module, part, None)
    return module is not None
missing = [name for name in names["driver"] if not there(driver, name)]
print(missing + [name for name in names["nvrtc"] if not there(nvrtc, name)])
from edgead.export.kernels.compiling import compile_kernel
from edgead.runtime.errors import EdgeadError
print(nvrtc.nvrtcVersion()[1:])
for kernel in ("knn_scan_mma<__half>", "location_scores", "knn_prepare_keys<float, __half>"):
    code, name = compile_kernel(nvrtc, kernel, int(sys.argv[2]))
    print(code[:4], name.decode())
from benchmarks.kernels import CEILINGS_SOURCE
for kernel in ("ceiling_fp32", "ceiling_mma<__half>", "ceiling_mma<int8_t>"):
    code, name = compile_kernel(nvrtc, kernel, int(sys.argv[2]), source=CEILINGS_SOURCE)
    print(code[:4], name.decode())
try:
    compile_kernel(nvrtc, "knn_prepare<float>", int(sys.argv[2]))
except EdgeadError as error:
    print(error)
"""


@pytest.mark.parametrize("major", [12, 13])
def test_the_real_bindings_have_the_calls_and_compile_the_kernels(major: int) -> None:
    """cuda-bindings of both generations with the NVRTC of each, on a machine without a GPU."""
    toolchain.nvcc()  # for its headers, and for NVRTC 13
    names = called_names()
    assert {"cuLaunchKernel", "cuMemFree", "CUevent_flags.CU_EVENT_DEFAULT"} <= set(names["driver"])
    assert "nvrtcGetCUBIN" in names["nvrtc"]
    environment = dict(os.environ)
    libraries: list[str] = []
    if major == 12:
        folder = wheels.site("cuda-12.8", "cuda-bindings==12.8.0")
        nvrtc, _ = wheels.nvrtc_12()
        libraries = [*map(str, sorted(nvrtc.glob("libnvrtc-builtins.so.*"))), str(nvrtc / "libnvrtc.so.12")]
    else:
        folder = wheels.site("cuda-13.5", "cuda-bindings==13.5.0", "cuda-pathfinder")
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-c", CONTRACT, json.dumps(names), "87", *libraries]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    missing, version, *rest = done.stdout.splitlines()
    assert missing == "[]"
    assert version.startswith(f"({major}, ")
    assert [line.partition(" ")[0] for line in rest[:6]] == ["b'\\x7fELF'"] * 6
    assert "knn_scan_mma" in rest[0]
    assert rest[6].startswith("NVRTC refuses knn_prepare<float> for sm_87: ")
