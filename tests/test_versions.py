"""The light runtime with the lowest and the newest versions of its libraries that `pyproject.toml` allows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from tests.test_light_install import UNREACHABLE

ROOT = Path(__file__).resolve().parent.parent
EARLIER = ROOT / "tests" / "runtime" / "earlier"
EXTRAS = ("cpu", "openvino", "camera", "mqtt", "modbus", "prometheus")
# What runs without torch and onnx, and touches each of these libraries.
LIGHT = ["test_sources.py", "test_more_sources.py", "test_earlier.py", "test_decode.py", "test_preprocess.py"]
MORE = ["test_sinks.py", "test_network_sinks.py", "test_stream.py", "test_page.py", "test_manifest.py", "faults"]
PYTHONS = ["3.10", "3.12", "3.13", "3.14"]


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]


def lowest(requirement: str) -> str:
    """Return the requirement of the lowest minor version, with all its fixes."""
    name, _, version = requirement.partition(">=")
    major, _, minor = version.partition(",")[0].partition(".")
    return f"{name}=={major}.{minor.partition('.')[0] or 0}.*"


def interpreter(version: str) -> str | None:
    """Return a Python of that version, of the search path or of pyenv, that runs."""
    name = f"python{version}"
    places = [shutil.which(name), *sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/{name}"))]
    for place in filter(None, places):
        if subprocess.run([place, "--version"], capture_output=True, check=False).returncode == 0:
            return str(place)
    return None


def environment(folder: Path, wanted: list[str], python: str = sys.executable) -> Path:
    """Return the Python of a new environment with what is wanted, and what runs the tests."""
    interpreter = folder / "bin" / "python"
    run(python, "-m", "venv", folder)
    pip = (interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary")
    run(*pip, *wanted, "pytest>=8", "hypothesis>=6.100")
    return interpreter


def run(*command: str | Path, code: int = 0) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    if done.returncode != code and any(text in done.stderr for text in UNREACHABLE):
        pytest.skip("no package index can be reached")
    assert done.returncode == code, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def check_commands(python: Path, folder: Path) -> None:
    """What a line depends on: a check that fails where it must, and a stream that judges every image."""
    program = "from edgead.cli import main; main()"
    run(python, "-c", program, "check", folder / "missing.edgead", code=2)
    run(python, "-c", program, "check", folder / "missing.edgead", "--json", code=2)
    run(python, "-c", program, "run", code=2)
    run(python, "-c", program, "doctor")
    run(python, "-c", program, "fit", "--help")
    shown = run(python, "-c", program, "check", EARLIER / "single.edgead", "--json")
    assert '"passed": true' in shown
    results = folder / "results.jsonl"
    synthetic = "synthetic://?frames=5&policy=every&fps=50"
    run(python, "-c", program, "run", EARLIER / "single.edgead", "--source", synthetic, "--sink", results)
    assert len(results.read_text().splitlines()) == 5
    assert "NOT_INSPECTED" not in results.read_text()


def check_tests(python: Path, files: list[str]) -> None:
    paths = [ROOT / "tests" / "runtime" / file for file in files]
    last = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths).splitlines()[-1]
    passed = re.search(r"(\d+) passed", last)
    assert passed, last
    assert int(passed[1]) > 100, last


def test_the_lowest_versions_work(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", [lowest(one) for one in requirements()])
    check_commands(python, tmp_path)
    check_tests(python, LIGHT)


@pytest.mark.slow
def test_more_of_the_lowest_versions_works(tmp_path: Path) -> None:
    check_tests(environment(tmp_path / "venv", [lowest(one) for one in requirements()]), MORE)


@pytest.mark.slow
def test_the_newest_versions_work(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", requirements())
    check_commands(python, tmp_path)
    check_tests(python, [*LIGHT, *MORE])


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_other_pythons_work(version: str, tmp_path: Path) -> None:
    found = interpreter(version)
    if found is None:
        pytest.skip(f"there is no Python {version}")
    python = environment(tmp_path / "venv", requirements(), found)
    check_commands(python, tmp_path)
    check_tests(python, [*LIGHT, *MORE])
