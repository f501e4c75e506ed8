"""The table of Python, C, C++ and C#: the same bytes for the network, the same scores to the bit, the same decisions.

Real images of four categories, judged by real models: two of one category (nearest rows with a region and a mask,
Gaussians), one that cuts tiles, one that aligns, one that routes two categories, one that was trained; in FP32 and
INT8, with native code and without.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgead.runtime.errors import BackendUnavailable
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.roi import Box
from edgead.runtime.inspection.inspector import Inspector
from tests.parts import draw_part
from tests.runtime.capi.languages import LANGUAGES, Program, build_program
from tests.runtime.capi.wrapper import CError, Library, frame_of, wheel_library
from tests.runtime.conftest import native_library  # noqa: F401 - a fixture

Images = list[NDArray[np.uint8]]
BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Made:
    """A bundle and the images that it judges."""

    name: str
    bundle: Path
    images: Images


def some(source: Path, target: Path, good: int) -> Path:
    """Copy a category with a few good images; all that are judged."""
    (target / "train").mkdir(parents=True)
    shutil.copytree(source / "test", target / "test")
    for file in sorted((source / "train" / "good").iterdir())[:good]:
        (target / "train" / "good").mkdir(exist_ok=True)
        shutil.copy(file, target / "train" / "good")
    return target


def draw_bolts(target: Path) -> Path:
    """Make a category of a part that lies anywhere, and a picture without it."""
    for folder, count in (("train/good", 24), ("test/good", 6), ("test/scratch", 6)):
        (target / folder).mkdir(parents=True)
        for index in range(count):
            picture = draw_part((200, 160), (80 + index * 3 % 40, 65 + index * 5 % 30), 67 * index)
            if folder.endswith("scratch"):
                picture[70:76, 60:140:3] = 255
            Image.fromarray(picture).save(target / folder / f"{index}.png")
    Image.fromarray(np.full((160, 200, 3), 180, np.uint8)).save(target / "test" / "scratch" / "nothing.png")
    return target


INT8 = ("int8-cpu",)
KINDS: dict[str, dict[str, Any]] = {
    "patchcore": {
        "category": "plate",
        "settings": {"bank_size": 1100},
        "roi": Box(9, 5, 170, 180),
        "mask": True,
        "precisions": INT8,
    },
    "padim": {"category": "cell", "settings": {"dimensions": 24}, "precisions": INT8},
    "tiles": {"category": "broken", "detector": "patchcore", "settings": {"bank_size": 1100}, "tiles": (1, 2)},
    "align": {"category": "bolt", "detector": "patchcore", "settings": {"bank_size": 1100}, "align": True},
    "dfc": {"category": "plate+figure", "settings": {"head.bank_size": 128}},
    "dfc-int8": {
        "category": "plate+figure",
        "detector": "dfc",
        "settings": {"head.bank_size": 128},
        "precisions": INT8,
    },
    "slsg": {
        "category": "plate",
        "good": 40,
        "settings": {"steps": 20, "batch": 2, "width": 0.15, "pretraining_steps": 2, "evaluations": 1},
    },
}
QUICK = [kind for kind in KINDS if kind != "dfc-int8"]


def make(kind: str, images: Path, folder: Path) -> Made:
    """Fit and export one."""
    from edgead.export.exporting import export_bundle
    from edgead.fitting import fit

    options = dict(KINDS[kind])
    good, names = options.pop("good", 12), options.pop("category").split("+")
    if names == ["bolt"]:
        categories = [draw_bolts(folder / "bolt")]
    else:
        categories = [some(images / name, folder / name, good) for name in names]
    if options.pop("mask", False):
        mask = np.zeros((192, 192), np.uint8)
        mask[60:90, 40:70] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        options["mask"] = folder / "mask.png"
    settings, precisions = options.pop("settings"), options.pop("precisions", ())
    detector = options.pop("detector", kind)
    model = fit(categories, detector=detector, settings=settings, size=96, **options)
    files = [file for category in categories for file in sorted((category / "test").rglob("*.*"))]
    export_bundle(model.exportable("x"), folder / "x.edgead", precisions=precisions, max_drop=5.0, allow_drift=True)
    return Made(kind, folder / "x.edgead", [read_image(file) for file in files])


@pytest.fixture(scope="session")
def models(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A function that returns one of KINDS, made once."""
    pytest.importorskip("torch", reason="needs torch: pip install 'edgead[export]'")
    return cache(lambda kind: make(kind, made_images, tmp_path_factory.mktemp(kind)))


@pytest.fixture(params=[*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in QUICK)])
def made(request: pytest.FixtureRequest, models: Callable[[str], Made]) -> Made:
    return models(request.param)


