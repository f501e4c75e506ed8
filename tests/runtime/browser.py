"""A headless Chromium, driven through its own DevTools port: as much of it as the tests of the live page need."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LONG_S, wait_for

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One tab. `evaluate` runs JavaScript in it and returns what it gives, promises awaited."""

    def __init__(self, folder: Path) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        websocket = pytest.importorskip("websocket", reason="needs websocket-client: pip install 'edgead[dev]'")
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip("needs Chromium: apt-get install chromium")
        command = [
            *(program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}"),
            *("--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking"),
            *("--disable-extensions", "--disable-component-update", "--mute-audio", "--window-size=1400,1000"),
            *(("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()),
            "about:blank",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = folder / "DevToolsActivePort"
        wait_for(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1)
        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=LONG_S) as answer:
            tab = next(target for target in json.load(answer) if target["type"] == "page")
        self._socket = websocket.create_connection(
            tab["webSocketDebuggerUrl"], timeout=LONG_S, suppress_origin=True, max_size=None
        )
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, element: str) -> str:
        return str(self.evaluate(f"(document.getElementById({element!r}) || {{}}).textContent || ''"))

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release one key, as a keyboard does."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def requests(self) -> set[str]:
        """The addresses of everything that the tab asked for."""
        return {e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"}

    def complaints(self) -> list[str]:
        """What stands in the console as an error, and exceptions that nobody caught."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"])[:500])
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def close(self) -> None:
        self._socket.close()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
