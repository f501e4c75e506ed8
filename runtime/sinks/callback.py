"""Results to a function of the caller's own."""

from __future__ import annotations

from collections.abc import Callable

from edgead.runtime.frame import Frame, Result
from edgead.runtime.sinks import Sink


class CallbackSink(Sink):
    """Calls ``function(result, frame)`` for each result, in order, in a thread of its own.

    A function that is slow or raises delays no decision; what it missed and what failed is counted.

    Args:
        function: ``frame`` is None unless ``keeps_frames``, and where a frame could not be read.
        name: how reports call it.
        keeps_frames: whether the function needs the pictures; the queue is shorter then.
    """

    def __init__(
        self, function: Callable[[Result, Frame | None], object], *, name: str = "callback", keeps_frames: bool = False
    ) -> None:
        self.name = name
        self.keeps_frames = keeps_frames
        self._function = function

    def write(self, result: Result, frame: Frame | None) -> None:
        self._function(result, frame)
