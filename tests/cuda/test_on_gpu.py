"""The kernels on a GPU, against float64; never run so far. Where there is one: `pytest -m gpu tests/cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgead.export.kernels.gpu import Gpu
from edgead.export.kernels.pictures import Resizer, find_regions, resize_maps
from edgead.export.kernels.scoring import MemoryBank, mahalanobis_scores
from edgead.runtime.errors import BackendUnavailable
from edgead.runtime.imaging import anomaly_map as maps
from edgead.runtime.imaging import preprocess
from edgead.runtime.imaging.nv12 import WEIGHTS, nv12_to_rgb
from tests.cuda import cases, knn, mahalanobis

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    try:
        opened = Gpu()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("shape", [*cases.RAGGED, (784, 2000, 64), (1024, 10_000, 384)], ids=str)
def test_nearest_neighbours(gpu: Gpu, shape: tuple[int, int, int], precision: Any) -> None:
    features, rows, center = knn.features(0, *shape)
    bank = MemoryBank(gpu, gpu.upload(rows), gpu.upload(center), precision)
    for k in {1, min(9, shape[1])}:
        distance, index = (found.numpy() for found in bank.search(gpu.upload(features), k))
        squared, expected = knn.brute_force((features - center)[:100], rows - center, k)
        # Every sum is in a fixed order and without fused steps: the same bits as on the CPU.
        np.testing.assert_array_equal(index[:100], expected)
        np.testing.assert_array_equal(distance[:100], np.sqrt(squared))
        again = bank.search(gpu.upload(features), k)[0].numpy()
        np.testing.assert_array_equal(again, distance)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("channels", "rank"), [(1, None), (33, None), (100, None), (515, None), (65, 34)])
def test_mahalanobis_distances(gpu: Gpu, channels: int, rank: int | None, dtype: type[np.generic]) -> None:
    locations = mahalanobis.make(1, (5, 4), channels, rank, dtype)
    features = (locations.mean + np.random.default_rng(2).standard_normal((6, 20, channels))).astype(np.float32)
    arrays = [gpu.upload(values) for values in (features, locations.mean, locations.factors)]
    precision = None if locations.precision is None else gpu.upload(locations.precision)
    found = mahalanobis_scores(gpu, *arrays, precision).numpy()
    np.testing.assert_allclose(found, mahalanobis.reference(features, locations, 1), rtol=1e-4)


def test_frames_are_resized_to_the_byte(gpu: Gpu) -> None:
    random = np.random.default_rng(4)
    frame = random.integers(0, 256, (480, 641, 3), np.uint8)
    luma, chroma = random.integers(0, 256, (480, 641), np.uint8), random.integers(0, 256, (240, 321, 2), np.uint8)
    resizer = Resizer(gpu, (480, 641), (256, 256))
    for layout in ("rgb", "bgr"):
        found = resizer.frame(gpu.upload(frame), layout).numpy()  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, preprocess.resize(frame, 256, 256, layout))  # type: ignore[arg-type]
    found = resizer.frame(gpu.upload(luma), "gray").numpy()
    np.testing.assert_array_equal(found, preprocess.resize(luma, 256, 256, "gray"))
    for standard in WEIGHTS:
        found = resizer.nv12(gpu.upload(luma), gpu.upload(chroma), standard).numpy()  # type: ignore[arg-type]
        rgb = nv12_to_rgb(luma, chroma, standard)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, preprocess.resize(rgb, 256, 256))


def test_maps_are_resized_to_the_bit_and_cut_into_the_same_regions(gpu: Gpu) -> None:
    values = np.random.default_rng(5).random((3, 28, 28), np.float32)
    resized = resize_maps(gpu, gpu.upload(values), 224, 224)
    expected = maps.resize_map(values, 224, 224)
    np.testing.assert_array_equal(resized.numpy(), expected)
    boxes, peaks, counts = (found.numpy() for found in find_regions(gpu, resized, 0.8, 500))
    for number, one in enumerate(expected):
        regions = maps.find_regions(one, 0.8)
        assert counts[number] == len(regions)
        assert boxes[number, : len(regions)].tolist() == [list(region[:4]) for region in regions]
        assert peaks[number, : len(regions)].tolist() == [region.peak for region in regions]


def test_tensors_of_torch_are_taken_where_they_are(gpu: Gpu) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    features, rows, _ = knn.features(3, 50, 300, 64)
    bank = MemoryBank(gpu, torch.from_numpy(rows).cuda())
    queries = torch.from_numpy(features).cuda()
    torch.cuda.synchronize()
    distance, _ = bank.search(queries)
    squared, _ = knn.brute_force(features, rows, 1)
    np.testing.assert_array_equal(distance.numpy(), np.sqrt(squared))
