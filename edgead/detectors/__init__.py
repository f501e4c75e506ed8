"""Detectors by name. A new one is a file in this folder and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ValidationError

from edgead.detectors.base import Detector, Settings
from edgead.runtime.errors import ConfigError, suggest

# name -> (module, class); the class takes its Settings and is found by the contract tests through this table.
REGISTRY: dict[str, tuple[str, str]] = {
    "patchcore": ("patchcore", "PatchCore"),
    "padim": ("padim", "Padim"),
    "npad": ("npad", "NPad"),
    "fre": ("fre", "Fre"),
    "protoad": ("protoad", "ProtoAD"),
    "dfc": ("dfc", "Dfc"),
    "slsg": ("slsg", "Slsg"),
    "sgsf": ("sgsf", "Sgsf"),
    "isstad": ("isstad", "Isstad"),
    "cutpaste": ("cutpaste", "CutPaste"),
    "efficientad": ("efficientad", "EfficientAd"),
}

DEFAULT_SIZE = 256

__all__ = [
    "DEFAULT_SIZE",
    "REGISTRY",
    "Detector",
    "Settings",
    "create_detector",
    "default_size",
    "learns",
    "members",
    "pools_categories",
]


def members(name: str) -> tuple[str, ...]:
    """Return the detectors that ``A+B`` is made of, see `edgead.detectors.ensemble`; one of any other name."""
    return tuple(part.strip() for part in name.split("+"))


def pools_categories(name: str) -> bool:
    """Whether a detector fits one model of several categories; raises `ConfigError` for an unknown name."""
    pooled = [bool(getattr(_factory(one), "pools_categories", False)) for one in members(name)]
    return pooled == [True]


def learns(name: str) -> bool:
    """Whether a detector trains a network (`edgead.detectors.learned`); raises as `pools_categories`."""
    trained = [bool(getattr(_factory(one), "learns", False)) for one in members(name)]  # refuses any unknown one
    return any(trained)


def default_size(name: str, settings: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Return ``(height, width)`` of a detector's input where nobody says another; raises as `create_detector`."""
    side = int(create_detector(name, settings).size()) if learns(name) else DEFAULT_SIZE
    return side, side


def create_detector(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """Create a detector from its registered name and settings (strings are converted, as ``--set`` gives them).

    Args:
        name: or several, as ``A+B``, whose settings are then ``A.key``.

    Returns:
        A `Detector`; or one that pools categories (`edgead.detectors.dfc.Dfc`), see `pools_categories`; or one that
        learns (`edgead.detectors.learned.LearnedDetector`), see `learns`; or `edgead.detectors.ensemble.Ensemble`.

    Raises:
        ConfigError: unknown name, unknown setting or a value out of range; the nearest name is suggested.
    """
    parts = members(name)
    if len(parts) > 1:
        from edgead.detectors.ensemble import Ensemble, settings_of_members

        own = settings_of_members(settings or {}, parts)
        return Ensemble([create_detector(one, own[one]) for one in parts])
    factory = _factory(name)
    schema: type[BaseModel] = factory.Settings
    for key in settings or {}:
        # "head.KEY" belongs to a detector inside the detector, which checks it.
        nested = key.startswith("head.") and "head_settings" in schema.model_fields
        if key not in schema.model_fields and not nested:
            raise ConfigError(f"detector '{name}' has no setting '{key}'.{suggest(key, schema.model_fields)}")
    try:
        values = schema.model_validate(dict(settings or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting '{where}' of detector '{name}': {first['msg']} (got {first['input']!r})") from error
    return factory(values)


def _factory(name: str) -> Any:
    if name not in REGISTRY:
        raise ConfigError(f"unknown detector '{name}'.{suggest(name, REGISTRY)}")
    module, attribute = REGISTRY[name]
    return getattr(import_module(f"edgead.detectors.{module}"), attribute)
