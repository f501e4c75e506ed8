"""How a long job tells how far it is: called with ``(done, total)``, or with the name of the stage before them."""

from __future__ import annotations

from collections.abc import Callable

StepProgress = Callable[[int, int], None]
Progress = Callable[[str, int, int], None]


def silent(_stage: str, _done: int, _total: int) -> None:
    """Tell nothing."""
