"""The folder for what tests fetch or make once and keep: ``~/.cache/edgead-tests``, or what EDGEAD_TEST_CACHE names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

CACHE = Path(os.environ.get("EDGEAD_TEST_CACHE", Path.home() / ".cache" / "edgead-tests"))


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, which ``make`` fills unless it is there whole.

    Of several processes that make it at once the first to finish wins; one that is killed leaves nothing that counts.
    """
    target = CACHE / name
    if not (target / ".whole").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=CACHE) as scratch:
            beside = Path(scratch) / name
            beside.mkdir()
            make(beside)
            (beside / ".whole").touch()
            try:
                beside.rename(target)
            except OSError:
                if not (target / ".whole").is_file():  # half of one, by a program that did not take such care
                    shutil.rmtree(target, ignore_errors=True)
                    beside.rename(target)
    return target


def packages(name: str, requirements: Sequence[str]) -> Path:
    """Return a folder with packages of PyPI, unpacked without what they depend on.

    Raises:
        subprocess.CalledProcessError: pip cannot get them.
    """

    def install(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *requirements], check=True, capture_output=True, text=True, timeout=600)

    return kept(name, install)
