"""The scoring module itself as a backend: the reference that every exported graph is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.common import as_inference
from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Inference


class TorchBackend:
    """Runs a scoring module, or a router, on the CPU in FP32, one image at a time.

    One at a time, because the batch size changes the order of floating-point sums in torch's kernels, and a
    reference must not depend on who stood beside an image.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: nn.Module | None = module.eval()

    def run(self, images: NDArray[np.uint8]) -> Inference:
        return as_inference(self.compute(images))

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return what the module gives for ``images (N, h, w, 3)`` uint8, one array an output."""
        if self._module is None:
            raise BackendError("the backend is closed")
        found: list[list[NDArray[np.float32]]] = []
        with torch.inference_mode():
            for image in images:
                # A copy: torch takes no read-only arrays, which the resize may give.
                found.append([values.numpy() for values in self._module(torch.from_numpy(image[None].copy()))])
        return [np.concatenate(values) for values in zip(*found, strict=True)]

    def describe(self) -> BackendInfo:
        return BackendInfo(
            name="torch",
            provider="torch",
            precision="fp32",
            device="cpu",
            threads=torch.get_num_threads(),
            version=torch.__version__,
        )

    def close(self) -> None:
        self._module = None
