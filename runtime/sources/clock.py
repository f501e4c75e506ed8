"""When a frame was captured, told from the camera's own clock."""

from __future__ import annotations

# Share of the time that passes by which the two clocks may drift apart. Cheap cameras count at a rate that is off by
# some tenths of a per cent, and that must not look like age.
DRIFT = 0.01
_NONE_YET = 4


class ClockMap:
    """Maps timestamps of a device to the host's monotonic clock.

    A frame cannot arrive before it was captured, so the smallest distance that was seen between the two clocks is that
    of a frame which came without delay; what another one takes longer, it has waited in some buffer. So frames from a
    buffer get the time at which the camera took them, not the one at which they were fetched. What all frames of a
    camera need at least (exposure, encoder, network) cannot be known this way and is not part of it.
    """

    def __init__(self) -> None:
        self._device_ns = self._arrival_ns = 0
        self._distance: float | None = None
        self._lag_ns = 0
        self._rushing = True
        self._unknown = 0

    @property
    def rushing(self) -> bool:
        """Whether the last frame came in less than half the time that the camera took for it: from a buffer.

        True before anything is known, False where the device has no timestamps.
        """
        return self._rushing

    def capture_ns(self, device_ns: int, arrival_ns: int) -> int:
        """Return when a frame was captured, in the host's clock: ``arrival_ns`` or before.

        Args:
            device_ns: the device's timestamp, any origin; 0 or less where it has none. One that runs backwards (the
                camera was restarted) begins the map anew; one that stands still says nothing.
            arrival_ns: the host's monotonic clock when the frame came.
        """
        if device_ns <= 0:
            # The first ones of a stream have none yet.
            self._unknown += 1
            self._rushing = self._unknown < _NONE_YET
            return arrival_ns
        passed_ns = device_ns - self._device_ns
        self._rushing = self._distance is None or (passed_ns > 0 and 2 * (arrival_ns - self._arrival_ns) < passed_ns)
        distance = arrival_ns - device_ns
        if self._distance is None or device_ns < self._device_ns:
            self._distance = distance
        elif device_ns > self._device_ns:
            self._distance = min(distance, self._distance + DRIFT * (arrival_ns - self._arrival_ns))
        else:
            return arrival_ns - self._lag_ns
        self._device_ns, self._arrival_ns = device_ns, arrival_ns
        self._lag_ns = max(0, int(distance - self._distance))
        return arrival_ns - self._lag_ns
