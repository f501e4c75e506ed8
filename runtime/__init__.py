"""The light runtime: bundles, preprocessing, backends, sources, the inspection loop. Needs numpy and Pillow only.

Vendor libraries are imported inside the backend or source that needs them, and the heavier names below on first use,
so importing this package is cheap on a small board.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgead.runtime.errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    ConfigError,
    DataError,
    EdgeadError,
    SourceError,
    SourceLost,
    StreamFailed,
)
from edgead.runtime.frame import Decision, Frame, Result

if TYPE_CHECKING:
    from edgead.runtime.backends import Backend, BackendInfo
    from edgead.runtime.bundle.bundle import Bundle
    from edgead.runtime.dashboard.sink import LivePage
    from edgead.runtime.decision.threshold import Threshold
    from edgead.runtime.frame import Inference
    from edgead.runtime.imaging.decode import read_image
    from edgead.runtime.inspection.inspector import Inspector
    from edgead.runtime.inspection.run_config import RunConfig
    from edgead.runtime.journal.reader import JournalReader
    from edgead.runtime.journal.sink import RecordOptions, RecordSink
    from edgead.runtime.journal.writer import Journal
    from edgead.runtime.sinks import Sink, open_sink
    from edgead.runtime.sinks.callback import CallbackSink
    from edgead.runtime.sources import open_source
    from edgead.runtime.sources.push import PushSource
    from edgead.runtime.streaming.config import StreamConfig
    from edgead.runtime.streaming.stream import Stream

__all__ = [
    "Backend",
    "BackendError",
    "BackendInfo",
    "BackendUnavailable",
    "Bundle",
    "BundleError",
    "CallbackSink",
    "ConfigError",
    "DataError",
    "Decision",
    "EdgeadError",
    "Frame",
    "Inference",
    "Inspector",
    "Journal",
    "JournalReader",
    "LivePage",
    "PushSource",
    "RecordOptions",
    "RecordSink",
    "Result",
    "RunConfig",
    "Sink",
    "SourceError",
    "SourceLost",
    "Stream",
    "StreamConfig",
    "StreamFailed",
    "Threshold",
    "open_sink",
    "open_source",
    "read_image",
]

_LAZY = {
    "Backend": "backends",
    "BackendInfo": "backends",
    "Bundle": "bundle.bundle",
    "CallbackSink": "sinks.callback",
    "Inference": "frame",
    "Inspector": "inspection.inspector",
    "Journal": "journal.writer",
    "JournalReader": "journal.reader",
    "PushSource": "sources.push",
    "RecordOptions": "journal.sink",
    "RecordSink": "journal.sink",
    "RunConfig": "inspection.run_config",
    "LivePage": "dashboard.sink",
    "Sink": "sinks",
    "Stream": "streaming.stream",
    "StreamConfig": "streaming.config",
    "Threshold": "decision.threshold",
    "open_sink": "sinks",
    "open_source": "sources",
    "read_image": "imaging.decode",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgead.runtime' has no attribute '{name}'")
    return getattr(import_module(f"edgead.runtime.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
