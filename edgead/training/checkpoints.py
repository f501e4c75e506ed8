"""Checkpoints of a training: one safetensors file, whole or not at all, that says what run it belongs to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write, reason
from edgead.training.training_log import Judgement, LossPoint, TrainingLog


@dataclass(slots=True)
class Position:
    """Where a run stands: what a checkpoint says beside the weights."""

    stage: int = 0
    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    points: list[LossPoint] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)

    def dump(self, key: str) -> str:
        plain = {name: getattr(self, name) for name in ("stage", "step", "best", "best_step", "stale")}
        log = TrainingLog(points=tuple(self.points), judgements=tuple(self.judgements))
        return json.dumps({"key": key, **plain, "log": log.model_dump()})

    @classmethod
    def load(cls, text: str, key: str) -> Position | None:
        content = json.loads(text)
        if content.pop("key") != key:
            return None
        log = TrainingLog.model_validate(content.pop("log"))
        return cls(**content, points=list(log.points), judgements=list(log.judgements))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training is kept, and gone on from.

    Attributes:
        file: written now and then; gone on from where it holds the same ``key``, else replaced.
        key: what identifies the training, see `edgead.training.training.run_key`.
        seconds: least time between two times that it is written.
    """

    file: Path
    key: str
    seconds: float = 30.0


class Saver:
    """Writes a checkpoint, where there is to be one, not more often than wanted."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        self._last = time.monotonic()

    def due(self) -> bool:
        return self._checkpoint is not None and time.monotonic() - self._last >= self._checkpoint.seconds

    def save(self, position: Position, tensors: Mapping[str, Tensor], always: bool = False) -> None:
        from safetensors.torch import save

        if self._checkpoint is None or not (always or self.due()):
            return
        # Clones, because safetensors takes no two names for one piece of memory.
        plain = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        with atomic_write(self._checkpoint.file, DataError) as stream:
            stream.write(save(plain, {"position": position.dump(self._checkpoint.key)}))
        self._last = time.monotonic()


def read_checkpoint(checkpoint: Checkpoint | None) -> tuple[Position, dict[str, Tensor]]:
    """Return where to go on from; the beginning where there is no checkpoint of this run, or only a damaged one."""
    from safetensors import SafetensorError, safe_open

    if checkpoint is None or not checkpoint.file.is_file():
        return Position(), {}
    path, key = checkpoint.file, checkpoint.key
    try:
        with safe_open(path, "pt") as stream:
            position = Position.load(stream.metadata()["position"], key)
            if position is None:
                return Position(), {}
            return position, {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError):
        return Position(), {}
    except OSError as error:
        raise DataError(f"cannot read the checkpoint {path}: {reason(error)}; remove it to start anew") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {
        f"{i}/{name}": value for i, one in state.items() for name, value in one.items() if isinstance(value, Tensor)
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    content = optimiser.state_dict()
    for name, value in tensors.items():
        index, _, entry = name.partition("/")
        content["state"].setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict(content)
