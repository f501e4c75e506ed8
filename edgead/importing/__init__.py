"""Models of other programs, turned into scoring modules of ours; no such program is needed for it."""

from __future__ import annotations

from edgead.importing.bundle import Imported, import_anomalib

__all__ = ["Imported", "import_anomalib"]
