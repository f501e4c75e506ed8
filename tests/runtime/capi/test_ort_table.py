"""The table of ONNX Runtime's C API, by which places its functions are called, held against two versions of the wheel.

A place that was wrong would call another function. Each of them is called here, and what comes out is what the Python
package of the same version says, or what the graph must give.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cache import packages
from tests.runtime.capi.building import ROOT, SOURCES
from tests.runtime.capi.bundles import with_references, write
from tests.runtime.capi.wrapper import Library, wheel_library

OLDEST = "1.19.2"
JUDGE = """
import sys
from pathlib import Path
import numpy as np
from tests.runtime.capi.wrapper import CError, Library, frame_of
library = Library(Path(sys.argv[1]))
with library.open(sys.argv[2], threads=1, library=Path(sys.argv[3])) as opened:
    print(opened.describe())
    print(opened.check().worst_difference)
    result = opened.inspect(frame_of(np.full((40, 60, 3), 77, np.uint8)))
    print(result.score, result.decision, result.map.shape)
try:
    library.open(sys.argv[4], library=Path(sys.argv[3]))
except CError as error:
    print(error)
"""


def library_of(version: str | None) -> Path:
    """The shared library of a version, None: the installed one."""
    if version is None:
        return wheel_library()
    if sys.version_info >= (3, 13):
        pytest.skip(f"onnxruntime {version} has no wheel for this Python")
    try:
        folder = packages(f"onnxruntime-{version}", [f"onnxruntime=={version}"])
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"onnxruntime {version} cannot be fetched: {str(getattr(error, 'stderr', '') or error)[-200:]}")
    (found,) = (folder / "onnxruntime" / "capi").glob("libonnxruntime.so.*")
    return found


@pytest.mark.parametrize("version", [None, OLDEST])
def test_every_function_is_the_one_it_is_taken_for(
    capi: Library, installed: Path, tmp_path: Path, version: str | None
) -> None:
    del capi  # built
    library = library_of(version)
    images = {f"{seed}.png": np.random.default_rng(seed).integers(0, 90, (16, 24, 3), np.uint8) for seed in range(3)}
    path = write(tmp_path / "x.edgead", 16, 24, files=with_references(16, 24, images))
    broken = write(tmp_path / "broken.edgead", 16, 24, files={"model.fp32.onnx": b"junk"})
    command = [sys.executable, "-c", JUDGE, installed / "lib" / "libedgead.so", path, library, broken]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    described, worst, judged, refused = done.stdout.splitlines()
    number = library.name.removeprefix("libonnxruntime.so.")
    assert described == f"onnxruntime {number} CPUExecutionProvider, fp32"
    assert (worst, judged) == ("0.0", "77.0 OK (4, 6)")
    assert refused.startswith("BACKEND_FAILED: onnxruntime cannot load model.fp32.onnx: ")


def test_what_is_no_onnxruntime_is_refused(installed: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.edgead", 16, 24)
    open_only = JUDGE.partition("with library")[0] + "library.open(sys.argv[2], library=Path(sys.argv[3]))"
    for library, word in (
        (tmp_path / "none.so", "pip install onnxruntime"),
        (installed / "lib/libedgead.so", "is too old or none"),
    ):
        command = [sys.executable, "-c", open_only, installed / "lib" / "libedgead.so", path, library]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert "CError: BACKEND_UNAVAILABLE: " in done.stderr
        assert word in done.stderr


def test_the_places_are_those_that_the_header_pins() -> None:
    # onnxruntime_c_api.cc holds the size of the table after each version with static_asserts: the last functions of
    # versions 1 to 4 are at 101, 118, 124 and 126, and 130 follows in version 5.
    text = (SOURCES / "src" / "ort_api.hpp").read_text()
    places = {name: int(place) for place, name in re.findall(r"FUNCTION\((\d+), (\w+),", text)}
    assert places["release_options"] == 100
    assert places["fix_dimension"] == 124
    assert places["set_entry"] == 130
    assert len(set(places.values())) == len(places)
