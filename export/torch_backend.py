"""The scoring module itself as a backend: the reference that every exported graph is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgead.runtime.backends import BackendInfo, Inference
from edgead.runtime.errors import BackendError


class TorchBackend:
    """Runs a scoring module on the CPU in FP32, one image at a time.

    One at a time, because the batch size changes the order of floating-point sums in torch's kernels, and a
    reference must not depend on who stood beside an image.
    """

    def __init__(self, module: nn.Module, *, threads: int | None = None) -> None:
        self._module: nn.Module | None = module.eval()
        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, images: NDArray[np.uint8]) -> Inference:
        if self._module is None:
            raise BackendError("the backend is closed")
        scores, maps = [], []
        with torch.inference_mode():
            for image in images:
                # A copy: torch takes no read-only arrays, which the resize may give.
                score, grid = self._module(torch.from_numpy(image[None].copy()))
                scores.append(score.numpy())
                maps.append(grid.numpy())
        return Inference(np.concatenate(scores), np.concatenate(maps))

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
