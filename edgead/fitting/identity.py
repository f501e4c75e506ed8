"""What identifies a training, so that one that was interrupted is gone on from, and another one is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from edgead.features.backbones import BackboneInfo
from edgead.fitting.config import FitConfig
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.version import __version__
from edgead.training.training import run_key


def training_key(
    method: Any, info: BackboneInfo, size: tuple[int, int], config: FitConfig, train: Mapping[str, Any]
) -> str:
    """Return what a checkpoint must carry to be of this very training."""
    return run_key(
        {
            "detector": method.name,
            "settings": method.settings.model_dump(),
            "backbone": asdict(info),
            "size": size,
            "seed": config.seed,
            "bits": config.bits or ALL_BITS,
            **({"align": True} if config.align else {}),
            "train": dict(train),
            "versions": [__version__, torch.__version__, np.__version__],
        }
    )
