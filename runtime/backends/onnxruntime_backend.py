"""ONNX Runtime on the CPU and, by its own name only, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.common import (
    INPUT,
    OUTPUTS,
    UNWANTED_OPTIMISERS,
    as_inference,
    check_graph,
    check_images,
    check_settings,
    first_line,
    load_onnxruntime,
    run_batches,
)
from edgead.runtime.backends.engine_key import graph_precision
from edgead.runtime.backends.gpu_driver import require_gpu
from edgead.runtime.backends.native.library import QUERIES
from edgead.runtime.backends.native_step import NativeStep, parts_for
from edgead.runtime.errors import BackendError, BackendUnavailable
from edgead.runtime.frame import Inference


@dataclass(frozen=True, slots=True)
class _Execution:
    """What a backend executes on.

    Attributes:
        name: the backend's.
        provider: of ONNX Runtime, with its options.
        device, precision: what `describe` says.
        settings: session configuration.
    """

    name: str
    provider: tuple[str, dict[str, str]]
    device: str
    precision: str
    settings: Mapping[str, str]


class _OnnxRuntime:
    """Runs the graph on one provider of ONNX Runtime."""

    def __init__(
        self, model: Path, execution: _Execution, *, threads: int | None, batch: int, outputs: Sequence[str]
    ) -> None:
        check_settings(threads, batch)
        self._outputs = list(outputs)
        onnxruntime = load_onnxruntime()
        self._session: Any = _session(model, execution, threads, batch)
        inputs = self._session.get_inputs()
        shape = [size if isinstance(size, int) else None for size in inputs[0].shape] if inputs else []
        named = [output.name for output in self._session.get_outputs()]
        check_graph(model.name, [value.name for value in inputs], named, shape, self._outputs)
        self._height, self._width = int(shape[1] or 0), int(shape[2] or 0)
        # What the graph was really fixed to: a file exported with a static batch keeps its own.
        self._batch = shape[0] or 0
        self._info = BackendInfo(
            name=execution.name,
            provider=self._session.get_providers()[0],
            precision=execution.precision,
            device=execution.device,
            threads=threads or 0,
            version=onnxruntime.__version__,
        )

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, h, w, 3)`` uint8, N >= 1; the arrays returned are the caller's to keep."""
        return as_inference(self.compute(images))

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the outputs for ``images (N, h, w, 3)`` uint8, N >= 1; the arrays are the caller's to keep."""
        if self._session is None:
            raise BackendError("the backend is closed")
        return run_batches(check_images(images, self._height, self._width), self._batch, self._run)

    def describe(self) -> BackendInfo:
        """Return what really runs."""
        return self._info

    def close(self) -> None:
        """Release the session; calling it twice is allowed."""
        self._session = None

    def _run(self, images: NDArray[np.uint8]) -> Sequence[Any]:
        try:
            found: Sequence[Any] = self._session.run(self._outputs, {INPUT: images})
        except Exception as error:
            raise BackendError(f"{self._info.name} failed: {first_line(error)}") from error
        return found


def _session(model: Path, execution: _Execution, threads: int | None, batch: int) -> Any:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for key, value in execution.settings.items():
        options.add_session_config_entry(key, value)
    if batch:
        options.add_free_dimension_override_by_name("batch", batch)
    try:
        return onnxruntime.InferenceSession(
            str(model), options, providers=[execution.provider], disabled_optimizers=UNWANTED_OPTIMISERS
        )
    except Exception as error:
        raise BackendError(f"{execution.name} cannot load {model.name}: {first_line(error)}") from error


class OnnxRuntimeBackend(_OnnxRuntime):
    """Runs the graph in FP32 on ONNX Runtime's CPU provider.

    Where the graph lies there in two parts too and this device has the library for it
    (`edgead.runtime.backends.native`), what goes between them is computed natively; `describe` says so.

    Args:
        model: graph file, its ``weights/`` folder beside it.
        threads: CPU threads; None leaves the choice to the library, and `describe` then reports 0.
        batch: batch size to compile for; 0 keeps the batch axis dynamic. `run` takes any number of images either way.
        outputs: what `compute` returns; `run` needs a score and a map.

    Raises:
        BackendUnavailable: the library is missing.
        BackendError: it cannot load the graph, or the graph is no scoring graph.
        ConfigError: ``threads`` or ``batch`` is out of range.
    """

    def __init__(
        self, model: Path, *, threads: int | None = None, batch: int = 1, outputs: Sequence[str] = OUTPUTS
    ) -> None:
        # Threads that go on spinning after a frame take the cores from the camera, and from the next graph of a
        # routed model: on two busy cores, router and head in turn took 72 ms with it and 11 ms without.
        settings = {"session.force_spinning_stop": "1"}
        execution = _Execution("onnxruntime", ("CPUExecutionProvider", {}), "cpu", "fp32", settings)
        parts = parts_for(model, outputs)
        super().__init__(
            model if parts is None else parts.queries,
            execution,
            threads=threads,
            batch=batch,
            outputs=outputs if parts is None else parts.outputs,
        )
        self._native: NativeStep | None = None
        if parts is not None:
            finish = _session(parts.score, execution, 1, batch)
            shape = next(value.shape[1:] for value in self._session.get_outputs() if value.name == QUERIES)
            self._native = NativeStep(parts, shape, threads, lambda feeds: finish.run(list(outputs), dict(feeds)))
            self._info = replace(self._info, provider=f"{self._info.provider} with {self._native.describe()}")

    def close(self) -> None:
        """Release the session; calling it twice is allowed."""
        super().close()
        if self._native is not None:
            self._native.close()
            self._native = None

    def _run(self, images: NDArray[np.uint8]) -> Sequence[Any]:
        found = super()._run(images)
        return found if self._native is None else self._native(found)


class OnnxRuntimeCudaBackend(_OnnxRuntime):
    """Runs the graph on ONNX Runtime's CUDA provider, all of it: a node that it lacks is an error, no way to the CPU.

    Written against the real API; never executed on a GPU (docs/tensorrt.md). Arguments and errors as in
    `OnnxRuntimeBackend`; also `BackendUnavailable` where driver, GPU or the provider is missing.
    """

    def __init__(
        self, model: Path, *, threads: int | None = None, batch: int = 1, outputs: Sequence[str] = OUTPUTS
    ) -> None:
        # The list of providers tells what was compiled in, not what can run: the driver is asked first.
        device = require_gpu("onnxruntime-cuda")
        if "CUDAExecutionProvider" not in load_onnxruntime().get_available_providers():
            fix = "run: pip uninstall -y onnxruntime && pip install --force-reinstall 'edgead[gpu]'"
            raise BackendUnavailable(f"onnxruntime-cuda: the installed onnxruntime has no CUDA; {fix}")
        execution = _Execution(
            name="onnxruntime-cuda",
            # TF32 would move distances to a memory bank in the third digit; a search for algorithms takes seconds.
            provider=("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
            device=f"{device.name} (compute capability {device.compute_capability})",
            precision=graph_precision(model).partition("-")[0],
            settings={"session.force_spinning_stop": "1", "session.disable_cpu_ep_fallback": "1"},
        )
        super().__init__(model, execution, threads=threads, batch=batch, outputs=outputs)
        if self._info.provider != "CUDAExecutionProvider":
            raise BackendUnavailable(f"onnxruntime-cuda would run on {self._info.provider}; see: edgead doctor")
