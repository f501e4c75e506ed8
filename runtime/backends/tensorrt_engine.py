"""Running a built engine: buffers that are made once, and one CUDA graph that is replayed for each frame.

Written against the real API of TensorRT 10.3 to 11.x, TensorRT-RTX and cuda-bindings, whose names the tests check. It
has never been executed on a GPU: see docs/tensorrt.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.common import INPUT, check_graph
from edgead.runtime.backends.tensorrt_library import Library, require_success
from edgead.runtime.errors import BackendError

_DTYPES: dict[str, Any] = {"UINT8": np.uint8, "FLOAT": np.float32}


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Device memory of one tensor, and page-locked host memory that the copy engine reads without a detour."""

    name: str
    device: int
    host: NDArray[Any]

    @property
    def address(self) -> int:
        return int(self.host.ctypes.data)


class EngineRunner:
    """One engine with everything its run needs; not thread-safe.

    Args:
        library: as `load_library` gives it.
        cuda: as `load_cuda` gives it.
        plan: the engine's bytes.
        label: name of the graph, for messages.
        outputs: what `run` returns.
        batch: images a run; 0 means the most that the engine takes.
        capture: whether to record the run as a CUDA graph here; TensorRT-RTX does so itself.

    Raises:
        BackendError: the engine is of another version or device, or breaks the contract of a graph.
    """

    # More than six parameters: two libraries, one engine, and what to make of it.
    def __init__(
        self,
        library: Library,
        cuda: Any,
        plan: bytes,
        *,
        label: str,
        outputs: Sequence[str],
        batch: int,
        capture: bool,
    ) -> None:
        trt = library.trt
        self._cuda = cuda
        self._cleanup = ExitStack()
        self._graph: Any = None
        self._buffers: dict[str, _Buffer] = {}
        self._outputs = tuple(outputs)
        library.messages.clear()
        try:
            # The vendor's objects are kept in this order, for a context may not outlive its engine.
            self._runtime = trt.Runtime(library.logger)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                why = library.complaint("it was built for another version or device")
                raise BackendError(f"{library.target} cannot load the engine of {label}: {why}")
            self._engine = engine
            self._read_contract(trt, label)
            self.batch = self._choose_batch(batch, label)
            self._context = _make_context(library, engine)
            self._stream = require_success(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking), "make a stream")
            self._cleanup.callback(cuda.cudaStreamDestroy, self._stream)
            self._allocate()
            # Once before recording: the first run loads kernels, which a recording may not.
            self._enqueue()
            self._wait()
            self.captured = capture and self._record()
        except BaseException:
            self.close()
            raise

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the outputs for ``images (batch, h, w, 3)`` uint8; the arrays are the caller's to keep."""
        self._buffers[INPUT].host[...] = images
        if self._graph is not None:
            require_success(self._cuda.cudaGraphLaunch(self._graph, self._stream), "launch the graph")
        else:
            self._enqueue()
        self._wait()
        return [self._buffers[name].host.copy() for name in self._outputs]

    def close(self) -> None:
        """Release engine and memory; calling it twice is allowed."""
        self._buffers = {}
        self._cleanup.close()
        self._graph = self._context = self._engine = self._runtime = None

    def _read_contract(self, trt: Any, label: str) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._results = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        shape = [int(size) for size in engine.get_tensor_shape(inputs[0])] if inputs else []
        known = [size if size >= 0 else None for size in shape]
        check_graph(label, inputs, self._results, known, self._outputs)
        self._shape = shape
        self.height, self.width = shape[1], shape[2]
        self._types = {}
        for name in names:
            kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
            if kind not in _DTYPES or (kind == "UINT8") != (name == INPUT):
                raise BackendError(f"{label} has {name} of type {kind.lower()}; export the bundle again")
            self._types[name] = _DTYPES[kind]

    def _choose_batch(self, batch: int, label: str) -> int:
        if self._shape[0] > 0:
            return self._shape[0]
        most = int(next(iter(self._engine.get_tensor_profile_shape(INPUT, 0)[2])))
        if batch > most:
            raise BackendError(f"the engine of {label} takes up to {most} images a run; build it with --batch {batch}")
        return batch or most

    def _allocate(self) -> None:
        engine, context = self._engine, self._context
        if self._shape[0] < 0 and not context.set_input_shape(INPUT, (self.batch, *self._shape[1:])):
            raise BackendError(f"the engine refuses a batch of {self.batch}")
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = tuple(int(size) for size in context.get_tensor_shape(name))
            if min(shape) < 1:
                raise BackendError(f"the engine gives {name} a shape that depends on the data: {shape}")
            self._buffers[name] = self._buffer(name, shape, np.dtype(self._types[name]))
            if not context.set_tensor_address(name, self._buffers[name].device):
                raise BackendError(f"the engine refuses the memory of {name}")

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Buffer:
        cuda = self._cuda
        size = int(np.prod(shape)) * dtype.itemsize
        device = int(require_success(cuda.cudaMalloc(size), f"get {size} bytes of GPU memory"))
        self._cleanup.callback(cuda.cudaFree, device)
        pinned = int(require_success(cuda.cudaMallocHost(size), f"lock {size} bytes of memory"))
        self._cleanup.callback(cuda.cudaFreeHost, pinned)
        block = memoryview((ctypes.c_uint8 * size).from_address(pinned)).cast("B")
        host: NDArray[Any] = np.frombuffer(block, np.uint8).view(dtype).reshape(shape)
        host[...] = 0
        return _Buffer(name, device, host)

    def _enqueue(self) -> None:
        kinds = self._cuda.cudaMemcpyKind
        self._copy(INPUT, kinds.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
            raise BackendError("the engine could not be started")
        for name in self._outputs:
            self._copy(name, kinds.cudaMemcpyDeviceToHost)

    def _copy(self, name: str, kind: Any) -> None:
        buffer = self._buffers[name]
        ends = (buffer.device, buffer.address)
        to, source = ends if kind == self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice else ends[::-1]
        done = self._cuda.cudaMemcpyAsync(to, source, buffer.host.nbytes, kind, self._stream)
        require_success(done, f"copy {name}")

    def _wait(self) -> None:
        require_success(self._cuda.cudaStreamSynchronize(self._stream), "run the engine")

    def _record(self) -> bool:
        """Record copies and run as one CUDA graph; False where the engine holds something that cannot be recorded."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        require_success(cuda.cudaStreamBeginCapture(self._stream, mode), "begin a recording")
        try:
            self._enqueue()
        except BackendError:
            cuda.cudaStreamEndCapture(self._stream)
            return False
        status, graph = cuda.cudaStreamEndCapture(self._stream)
        if int(status) != 0:
            return False
        self._cleanup.callback(cuda.cudaGraphDestroy, graph)
        status, executable = cuda.cudaGraphInstantiate(graph, 0)
        if int(status) != 0:
            return False
        self._cleanup.callback(cuda.cudaGraphExecDestroy, executable)
        self._graph = executable
        return True


def _make_context(library: Library, engine: Any) -> Any:
    # Only TensorRT-RTX records a CUDA graph on its own, around kernels that it compiles on the device.
    if library.target == "tensorrt-rtx":
        rtx_trt, rtx_engine = library.trt, engine
        rtx_settings = rtx_engine.create_runtime_config()
        rtx_settings.cuda_graph_strategy = rtx_trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = rtx_engine.create_execution_context(rtx_settings)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise BackendError(f"{library.target} cannot make a context: {library.complaint('not enough GPU memory?')}")
    return context