@pytest.fixture(scope="session")
def programs(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """A function that returns an example, built once."""
    return cache(lambda language: build_program(language, installed, tmp_path_factory.mktemp("program")))


@pytest.fixture(params=LANGUAGES)
def program(request: pytest.FixtureRequest, programs: Callable[[str], Program]) -> Program:
    return programs(request.param)


def precisions_of(inspector: Path) -> list[str]:
    from edgead.runtime.bundle.bundle import Bundle

    with Bundle.open(inspector) as bundle:
        return list(bundle.manifest.precisions)


def noise(like: NDArray[np.uint8], count: int) -> Images:
    """Random frames of an image's size."""
    generator = np.random.default_rng(count)
    return [generator.integers(0, 256, like.shape, dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_bit_differs(
    made: Made, capi: Library, native: bool, backend: str, with_native: Callable[[], None]
) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}: pip install {backend}")
    if native:
        with_native()
    images = [*made.images, *noise(made.images[0], 8)]
    decisions: set[str] = set()
    for precision in precisions_of(made.bundle):
        asked = {"precision": precision, "threads": 2, "backend": backend}
        with (
            capi.open(made.bundle, native=native, **asked) as c,  # type: ignore[arg-type]
            Inspector.open(made.bundle, native_code=native, **asked) as python,  # type: ignore[arg-type]
        ):
            # One must not be compared with the other's way of computing.
            assert c.describe().partition(" ")[2].partition(" ")[2] == f"{python.describe().provider}, {precision}"
            assert c.check().worst_difference <= 1.0
            for image in images:
                expected = python(image)
                try:
                    np.testing.assert_array_equal(c.prepare(frame_of(image)), python.view.prepare(image))
                except (CError, PartNotFound):
                    assert "part not found" in str(expected.reason)
                result = c.inspect(frame_of(image))
                decisions.add(result.decision)
                assert (result.decision, result.threshold) == (str(expected.decision), expected.threshold)
                assert (result.category, result.reason) == (expected.category, expected.reason)
                assert result.score.hex() == expected.score.hex()
                assert (result.map is None) == (expected.map is None)
                if result.map is not None:
                    np.testing.assert_array_equal(result.map, expected.map)
    assert len(decisions) > 1


@pytest.fixture
def with_native(native_library: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:  # noqa: F811
    """A function that gives Python the native code that C always has."""

    def give() -> None:
        from edgead.runtime.backends.native import library

        monkeypatch.setattr(library, "find_library", lambda: native_library)

    return give


def test_each_language_says_the_same(made: Made, program: Program, with_native: Callable[[], None]) -> None:
    with_native()
    for precision in precisions_of(made.bundle):
        with Inspector.open(made.bundle, backend="onnxruntime", precision=precision) as python:
            expected = [(str(result.decision), result.score) for result in map(python, made.images)]
        found = program.judge([made.bundle, wheel_library(), precision], made.images)
        assert len(found) == len(expected)
        for (decision, score), (wanted, own) in zip(found, expected, strict=True):
            assert decision == wanted
            assert score == own or (math.isnan(score) and math.isnan(own))


def test_each_language_hands_on_the_line(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "none.edgead"
    done = program.run([path, wheel_library()], [])
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"EDGEAD_BUNDLE_MISSING: {path} does not exist; check the path\n"


EARLIER = sorted((Path(__file__).parents[1] / "earlier").glob("*.edgead"))


@pytest.mark.parametrize("bundle", EARLIER, ids=[path.stem for path in EARLIER])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bundles_of_earlier_versions_decide_the_same(bundle: Path, capi: Library, backend: str) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}: pip install {backend}")
    # Two of them route: most of this noise is of no category, and what is said of it is the same too.
    frames = noise(np.zeros((90, 110, 3), np.uint8), 30)
    for precision in precisions_of(bundle):
        try:
            python = Inspector.open(bundle, backend=backend, precision=precision)
        except BackendUnavailable:  # on a processor whose sums saturate
            with pytest.raises(CError, match=r"BACKEND_UNAVAILABLE: .* its sums saturate on this processor"):
                capi.open(bundle, precision=precision, backend=backend)
            continue
        with python, capi.open(bundle, precision=precision, backend=backend) as c:
            for frame in frames:
                result, expected = c.inspect(frame_of(frame)), python(frame)
                assert result[:5] == (
                    str(expected.decision),
                    expected.score,
                    expected.threshold,
                    expected.category,
                    expected.reason,
                )
                np.testing.assert_array_equal(result.map, expected.map)
