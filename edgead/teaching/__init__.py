"""Taught at the line: parts that people confirmed join the training images, and a gate proves what comes of it.

`lessons` reads what people said from a record, `growing` writes the training images of the new fit, `teaching` fits and
exports, and `gate` judges every labelled part with the old bundle and the new one before the new one is written.
"""

from edgead.teaching.lesson_report import TeachReport
from edgead.teaching.teaching import TeachConfig, teach

__all__ = ["TeachConfig", "TeachReport", "teach"]
