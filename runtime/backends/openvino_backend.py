"""OpenVINO on the CPU, in FP32 and, only by its own name, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.common import (
    INPUT,
    OUTPUTS,
    as_inference,
    check_graph,
    check_images,
    check_settings,
    first_line,
    load_openvino,
    openvino_core,
    run_batches,
)
from edgead.runtime.backends.native.library import QUERIES
from edgead.runtime.backends.native_step import Feeds, NativeStep, parts_for
from edgead.runtime.errors import BackendError, BackendUnavailable
from edgead.runtime.frame import Inference

_SCORING_NODE = b"plugin_namespace"  # an attribute of each, see edgead.export.ops
_PRECISION_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


class _OpenVinoCpu:
    """Runs the graph on OpenVINO's CPU plugin in the precision ``hint``; refuses where it would run in another one."""

    def __init__(
        self, model: Path, *, threads: int | None, batch: int, outputs: Sequence[str], name: str, hint: str
    ) -> None:
        check_settings(threads, batch)
        # In bfloat16 the whole graph runs as it was when its parity was recorded.
        parts = parts_for(model, outputs) if hint == "f32" else None
        asked = tuple(outputs)
        if parts is not None:
            model, outputs = parts.queries, parts.outputs
        self._outputs = tuple(outputs)
        openvino = load_openvino()
        core = openvino_core()
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise _no_bf16("OpenVINO does not offer it here")
        # The precision is always said: on CPUs that have bf16 it is OpenVINO's silent default, and it flips decisions.
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        graph = _read_graph(core, model)
        shape = [None if size.is_dynamic else int(size.get_length()) for size in _input_shape(graph)]
        inputs = [value.any_name for value in graph.inputs]
        check_graph(model.name, inputs, [n for value in graph.outputs for n in value.names], shape, self._outputs)
        self._height, self._width = int(shape[1] or 0), int(shape[2] or 0)
        self._batch = batch if shape[0] is None else shape[0]
        try:
            if shape[0] is None and batch:
                fixed = openvino.PartialShape([batch, self._height, self._width, 3])
                graph.reshape({graph.input(INPUT): fixed})
            compiled = core.compile_model(graph, "CPU", config)
            self._request: Any = compiled.create_infer_request()
        except Exception as error:
            if hint == "bf16":
                raise _no_bf16(first_line(error)) from error
            raise BackendError(f"openvino cannot compile {model.name}: {first_line(error)}") from error
        real = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if real != hint:
            raise BackendError(f"openvino compiled {model.name} in {real}, asked was {hint}; use another backend")
        self._info = BackendInfo(
            name=name,
            provider=",".join(compiled.get_property("EXECUTION_DEVICES")),
            precision=_PRECISION_NAMES[real],
            device=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            threads=int(compiled.get_property("INFERENCE_NUM_THREADS")),
            version=str(openvino.__version__).split("-")[0],
        )
        self._native: NativeStep | None = None
        if parts is not None:
            finish = _open_finish(core, parts.score, self._batch, config, asked)
            shape = [size.get_length() for size in list(compiled.output(QUERIES).get_partial_shape())[1:]]
            self._native = NativeStep(parts, shape, threads, finish)
            self._info = replace(self._info, provider=f"{self._info.provider} with {self._native.describe()}")

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, h, w, 3)`` uint8, N >= 1; the arrays returned are the caller's to keep."""
        return as_inference(self.compute(images))

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the outputs for ``images (N, h, w, 3)`` uint8, N >= 1; the arrays are the caller's to keep."""
        if self._request is None:
            raise BackendError("the backend is closed")
        return run_batches(check_images(images, self._height, self._width), self._batch, self._run)

    def describe(self) -> BackendInfo:
        """Return what really runs, as the compiled model reports it."""
        return self._info

    def close(self) -> None:
        """Release the compiled model; calling it twice is allowed."""
        self._request = None
        if self._native is not None:
            self._native.close()
            self._native = None

    def _run(self, images: NDArray[np.uint8]) -> Sequence[Any]:
        try:
            # The inputs are shared for the time of this call, and so is what native code takes at once; what leaves is
            # a copy, for the request is used again.
            shared = self._native is not None
            results = self._request.infer({INPUT: images}, share_inputs=True, share_outputs=shared)
            found = [results[name] for name in self._outputs]
        except Exception as error:
            raise BackendError(f"openvino failed: {first_line(error)}") from error
        return found if self._native is None else self._native(found)


class OpenVinoBackend(_OpenVinoCpu):
    """Runs the graph in FP32 on OpenVINO's CPU plugin. Arguments and errors as in `OnnxRuntimeBackend`."""

    def __init__(
        self, model: Path, *, threads: int | None = None, batch: int = 1, outputs: Sequence[str] = OUTPUTS
    ) -> None:
        super().__init__(model, threads=threads, batch=batch, outputs=outputs, name="openvino", hint="f32")


class OpenVinoBf16Backend(_OpenVinoCpu):
    """Runs the graph in bfloat16 on OpenVINO's CPU plugin: faster on some CPUs, and its scores differ from FP32.

    Arguments and errors as in `OnnxRuntimeBackend`; also `BackendUnavailable` where the CPU has no bfloat16.
    """

    def __init__(
        self, model: Path, *, threads: int | None = None, batch: int = 1, outputs: Sequence[str] = OUTPUTS
    ) -> None:
        super().__init__(model, threads=threads, batch=batch, outputs=outputs, name="openvino-bf16", hint="bf16")


def _read_graph(core: Any, model: Path) -> Any:
    try:
        return core.read_model(str(model))
    except Exception as error:
        if model.is_file() and _SCORING_NODE in model.read_bytes():
            raise BackendError(
                f"{model.name} has scoring nodes, which OpenVINO does not read; choose fp32 or int8-cpu, or export "
                "with --plain"
            ) from error
        raise BackendError(f"openvino cannot read {model.name}: {first_line(error)}") from error


def _open_finish(
    core: Any, part: Path, batch: int, config: Mapping[str, str], outputs: Sequence[str]
) -> Callable[[Feeds], Sequence[Any]]:
    graph = core.read_model(str(part))
    if batch:
        graph.reshape({value: [batch, *value.get_partial_shape()[1:]] for value in graph.inputs})
    request = core.compile_model(graph, "CPU", dict(config)).create_infer_request()

    def finish(feeds: Feeds) -> Sequence[Any]:
        results = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        return [results[name] for name in outputs]

    return finish


def _input_shape(graph: Any) -> Any:
    return graph.inputs[0].get_partial_shape() if graph.inputs else []


def _no_bf16(why: str) -> BackendUnavailable:
    return BackendUnavailable(f"this CPU cannot run the graph in bfloat16 ({why}); use the backend openvino")
