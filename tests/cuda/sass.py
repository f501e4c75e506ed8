"""What machine code holds: registers, local memory and instructions of each kernel, read by cuobjdump."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

_RESOURCES = re.compile(r"Function (\S+):\s+(REG:.*)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


@dataclass(frozen=True)
class Code:
    """One kernel's machine code.

    Attributes:
        registers: a thread; local_bytes: stack and spilled registers of a thread.
        opcodes: how often each occurs, such as ``HMMA.16816.F32``.
    """

    registers: int
    local_bytes: int
    opcodes: Counter[str]

    def count(self, *prefixes: str) -> int:
        return sum(n for name, n in self.opcodes.items() if name.startswith(prefixes))


def read(path: Path) -> dict[str, Code]:
    """Read a cubin: kernels by the names of kernels.h; skips where there is no cuobjdump."""
    tool, environment = _cuobjdump()
    usage = _run([tool, "-res-usage", str(path)], environment)
    resources = {name: dict(re.findall(r"(\w+):(\d+)", text)) for name, text in _RESOURCES.findall(usage)}
    parts = re.split(r"\s+Function : ", _run([tool, "-sass", str(path)], environment))[1:]
    mangled = [part.split()[0] for part in parts]
    names = _run(["c++filt", *mangled], environment).splitlines()
    codes = {}
    for name, symbol, part in zip(names, mangled, parts, strict=True):
        used = resources[symbol]
        local = int(used["STACK"]) + int(used["LOCAL"])
        codes[_plain(name)] = Code(int(used["REG"]), local, Counter(_INSTRUCTION.findall(part)))
    return codes


def _plain(demangled: str) -> str:
    return demangled.removeprefix("void ").partition("(")[0].replace("edgead::", "").replace("signed char", "int8_t")


def _cuobjdump() -> tuple[str, dict[str, str]]:
    """The tool, and an environment in which it finds nvdisasm."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    if importlib.util.find_spec("nvidia") is not None:
        for found in importlib.util.find_spec("nvidia").submodule_search_locations or []:  # type: ignore[union-attr]
            folders += [str(path) for path in Path(found).glob("*/bin")]
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return tool, {**os.environ, "PATH": path}


def _run(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
