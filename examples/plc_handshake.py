"""The camera loop with a PLC: it names a part, triggers the camera, and opens the gate for an OK of that part only.

    edgead fit parts/mono --size 128 -o mono.model && edgead export mono.model -o mono.edgead
    python examples/plc_handshake.py mono.edgead parts/mono/test

Needs ``pip install 'edgead[cpu,opcua]'``. Takes 5 s on two cores, station included, for 40 parts.

Three sides work together, each as on a line. The station is ``edgead run``, a process of its own. The PLC is this
program, by OPC UA: a client, as a real one is, with nothing of edgead in it. The camera is this program, too, which
posts image files. Look at the column "gate": it opens for OK only, and each result has the id that the PLC wrote.

Connections are open and unencrypted here, on this machine alone; for a line see docs/sinks.md, OPC UA. By Modbus, where
one signal is enough: docs/tutorials/camera-to-plc.md. No PLC of any make was tried.
"""

from __future__ import annotations

import argparse
import logging
import queue
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.sync import Client

START_S = 60.0  # the station loads the bundle and replays its references
DECISION_S = 10.0  # no decision in this time: reject


class Plc:
    """What the PLC knows: the parts in front of it, and what the station says of them."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, timeout=DECISION_S)
        self._events: queue.Queue[Any] = queue.Queue()

    def connect(self) -> None:
        """Connect to the station, and hear of every result."""
        self._client.connect()
        kind = self._client.nodes.base_event_type.get_child(["2:ResultReadyEventType"])
        subscription = self._client.create_subscription(50, self)
        subscription.subscribe_events(self._client.nodes.server, kind)

    def event_notification(self, event: Any) -> None:
        """Take an event; the library calls this in its own thread."""
        self._events.put(event)

    def announce(self, part_id: str) -> None:
        """Say which part comes next; raises where the station does not take the id."""
        self._client.get_node("ns=2;s=NextPartId").write_value(part_id)

    def resynchronise(self) -> None:
        """Write the empty id: whatever went wrong is over, and no frame is on its way."""
        self.announce("")

    def state(self) -> str:
        return str(self._client.get_node("ns=2;s=State").read_value())

    def heartbeat(self) -> int:
        """Return the counter that stands still when no part can be judged."""
        return int(self._client.get_node("ns=2;s=Heartbeat").read_value())

    def wait_for(self, part_id: str) -> Any:
        """Return the result of this part, or None where it does not come in time."""
        until = time.monotonic() + DECISION_S
        while (left := until - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                return None
            if event.PartId == part_id:  # the result of another part opens no gate
                return event
        return None

    def close(self) -> None:
        try:
            self._client.disconnect()
        except (OSError, TimeoutError, ua.UaError):  # the station may be gone; the library's thread must end
            self._client.tloop.stop()


def trigger(camera: str, image: Path) -> None:
    """Take the part's picture: here an image file that is posted."""
    request = urllib.request.Request(camera, image.read_bytes(), method="POST")
    with urllib.request.urlopen(request, timeout=DECISION_S):
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="a folder of images; each is a part")
    asked = parser.parse_args()
    parts = sorted(path for path in asked.images.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not parts:
        print(f"error: {asked.images} holds no .png or .jpg", file=sys.stderr)
        return 2
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # this program says itself what is lost
    camera_port, station_port = free_port(), free_port()
    command = [sys.executable, "-m", "edgead", "run", str(asked.bundle)]
    command += ["--source", f"receive://127.0.0.1:{camera_port}?policy=every"]
    command += ["--sink", f"opcua://127.0.0.1:{station_port}?security=none&anonymous=yes&part_id=announced"]
    station = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # what is wrong it says on stderr
    try:
        plc = start(station, f"opc.tcp://127.0.0.1:{station_port}")
        if plc is None:
            print("error: the station did not start", file=sys.stderr)
            return 2
        try:
            return work(plc, f"http://127.0.0.1:{camera_port}/frame", parts)
        finally:
            plc.close()
    finally:
        station.terminate()  # it finishes the part that it has
        station.wait()


def start(station: subprocess.Popen[bytes], url: str) -> Plc | None:
    """Return a PLC that is connected to a station which judges parts."""
    until = time.monotonic() + START_S
    while station.poll() is None and time.monotonic() < until:
        plc = Plc(url)
        try:
            plc.connect()
            while plc.state() != "Operational" and station.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            if plc.state() == "Operational":
                return plc
        except (OSError, TimeoutError, ua.UaError):
            pass  # it does not listen yet
        plc.close()
        time.sleep(0.2)
    return None


def work(plc: Plc, camera: str, parts: list[Path]) -> int:
    """Let the parts come by; where the station is lost no gate opens any more. Returns the exit code."""
    opened, code = 0, 0
    beat = plc.heartbeat()
    print(f"{'part':>8}  {'decision':14} {'score':>8}  gate")
    for number, image in enumerate(parts):
        part_id = f"P{number:05d}"
        result = None
        try:
            plc.announce(part_id)
            trigger(camera, image)
            result = plc.wait_for(part_id)
            if result is None:
                plc.resynchronise()
        except (OSError, TimeoutError, ua.UaError) as error:
            print(f"{part_id}: the station is lost, {type(error).__name__}: {error}", file=sys.stderr)
            code = 3
            break
        lets_pass = result is not None and result.PartIsOk is True
        opened += lets_pass
        # A part that was not inspected has no score.
        decision, score = ("no result", None) if result is None else (result.Decision, result.Score)
        shown = "-" if score is None else f"{score:.2f}"
        print(f"{part_id:>8}  {decision:14} {shown:>8}  {'opens' if lets_pass else 'closed'}  {image.name}")
    else:
        # A PLC watches this all the time: a heartbeat that stands still takes every signal for off.
        deadline = time.monotonic() + DECISION_S
        while (now := plc.heartbeat()) == beat and time.monotonic() < deadline:
            time.sleep(0.1)
        print("the heartbeat moves" if now != beat else "the heartbeat stands still: no part may pass")
    print(f"the gate opened for {opened} of {len(parts)} parts")
    return code


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
