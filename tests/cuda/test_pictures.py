"""Frames and anomaly maps by the kernels, launched as a program does, equal what the runtime does on the host."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.export.kernels.pictures import Resizer, find_regions, resize_maps, smooth_maps
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Layout
from edgead.runtime.imaging import anomaly_map as host_maps
from edgead.runtime.imaging import preprocess
from edgead.runtime.imaging.nv12 import nv12_to_rgb
from tests.cuda import toolchain
from tests.cuda.cases import check_regions, check_resize
from tests.cuda.executor import Executor, HostExecutor, NumpyDevice
from tests.cuda.ptx.launch import PtxExecutor

LAYOUTS: tuple[Layout, ...] = ("rgb", "bgr", "gray")


@pytest.fixture(scope="module")
def library() -> Path:
    return toolchain.host_library()


@pytest.fixture(scope="module", params=["host", "ptx"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return HostExecutor(toolchain.host_library()) if request.param == "host" else PtxExecutor(toolchain.ptx())


def test_frames_of_100_random_sizes_are_resized_to_the_byte(library: Path) -> None:
    for seed in range(100):
        check_resize(HostExecutor(library), seed, 90)


def test_ptx_resizes_frames_to_the_byte() -> None:
    executor = PtxExecutor(toolchain.ptx())
    for seed in range(15):
        check_resize(executor, seed, 40)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_camera_frame_is_resized_to_the_byte(library: Path, layout: Layout) -> None:
    shape = (480, 641) if layout == "gray" else (480, 641, 3)
    frame = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    resizer = Resizer(NumpyDevice(HostExecutor(library, "reverse")), (480, 641), (128, 160))
    np.testing.assert_array_equal(resizer.frame(frame, layout), preprocess.resize(frame, 128, 160, layout))


@pytest.mark.parametrize("standard", ["bt601", "bt709"])
def test_an_nv12_frame_is_resized_to_the_byte(library: Path, standard: str) -> None:
    random = np.random.default_rng(1)
    luma, chroma = random.integers(0, 256, (480, 640), np.uint8), random.integers(0, 256, (240, 320, 2), np.uint8)
    resizer = Resizer(NumpyDevice(HostExecutor(library, "reverse")), (480, 640), (128, 160))
    found = resizer.nv12(luma, chroma, standard)  # type: ignore[arg-type]
    expected = preprocess.resize(nv12_to_rgb(luma, chroma, standard), 128, 160)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("grid", [(7, 7), (28, 28), (14, 33)])
def test_maps_are_smoothed_as_the_module_does(executor: Executor, grid: tuple[int, int]) -> None:
    import torch

    from edgead.features.scoring import GaussianSmoothing

    maps = np.random.default_rng(2).random((2, *grid), np.float32)
    module = GaussianSmoothing(4.0 * min(grid) / 256.0)
    weights = np.ascontiguousarray(module.kernel.numpy()[0, 0])
    smoothed, score = smooth_maps(NumpyDevice(executor), maps, weights)
    np.testing.assert_allclose(smoothed, module(torch.from_numpy(maps)).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(score, smoothed.max((1, 2)))


def test_a_cell_that_is_not_finite_shows_in_the_score(executor: Executor) -> None:
    maps = np.random.default_rng(3).random((2, 9, 9), np.float32)
    maps[1, 4, 4] = np.nan
    weights = np.full((3, 3), 1 / 9, np.float32)
    _, score = smooth_maps(NumpyDevice(executor), maps, weights)
    assert math.isfinite(score[0])
    assert math.isnan(score[1])


@pytest.mark.parametrize(
    ("size", "target"), [((7, 9), (31, 20)), ((28, 28), (28, 28)), ((1, 5), (4, 3)), ((12, 12), (5, 40))]
)
def test_maps_are_resized_to_the_bit(executor: Executor, size: tuple[int, int], target: tuple[int, int]) -> None:
    maps = np.random.default_rng(4).random((2, *size), np.float32)
    found = resize_maps(NumpyDevice(executor), maps, *target)
    np.testing.assert_array_equal(found, host_maps.resize_map(maps, *target))


def test_regions_above_a_threshold_are_those_of_the_host(executor: Executor) -> None:
    check_regions(executor)


def test_regions_of_many_random_maps(library: Path) -> None:
    random = np.random.default_rng(5)
    for density in (0.02, 0.3, 0.5, 0.7):
        rows, columns = (int(size) for size in random.integers(1, 40, 2))
        maps = (random.random((3, rows, columns)) < density).astype(np.float32)
        boxes, _, counts = find_regions(NumpyDevice(HostExecutor(library, "random:3")), maps, 0.5, 400)
        for number, one in enumerate(maps):
            expected = host_maps.find_regions(one, 0.5)
            assert counts[number] == len(expected)
            assert boxes[number, : counts[number]].tolist() == [list(region[:4]) for region in expected]


def test_wrong_arrays_are_refused(library: Path) -> None:
    device = NumpyDevice(HostExecutor(library))
    frame: NDArray[np.uint8] = np.zeros((8, 8, 3), np.uint8)
    maps = np.zeros((1, 4, 4), np.float32)
    resizer = Resizer(device, (8, 8), (4, 4))
    for call, said in (
        (lambda: resizer.frame(frame[:4]), r"expected \(8, 8, 3\) uint8, got \(4, 8, 3\)"),
        (lambda: resizer.frame(frame, "gray"), r"expected \(8, 8\)"),
        (lambda: resizer.frame(frame, "rgba"), "unknown layout 'rgba'"),  # type: ignore[arg-type]
        (lambda: resizer.nv12(frame[:, :, 0], frame), r"expected \(4, 4, 2\)"),
        (lambda: resizer.nv12(frame, frame, "bt2020"), "unknown colour standard 'bt2020'"),  # type: ignore[arg-type]
        (lambda: Resizer(device, (8, 0), (4, 4)), "must be at least 1"),
        (lambda: smooth_maps(device, maps, np.zeros((9, 9), np.float32)), "do not fit maps of 4 x 4"),
        (lambda: resize_maps(device, maps[0], 4, 4), "anomaly maps are"),
        (lambda: resize_maps(device, maps, 0, 4), "cannot be resized to 0x4"),
        (lambda: find_regions(device, maps, 0.5, 0), "capacity must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            call()
