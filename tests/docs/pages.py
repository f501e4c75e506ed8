"""Running a page: its blocks in order, in one folder, small (in this process, few images) or as a reader would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import DOCS, ROOT, Block, read_blocks, shows
from tests.runtime.sink_services import free_port
from tests.waiting import wait_for

SMALL = ("--size", "64", "--set", "bank_size=256")
_COLUMNS = "120"
_SHELL = re.compile(r"[|&;<>$`*?~]")
_PORTS = re.compile(r"127\.0\.0\.1(:|\", )(5020|80[89]\d)")


class PageRun:
    """One page, run in ``folder``.

    Args:
        small: fit small networks, in this process; False: every block as it stands, by bash and Python.
        images: makes the images of a page that runs small, in the folder it is given.
        environment: of the processes; by default this one's, with `edgead` and `python` on the path.
    """

    def __init__(
        self,
        page: str,
        folder: Path,
        *,
        small: bool,
        images: Callable[[Path], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._blocks = read_blocks(DOCS / page)
        self._folder, self._small, self._images = folder, small, images
        self._environment = dict(environment) if environment is not None else _with_edgead(folder)
        self._ports: dict[str, str] = {}
        self.ran: list[Block] = []

    def run(self) -> PageRun:
        """Run all blocks that can run, and compare what they print; fails where one does not hold."""
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                if block.kind != "not run":
                    self._block(block, stack)
                    self.ran.append(block)
        return self

    def _block(self, block: Block, stack: contextlib.ExitStack) -> None:
        place, text = f"{block.page}:{block.line}", _PORTS.sub(self._port, block.text)
        if block.kind == "file":
            (self._folder / block.detail).write_text(text)
        elif block.kind == "background":
            self._background(place, text, block, stack)
        elif block.kind == "images" and self._small and self._images is not None:
            self._images(self._folder)
        else:
            printed = self._python(text) if block.language == "python" else self._commands(text)
            _compare(place, printed, block.prints)

    def _port(self, match: re.Match[str]) -> str:
        # A fixed port may be taken on this machine.
        return f"127.0.0.1{match[1]}{self._ports.setdefault(match[2], str(free_port()))}"

    def _python(self, text: str) -> str:
        if not self._small:
            return self._process([sys.executable, "-W", "error", "-c", text])
        text = re.sub(r"edgead\.fit\(([^)\n]*)\)", r'edgead.fit(\1, size=64, settings={"bank_size": 256})', text)
        with self._told() as said:
            exec(compile(text, "page", "exec"), {"__name__": "__main__"})  # noqa: S102 - what the page shows
        return said.getvalue()

    def _commands(self, text: str) -> str:
        lines = [one for one in text.replace("\\\n", " ").splitlines() if one.split("#")[0].strip()]
        simple = all(one.startswith("edgead ") and not _SHELL.search(_unquoted(one)) for one in lines)
        if not (self._small and simple):
            return self._process(["bash", "-euo", "pipefail", "-c", text])
        return "".join(self._inside(shlex.split(one, comments=True)[1:]) for one in lines)

    def _inside(self, arguments: list[str]) -> str:
        """Run a command in this process, which has imported torch already."""
        from edgead.cli import run

        if arguments[0] == "fit":
            arguments += SMALL
        with self._told() as said:
            code = run(arguments)
        assert code == 0, said.getvalue()
        return said.getvalue()

    @contextlib.contextmanager
    def _told(self) -> Iterator[io.StringIO]:
        """Go to the page's folder for what this process does itself; gives what it prints."""
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.chdir(self._folder)
            patch.setenv("COLUMNS", _COLUMNS)
            yield said

    def _process(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-4000:]}"
        return done.stdout

    def _background(self, place: str, text: str, block: Block, stack: contextlib.ExitStack) -> None:
        log = self._folder / f".background-{block.line}.log"
        with log.open("wb") as stream:
            # One command, so that ending it leaves nothing behind.
            child = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self._folder,
                env=self._environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        stack.callback(lambda: _compare(place, log.read_text(), block.prints))
        stack.callback(child.wait)
        stack.callback(child.terminate)
        wait_for(lambda: child.poll() is not None or block.detail in log.read_text())
        assert child.poll() is None, f"{place} ended:\n{log.read_text()[-2000:]}"


def _compare(place: str, printed: str, expected: str) -> None:
    missing = shows(printed, expected)
    if missing is not None:
        pytest.fail(
            f"{place}: the page shows\n  {missing.strip()}\nbut this was printed:\n{printed[-6000:]}", pytrace=False
        )


def _unquoted(line: str) -> str:
    return re.sub(r"'[^']*'", "", line)


def _with_edgead(folder: Path) -> dict[str, str]:
    """Return an environment in which `edgead` and `python` are those of this checkout."""
    bin_folder = folder.parent / f"{folder.name}-bin"
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "edgead"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m edgead "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": _COLUMNS}


def clean_environment() -> dict[str, str]:
    """Return an environment without anything of the developer's Python."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def copy_checkout(target: Path) -> Path:
    """Copy what a reader has cloned, without what was built or fetched since."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, place = ROOT / name, target / name
        if source.exists() or source.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place, follow_symlinks=False)
    return target


def few_images(made: Path, target: Path, counts: Mapping[str, int]) -> None:
    """Copy so many images of each folder of a category of tests/images.py."""
    for folder, count in counts.items():
        (target / folder).mkdir(parents=True)
        for path in sorted((made / folder).iterdir())[:count]:
            shutil.copy(path, target / folder)


def describe(blocks: list[Block]) -> list[dict[str, Any]]:
    """Return the blocks that do not run, for the list that the test prints."""
    return [{"at": f"{b.page}:{b.line}", "reason": b.detail} for b in blocks if b.kind == "not run"]
