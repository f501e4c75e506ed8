"""What simulations of reduced precisions share: a rewritten graph in ONNX Runtime, behind the protocol of backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.common import (
    INPUT,
    UNWANTED_OPTIMISERS,
    as_inference,
    check_graph,
    check_images,
    first_line,
    load_onnxruntime,
    run_batches,
)
from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Inference

_BATCH = 4


class Simulation:
    """Executes a rewritten graph; keeps the `Backend` and the `Network` protocol.

    Args:
        rewritten: the graph; label: name of its file, for messages.
        threads: CPU threads; None leaves the choice to the library.
        outputs: what `compute` returns; `run` needs a score and a map.
        settings: session configuration.
        optimise: False executes node by node, for a graph in which an optimiser would take a step for a detour.

    Raises:
        BackendError: ONNX Runtime cannot load it, or it is no scoring graph.
    """

    # What `describe` says of each kind.
    _name: str
    _precision: str

    def __init__(
        self,
        rewritten: onnx.ModelProto,
        label: str,
        threads: int | None,
        outputs: Sequence[str],
        settings: Mapping[str, str],
        *,
        optimise: bool = True,
    ) -> None:
        onnxruntime = load_onnxruntime()
        self._outputs = list(outputs)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
        for key, value in {"session.force_spinning_stop": "1", **settings}.items():
            options.add_session_config_entry(key, value)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                rewritten.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=UNWANTED_OPTIMISERS,
            )
        except Exception as error:
            raise BackendError(f"the simulation of {label} cannot be loaded: {first_line(error)}") from error
        inputs = self._session.get_inputs()
        shape = [size if isinstance(size, int) else None for size in inputs[0].shape] if inputs else []
        named = [value.name for value in self._session.get_outputs()]
        check_graph(label, [value.name for value in inputs], named, shape, self._outputs)
        self._height, self._width = int(shape[1] or 0), int(shape[2] or 0)
        version = str(onnxruntime.__version__)
        self._info = BackendInfo(
            self._name, "onnxruntime CPUExecutionProvider", self._precision, "simulated", threads or 0, version
        )

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, h, w, 3)`` uint8."""
        return as_inference(self.compute(images))

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the outputs for ``images (N, h, w, 3)`` uint8."""
        if self._session is None:
            raise BackendError("the backend is closed")
        images = check_images(images, self._height, self._width)
        return run_batches(images, min(len(images), _BATCH), self._run)

    def describe(self) -> BackendInfo:
        """Return what really runs."""
        return self._info

    def close(self) -> None:
        """Release the session; calling it twice is allowed."""
        self._session = None

    def _fetch(self, names: Sequence[str], images: NDArray[np.uint8]) -> list[Any]:
        try:
            found: list[Any] = self._session.run(list(names), {INPUT: images})
        except Exception as error:
            raise BackendError(f"the simulation failed: {first_line(error)}") from error
        return found

    def _run(self, images: NDArray[np.uint8]) -> Sequence[Any]:
        return self._fetch(self._outputs, images)
