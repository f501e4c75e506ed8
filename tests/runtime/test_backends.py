"""The contract of every registered backend, on a real graph."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.backends import REGISTRY, Backend, available, choose, open_backend
from edgead.runtime.backends.common import openvino_core
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError

# bfloat16 keeps 8 bits of each factor.
TOLERANCE = {"fp32": 2e-6, "bf16": 2e-2}

Open = Callable[..., Backend]


def marked(names: Sequence[str]) -> list[Any]:
    """Return backends as parameters: those of a GPU run with ``-m gpu``, bfloat16 only where the processor has it."""
    found = [name for name in names if not name.endswith("-bf16") or has_bfloat16()]
    return [pytest.param(name, marks=pytest.mark.gpu) if REGISTRY[name].gpu else name for name in found]


def has_bfloat16() -> bool:
    if "openvino" not in available():
        return False
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(params=marked(list(REGISTRY)))
def name(request: pytest.FixtureRequest) -> str:
    if request.param not in available():
        pytest.skip(f"the library of {request.param} is not installed")
    return str(request.param)


@pytest.fixture
def graph(tiny_model: Any, tmp_path: Path) -> Path:
    path: Path = tiny_model.save(tmp_path / "model.fp32.onnx")
    return path


@pytest.fixture
def opened(name: str) -> Iterator[Open]:
    """Opens the backend under test; skips where this processor cannot run it."""
    backends = []

    def open_it(model: Path, **settings: Any) -> Backend:
        try:
            backends.append(open_backend(name, model, **settings))
        except BackendUnavailable as error:
            pytest.skip(str(error))
        return backends[-1]

    yield open_it
    for backend in backends:
        backend.close()


def frames(count: int, seed: int = 7) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 10, 3), dtype=np.uint8)


def agree(backend: Backend, model: Any, images: NDArray[np.uint8]) -> None:
    score, grid, *_ = backend.run(images)
    expected_score, expected_grid = model.numpy(images)
    assert score.dtype == grid.dtype == np.float32
    assert score.shape == (len(images),)
    tolerance = TOLERANCE[backend.describe().precision] * np.abs(expected_grid).max()
    np.testing.assert_allclose(score, expected_score, rtol=0, atol=tolerance)
    np.testing.assert_allclose(grid, expected_grid, rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_any_number_of_images_agrees_with_numpy(opened: Open, graph: Path, tiny_model: Any, batch: int) -> None:
    backend = opened(graph, batch=batch, threads=1)
    for count in (1, 3, 2, 4, 1):
        agree(backend, tiny_model, frames(count, seed=count))


def test_a_graph_with_a_static_batch_takes_any_number(opened: Open, tiny_model: Any, tmp_path: Path) -> None:
    backend = opened(tiny_model.save(tmp_path / "static.onnx", batch=2), batch=1)
    for count in (1, 2, 3):
        agree(backend, tiny_model, frames(count))


def test_an_image_scores_the_same_whatever_is_beside_it(opened: Open, graph: Path) -> None:
    backend = opened(graph, batch=2)
    images = frames(5)
    together = backend.run(images)
    for index in range(5):
        alone = backend.run(images[index : index + 1])
        assert alone.score[0] == together.score[index]
        assert np.array_equal(alone.map[0], together.map[index])


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_results_stay_valid_after_the_next_run(opened: Open, graph: Path, batch: int) -> None:
    backend = opened(graph, batch=batch)
    first = backend.run(frames(2, seed=1))
    kept = first.score.copy(), first.map.copy()
    for seed in range(2, 6):
        backend.run(frames(2, seed=seed))
    assert np.array_equal(first.score, kept[0])
    assert np.array_equal(first.map, kept[1])
    backend.close()
    assert np.array_equal(first.map, kept[1])


def test_read_only_and_strided_images_are_taken(opened: Open, graph: Path, tiny_model: Any) -> None:
    backend = opened(graph)
    images = frames(2)
    images.flags.writeable = False
    agree(backend, tiny_model, images)
    agree(backend, tiny_model, frames(4)[::2])
    agree(backend, tiny_model, frames(2)[..., ::-1])


@pytest.mark.parametrize(
    "images",
    [
        frames(1)[0],
        frames(1).astype(np.float32),
        frames(1)[:, :, :, :2],
        frames(1).transpose(0, 2, 1, 3),
        frames(1).transpose(0, 3, 1, 2),
        frames(0),
        frames(1).tolist(),
    ],
    ids=["no batch axis", "float", "two channels", "swapped", "planes", "none", "list"],
)
def test_wrong_images_are_refused_in_one_line(opened: Open, graph: Path, images: Any) -> None:
    backend = opened(graph)
    with pytest.raises(BackendError, match="the network takes") as caught:
        backend.run(images)
    assert "\n" not in str(caught.value)
    backend.run(frames(1))


def test_describe_says_what_runs(name: str, opened: Open, graph: Path) -> None:
    info = opened(graph, threads=1).describe()
    assert info.name == name
    assert info.precision == ("bf16" if name.endswith("bf16") else "fp32")
    assert info.threads == 1
    assert info.provider
    assert info.device
    assert info.version[0].isdigit()
    assert set(info.to_dict()) == {"name", "provider", "precision", "device", "threads", "version"}


def test_a_closed_backend_says_so(opened: Open, graph: Path) -> None:
    backend = opened(graph)
    info = backend.describe()
    backend.close()
    backend.close()
    assert backend.describe() == info
    with pytest.raises(BackendError, match="closed"):
        backend.run(frames(1))


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": -1}, {"batch": -1}])
def test_impossible_settings_are_refused(opened: Open, graph: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        opened(graph, **settings)


@pytest.mark.parametrize("content", [b"", b"no graph at all", None])
def test_a_broken_graph_is_one_line(opened: Open, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError, match=r"model\.onnx") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["input", "output", "planes", "score shape"])
def test_a_graph_that_scores_nothing_is_refused(opened: Open, tiny_model: Any, tmp_path: Path, change: str) -> None:
    from onnx import TensorProto, helper

    model = tiny_model.graph()
    if change == "input":
        model.graph.input[0].name = model.graph.node[0].input[0] = "x"
    elif change == "output":
        model.graph.output[1].name = model.graph.node[3].output[0] = model.graph.node[4].input[0] = "heat"
    elif change == "planes":
        shape = ["batch", 3, 8, 10]
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
        model.graph.node[1].attribute[0].ints[:] = [0, 1, 2, 3]
    else:
        model.graph.node[4].attribute[0].i = 1
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1, 1]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=r"graph (must map|takes|gives)"):
        opened(path).run(frames(1))


def test_weights_of_a_bundle_are_found(opened: Open, make_bundle: Callable[..., Path], tiny_model: Any) -> None:
    with Bundle.open(make_bundle()) as bundle, bundle.model_files("fp32") as model:
        backend = opened(model)
    # The private folder is gone by now: what was loaded must not depend on it.
    agree(backend, tiny_model, frames(2))


def test_bfloat16_is_what_its_name_says(graph: Path, tiny_model: Any) -> None:
    if "openvino-bf16" not in available():
        pytest.skip("openvino is not installed")
    try:
        reduced = open_backend("openvino-bf16", graph)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    expected = tiny_model.numpy(frames(4))[0]
    error_reduced = np.abs(reduced.run(frames(4)).score - expected).max()
    error_full = np.abs(open_backend("openvino", graph).run(frames(4)).score - expected).max()
    assert error_reduced > 100 * error_full


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits the instruction set of x86")
@pytest.mark.skipif("openvino-bf16" not in available(), reason="openvino is not installed")
def test_bfloat16_is_refused_where_the_processor_has_none(graph: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from edgead.runtime.backends import open_backend\nfrom edgead.runtime.errors import BackendUnavailable\n"
        "open_backend('openvino', Path(sys.argv[1])).close()\n"
        "try:\n    open_backend('openvino-bf16', Path(sys.argv[1]))\n"
        "except BackendUnavailable as error:\n    print(error)\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-W", "error", "-c", program, str(graph)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "bfloat16" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "use the backend openvino" in done.stdout


def test_no_library_writes_home_reports_or_chatters(graph: Path, tmp_path: Path) -> None:
    program = (
        "import sys, threading\nfrom pathlib import Path\nimport numpy as np\n"
        "from edgead.runtime.backends import available, open_backend\n"
        "for name in available():\n"
        "    try:\n        backend = open_backend(name, Path(sys.argv[1]), threads=1)\n"
        "    except Exception:\n        continue\n"
        "    backend.run(np.zeros((1, 8, 10, 3), np.uint8))\n    backend.close()\n"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')], 'telemetry was imported'\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    environment = {**kept, "HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}
    command = [sys.executable, "-W", "error", "-c", program, str(graph)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs POSIX signals")
@pytest.mark.parametrize("name", marked(list(REGISTRY)))
def test_signals_are_survived_after_backends_that_overlapped(name: str, graph: Path) -> None:
    # A library that changes how signals are handled must leave a process that can still be told to stop.
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom edgead.runtime.backends import open_backend\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('told'))\n"
        "opened = [open_backend(sys.argv[1], Path(sys.argv[2])) for _ in range(3)]\n"
        "while opened:\n"
        "    opened.pop(0).close()\n    os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    if name not in available():
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([sys.executable, "-c", program, name, str(graph)], capture_output=True, text=True)
    if "BackendUnavailable" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout) == (0, "told\n" * 3), done.stderr


def test_a_missing_library_names_the_command() -> None:
    program = (
        "import sys\nsys.modules['onnxruntime'] = sys.modules['openvino'] = None\n"
        "from pathlib import Path\nfrom edgead.runtime.backends import available, choose, open_backend\n"
        "from edgead.runtime.errors import BackendUnavailable\n"
        "assert available() == []\n"
        "for name in ('auto', 'onnxruntime', 'openvino', 'openvino-bf16'):\n"
        "    try:\n        choose(name)\n    except BackendUnavailable as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert [("edgead[cpu]" in line, "edgead[openvino]" in line) for line in lines] == [
        *((True, False), (True, False), (False, True), (False, True))
    ]


def test_a_library_that_cannot_be_loaded_is_not_called_missing(tmp_path: Path, graph: Path) -> None:
    for package in ("onnxruntime", "openvino"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object')")
    program = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\nfrom edgead.runtime.backends import open_backend\n"
        "from edgead.runtime.errors import BackendUnavailable\n"
        "for name in ('onnxruntime', 'openvino'):\n"
        "    try:\n        open_backend(name, Path(sys.argv[1]))\n    except BackendUnavailable as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", program, str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("cannot be loaded" in line and "libgomp.so.1" in line and "reinstall" in line for line in lines)


def test_auto_never_takes_a_reduced_precision() -> None:
    chosen, why = choose("auto")
    assert chosen in available()
    assert chosen != "openvino-bf16"
    assert chosen in why


def test_an_unknown_backend_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'onnxruntime'"):
        choose("onnxruntme")
