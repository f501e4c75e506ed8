"""libedgead, built once for all tests that use it, plain and with each sanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.capi.building import build
from tests.runtime.capi.wrapper import Library


@pytest.fixture(scope="session")
def installed() -> Path:
    """The folder that `cmake --install` filled: include/, lib/, lib/cmake/."""
    return build() / "installed"


@pytest.fixture(scope="session")
def capi(installed: Path) -> Library:
    """The library as Python calls it."""
    return Library(installed / "lib" / "libedgead.so")
