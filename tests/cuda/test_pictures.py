"""Frames and anomaly maps resized by kernels equal what the runtime does on the host."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgead.runtime import maps as host_maps
from edgead.runtime import preprocess
from edgead.runtime.frame import Layout
from tests.cuda import pictures, toolchain
from tests.cuda.executor import Executor, HostExecutor
from tests.cuda.ptx.launch import PtxExecutor

LAYOUTS: tuple[Layout, ...] = ("rgb", "bgr", "gray")


@pytest.fixture(scope="module")
def library() -> Path:
    return toolchain.host_library()


@pytest.fixture(scope="module", params=["host", "ptx"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return HostExecutor(toolchain.host_library()) if request.param == "host" else PtxExecutor(toolchain.ptx())


def check_resize(executor: Executor, seed: int, largest: int) -> None:
    random = np.random.default_rng(seed)
    layout = LAYOUTS[seed % 3]
    rows, columns, height, width = (int(n) for n in random.integers(1, largest, 4))
    shape = (rows, columns) if layout == "gray" else (rows, columns, 3)
    # Extremes side by side show rounding best.
    frame = (
        random.choice(np.array([0, 255, 1, 128], np.uint8), shape)
        if seed % 2
        else random.integers(0, 256, shape, np.uint8)
    )
    found = pictures.resize(executor, frame, height, width, layout)
    np.testing.assert_array_equal(found, preprocess.resize_reference(frame, height, width, layout))


def test_frames_of_100_random_sizes_are_resized_to_the_byte(library: Path) -> None:
    for seed in range(100):
        check_resize(HostExecutor(library), seed, 90)


def test_ptx_resizes_frames_to_the_byte() -> None:
    executor = PtxExecutor(toolchain.ptx())
    for seed in range(12):
        check_resize(executor, seed, 40)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_camera_frame_is_resized_to_the_byte(library: Path, layout: Layout) -> None:
    shape = (480, 641) if layout == "gray" else (480, 641, 3)
    frame = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    found = pictures.resize(HostExecutor(library, "reverse"), frame, 128, 160, layout)
    np.testing.assert_array_equal(found, preprocess.resize(frame, 128, 160, layout))


@pytest.mark.parametrize("grid", [(7, 7), (28, 28), (14, 33)])
def test_maps_are_smoothed_as_the_module_does(executor: Executor, grid: tuple[int, int]) -> None:
    import torch

    from edgead.scoring import GaussianSmoothing

    maps = np.random.default_rng(2).random((2, *grid), np.float32)
    module = GaussianSmoothing(4.0 * min(grid) / 256.0)
    smoothed, score = pictures.smooth(executor, maps, np.ascontiguousarray(module.kernel.numpy()[0, 0]))
    np.testing.assert_allclose(smoothed, module(torch.from_numpy(maps)).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(score, smoothed.max((1, 2)))


def test_a_cell_that_is_not_finite_shows_in_the_score(executor: Executor) -> None:
    maps = np.random.default_rng(3).random((2, 9, 9), np.float32)
    maps[1, 4, 4] = np.nan
    weights = np.full((3, 3), 1 / 9, np.float32)
    _, score = pictures.smooth(executor, maps, weights)
    assert math.isfinite(score[0])
    assert math.isnan(score[1])


@pytest.mark.parametrize(
    ("size", "target"), [((7, 9), (31, 20)), ((28, 28), (28, 28)), ((1, 5), (4, 3)), ((12, 12), (5, 40))]
)
def test_maps_are_resized_to_the_bit(executor: Executor, size: tuple[int, int], target: tuple[int, int]) -> None:
    maps = np.random.default_rng(4).random((2, *size), np.float32)
    np.testing.assert_array_equal(pictures.resize_map(executor, maps, *target), host_maps.resize_map(maps, *target))
