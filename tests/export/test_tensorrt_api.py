"""Every name of the vendor's libraries that the code touches exists in each supported version, or is guarded."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
FILES = (
    "export/engines/tensorrt_adapter.py",
    "runtime/backends/tensorrt_library.py",
    "runtime/backends/tensorrt_engine.py",
)
# What a variable of this name holds; None is the module itself. A leading underscore does not count.
OBJECTS: dict[str, tuple[str, str | None]] = {
    "trt": ("tensorrt", None),
    "builder": ("tensorrt", "Builder"),
    "network": ("tensorrt", "INetworkDefinition"),
    "config": ("tensorrt", "IBuilderConfig"),
    "parser": ("tensorrt", "OnnxParser"),
    "parser_error": ("tensorrt", "ParserError"),
    "profile": ("tensorrt", "IOptimizationProfile"),
    "timing_cache": ("tensorrt", "ITimingCache"),
    "layer": ("tensorrt", "ILayer"),
    "tensor": ("tensorrt", "ITensor"),
    "runtime": ("tensorrt", "Runtime"),
    "engine": ("tensorrt", "ICudaEngine"),
    "context": ("tensorrt", "IExecutionContext"),
    "inspector": ("tensorrt", "EngineInspector"),
    "registry": ("tensorrt", "IPluginRegistry"),
    "cuda": ("cuda", None),
    "kinds": ("cuda", "cudaMemcpyKind"),
    "rtx_trt": ("tensorrt_rtx", None),
    "rtx_config": ("tensorrt_rtx", "IBuilderConfig"),
    "rtx_engine": ("tensorrt_rtx", "ICudaEngine"),
    "rtx_settings": ("tensorrt_rtx", "IRuntimeConfig"),
}


class Use(NamedTuple):
    library: str
    name: str
    guarded: bool


def used_names(source: str) -> Iterator[Use]:
    """Yield what a source takes from the vendor's objects, as attribute or by ``getattr(object, "name", default)``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            yield from _resolve(_chain(node), guarded=False)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            target, name, *default = node.args
            if isinstance(name, ast.Constant):
                yield from _resolve([*_chain(target), str(name.value)], guarded=bool(default))


def _chain(node: ast.expr) -> list[str]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else ["", *names]


def _resolve(chain: list[str], *, guarded: bool) -> Iterator[Use]:
    owners = [index for index, name in enumerate(chain[:-1]) if name.removeprefix("_") in OBJECTS]
    if owners:
        library, cls = OBJECTS[chain[owners[-1]].removeprefix("_")]
        rest = chain[owners[-1] + 1 :]
        yield Use(library, ".".join([cls, rest[0]] if cls else rest[:2]), guarded)


def missing(uses: set[Use]) -> list[str]:
    """Return what is not where it has to be: in every version, or in one of them where it is guarded."""
    problems = []
    for library, name, guarded in sorted(uses):
        for other in ("tensorrt", "tensorrt_rtx") if library == "tensorrt" else (library,):
            known = API[other]
            there = name in known["everywhere"]
            if guarded:
                there = there or name in known["somewhere"] or library == "tensorrt"
            if not there:
                lacking = sorted(set(known["versions"]) - set(known["somewhere"].get(name, ())))
                problems.append(f"{other} {', '.join(lacking)}: {name}")
        anywhere = [name in API[other]["everywhere"] or name in API[other]["somewhere"] for other in API]
        if guarded and not any(anywhere):
            problems.append(f"no version: {name}")
    return problems


@pytest.mark.parametrize("file", FILES)
def test_every_name_exists_in_every_version_or_is_guarded(file: str) -> None:
    uses = set(used_names((ROOT / file).read_text()))
    assert uses
    assert missing(uses) == []


