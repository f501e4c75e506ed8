"""Trainings of two stages, or with helpers and statistics, interrupted and gone on with, end with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgead.detectors import REGISTRY, create_detector, learns
from edgead.features.backbones import BackboneSpec
from edgead.training.checkpoints import Checkpoint
from edgead.training.training import train

SIZE = (64, 64)
TINY: dict[str, Any] = {
    "slsg": {"steps": 4, "pretraining_steps": 3, "batch": 2, "width": 0.1, "evaluations": 2},
    "sgsf": {"steps": 4, "batch": 2, "width": 4, "evaluations": 2},
    "isstad": {"steps": 4, "pretraining_steps": 3, "batch": 2, "decoder_width": 16, "evaluations": 2},
    "cutpaste": {"steps": 4, "batch": 2, "width": 8, "evaluations": 2},
    "efficientad": {
        "teacher": "distilled",
        "steps": 4,
        "distillation_steps": 3,
        "batch": 2,
        "width": 0.1,
        "channels": 8,
        "evaluations": 2,
    },
}


class PowerCutError(Exception):
    """What breaks a training off."""


def weights(name: str, checkpoint: Path | None = None, stop: int | None = None) -> dict[str, torch.Tensor]:
    """Train from nothing, or from a checkpoint, and break off after ``stop`` steps; one judge for all."""
    detector = create_detector(name, TINY[name])
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)
    torch.manual_seed(0)
    network = detector.network(detector.backbone(BackboneSpec("efficientnet_lite0", "random")), SIZE)
    stages = detector.stages(network, pixels, 0)
    done = 0

    def tell(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == stop:
            raise PowerCutError

    def judge(network: torch.nn.Module) -> float:
        return -float(network(torch.from_numpy(pixels).float().permute(0, 3, 1, 2))[0].mean())

    kept = None if checkpoint is None else Checkpoint(checkpoint, name, 0.0)
    train(network, stages, seed=3, judge=judge, device="cpu", checkpoint=kept, progress=tell)
    return network.state_dict()


@pytest.mark.parametrize("name", [name for name in REGISTRY if learns(name)])
def test_a_training_that_goes_on_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = weights(name)
    checkpoint = tmp_path / "training"
    # Within the first stage, then within the last one, with nothing but the checkpoint to go on from.
    for stop in (2, 4 if "_steps" in str(TINY[name]) else 2):
        with pytest.raises(PowerCutError):
            weights(name, checkpoint, stop)
        assert checkpoint.exists()
    resumed = weights(name, checkpoint)
    assert whole.keys() == resumed.keys()
    assert [key for key, value in whole.items() if not torch.equal(value, resumed[key])] == []
