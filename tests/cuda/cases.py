"""What must hold of the kernels on any executor: each function runs one case and raises AssertionError."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.export.kernels.pictures import Resizer, find_regions
from edgead.runtime.imaging import preprocess
from edgead.runtime.imaging.anomaly_map import find_regions as find_regions_on_host
from edgead.runtime.imaging.nv12 import nv12_to_rgb
from tests.cuda import knn, launchers, mahalanobis
from tests.cuda.executor import Executor, HostExecutor, NumpyDevice
from tests.cuda.knn import INT8, KEEP, NO_NEIGHBOUR, Code, Floats, Found, Prepared

# Ragged and tiny: one of everything, odd channels, both sides of every tile's edge.
RAGGED = [
    (1, 1, 1), (3, 2, 5), (64, 64, 16), (65, 63, 17), (127, 65, 31), (128, 64, 32), (129, 129, 33),
    (20, 257, 64), (5, 640, 100), (70, 130, 65),
]  # fmt: skip


def check_search(
    executor: Executor,
    shape: tuple[int, int, int],
    code: Code,
    neighbours: int = 1,
    splits: int = 1,
    seed: int = 0,
    *,
    preparing: Executor | None = None,
) -> Found:
    """Prepare, scan and rank one problem; every stage is held against float64, the result against FP32 to the bit.

    Args:
        executor: runs the kernels; shape: queries, rows and channels.
        preparing: runs `knn_prepare` instead, where the executor is slow and that kernel is not in question.
    """
    features, rows, center = knn.features(seed, *shape)
    preparing = preparing or executor
    queries = knn.prepare(preparing, features, center, code, bank=False)
    bank = knn.prepare(preparing, rows, center, code, bank=True)
    check_prepared(features, center, queries)
    check_prepared(rows, center, bank)
    assert bank.bound[0] == bank.stats[:, 0].max(), "largest norm of the bank"
    assert bank.bound[1] == bank.error.max(), "largest coding error of the bank"
    found = knn.search(executor, queries, bank, neighbours, splits)
    check_candidates(queries, bank, splits, found.candidates)
    check_found(queries, bank, neighbours, found)
    if neighbours == 1:
        # The exact scan behind it would hide a scan that finds nothing.
        assert found.certain.mean() > 0.9, f"only {found.certain.mean():.0%} of the queries were certain"
    return found


def check_prepared(features: Floats, center: Floats, prepared: Prepared) -> None:
    """Hold centred rows, codes, norms and errors against numpy."""
    channels = prepared.channels
    centred = features.astype(np.float32) - center
    np.testing.assert_array_equal(prepared.centred[:, :channels], centred, "centred rows")
    assert not prepared.centred[:, channels:].any(), "padding of the centred rows"
    assert not prepared.coded[:, channels:].any(), "padding of the coded rows"
    lost = centred.astype(np.float64) - prepared.decoded()
    step = {np.float32: 0.0, np.float16: 2.0**-11, np.int8: 0.5001 / 127}[prepared.code.dtype]  # type: ignore[index]
    largest = np.abs(centred).max(1, keepdims=True)
    assert (np.abs(lost) <= step * largest).all(), "codes are not the nearest"
    norms = np.square(prepared.decoded()).sum(1)
    np.testing.assert_allclose(prepared.stats[:, 0], norms, rtol=2e-6, atol=0, err_msg="norms")
    # Codes times scale are rounded to FP32 in the kernel, and not here.
    slack = 2.0**-22 * np.sqrt(norms).max()
    np.testing.assert_allclose(prepared.error, np.linalg.norm(lost, axis=1), rtol=1e-4, atol=slack, err_msg="errors")


def check_candidates(queries: Prepared, bank: Prepared, splits: int, candidates: NDArray[np.uint64]) -> None:
    """Each list holds the nearest coded rows among those that fall to it, with their distances."""
    q, b = queries.decoded(), bank.decoded()
    norms = np.square(q).sum(1)[:, None] + np.square(b).sum(1)
    distances = np.maximum(norms - 2.0 * q @ b.T, 0.0)
    tolerance = 4e-6 * norms.max(1)
    _, _, tile, lists, _ = queries.code.geometry
    number = np.arange(bank.count)
    column = number % tile
    inner = column // 4 if lists == 16 else column // 32 * 4 + column % 8 // 2
    owner = number // tile % splits * lists + inner
    squared, index = knn.unpack(candidates)
    everyone = np.arange(queries.count)[:, None]
    for place in range(splits * lists):
        mine = np.flatnonzero(owner == place)
        kept = min(KEEP, len(mine))
        assert (candidates[:, place, kept:] == NO_NEIGHBOUR).all(), f"list {place} holds more than it was offered"
        if kept == 0:
            continue
        rows, values = index[:, place, :kept], squared[:, place, :kept]
        assert np.isin(rows, mine).all(), f"list {place} holds a row of another list, or none"
        assert all(len(set(line)) == kept for line in rows.tolist()), f"list {place} holds a row twice"
        off = np.abs(values - distances[everyone, rows])
        assert (off <= tolerance[:, None]).all(), f"list {place}: distance off by {off.max():.3g}"
        assert (np.diff(values, axis=1) >= 0).all(), f"list {place} is not sorted"
        best = np.sort(distances[:, mine], axis=1)[:, :kept]
        assert (np.abs(values - best) <= tolerance[:, None]).all(), f"list {place} let a nearer row go"


def check_found(queries: Prepared, bank: Prepared, neighbours: int, found: Found, most: int = 200) -> None:
    """Equal to FP32 brute force to the bit, rows included (of the first `most` queries), and to float64 within FP32."""
    q, b = queries.centred[:, : queries.channels], bank.centred[:, : bank.channels]
    there = min(neighbours, bank.count)
    assert (found.best[:, there:] == NO_NEIGHBOUR).all(), "neighbours beyond the bank's rows"
    squared, index = knn.brute_force(q[:most], b, neighbours)
    np.testing.assert_array_equal(found.index[:most, :there], index, "rows of the neighbours")
    np.testing.assert_array_equal(found.squared[:most, :there], squared, "squared distances")
    wide, rows = q.astype(np.float64), b.astype(np.float64)
    norms = np.square(wide).sum(1)[:, None] + np.square(rows).sum(1)
    distances = norms - 2.0 * wide @ rows.T
    expected = np.partition(distances, there - 1, axis=1)[:, :there]
    expected.sort(axis=1)
    tolerance = 1e-6 * expected + 1e-13 * norms.max()
    assert (np.abs(found.squared[:, :there] - expected) <= tolerance).all(), "squared distances against float64"


def check_keys(
    executor: Executor,
    shape: tuple[int, int],
    dtype: type[np.generic],
    k: int = 3,
    *,
    preparing: Executor | None = None,
) -> None:
    """The keys of the ONNX node become the bank that `knn_prepare` makes of the rows, to the bit."""
    preparing = preparing or executor
    rows, channels = shape
    features, bank_rows, center = knn.features(8, 12, rows, channels)
    halves = (-2.0 * (bank_rows - center)).astype(dtype)
    norms = np.full((1, rows), np.nan, dtype)  # a line that is not read
    bank = knn.prepare_keys(executor, np.ascontiguousarray(np.concatenate([halves.T, norms])))
    kept = -0.5 * halves.astype(np.float32)
    expected = knn.prepare(preparing, kept, None, knn.FP16, bank=True)
    check_prepared(kept, np.zeros(channels, np.float32), bank)
    for name in ("centred", "coded", "stats", "error"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(expected, name), name)
    queries = knn.prepare(preparing, features - center, None, knn.FP16, bank=False)
    found = knn.search(preparing, queries, expected, k)
    distance, index = knn.unpack_on_device(executor, found.best)
    np.testing.assert_array_equal(distance, np.sqrt(found.squared))
    np.testing.assert_array_equal(index, found.index)


def check_image(
    executor: Executor,
    code: Code,
    images: int,
    patches: int,
    support_count: int,
    *,
    preparing: Executor | None = None,
) -> None:
    """Distances, largest distance and PatchCore's weight of some images against float64."""
    rows, channels = 150, 40
    random = np.random.default_rng(0)
    # Whole numbers, so that distances are exact, and two patches are equally far from rows with other neighbourhoods.
    bank_rows = random.integers(-8, 9, (rows, channels)).astype(np.float32)
    features = random.integers(-8, 9, (images * patches, channels)).astype(np.float32)
    bank_rows[:, 0] = 0.0
    center = np.zeros(channels, np.float32)
    for patch, row in ((patches - 1, 9), (patches // 2, 5)):
        features[patch] = bank_rows[row]
        features[patch, 0] = 1000.0
    preparing = preparing or executor
    queries = knn.prepare(preparing, features, center, code, bank=False)
    bank = knn.prepare(preparing, bank_rows, center, code, bank=True)
    neighbours = 2
    best = knn.search(preparing, queries, bank, neighbours).best
    wide = bank.centred[:, :channels].astype(np.float64)
    among = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    support = np.argsort(among, axis=1, kind="stable")[:, :support_count].astype(np.int32)
    distance, index = np.full((images, patches), -7, np.float32), np.full((images, patches), -7, np.int32)
    score, weight = np.full(images, -7, np.float32), np.full(images, -7, np.float32)
    shared = 64 + 4 * support_count
    outputs = (distance, index, score, weight)
    arguments = (best, neighbours, patches, queries.centred, bank.centred, channels, support, support_count, *outputs)
    executor.launch("knn_image", (images, 1, 1), 256, shared, *arguments)

    q = queries.centred[:, :channels].astype(np.float64).reshape(images, patches, channels)
    away = np.linalg.norm(q[:, :, None] - wide, axis=3)
    np.testing.assert_array_equal(index, away.argmin(2))
    np.testing.assert_allclose(distance, away.min(2), rtol=1e-6)
    np.testing.assert_array_equal(score, distance.max(1))
    for image in range(images):
        worst = int(distance[image].argmax())
        spread = np.linalg.norm(q[image, worst] - wide[support[index[image, worst]]], axis=1)
        softmax = np.exp(spread - spread.max())
        np.testing.assert_allclose(weight[image], 1.0 - softmax[0] / softmax.sum(), rtol=1e-5, atol=1e-6)


def uncertain_features(difference: float) -> tuple[Floats, Floats, Floats]:
    """Make queries, bank and centre: rows of the bank are equal in groups, but for a third that differs by so much."""
    random = np.random.default_rng(3)
    rows = np.repeat(random.standard_normal((4, 24)), 40, axis=0).astype(np.float32)
    rows[::3] += difference * random.standard_normal((len(rows[::3]), 24)).astype(np.float32)
    return rows[:30:3] + np.float32(0.5), rows, rows.mean(0)


def check_uncertain(executor: Executor, code: Code, *, preparing: Executor | None = None) -> None:
    """A bank of nearly equal rows: the scan cannot tell them apart, the exact scan behind it does, ties by row."""
    preparing = preparing or executor
    # Below what FP32 sums resolve, and about the coding errors of FP16 and of INT8.
    for difference in (1e-6, 2e-4, 5e-3):
        features, rows, center = uncertain_features(difference)
        queries = knn.prepare(preparing, features, center, code, bank=False)
        bank = knn.prepare(preparing, rows, center, code, bank=True)
        found = knn.search(executor, queries, bank, 5, 2)
        assert difference > 1e-6 or not found.certain.all(), "nothing was uncertain"
        check_found(queries, bank, 5, found)


def check_extremes(executor: Executor, code: Code) -> None:
    """Magnitudes beyond FP16, zeros, NaN and Inf: nothing overflows and nothing bad is hidden."""
    for scale in (1e6, 1e-12):
        features, rows, center = knn.features(5, 9, 70, 20, scale)
        queries = knn.prepare(executor, features, center, code, bank=False)
        bank = knn.prepare(executor, rows, center, code, bank=True)
        found = knn.search(executor, queries, bank, 2)
        check_found(queries, bank, 2, found)
        assert found.certain.mean() > 0.7, f"features of the order {scale:g}: certain {found.certain.mean():.0%}"
    features, rows, center = knn.features(6, 70, 70, 20)
    features[3] = center
    features[4, 7], features[5, 0] = np.nan, np.inf
    rows[9] = center
    queries = knn.prepare(executor, features, center, code, bank=False)
    bank = knn.prepare(executor, rows, center, code, bank=True)
    found = knn.search(executor, queries, bank, 1)
    assert np.isnan(found.squared[4]).all()
    assert not np.isfinite(found.squared[5]).any()
    assert (found.squared[3], found.index[3]) == (0.0, 9)
    finite = np.delete(np.arange(70), [4, 5])
    squared, index = knn.brute_force(queries.centred[finite], bank.centred, 1)
    np.testing.assert_array_equal(found.squared[finite], squared)
    np.testing.assert_array_equal(found.index[finite], index)


def random_shape(seed: int) -> tuple[tuple[int, int, int], int, int]:
    """Draw queries, rows, channels, neighbours and splits; small, so that hundreds are affordable."""
    random = np.random.default_rng(seed)
    shape = (int(random.integers(1, 150)), int(random.integers(1, 320)), int(random.integers(1, 140)))
    return shape, int(random.integers(1, 17)), int(random.integers(1, 5))


def check_random(executor: Executor, seed: int) -> None:
    """One problem of random shape, on the path that the seed chooses."""
    shape, neighbours, splits = random_shape(seed)
    code = list(knn.CODES.values())[seed % 3]
    if code is INT8 and shape[2] < 4:
        neighbours = max(2, neighbours)  # in so few channels 8 bits leave many rows alike, and certainty is no measure
    check_search(executor, shape, code, neighbours, splits, seed)


def check_whole_factors(executor: Executor, dtype: type[np.generic]) -> None:
    """Whitening factors that are neither triangular nor low-rank, as the ONNX node has them, against float64."""
    frames, count, rank, channels = 5, 3, 7, 40
    random = np.random.default_rng(6)
    mean = random.standard_normal((count, channels)).astype(np.float32)
    factors = random.standard_normal((count, rank, channels)).astype(dtype)
    features = random.standard_normal((frames, count, channels)).astype(np.float32)
    squared = np.full((count, frames, 1), np.nan, np.float32)
    kind = "float" if dtype is np.float32 else "__half"
    executor.launch(
        f"location_distances<{kind}, false>", (count, 1, 1), 256, mahalanobis.shared_bytes(channels),
        features, mean, factors, None, frames, count, 1, channels, rank, 1, squared,
    )  # fmt: skip
    parts = np.einsum("prd,npd->npr", factors.astype(np.float64), features.astype(np.float64) - mean)
    np.testing.assert_allclose(squared[:, :, 0].T, np.square(parts).sum(2), rtol=2e-5)


def check_locations(
    executor: Executor,
    grid: tuple[int, int],
    channels: int,
    *,
    rank: int | None = None,
    dtype: type[np.generic] = np.float32,
    frames: int = 1,
    window: int = 1,
    seed: int = 0,
) -> None:
    """Mahalanobis distances of some frames, to the nearest location of a window, against float64."""
    locations = mahalanobis.make(seed, grid, channels, rank, dtype)
    random = np.random.default_rng(seed + 1)
    shape = (frames, len(locations.mean), channels)
    features = (locations.mean + random.standard_normal(shape)).astype(np.float32)
    squared = mahalanobis.measure(executor, features, locations, window)
    found = mahalanobis.scores(executor, squared, grid, window)
    expected = mahalanobis.reference(features, locations, window)
    np.testing.assert_allclose(found, expected, rtol=2e-5 if rank is None else 1e-4, err_msg="distances")


def check_resize(executor: Executor, seed: int, largest: int) -> None:
    """A frame of random size and contents, in the format that the seed chooses, byte for byte."""
    random = np.random.default_rng(seed)
    kind = ("rgb", "bgr", "gray", "bt601", "bt709")[seed % 5]
    rows, columns, height, width = (int(n) for n in random.integers(1, largest, 4))

    def pixels(*shape: int) -> NDArray[np.uint8]:
        # Extremes side by side show rounding best.
        if seed % 2:
            return random.choice(np.array([0, 255, 1, 128], np.uint8), shape)
        return random.integers(0, 256, shape, np.uint8)

    resizer = Resizer(NumpyDevice(executor), (rows, columns), (height, width))
    if kind == "bt601" or kind == "bt709":
        luma, chroma = pixels(rows, columns), pixels(-(-rows // 2), -(-columns // 2), 2)
        found = resizer.nv12(luma, chroma, kind)
        expected = preprocess.resize_reference(nv12_to_rgb(luma, chroma, kind), height, width)
    else:
        frame = pixels(rows, columns) if kind == "gray" else pixels(rows, columns, 3)
        found = resizer.frame(frame, kind)  # type: ignore[arg-type]
        expected = preprocess.resize_reference(frame, height, width, kind)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected, f"{kind}, {rows} x {columns} to {height} x {width}")


def check_regions(executor: Executor) -> None:
    """Boxes of a few maps: a long spiral, cells that touch by their corners, borders, NaN, Inf, none, too many."""
    height, width, capacity = 11, 13, 4
    maps = np.zeros((5, height, width), np.float32)
    # One region whose ends are far from each other, along the cells.
    maps[0, 1:10:2, 1:12] = 2.0
    maps[0, [2, 6], 11], maps[0, [4, 8], 1] = 3.0, 4.0
    maps[1, [0, 1, 2], [0, 1, 2]] = 1.5
    maps[1, 10, 12], maps[1, 5, 7], maps[1, 5, 8] = np.inf, np.nan, 1.0
    maps[1, 8, 3:6] = [1.25, 9.0, 1.25]
    maps[2, ::2, ::2] = 7.0
    maps[3] = 1.0  # not above
    maps[4] = 5.0
    boxes, peaks, counts = find_regions(NumpyDevice(executor), maps, 1.0, capacity)
    for number, one in enumerate(maps):
        expected = find_regions_on_host(one, 1.0)
        assert counts[number] == len(expected), f"map {number}: {counts[number]} regions, not {len(expected)}"
        kept = min(len(expected), capacity)
        assert boxes[number, :kept].tolist() == [list(region[:4]) for region in expected[:kept]], f"map {number}: boxes"
        assert peaks[number, :kept].tolist() == [region.peak for region in expected[:kept]], f"map {number}: peaks"
        assert (boxes[number, kept:] == -1).all(), f"map {number}: more boxes than there is room for"


def check_fusion(executor: Executor) -> None:
    """Distances to Gaussians and to centroids, fused in both ways; a patch that is not finite keeps its NaN."""
    grid, channels, frames, window = (3, 4), 10, 2, 3
    locations = mahalanobis.make(2, grid, channels, None, np.float32)
    random = np.random.default_rng(3)
    features = (locations.mean + random.standard_normal((frames, 12, channels))).astype(np.float32)
    features[1, 5, 2] = np.nan
    centroids = random.standard_normal((30, channels)).astype(np.float32)
    center = centroids.mean(0)
    queries = knn.prepare(executor, features.reshape(-1, channels), center, knn.FP32, bank=False)
    bank = knn.prepare(executor, centroids, center, knn.FP32, bank=True)
    nearest = knn.search(executor, queries, bank, 2).best
    squared = mahalanobis.measure(executor, features, locations, window)
    gaussian = mahalanobis.reference(features, locations, window)
    difference = features.reshape(-1, 1, channels).astype(np.float64) - centroids
    centroid = np.linalg.norm(difference, axis=2).min(1).reshape(frames, 12)
    for fusion, scale, expected in (
        (mahalanobis.PRODUCT, (0.0, 0.0, 0.0), gaussian * centroid),
        (mahalanobis.ZSCORE, (0.5, 2.0, 1.25), gaussian * 0.5 + centroid * 2.0 - 1.25),
    ):
        found = mahalanobis.scores(executor, squared, grid, window, nearest, fusion, scale)
        expected[1, 5] = np.nan
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg="fused scores")


def check_launchers(executor: HostExecutor, code: Code, shape: tuple[int, int, int], neighbours: int) -> None:
    """The launchers of knn.cuh and mahalanobis.cuh do what `knn.search` and `mahalanobis.measure` do."""
    for features, rows, center in (knn.features(0, *shape), uncertain_features(1e-6)):
        queries = knn.prepare(executor, features, center, code, bank=False)
        bank = knn.prepare(executor, rows, center, code, bank=True)
        expected = knn.search(executor, queries, bank, neighbours, 2).best
        found = launchers.search(executor, code, features, rows, center, neighbours)
        np.testing.assert_array_equal(found, expected)
    locations, patches, distances = launchers.locations(executor, (3, 4), 40, 3)
    np.testing.assert_allclose(distances, mahalanobis.reference(patches, locations, 3), rtol=2e-5)
