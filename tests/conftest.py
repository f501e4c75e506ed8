"""Fixtures shared by all floors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_reaches_children() -> None:
    """A shell starts what stands before ``&`` deaf to SIGINT, and so would be every program that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_profiles_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What somebody tuned here must change no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEAD_PROFILES", str(tmp_path_factory.mktemp("profiles")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images; skips where it is absent."""
    path = Path(os.environ.get("EDGEAD_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real images at {path}; set EDGEAD_DATA to their folder")
    return path


@pytest.fixture(scope="session")
def ci_small(data_root: Path) -> Path:
    """The 10 MiB selection for CI: magnetic_tile, metal_plate, toy."""
    path = data_root / "ci_small"
    if not path.is_dir():
        pytest.skip(f"no ci_small folder in {data_root}")
    return path


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the real TensorRT-RTX, on this process's path and on that of its workers; skips without it."""
    root = Path(os.environ.get("EDGEAD_TEST_CACHE", Path.home() / ".cache" / "edgead-tests"))
    found = sorted(root.glob("tensorrt_rtx-*/.whole"))
    if not found:
        pytest.skip("TensorRT-RTX is not here; fetch it once with: python tests/export/dump_tensorrt_api.py")
    monkeypatch.syspath_prepend(str(found[-1].parent))
    monkeypatch.setenv("PYTHONPATH", str(found[-1].parent))
    return found[-1].parent
