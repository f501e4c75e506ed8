"""What is asked for when a stream is opened: where it ends, how long it waits, and what it looks after by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from edgead.runtime.errors import ConfigError
from edgead.runtime.streaming.grabber import Survival


class StreamOptions(TypedDict, total=False):
    """The fields of `StreamConfig`, as keywords."""

    max_frames: int | None
    duration_s: float | None
    queue_size: int
    drain_s: float
    batch: int
    batch_deadline_s: float
    hang_s: float
    give_up_s: float
    survival: Survival | None
    self_test_hours: float | None
    drift: bool
    known_good: bool


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """What is asked for when a stream is opened; shared by the API and the command line.

    Attributes:
        max_frames: end after so many Results; None: there is no limit.
        duration_s: capture for so many seconds, then judge what was captured; None: to the end of the sources.
        queue_size: frames that may wait, for a live source with ``policy=every``.
        drain_s: the longest that the end may take, in seconds: judging captured frames after `Stream.stop`, waiting for
            a driver, and emptying the sinks. Where all sources are files, a sink may take longer as long as it gets on:
            then a full sink queue holds the files back (nothing on a line waits for them), and nothing is missed.
        batch: frames that are judged in one run of the network, of all sources together; 1: each by itself.
        batch_deadline_s: how long the first frame of a batch waits for others.
        hang_s: seconds after which a frame is given up that the backend does not return; ``math.inf`` waits
            indefinitely.
        give_up_s: seconds after which the stream ends because the backend does not return; likewise.
        survival: how a lost camera is opened again; None: the defaults of `Survival`.
        self_test_hours: hours between two replays of the bundle's references; None: only when `Stream.self_test` asks.
        drift: compare what normal parts look like with what they looked like when the threshold was made, where the
            bundle knows it. It warns, and changes no decision.
        known_good: every part of this run is known to be good; warn when the promised false-alarm rate does not hold.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> config = StreamConfig(duration_s=3600.0, self_test_hours=8.0)
        >>> summary = inspect.stream("rtsp://camera/1", config=config).run()
    """

    max_frames: int | None = None
    duration_s: float | None = None
    queue_size: int = 8
    drain_s: float = 5.0
    batch: int = 1
    batch_deadline_s: float = 0.005
    hang_s: float = 10.0
    give_up_s: float = 60.0
    survival: Survival | None = None
    self_test_hours: float | None = None
    drift: bool = True
    known_good: bool = False

    def __post_init__(self) -> None:
        for name in ("max_frames", "duration_s", "queue_size", "batch", "hang_s", "give_up_s", "self_test_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        if not self.batch_deadline_s >= 0:
            raise ConfigError(f"batch_deadline_s must be 0 or more, not {self.batch_deadline_s}")
