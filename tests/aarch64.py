"""A Python for 64-bit ARM with numpy, ONNX Runtime and OpenVINO, run by QEMU's user-mode emulation.

``python -m tests.aarch64`` fetches it once (200 MB, from Debian and PyPI, into the folder of `home`); it needs root and
Debian's ``qemu-user``. Tests that use it are skipped without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# The newest ONNX Runtime (1.31) crashes when it is imported under QEMU 7.2, whose /proc/cpuinfo is the host's.
WHEELS = [
    "numpy==2.4.6",
    "onnxruntime==1.23.2",
    "openvino==2026.4.1",
    "onnx==1.23.2",
    "ml_dtypes==0.6.0",
    "protobuf==7.36.2",
    "pillow==13.0.0",
    "pydantic==2.14.3",
    "pydantic-core==2.50.4",
    "annotated-types==0.8.0",
    "typing-inspection==0.4.5",
    "typing-extensions==4.16.0",
    "flatbuffers==25.12.19",
    "packaging==26.4",
    "sympy==1.14.0",
    "mpmath==1.3.0",
    "coloredlogs==15.0.1",
    "humanfriendly==10.0",
    "typer==0.29.2",
    "click==8.5.1",
    "rich==15.0.0",
    "markdown-it-py==4.3.0",
    "mdurl==0.1.2",
    "pygments==2.21.0",
    "shellingham==1.5.4",
    "annotated-doc==0.0.7",
]
PACKAGES = [
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
]
# Without dot products of bytes, with them, and with everything that the emulator knows (i8mm, SVE).
PROCESSORS = ("cortex-a72", "cortex-a76", "max")


def home() -> Path:
    """Return the folder that it lies in."""
    root = Path(os.environ.get("EDGEAD_TEST_CACHE", Path.home() / ".cache" / "edgead-tests"))
    return root / "aarch64"


def missing() -> str | None:
    """Return why it cannot be used here; None where it can."""
    if shutil.which("qemu-aarch64") is None:
        return "64-bit ARM is emulated with qemu-user: apt-get install qemu-user"
    if not (home() / ".whole").exists():
        return "there is no Python for 64-bit ARM here; fetch it once with: python -m tests.aarch64"
    return None


def command(cpu: str) -> list[str]:
    """Return what stands before the arguments of an emulated Python."""
    root = home() / "root"
    return ["qemu-aarch64", "-cpu", cpu, "-L", str(root), str(root / "usr" / "bin" / "python3.11")]


def path(*folders: str | Path) -> str:
    """Return its PYTHONPATH with more folders in it."""
    return os.pathsep.join(map(str, (*folders, home() / "site")))


def fetch() -> None:
    """Make the folder; what is there already is replaced when the new one is whole."""
    home().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home().parent, prefix=".aarch64-") as scratch:
        new = Path(scratch) / "aarch64"
        debs = Path(scratch) / "debs"
        debs.mkdir()
        new.mkdir()
        subprocess.run(["dpkg", "--add-architecture", "arm64"], check=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "download", "-qq", *(f"{name}:arm64" for name in PACKAGES)], cwd=debs, check=True)
        for file in sorted(debs.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(file), str(new / "root")], check=True)
        platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 26, 27, 28, 31, 34, 35)] + [
            "manylinux2014_aarch64"
        ]
        platforms.append("manylinux2014_aarch64")
        options = [part for name in platforms for part in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--python-version", "3.11"]
        subprocess.run([*pip, "--only-binary=:all:", *options, "--target", str(new / "site"), *WHEELS], check=True)
        (new / ".whole").touch()
        shutil.rmtree(home(), ignore_errors=True)
        new.rename(home())


if __name__ == "__main__":
    fetch()
    print(home())
