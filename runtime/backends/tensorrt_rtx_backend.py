"""TensorRT-RTX, for desktop GPUs from Turing on: runs an engine that may have been built on another machine.

Written against the real API and contract-tested; its engines are really built in CI, and none was ever executed.
"""

from __future__ import annotations

from typing import ClassVar

from edgead.runtime.backends.tensorrt_backend import TensorRtBackend
from edgead.runtime.backends.tensorrt_library import Target


class TensorRtRtxBackend(TensorRtBackend):
    """Runs a graph's TensorRT-RTX engine: that of this GPU's compute capability, else the portable one.

    The library compiles the last part of the engine while it is opened. Arguments and errors as in `TensorRtBackend`.
    """

    target: ClassVar[Target] = "tensorrt-rtx"
    captures: ClassVar[bool] = False  # the library records its own CUDA graph
