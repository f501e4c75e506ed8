"""What a stage found, on the disk as soon as it is there, so that a killed stage goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgead.runtime.files import atomic_write

SCHEMA = "edgead.gpu-day/1"
_ERROR_CHARACTERS = 2000


class Results:
    """The items of one stage in ``OUT/STAGE.json``; only one process writes it.

    Args:
        out: folder; copy_to: another one that gets each version too, such as the one that is brought home.
        stage: name; about: what holds of all items, such as the device.
    """

    def __init__(self, out: Path, stage: str, about: dict[str, Any], copy_to: Path | None = None) -> None:
        self.path, self._copy_to = out / f"{stage}.json", copy_to
        self.items: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.items = json.loads(self.path.read_text())["items"]
        self._head = {"schema": SCHEMA, "stage": stage, **about}
        self.save()

    def do(self, name: str, work: Callable[[], Any], *, resumes: bool = False) -> Any:
        """Do the work of an item unless it is done, and keep its value; a failure is kept, and ends nothing.

        An item that was under way when the stage was killed is not tried again, for it may be what hangs, unless it
        ``resumes`` from a state of its own. Returns the value, None where there is none.
        """
        found = self.items.get(name, {})
        if found.get("status") == "done":
            return found["value"]
        if found.get("status") == "running" and not resumes:
            self.set(name, {"status": "interrupted"})
        if self.items.get(name, {}).get("status") == "interrupted":
            return None
        self.set(name, {"status": "running"})
        begun = time.monotonic()
        try:
            value = work()
        # Whatever goes wrong there is a result of the day, and the next item must have its turn.
        except Exception as error:  # noqa: BLE001
            text = "".join(traceback.format_exception(error))[-_ERROR_CHARACTERS:]
            self.set(name, {"status": "failed", "seconds": _since(begun), "error": str(error), "trace": text})
            print(f"  {name}: FAILED: {' '.join(str(error).split())[:300]}", flush=True)
            return None
        self.set(name, {"status": "done", "seconds": _since(begun), "value": value})
        print(f"  {name}: {_since(begun):.1f} s", flush=True)
        return value

    def value(self, name: str) -> Any:
        """Return the value of an item that is done, else None."""
        item = self.items.get(name, {})
        return item["value"] if item.get("status") == "done" else None

    @staticmethod
    def value_in(path: Path, name: str) -> Any:
        """Return the value of an item in another stage's file; None where it is not done or there is no file."""
        item = json.loads(path.read_text())["items"].get(name, {}) if path.is_file() else {}
        return item["value"] if item.get("status") == "done" else None

    def save(self) -> None:
        """Write the file, whole or not at all, and its copy."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path, OSError) as stream:
            stream.write((json.dumps({**self._head, "items": self.items}, indent=1) + "\n").encode())
        copy_result(self.path, self._copy_to)

    def set(self, name: str, item: dict[str, Any]) -> None:
        """Keep an item as it is given."""
        self.items[name] = item
        self.save()


def copy_result(path: Path, folder: Path | None) -> None:
    """Copy a result file into a folder, where there are both; that it cannot be done ends nothing."""
    if folder is not None and path.is_file():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)


def count_items(path: Path) -> dict[str, int]:
    """Return how many items of a result file are in which state; nothing where there is no file."""
    found: dict[str, int] = {}
    for item in json.loads(path.read_text())["items"].values() if path.is_file() else ():
        found[item["status"]] = found.get(item["status"], 0) + 1
    return found


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 2)
