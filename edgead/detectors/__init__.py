"""Detectors by name. A new one is a file in this folder and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from edgead.detectors.base import Detector, Settings
from edgead.runtime.errors import ConfigError, suggest

# name -> (module, class); the class takes its Settings and is found by the contract tests through this table.
REGISTRY: dict[str, tuple[str, str]] = {
    "patchcore": ("patchcore", "PatchCore"),
    "padim": ("padim", "Padim"),
    "npad": ("npad", "NPad"),
    "fre": ("fre", "Fre"),
    "protoad": ("protoad", "ProtoAD"),
}

__all__ = ["REGISTRY", "Detector", "Settings", "create_detector"]


def create_detector(name: str, settings: Mapping[str, Any] | None = None) -> Detector:
    """Create a detector from its registered name and settings (strings are converted, as ``--set`` gives them).

    Raises:
        ConfigError: unknown name, unknown setting or a value out of range; the nearest name is suggested.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown detector '{name}'.{suggest(name, REGISTRY)}")
    module, attribute = REGISTRY[name]
    factory = getattr(import_module(f"edgead.detectors.{module}"), attribute)
    schema: type[Settings] = factory.Settings
    for key in settings or {}:
        if key not in schema.model_fields:
            raise ConfigError(f"detector '{name}' has no setting '{key}'.{suggest(key, schema.model_fields)}")
    try:
        values = schema.model_validate(dict(settings or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting '{where}' of detector '{name}': {first['msg']} (got {first['input']!r})") from error
    detector: Detector = factory(values)
    return detector
