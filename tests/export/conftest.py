"""A small real scoring module, quick to export."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgead.export.exportable import Exportable
from edgead.runtime.decision.threshold import calibrate


class SmallScorer(nn.Module):
    """Uneven zero padding, a strided convolution, a map and its maximum: what detectors are made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.bank = nn.Parameter(torch.randn(4, 70_000), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) - 127.5
        features = self.conv(self.pad(pixels / 127.5))
        grid = (features.flatten(2).transpose(1, 2) @ self.bank).amin(2).reshape(-1, 16, 16).neg()
        return grid.amax((1, 2)), grid


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    # Coloured differently, so that swapped channels show.
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 256, (90, 110, 3)) * rng.uniform(0.1, 1.0, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def exportable() -> Exportable:
    """A model around `SmallScorer`, its threshold amid the scores of its references."""
    from edgead.export.torch_backend import TorchBackend
    from edgead.runtime.imaging.decode import decode_image
    from edgead.runtime.imaging.preprocess import resize

    module = SmallScorer().eval()
    references = [(f"good-{seed}.png", png(seed)) for seed in range(6)]
    images = np.stack([resize(decode_image(data, name), 64, 64) for name, data in references])
    scores = TorchBackend(module).run(images).score
    return Exportable(
        name="small",
        module=module,
        height=64,
        width=64,
        grid=(16, 16),
        threshold=calibrate(scores, 0.5),
        normal_scores=scores.tolist(),
        detector="small",
        settings={"bank": 70_000},
        categories={"noise": 6},
        references=references,
        provenance={"seed": 0},
    )
