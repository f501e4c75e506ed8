"""What a run of the day is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Where things are, and how much is done.

    Attributes:
        out: folder of the results; copy_to: gets each result file too, None for nothing.
        kit: folder that ``unpack`` made of the pieces: images, bundles, wheels; None where there is none.
        dry: tiny sizes, on the host.
        job_seconds, at_once: of the trainings: seconds that one may take, and how many run side by side.
    """

    out: Path
    copy_to: Path | None = None
    kit: Path | None = None
    dry: bool = False
    job_seconds: float = 240.0
    at_once: int = 3

    @property
    def images(self) -> Path | None:
        """The folder of the packed categories."""
        return None if self.kit is None else self.kit / "images"

    @property
    def bundles(self) -> list[Path]:
        """The packed bundles."""
        return [] if self.kit is None else sorted((self.kit / "bundles").glob("*.edgead"))
