"""The camera loops of examples/capi, built against what `cmake --install` left, and fed with frames."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.runtime.capi.building import ROOT, need, run

EXAMPLES = ROOT / "examples" / "capi"
LANGUAGES = ("C", "C++", "C#")


class Program:
    """One example: `judge` runs it on frames and returns what it said; `environment` is what it gets besides."""

    def __init__(self, language: str, command: list[str], libraries: Path) -> None:
        self.language, self._command = language, command
        self.environment = {"LD_LIBRARY_PATH": str(libraries)}

    def run(
        self, arguments: Sequence[object], frames: Sequence[NDArray[np.uint8]]
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it with frames on its standard input."""
        given = b"".join(b"%d %d\n" % (one.shape[1], one.shape[0]) + one.tobytes() for one in frames)
        command = [*self._command, *map(str, arguments)]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, input=given, capture_output=True, env=environment, timeout=300, check=False)

    def judge(self, arguments: Sequence[object], frames: Sequence[NDArray[np.uint8]]) -> list[tuple[str, float]]:
        """Return decision and score of each frame."""
        done = self.run(arguments, frames)
        assert done.returncode == 0, done.stderr.decode()
        found = []
        for line in done.stdout.decode().splitlines():
            decision, score = line.split()
            bits = self.language == "C#"
            found.append((decision, struct.unpack(">d", bytes.fromhex(score))[0] if bits else float.fromhex(score)))
        return found


def build_program(language: str, installed: Path, folder: Path) -> Program:
    """Compile an example: C and C++ by a CMake project that finds the package, C# by Debian's mono."""
    if language == "C#":
        need("mcs", "mono")
        run(["mcs", "-warnaserror", f"-out:{folder / 'Camera.exe'}", EXAMPLES / "Camera.cs"])
        return Program(language, ["mono", str(folder / "Camera.exe")], installed / "lib")
    project = folder / "project"
    if not (project / "build").is_dir():
        project.mkdir()
        for file in ("camera.c", "camera.cpp", "CMakeLists.txt"):
            shutil.copy(EXAMPLES / file, project)
        run(["cmake", "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={installed}"])
        run(["cmake", "--build", project / "build"])
    name = {"C": "camera_c", "C++": "camera_cpp"}[language]
    return Program(language, [str(project / "build" / name)], installed / "lib")
