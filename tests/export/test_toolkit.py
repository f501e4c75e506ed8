"""What is said where a plugin cannot be built, and that a library is there whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgead.export.kernels.toolkit import build_plugin, check_architectures, find_nvcc, find_tensorrt_headers
from edgead.runtime.backends import gpu_driver as cuda_driver
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    folder = tmp_path / "include"
    folder.mkdir()
    (folder / "NvInferRuntime.h").touch()
    return folder


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes its arguments into its output, or fails as the file ``says`` beside it wants."""
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nsays = pathlib.Path(__file__).with_name('says')\n"
        "if says.exists():\n    sys.exit(says.read_text())\n"
        "pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text('\\n'.join(sys.argv))\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return path


def test_each_gpu_gets_machine_code_and_later_ones_ptx(nvcc: Path, headers: Path, tmp_path: Path) -> None:
    out = tmp_path / "plugin.so"
    assert build_plugin(out, compute_capabilities=["8.7", "11.0", "8.7"], tensorrt_include=headers) == [87, 110]
    given = out.read_text().splitlines()
    assert given[0] == str(nvcc)
    assert [text for text in given if text.startswith("-gencode")] == [
        "-gencode=arch=compute_87,code=sm_87",
        "-gencode=arch=compute_110,code=sm_110",
        "-gencode=arch=compute_110,code=compute_110",
    ]
    source = Path(given[-1])
    assert source.name == "plugin.cu"
    assert source.is_file()


def test_a_compiler_that_refuses_leaves_the_old_library(nvcc: Path, headers: Path, tmp_path: Path) -> None:
    out = tmp_path / "plugin.so"
    out.write_text("old")
    nvcc.with_name("says").write_text("In file included\nplugin.cu(3): error: no such   thing\n1 error detected")
    with pytest.raises(BackendError, match=r"^nvcc refuses plugin.cu: plugin.cu\(3\): error: no such thing$"):
        build_plugin(out, compute_capabilities=["8.7"], tensorrt_include=headers)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".plugin*"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [("7.2", "7.5 or newer, not 7.2"), ("87", "'87' is no compute capability"), ("8.x", "is no compute capability")],
)
def test_compute_capabilities_that_cannot_be(asked: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_architectures([asked])


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="there is no nvcc on this machine"):
        find_nvcc()
    with pytest.raises(ConfigError, match="has no NvInferRuntime"):
        find_tensorrt_headers(tmp_path)
    if not list(Path("/usr/include").rglob("NvInferRuntime.h")):
        with pytest.raises(BackendUnavailable, match="apt-get install libnvinfer-headers-dev"):
            find_tensorrt_headers()


def test_headers_are_found_below_tensorrt_root(headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(headers.parent))
    assert find_tensorrt_headers() == headers


@pytest.mark.skipif(cuda_driver.cuda_driver().problem is None, reason="with a GPU its own is meant")
def test_without_a_gpu_one_must_be_named() -> None:
    with pytest.raises(ConfigError, match="say for which GPU with --compute-capability"):
        check_architectures([])


@pytest.mark.usefixtures("nvcc")
def test_the_command_builds_and_says_how_to_use_it(headers: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edgead",
        "build-plugin",
        "-o",
        str(tmp_path / "p.so"),
        "--compute-capability",
        "8.7",
    ]
    done = subprocess.run(
        [*command, "--tensorrt-include", str(headers), "--json"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["compute_capabilities"] == ["8.7"]
    assert report["bytes"] == (tmp_path / "p.so").stat().st_size
    done = subprocess.run([*command, "--tensorrt-include", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
