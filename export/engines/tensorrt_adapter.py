"""One way to build an engine with TensorRT 10.3 to 11.x and with TensorRT-RTX.

The network is strongly typed, so the types are those of the graph and no builder flag decides a precision. A name that
one of the supported versions lacks is only reached through ``getattr``, or on a variable called ``rtx_…`` where only
TensorRT-RTX has it; `tests/export/test_tensorrt_api.py` holds all names against the real bindings of each version, and
knows the vendor's objects by the names of the variables. TensorRT-RTX builds were executed; the classic builder was
not, for want of a GPU.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.export.engines.layer_precision import Layer, engine_layers
from edgead.runtime.backends.common import INPUT
from edgead.runtime.backends.engine_key import PORTABLE
from edgead.runtime.backends.tensorrt_library import Library, load_plugin
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError
from edgead.runtime.files import atomic_write

_DATA_TYPES = {"float": "fp32", "half": "fp16"}
# The parser reads unsigned 8-bit activations as signed ones and only warns: everything above 127 saturates.
_FATAL_WARNINGS = ("Defaulting to INT8",)


@dataclass(frozen=True, slots=True)
class Request:
    """What to build.

    Attributes:
        graph: the ONNX file, its weights beside it.
        compute_capability: ``8.6`` or `PORTABLE` for TensorRT-RTX; None builds for this machine's GPU.
        max_batch: the largest batch, where the graph's batch axis is dynamic.
        workspace_bytes: upper limit of scratch memory of a layer; None leaves it to the library.
        plugin: a plugin library to load first.
        dla: number of the deep-learning accelerator (Jetson) to build for; layers it lacks run on the GPU.
        timing_file: file with tactic timings of earlier builds; it is read where it is there, and written.
    """

    graph: Path
    compute_capability: str | None
    max_batch: int
    workspace_bytes: int | None
    plugin: Path | None
    dla: int | None
    timing_file: Path | None


@dataclass(frozen=True, slots=True)
class Built:
    """What came out: ``layers`` of the strongly typed network, and of the engine where it can be inspected here."""

    plan: Any
    layers: tuple[Layer, ...]
    engine_layers: tuple[Layer, ...]
    parse_seconds: float
    build_seconds: float
    warnings: tuple[str, ...]


def compute_capabilities(library: Library) -> dict[str, Any]:
    """Return ``{"8.6": the vendor's value}`` of the GPUs a library builds for unseen; empty for TensorRT."""
    enum = getattr(library.trt, "ComputeCapability", None)
    if library.target != "tensorrt-rtx" or enum is None:
        return {}
    found = {}
    for name, value in enum.__members__.items():
        match = re.fullmatch(r"SM(\d+)(\d)", name)
        if match:
            found[f"{match[1]}.{match[2]}"] = value
    return found


def build(library: Library, request: Request) -> Built:
    """Parse a graph and build its engine.

    Raises:
        BackendError: the parser or the builder refuses the graph; the message names the node where there is one.
        BackendUnavailable: the library has no such target, accelerator or option.
    """
    trt = library.trt
    library.messages.clear()
    if request.plugin is not None:
        load_plugin(library, request.plugin)
    started = time.perf_counter()
    try:
        builder = trt.Builder(library.logger)
    except TypeError as error:
        raise BackendUnavailable(f"{library.target} cannot make a builder: {library.complaint(str(error))}") from error
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    _parse(library, network, request.graph)
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    _configure(library, builder, network, config, request)
    timing_cache = _timing_cache(config, request.timing_file)
    plan = builder.build_serialized_network(network, config)
    finished = time.perf_counter()
    if plan is None:
        raise BackendError(
            f"{library.target} cannot build {request.graph.name}: {library.complaint('it gives no reason')}"
        )
    fatal = [text for text in library.messages if any(mark in text for mark in _FATAL_WARNINGS)]
    if fatal:
        raise BackendError(
            f"{request.graph.name} has unsigned 8-bit activations, which {library.target} reads as signed ones; "
            "use the int8-trt file of the bundle"
        )
    if timing_cache is not None and request.timing_file is not None:
        _keep(request.timing_file, bytes(timing_cache.serialize()))
    inspected = _inspect(library, plan) if library.target == "tensorrt" else []
    return Built(
        plan=plan,
        layers=tuple(_network_layers(network)),
        engine_layers=tuple(inspected),
        parse_seconds=parsed - started,
        build_seconds=finished - parsed,
        warnings=tuple(library.messages),
    )


def _parse(library: Library, network: Any, graph: Path) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    # From the file and not from bytes: large weights lie beside it.
    if parser.parse_from_file(str(graph)):
        return
    if not parser.num_errors:
        raise BackendError(f"{library.target} cannot parse {graph.name}: {library.complaint('it gives no reason')}")
    parser_error = parser.get_error(0)
    node = " ".join(part for part in (parser_error.node_operator(), parser_error.node_name()) if part)
    text = " ".join(str(parser_error.desc()).split())[:300]
    raise BackendError(f"{library.target} refuses {graph.name}{f' at node {node}' if node else ''}: {text}")


def _configure(library: Library, builder: Any, network: Any, config: Any, request: Request) -> None:
    trt = library.trt
    # TF32 keeps 10 bits of a product's factors: distances to a memory bank would move scores in the third digit.
    config.clear_flag(trt.BuilderFlag.TF32)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        if library.target == "tensorrt":
            # On a board GPU and CPU share the memory: trying out a tactic must not take more than running it.
            config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, request.workspace_bytes)
    if library.target == "tensorrt":
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the inspector tells no precisions
    _set_profile(builder, network, config, request.max_batch)
    if request.compute_capability is not None:
        _set_compute_capability(library, config, request.compute_capability)
    if request.dla is not None:
        _set_dla(library, builder, config, request.dla)


