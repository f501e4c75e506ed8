"""Writes ``tensorrt_api.json``: the names that the real Python bindings of each supported version have.

The vendor's libraries cannot be had without a GPU machine, but their bindings can: they need a dozen C symbols, which a
stub library gives (classic TensorRT), or none (TensorRT-RTX, cuda-bindings). So the lists are read off the vendor's own
files, never typed. Run from the root: ``python -m tests.export.dump_tensorrt_api`` (network, gcc; 120 MB, kept in
`tests.cache`). With ``--fetch`` it only fetches TensorRT-RTX, which tests build real engines with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cache import CACHE, packages

API_FILE = Path(__file__).with_name("tensorrt_api.json")
RTX_VERSION = "1.7.1.116"
# module that is imported, and version -> requirements, all without their dependencies
SOURCES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "tensorrt": (
        "tensorrt_bindings",
        {
            "10.3": ["tensorrt-cu12-bindings==10.3.0"],
            "10.7": ["tensorrt-cu12-bindings==10.7.0"],
            "10.13": ["tensorrt-cu13-bindings==10.13.3.9"],
            "10.16": ["tensorrt-cu13-bindings==10.16.1.11"],
            "11.0": ["tensorrt-cu13-bindings==11.0.0.114"],
            "11.4": ["tensorrt-cu13-bindings==11.4.0.106"],
        },
    ),
    "tensorrt_rtx": (
        "tensorrt_rtx",
        {"1.7": [f"tensorrt-rtx-cu13{part}=={RTX_VERSION}" for part in ("", "-libs", "-bindings")]},
    ),
    "cuda": (
        "cuda.bindings.runtime",
        {
            "12.8": ["cuda-bindings==12.8.0"],
            "13.0": ["cuda-bindings==13.0.3", "cuda-pathfinder"],
            "13.5": ["cuda-bindings==13.5.0", "cuda-pathfinder"],
        },
    ),
}
# What the classic bindings look up when they are loaded; every factory answers that it has nothing.
STUB = """
#include <stddef.h>
#define NOTHING(name) void *name() { return NULL; }
NOTHING(createInferBuilder_INTERNAL) NOTHING(createInferRefitter_INTERNAL) NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL) NOTHING(createNvOnnxParser_INTERNAL) NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry) NOTHING(getLogger) NOTHING(createSafeInferRuntime_INTERNAL)
int getNvOnnxParserVersion() { return 0; }
int getInferLibVersion() { return 0; }
int getInferLibBuildVersion() { return 0; }
int initLibNvInferPlugins() { return 1; }
"""
STUBBED = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
READER = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = []
for name in dir(module):
    if not name.startswith("_") or name == "__version__":
        value = getattr(module, name)
        names.append(name)
        # Of CUDA only what calls take: not its structs, nor the enumerations with hundreds of members.
        members = [member for member in dir(value) if not member.startswith("_")] if isinstance(value, type) else []
        if not sys.argv[1].startswith("cuda") or ("getPtr" not in members and len(members) < 40):
            names += [f"{name}.{member}" for member in members]
print(json.dumps(names))
"""


def site(library: str, version: str) -> Path:
    """Return the folder with the unpacked wheels of a version, fetched on first use."""
    return packages(f"{library}-{version}", SOURCES[library][1][version])


def stubs(version: str) -> Path:
    """Return the folder with the stub libraries for a version of classic TensorRT, compiled on first use."""
    major = version.split(".")[0]
    folder = CACHE / f"stub-{major}"
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stub.c"
    source.write_text(STUB)
    for name in STUBBED:
        file = f"lib{name}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{file}", "-o", str(folder / file), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return folder


def read_names(library: str, version: str) -> list[str]:
    """Return ``Name`` and ``Class.member`` of everything public in the real bindings."""
    environment = {**os.environ, "PYTHONPATH": str(site(library, version))}
    if library == "tensorrt":
        environment["LD_LIBRARY_PATH"] = str(stubs(version))
    command = [sys.executable, "-c", READER, SOURCES[library][0]]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    names: list[str] = json.loads(done.stdout)
    return names


def collect() -> dict[str, Any]:
    """Return for each library its versions, the names that all of them have, and those that only some have."""
    result: dict[str, Any] = {}
    for library, (_, versions) in SOURCES.items():
        found = {version: set(read_names(library, version)) for version in versions}
        everywhere = set.intersection(*found.values())
        others = sorted(set.union(*found.values()) - everywhere)
        result[library] = {
            "versions": list(versions),
            "everywhere": sorted(everywhere),
            "somewhere": {name: [version for version in versions if name in found[version]] for name in others},
        }
    return result


if __name__ == "__main__":
    if sys.argv[1:] == ["--fetch"]:
        print(f"TensorRT-RTX is in {site('tensorrt_rtx', '1.7')}")
        sys.exit()
    API_FILE.write_text(json.dumps(collect(), indent=0, separators=(",", ":")) + "\n")
    print(f"wrote {API_FILE}, {API_FILE.stat().st_size} bytes")
