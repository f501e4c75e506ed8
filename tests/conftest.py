"""Fixtures shared by all floors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cache import CACHE
from tests.images import image_root

ROOT = Path(__file__).resolve().parent.parent


_CONTRACT = "tests/test_detector_contract.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that of several processes none ends late."""
    items.sort(key=lambda item: not item.nodeid.startswith(_CONTRACT))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal files to the processes, and of the detectors' contract detectors: what shares what is dear to make."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            detector = test.partition("[")[2].rstrip("]").partition("-")[0]
            return f"{file} {detector}" if file == _CONTRACT else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_reaches_children() -> None:
    """A shell starts what stands before ``&`` deaf to SIGINT, and so would be every program that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _equal_weights() -> None:
    """A network that a test makes has the same first weights, whatever ran before in this process."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_profiles_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What somebody tuned here must change no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEAD_PROFILES", str(tmp_path_factory.mktemp("profiles")))
        yield


@pytest.fixture(scope="session")
def made_images() -> Path:
    """The folder of the categories ``plate``, ``cell``, ``figure`` and ``broken``; do not change it, copy it."""
    pytest.importorskip("elpv_dataset", reason="needs elpv-dataset: pip install 'edgead[demo]'")
    return image_root()


@pytest.fixture(scope="session")
def named_categories() -> Path:
    """Images of ``metal_plate``, ``magnetic_tile`` and ``toy``, for figures that hold of these only; skips without."""
    path = Path(os.environ.get("EDGEAD_DATA", ROOT.parent / "shared" / "data")) / "ci_small"
    if not path.is_dir():
        pytest.skip(f"a figure of images that are not at {path}; set EDGEAD_DATA to the folder that holds ci_small")
    return path


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the real TensorRT-RTX, on this process's path and on that of its workers; skips without it."""
    found = sorted(CACHE.glob("tensorrt_rtx-*/.whole"))
    if not found:
        pytest.skip("TensorRT-RTX is not here; fetch it once with: python -m tests.export.dump_tensorrt_api --fetch")
    monkeypatch.syspath_prepend(str(found[-1].parent))
    monkeypatch.setenv("PYTHONPATH", str(found[-1].parent))
    return found[-1].parent
