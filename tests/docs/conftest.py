"""The site, built once for the tests that look at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, ROOT

COMMAND = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    command = [*COMMAND, "-d", str(target / "trees"), str(source), str(target / "html")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; a warning of Sphinx, such as a broken link or a page in no menu, fails."""
    pytest.importorskip("sphinx", reason="needs Sphinx: pip install 'edgead[docs]'")
    target = tmp_path_factory.mktemp("site")
    done = build(DOCS, target)
    assert done.returncode == 0, done.stderr
    return target / "html"
