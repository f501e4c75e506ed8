"""A terminal of a given width, and what a command really draws on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.waiting import LONG_S

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Shown(NamedTuple):
    """What a command left on a terminal: exit code, and all characters that it sent there."""

    code: int
    raw: str

    @property
    def text(self) -> str:
        """The same without colours and movements, each redrawn line by itself."""
        return _ESCAPE.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")


def edgead_on_terminal(
    arguments: Sequence[str | Path], columns: int, environment: Mapping[str, str] | None = None
) -> Shown:
    """Run ``edgead`` in a process of its own whose stdin, stdout and stderr are a terminal."""
    free = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "edgead", *map(str, arguments)]
    found = b""
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**free, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
    ) as child:
        os.close(theirs)
        with contextlib.suppress(OSError):  # Linux says so when the last one has closed it
            while chunk := os.read(ours, 65536):
                found += chunk
        os.close(ours)
        code = child.wait(LONG_S)
    return Shown(code, found.decode())