def _set_profile(builder: Any, network: Any, config: Any, max_batch: int) -> None:
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if network.num_inputs != 1 or len(shape) != 4 or min(shape[1:]) < 1:
        raise BackendError(f"the graph takes {network.num_inputs} inputs, the first of shape {shape}; export it again")
    if shape[0] > 0:
        return
    if max_batch == 1:
        # No dynamic axis at all: shapes are folded, and the inspector can tell the precisions.
        tensor.shape = (1, *shape[1:])
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, (1, *shape[1:]), (1, *shape[1:]), (max_batch, *shape[1:]))
    config.add_optimization_profile(profile)


def _set_compute_capability(library: Library, config: Any, wanted: str) -> None:
    known = compute_capabilities(library)
    if wanted == PORTABLE:
        return  # the library's default
    if wanted not in known:
        names = ", ".join(known) or "none"
        raise ConfigError(
            f"{library.target} {library.version} builds for compute capability {names}, not {wanted}; "
            "for a Jetson build with --target tensorrt on the device"
        )
    rtx_config = config
    rtx_config.num_compute_capabilities = 1
    rtx_config.set_compute_capability(known[wanted], 0)


def _set_dla(library: Library, builder: Any, config: Any, core: int) -> None:
    trt = library.trt
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if library.target != "tensorrt" or core >= cores:
        # NVIDIA, "Working with DLA", 11.4.1.
        where = "Jetson Thor has none; AGX Orin needs TensorRT up to 10.7, or 11.4.1 under JetPack 7.2.2"
        raise BackendUnavailable(
            f"this machine offers {cores} DLA cores to {library.target} {library.version}; omit --dla ({where})"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _timing_cache(config: Any, file: Path | None) -> Any:
    if file is None:
        return None
    data = b""
    with suppress(OSError):
        data = file.read_bytes()
    timing_cache = config.create_timing_cache(data)
    # Of another version or device: the library says no, and a new one is begun.
    if not config.set_timing_cache(timing_cache, False):
        timing_cache = config.create_timing_cache(b"")
        config.set_timing_cache(timing_cache, False)
    return timing_cache


def _keep(file: Path, timings: bytes) -> None:
    """Write the timings whole or not at all: the library reads them again, and half a file is no input for it."""
    with atomic_write(file, BackendError, durable=False) as stream:
        stream.write(timings)


def _network_layers(network: Any) -> list[Layer]:
    """Return the layers with the types they have in a strongly typed network."""
    producers: dict[str, str] = {}
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = str(layer.type).rpartition(".")[2].lower()
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        inputs = [layer.get_input(number) for number in range(layer.num_inputs)]
        producers |= {tensor.name: kind for tensor in outputs if tensor is not None}
        if not outputs or outputs[0] is None:
            continue
        name = str(outputs[0].dtype).rpartition(".")[2].lower()
        precision = _DATA_TYPES.get(name, name)
        # Explicit quantisation: a layer whose data come out of a DequantizeLinear computes in 8 bits.
        if inputs and inputs[0] is not None and producers.get(inputs[0].name) == "dequantize":
            precision = "int8" if kind in ("convolution", "matrix_multiply", "deconvolution") else precision
        found.append(Layer(str(layer.name), kind, precision))
    return found


def _inspect(library: Library, plan: Any) -> list[Layer]:
    """Read the layers back from the finished engine; needs the GPU it was built on."""
    trt = library.trt
    runtime = trt.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"the engine cannot be read back: {library.complaint('no reason given')}")
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:
        # With a dynamic axis it says "N/A due to dynamic shapes" until it knows the size.
        shape = tuple(engine.get_tensor_shape(INPUT))
        context.set_input_shape(INPUT, (max(int(shape[0]), 1), *shape[1:]))
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        content: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise BackendError(f"the engine inspector of {library.target} {library.version} gave no JSON") from error
    layers: Sequence[Any] = content.get("Layers", ())
    return engine_layers(layers)
