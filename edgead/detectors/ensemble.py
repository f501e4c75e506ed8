"""Several detectors as one, named ``A+B``: the sum of their z-scores on normals, in one graph.

Each member is fitted as it would be alone. Its mean score and the standard deviation, on good images that no member had
seen when it scored them, are the unit in which its image score and its map are added to the others'. So a member that
says nothing of a kind of defect costs a little noise, and one that does is heard whatever its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, create_model
from torch import Tensor, nn

from edgead.detectors.networks.blocks import upsample
from edgead.features.backbones import DEFAULT_TAPS, BackboneSpec
from edgead.runtime.errors import ConfigError

_LEAST_SPREAD = 1e-6  # of the largest score, where the normals' scores are all alike


class EnsembleSettings(BaseModel):
    """The settings of each member, under its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def stated(self) -> EnsembleSettings:
        """Return the settings as a model states them, see `LearnedSettings.stated`."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_copy(update={n: one.stated() for n, one in own.items() if hasattr(one, "stated")})


class Ensemble:
    """What fits and rebuilds several detectors as one.

    Args:
        members: registered detectors, each once, one of which may train a network.

    Raises:
        ConfigError: members that do not go together.
    """

    pools_categories = False

    def __init__(self, members: Sequence[Any]) -> None:
        names = [one.name for one in members]
        self.name = "+".join(names)
        if len(set(names)) != len(names):
            raise ConfigError(f"detector '{self.name}' has a member twice; give each once")
        for one in members:
            if getattr(one, "pools_categories", False):
                raise ConfigError(f"detector '{one.name}' fits several categories and is no member of '{self.name}'")
        if sum(is_learned(one) for one in members) > 1:
            raise ConfigError(f"detector '{self.name}' trains more than one network; one is the most")
        self.members = tuple(members)
        schema = create_model(
            "Settings",
            __base__=EnsembleSettings,
            **{one.name: (type(one.settings), one.settings) for one in members},  # type: ignore[call-overload]
        )
        self.settings: EnsembleSettings = schema()

    @property
    def learns(self) -> bool:
        """Whether a member trains a network."""
        return any(is_learned(one) for one in self.members)

    def size(self) -> int:
        """Return the side in pixels of the input where nobody says another; only where a member learns."""
        return max(int(one.size()) for one in self.members if is_learned(one))

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        """Return the backbone that the model's card names: that of the closed-form members, where there are any."""
        learned = [one for one in self.members if is_learned(one)]
        return spec if len(learned) < len(self.members) else self.of_member(learned[0], spec)

    def of_member(self, member: Any, spec: BackboneSpec) -> BackboneSpec:
        """Return the backbone of a member: a network that is trained chooses its own taps."""
        if not is_learned(member):
            return spec
        chosen: BackboneSpec = member.backbone(BackboneSpec(spec.name, spec.weights, DEFAULT_TAPS))
        return chosen


class EnsembleModule(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB -> ``(score (N,), map (N, gh, gw))`` float32, on the finest member's grid.

    Args:
        modules: of the members, in eval mode.
        grids: of their maps; each divides the finest.
        middle, spread: ``(members,)`` float64, the unit of each.
    """

    middle: Tensor
    spread: Tensor

    def __init__(
        self,
        modules: Sequence[nn.Module],
        grids: Sequence[tuple[int, int]],
        middle: NDArray[np.float64],
        spread: NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)
        self.grid = max(grids)
        self._factors = [self.grid[0] // rows for rows, _ in grids]
        for factor, (rows, columns) in zip(self._factors, grids, strict=True):
            if (rows * factor, columns * factor) != self.grid:
                raise ConfigError(f"maps of {rows}x{columns} cells do not fit into {self.grid[0]}x{self.grid[1]}")
        self.register_buffer("middle", torch.from_numpy(middle).float())
        self.register_buffer("spread", torch.from_numpy(spread).float())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        score, grid = None, None
        for place, (member, factor) in enumerate(zip(self.members, self._factors, strict=True)):
            own, cells = member(images)
            if factor > 1:
                cells = upsample(cells[:, None], factor)[:, 0]
            own, cells = ((one - self.middle[place]) / self.spread[place] for one in (own, cells))
            score, grid = (own, cells) if score is None or grid is None else (score + own, grid + cells)
        assert score is not None
        assert grid is not None
        return score, grid


def units(scores: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation ``(members,)`` of each member's scores ``(n,)`` of the same normals."""
    middle = np.array([one.mean() for one in scores])
    floors = np.array([_LEAST_SPREAD * max(float(np.abs(one).max()), 1e-12) for one in scores])
    return middle, np.maximum(np.array([one.std() for one in scores]), floors)


def is_learned(detector: Any) -> bool:
    """Whether a detector trains a network."""
    return bool(getattr(detector, "learns", False))


def settings_of_members(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each member's settings of ``{"A.key": value}`` or ``{"A": {...}}``; raises `ConfigError` for others."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        member, dot, own = key.partition(".")
        if member not in found or not (dot or isinstance(value, Mapping)):
            raise ConfigError(
                f"setting '{key}' names no member of '{'+'.join(names)}'; write for example {names[0]}.{key}=…"
            )
        found[member] |= {own: value} if dot else value
    return found
