"""Stage `speed`: the kernels beside what this device can do at most, and beside what torch does for the same question.

A floor is the time that the arithmetic or the least traffic of a work takes at the measured ceiling, whichever is
longer. Two ceilings of arithmetic: ``mma`` of `benchmarks/ceilings.cuh`, the instruction that the kernels use, and
``gemm``, torch's largest product, which on Hopper uses wgmma. Rivals answer the same question with less care: those in
half return what half gives, ``two-step`` ranks eight rows a query in FP32 as FAISS would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import gpu_report, kernels
from benchmarks.gpu_day.clock import Clock, TorchDevice
from benchmarks.gpu_day.machine import open_gpu
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results
from edgead.export.kernels.gpu import Gpu
from edgead.export.kernels.scoring import MemoryBank, mahalanobis_scores
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.device.board_status import describe_board

ROUNDS = 20
QUERIES, BATCHES, ROWS, CHANNELS = (784, 1024), (1, 8), 10_000, (128, 384, 512, 1536)
LOCATIONS, FRAMES = (3136, 100), (1, 8)
_TINY = {"queries": (20,), "batches": (1, 2), "rows": 70, "channels": (12,)}
_CHECKED = 64  # queries that are also computed in float64
_CANDIDATES = 8
Work = Callable[[], Any]


def run(options: Options, results: Results) -> None:
    """Measure the ceilings, then every work, the kernels first."""
    if options.dry:
        with open_gpu(True) as gpu:
            _measure(results, gpu, gpu, Clock(None, 1), tiny=True)
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    stream = torch.cuda.Stream()
    with open_gpu(False, int(stream.cuda_stream)) as gpu:
        _measure(results, gpu, TorchDevice(gpu), Clock(stream, ROUNDS), tiny=False)


def _measure(results: Results, gpu: Gpu, device: Any, clock: Clock, *, tiny: bool) -> None:
    place = "cpu" if tiny else "cuda"
    ceilings = results.do("ceilings", partial(measure_ceilings, gpu, clock, place, tiny=tiny))
    if ceilings is None:
        return
    queries, batches, rows, channels = tuple(_TINY.values()) if tiny else (QUERIES, BATCHES, ROWS, CHANNELS)  # type: ignore[misc]
    for width in channels:
        for count in queries:
            for batch in batches:
                shape = (count * batch, rows, width)
                name = f"{count} x {batch}, {rows} x {width}"
                results.do(f"search {name}", partial(search, device, clock, ceilings, shape, place))
    locations, frames = ((3, 10), (1, 2)) if tiny else (LOCATIONS, FRAMES)
    for frame in frames:
        name = f"locations {locations[0]} x {locations[1]}, {frame} frames"
        results.do(name, partial(distances, device, clock, ceilings, (frame, *locations), place))
    board = results.do("board", describe_board)
    results.do("row for docs/kernels.md", partial(page_row, results, ceilings, board or {}, gpu.info.name))


def page_row(results: Results, ceilings: dict[str, float], board: dict[str, Any], device: str) -> str:
    """Return the line to paste into docs/kernels.md: run after run, one CUDA graph each, floors at the mma ceiling."""
    works = {"search fp16, 784 x 10000 x 128": ("search 784 x 1, 10000 x 128", "fp16")}
    works["search fp16, 1024 x 10000 x 384"] = ("search 1024 x 1, 10000 x 384", "fp16")
    works["locations float32, 3136 x 100, 1 frame"] = ("locations 3136 x 100, 1 frames", "fp32")
    rows = [
        kernels.Row(work, one["warm_ms"], one["tflops"], one["gb_s"], one["floor_mma_ms"], one["error"])
        for work, (item, precision) in works.items()
        if (one := (results.value(item) or {}).get(precision)) is not None
    ]
    if not rows:
        return "no row: none of the shapes that the table shows was measured"
    tests = Results.value_in(results.path.with_name("right.json"), "tests marked gpu")
    counted = kernels.Ceilings(*(ceilings[name] for name in ("fp32", "fp16", "int8", "bandwidth")))
    return gpu_report.page_row(device, cuda_driver().release, board, tests, counted, rows)


def measure_ceilings(gpu: Gpu, clock: Clock, place: str, *, tiny: bool) -> dict[str, float]:
    """Return TFLOP/s (TOP/s) and GB/s: the instruction's, torch's product in half and FP32, and copying."""
    turns, copied = (10, 1 << 10) if tiny else (1 << 14, None)
    found = asdict(kernels.measure_ceilings(gpu, ROUNDS, turns=turns, copy_bytes=copied))
    side = 64 if tiny else 8192
    for name, dtype in (("gemm_fp16", torch.float16), ("gemm_fp32", torch.float32)):
        left = torch.randn(side, side, device=place).to(dtype)
        right = torch.randn(side, side, device=place).to(dtype)
        taken = clock.measure(partial(torch.matmul, left, right))["warm_ms"]
        found[name] = 2.0 * side**3 / (taken * 1e9)
    return found


def search(device: Any, clock: Clock, ceilings: dict[str, float], shape: tuple[int, int, int], place: str) -> Any:
    """Measure one search: each precision of the kernels, then the rivals; errors against float64."""
    features, bank_rows = _patches(shape)
    wide = features[:_CHECKED].astype(np.float64)
    squared = np.square(wide).sum(1)[:, None] + np.square(bank_rows.astype(np.float64)).sum(1) - 2 * wide @ bank_rows.T
    expected = np.sqrt(np.maximum(squared, 0.0).min(1))
    flop, moved = 2.0 * shape[0] * shape[1] * shape[2], (shape[0] + shape[1]) * shape[2]
    rows: dict[str, Any] = {}
    with clock.on_stream():
        uploaded, bank_array = device.upload(features), device.upload(bank_rows)
        for precision, size in (("fp16", 2), ("int8", 1), ("fp32", 4)):
            bank = MemoryBank(device, bank_array, None, precision)  # type: ignore[arg-type]
            error = _error(_host(bank.search(uploaded)[0])[:, 0], expected)
            found = clock.measure(partial(bank.search, uploaded))
            gemm = ceilings["gemm_fp32" if precision == "fp32" else "gemm_fp16"] * (2 if precision == "int8" else 1)
            floors = {"mma": ceilings[precision], "gemm": gemm}
            rows[precision] = {**found, "error": error, **_fractions(found, flop, moved * size, floors, ceilings)}
        for name, rival in rivals(torch.from_numpy(features).to(place), torch.from_numpy(bank_rows).to(place)).items():
            error = _error(_host(rival()), expected)
            rows[name] = {**clock.measure(rival), "error": error}
    return rows


def rivals(queries: torch.Tensor, rows: torch.Tensor) -> dict[str, Work]:
    """Return what torch does for the nearest distance ``(Q,)`` of each query, by name."""
    norms = rows.square().sum(1)
    half_queries, half_rows = queries.half(), rows.half().T.contiguous()

    def cdist() -> torch.Tensor:
        return torch.cdist(queries, rows).min(1).values

    def product() -> torch.Tensor:
        squared = torch.addmm(norms[None], queries, rows.T, alpha=-2.0).min(1).values
        return (squared + queries.square().sum(1)).clamp_min(0.0).sqrt()

    def half_product() -> torch.Tensor:
        squared = (norms - 2.0 * (half_queries @ half_rows).float()).min(1).values
        return (squared + queries.square().sum(1)).clamp_min(0.0).sqrt()

    def two_step() -> torch.Tensor:
        ranked = norms - 2.0 * (half_queries @ half_rows).float()
        near = torch.topk(ranked, min(_CANDIDATES, len(rows)), dim=1, largest=False).indices
        return (rows[near] - queries[:, None]).square().sum(2).min(1).values.sqrt()

    return {"torch cdist": cdist, "torch product": product, "torch half product": half_product, "two-step": two_step}


def distances(device: Any, clock: Clock, ceilings: dict[str, float], shape: tuple[int, int, int], place: str) -> Any:
    """Measure Mahalanobis distances: packed factors of both types, and torch's batched product with whole ones."""
    frames, locations, channels = shape
    random = np.random.default_rng(0)
    packed = channels * (channels + 1) // 2
    mean = random.standard_normal((locations, channels)).astype(np.float32)
    factors = (random.standard_normal((locations, packed)) / channels**0.5).astype(np.float32)
    values = (mean + random.standard_normal((frames, locations, channels))).astype(np.float32)
    whole = np.zeros((locations, channels, channels), np.float32)
    down, across = np.tril_indices(channels)
    whole[:, down, across] = factors
    difference = (values - mean).astype(np.float64)[0, :_CHECKED]
    expected = np.linalg.norm(np.einsum("prd,pd->pr", whole[:_CHECKED].astype(np.float64), difference), axis=1)
    flop, rows = 2.0 * locations * packed * frames, {}
    with clock.on_stream():
        given = [device.upload(array) for array in (values, mean)]
        for name, dtype in (("fp32", np.float32), ("fp16", np.float16)):
            coded = device.upload(factors.astype(dtype))
            work = partial(mahalanobis_scores, device, *given, coded)
            error = _error(_host(work())[0, :_CHECKED], expected)
            moved = locations * (packed * np.dtype(dtype).itemsize + 4.0 * channels * (1 + frames))
            found = clock.measure(work)
            rows[name] = {
                **found,
                "error": error,
                **_fractions(found, flop, moved, {"mma": ceilings["fp32"]}, ceilings),
            }
        matrices, centre, vectors = (torch.from_numpy(array).to(place) for array in (whole, mean, values))

        def product() -> torch.Tensor:
            return torch.bmm(matrices, (vectors - centre).permute(1, 2, 0)).norm(dim=1).T

        rows["torch batched product"] = {**clock.measure(product), "error": _error(_host(product())[0], expected)}
    return rows


def _fractions(
    found: dict[str, Any], flop: float, moved: float, peaks: dict[str, float], ceilings: dict[str, float]
) -> dict[str, float]:
    fractions = {"tflops": flop / (found["warm_ms"] * 1e9), "gb_s": moved / (found["warm_ms"] * 1e6)}
    for name, peak in peaks.items():
        floor = max(flop / (peak * 1e9), moved / (ceilings["bandwidth"] * 1e6))
        fractions |= {f"floor_{name}_ms": floor, f"of_{name}": floor / found["warm_ms"]}
    return fractions


def _patches(shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    queries, rows, channels = shape
    random = np.random.default_rng(0)
    bank = random.standard_normal((rows, channels)).astype(np.float32)
    near = bank[random.integers(0, rows, queries)]
    return (near + 0.5 * random.standard_normal(near.shape)).astype(np.float32), bank


def _host(array: Any) -> NDArray[Any]:
    found: NDArray[Any] = array.cpu().numpy() if isinstance(array, torch.Tensor) else array.numpy()
    return found


def _error(found: NDArray[Any], expected: NDArray[np.float64]) -> float:
    found = found[: len(expected)].astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.max(np.abs(found - expected) / np.maximum(expected, 1e-12)))