def test_the_collection_sees_what_the_code_does() -> None:
    uses = {use for file in FILES for use in used_names((ROOT / file).read_text())}
    for expected in (
        Use("tensorrt", "BuilderFlag.TF32", False),
        Use("tensorrt", "OnnxParser.parse_from_file", False),
        Use("tensorrt", "Builder.num_DLA_cores", True),
        Use("tensorrt", "IExecutionContext.execute_async_v3", False),
        Use("tensorrt_rtx", "IRuntimeConfig.cuda_graph_strategy", False),
        Use("cuda", "cudaGraphLaunch", False),
    ):
        assert expected in uses
    assert len(uses) > 60


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "tensorrt 11.0, 11.4: BuilderFlag.FP16"),
        ("builder.platform_has_fast_fp16", "tensorrt 11.0, 11.4: Builder.platform_has_fast_fp16"),
        ("library.trt.ComputeCapability.SM86", "ComputeCapability.SM86"),
        ("config.set_compute_capability(x, 0)", "IBuilderConfig.set_compute_capability"),
        ("self._engine.device_memory_size", "tensorrt 11.0, 11.4: ICudaEngine.device_memory_size"),
        ("getattr(config, 'int8_calibrater', None)", "no version: IBuilderConfig.int8_calibrater"),
        ("rtx_config.no_such_name", "tensorrt_rtx 1.7: IBuilderConfig.no_such_name"),
        ("cuda.cudaMallocPinned(1)", "cudaMallocPinned"),
    ],
)
def test_planted_names_are_found(line: str, problem: str) -> None:
    found = missing(set(used_names(line)))
    assert any(problem in text for text in found), found


def test_the_lists_are_those_of_six_versions_and_more() -> None:
    assert API["tensorrt"]["versions"] == ["10.3", "10.7", "10.13", "10.16", "11.0", "11.4"]
    assert API["cuda"]["versions"] == ["12.8", "13.0", "13.5"]
    # Facts that are known from elsewhere, so that empty or mixed-up lists show.
    assert API["tensorrt"]["somewhere"]["BuilderFlag.FP16"] == ["10.3", "10.7", "10.13", "10.16"]
    assert "10.3" not in API["tensorrt"]["somewhere"]["INetworkDefinition.add_plugin"]
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in API["tensorrt"]["everywhere"]
    assert "ComputeCapability.SM86" in API["tensorrt_rtx"]["everywhere"]


def generator() -> Any:
    spec = spec_from_file_location("dump_tensorrt_api", Path(__file__).with_name("dump_tensorrt_api.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc for the stub libraries")
def test_the_lists_are_what_the_real_bindings_have() -> None:
    dump = generator()
    try:
        found = dump.collect()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the wheels cannot be had here: {error.stderr.strip().splitlines()[-1:]}")
    assert found == API


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc for the stub libraries")
@pytest.mark.parametrize("version", API["tensorrt"]["versions"])
def test_the_real_bindings_are_loaded_and_a_builder_that_cannot_be_made_is_one_line(version: str) -> None:
    dump = generator()
    try:
        folders = [str(dump.site("tensorrt", version)), str(ROOT)]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the wheel cannot be had here: {error.stderr.strip().splitlines()[-1:]}")
    program = (
        "import sys, tensorrt_bindings\nsys.modules['tensorrt'] = tensorrt_bindings\nfrom pathlib import Path\n"
        "from edgead.export.engines.tensorrt_adapter import Request, build\n"
        "from edgead.runtime.backends.tensorrt_library import load_library\n"
        "from edgead.runtime.errors import BackendUnavailable\n"
        "library = load_library('tensorrt')\nlibrary.logger.log(library.trt.ILogger.ERROR, 'a  word')\n"
        "print(library.version, list(library.messages))\n"
        "try:\n    build(library, Request(Path('m.onnx'), None, 1, None, None, None, None))\n"
        "except BackendUnavailable as error:\n    print(error)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "LD_LIBRARY_PATH": str(dump.stubs(version)),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    told, refusal = done.stdout.splitlines()
    assert told.startswith(version)
    assert "['ERROR: a word']" in told
    assert refusal.startswith("tensorrt cannot make a builder")
