"""edgead: anomaly detection from normal images to decisions on the line.

    >>> import edgead
    >>> model = edgead.fit("data/screw")                    # a folder of normal images, or of an MVTec category
    >>> model.predict("part.png").save("seen.png")          # decision, score and heat map
    >>> model.evaluate("data/screw").image_auroc.value      # labelled test images, with intervals
    >>> model.export("screw.edgead", fp16=True, int8=True)  # proved on real images, or refused

On the device, without torch:

    >>> from edgead.runtime import Inspector
    >>> with Inspector.open("screw.edgead") as inspect:
    ...     for result in inspect.stream("rtsp://camera/stream"):
    ...         print(result.decision, result.score)

``edgead.runtime`` is the floor that runs on the device, ``edgead.export`` turns models into bundles, and the rest
trains, calibrates and evaluates; docs/architecture.md is the plan. The names below are loaded on first use, so that
importing this package, and with it the runtime, stays cheap and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgead.api import Model, fit, load_model
    from edgead.data import open_category
    from edgead.evaluation.evaluation import evaluate
    from edgead.export.exporting import export_bundle
    from edgead.fitting import FitConfig
    from edgead.model.model import TrainedModel
    from edgead.opening import open_inspector
    from edgead.runtime.capi.location import capi_path
    from edgead.runtime.version import __version__ as __version__

__all__ = [
    "FitConfig",
    "Model",
    "TrainedModel",
    "capi_path",
    "evaluate",
    "export_bundle",
    "fit",
    "load_model",
    "open_category",
    "open_inspector",
]

# name -> (module, extra that brings what the module needs)
_LAZY = {
    "__version__": ("runtime.version", ""),
    "TrainedModel": ("model.model", "export"),
    "capi_path": ("runtime.capi.location", ""),
    "evaluate": ("evaluation.evaluation", "train"),
    "export_bundle": ("export.exporting", "export"),
    "FitConfig": ("fitting", "export"),
    "Model": ("api", "export"),
    "fit": ("api", "export"),
    "load_model": ("api", "export"),
    "open_category": ("data", "train"),
    "open_inspector": ("opening", "cpu"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgead' has no attribute '{name}'")
    module, extra = _LAZY[name]
    try:
        return getattr(import_module(f"edgead.{module}"), name)
    except ImportError as error:
        from edgead.runtime.errors import BackendUnavailable, missing_extra

        raise BackendUnavailable(missing_extra(str(error.name), extra)) from error


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
