"""A wheel that brings the native code: what a device gets that has no compiler."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgead.export.exportable import Exportable
from edgead.export.exporting import export_bundle
from edgead.runtime.backends import available
from edgead.runtime.backends.engine_cache import CACHE_VARIABLE
from tests.export.test_parts import GAUSSIANS, SEARCH, model, padim, patchcore

WHEELS = Path(__file__).resolve().parents[2] / ".ci" / "wheels"
# Of this machine, were it Linux: pip and `.ci/wheels` call both kinds alike.
MACHINE = {"x86_64": "x86_64", "aarch64": "aarch64"}.get(platform.machine())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("ziglang") is None:
        pytest.skip("no ziglang, which compiles for wheels: pip install ziglang")
    if sys.platform != "linux" or MACHINE is None or "musl" in (platform.libc_ver()[0] or "musl"):
        pytest.skip("no wheel is made for this system")
    folder = tmp_path_factory.mktemp("wheels")
    done = subprocess.run([sys.executable, WHEELS, MACHINE, "-o", folder], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    assert Path(done.stdout.strip()) == built
    return built


@pytest.mark.slow
def test_an_installed_wheel_computes_natively_without_a_compiler(
    wheel: Path, exportable: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"-py3-none-manylinux_2_17_{MACHINE}." in wheel.name
    bundles = {SEARCH: tmp_path / "search.edgead", GAUSSIANS: tmp_path / "gaussians.edgead"}
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    for bundle, scorer in zip(bundles.values(), (patchcore(), padim()), strict=True):
        assert export_bundle(model(exportable, scorer), bundle).passed
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(installed), str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (tmp_path / "no programs").mkdir()
    environment = os.environ | {
        "PATH": str(tmp_path / "no programs"),
        "PYTHONPATH": str(installed),  # before the checkout; what edgead needs comes from this environment
        CACHE_VARIABLE: str(tmp_path / "none"),
    }

    def edgead(*words: str | Path) -> dict[str, object]:
        command = [sys.executable, "-m", "edgead", *map(str, words), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    doctor = edgead("doctor")
    assert "came with the package" in json.dumps(doctor)
    for native, bundle in bundles.items():
        for backend in {"onnxruntime", "openvino"} & set(available()):
            assert f"with {native} (" in json.dumps(edgead("bench", bundle, "--backend", backend, "--frames", "3"))
            edgead("check", bundle, "--backend", backend)
        # There is nothing left to compile.
        assert "came with the package" not in json.dumps(edgead("build", bundle, "--target", "cpu"))


@pytest.mark.slow
def test_an_installed_wheel_brings_the_c_library(wheel: Path, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile a caller with")
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(pip, capture_output=True, text=True, timeout=300, check=True)
    ask = [sys.executable, "-c", "import edgead; print(edgead.capi_path())"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run(ask, env=environment, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    folder = Path(found.stdout.strip())
    assert folder == installed / "edgead" / "runtime" / "capi"
    (tmp_path / "x.c").write_text(
        "#include <edgead.h>\n#include <stdio.h>\nint main(void) { return puts(edgead_version()) < 0; }\n"
    )
    command = [
        "gcc",
        "x.c",
        f"-I{folder}/include",
        f"-L{folder}/lib",
        "-l:libedgead.so.1",
        f"-Wl,-rpath,{folder}/lib",
        "-o",
        "x",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    said = subprocess.run([tmp_path / "x"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.strip() == wheel.name.split("-")[1]


def test_a_package_without_the_c_library_says_how_to_build_it() -> None:
    import edgead
    from edgead.runtime.errors import BackendUnavailable

    with pytest.raises(BackendUnavailable, match=r"cmake -S .*capi -B build-edgead"):
        edgead.capi_path()
