"""What both sides of OPC UA have in common: the rule of the signal, the heartbeat, and the library's event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgead.runtime.errors import DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Result
from edgead.runtime.sinks.opcua.station import Station
from edgead.runtime.sinks.reject import MAX_AGE_S, Output, PassSignal
from edgead.runtime.uri import Parameters

if TYPE_CHECKING:
    from edgead.runtime.status.summary import StreamSummary

T = TypeVar("T")

# A client that looks every 500 ms must still see it; each result has an id, by which it is told from the next one.
HOLD_S = 1.0


def no_chatter() -> None:
    """Keep the library's own log from stderr, unless the program has set it up: what matters is in our messages."""
    log = logging.getLogger("asyncua")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)


class UaOutput(Output, Protocol):
    """An output that also shows what the result is, and how the run stands."""

    def show(self, result: Result, on: bool) -> None:
        """Show a result and set the signal: ``on`` where it is a fresh OK."""

    def report(self, station: Station) -> None:
        """Show it; called at each beat, before the heartbeat, in the thread of the other methods."""


class OpcUaSink(PassSignal):
    """Shows results by the rule of `PassSignal`, and beats only while the next part will be judged."""

    def __init__(self, name: str, output: UaOutput, parameters: Parameters) -> None:
        self._shown = output
        self._summary: Callable[[], StreamSummary] | None = None
        self._failed_test: str | None = None
        super().__init__(
            name,
            output,
            hold_s=parameters.seconds("hold") or HOLD_S,
            max_age_s=parameters.seconds("max_age") or MAX_AGE_S,
            beat_s=parameters.seconds("beat") or 0.25,
        )

    def attach(self, summary: Callable[[], StreamSummary]) -> None:
        self._summary = summary

    def note(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "self-test failed":
            self._failed_test = "; ".join(fields["problems"])
        elif event in ("self-test passed", "reloaded"):
            self._failed_test = None

    def show(self, result: Result, on: bool) -> None:
        self._shown.show(result, on)

    def pulse(self, count: int) -> int:
        station = Station.of(None if self._summary is None else self._summary(), self._failed_test)
        self._shown.report(station)
        return super().pulse(count) if station.able else count


class Loop:
    """An event loop in a thread of its own, for the library; `run` waits for an answer from any other thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"edgead-opcua {name}", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Return what ``work`` returns.

        Raises:
            DataError: it took longer, or the library raised whatever it was.
        """
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), self._loop)
        try:
            return future.result(timeout_s + 5.0)
        except DataError:
            raise
        except (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError) as error:
            raise DataError(f"no answer within {timeout_s:g} s") from error
        except Exception as error:  # whatever the library makes of the network and the peer
            raise DataError(reason(error)) from error

    def close(self) -> None:
        """End what is left, and the thread. May be called twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
