"""Targets of the kernels: what their machine code may use, what fits on a multiprocessor, and the least time on paper.

    python -m tests.cuda.targets            # writes the computed tables of docs/kernels.md

Everything here is computed from the machine code and from data sheets. Nothing was measured: no GPU was at hand.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from math import ceil

import numpy as np

from tests.cuda import knn, mahalanobis, sass, tables, toolchain

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 110, 120)


@dataclass(frozen=True)
class Budget:
    """What a kernel may use, and must.

    Attributes:
        registers: at most, a thread; threads, shared_bytes: of a block as it is launched.
        tensor: instructions of the tensor cores from sm_80 on, and on sm_75: prefix and least number.
    """

    registers: int
    threads: int
    shared_bytes: int
    tensor: tuple[str, int] | None = None
    tensor_75: tuple[str, int] | None = None


_LOCATION = Budget(64, 256, mahalanobis.shared_bytes(100))
_PREPARE = Budget(48, 128, 0)
BUDGETS = {
    "knn_scan_mma<__half>": Budget(128, 256, knn.FP16.geometry[4], ("HMMA.16816.F32", 16), ("HMMA.1688.F32", 32)),
    "knn_scan_mma<int8_t>": Budget(128, 256, knn.INT8.geometry[4], ("IMMA.16832.S8.S8", 16), ("IMMA.8816.S8.S8", 64)),
    "knn_scan_simt": Budget(112, 256, knn.FP32.geometry[4]),
    "knn_rerank": Budget(64, 128, 0),
    "knn_exhaust": Budget(64, 256, 8 * 16 * 8),
    "knn_image": Budget(64, 256, 64 + 4 * 9),
    "knn_unpack": Budget(32, 256, 0),
    "knn_bank_bound": Budget(64, 256, 64),
    **{f"knn_prepare<{a}, {b}>": _PREPARE for a in ("float", "__half") for b in ("float", "__half", "int8_t")},
    **{f"knn_prepare_keys<{a}, __half>": Budget(64, 256, 32 * 33 * 4) for a in ("float", "__half")},
    **{f"location_distances<{a}, {b}>": _LOCATION for a in ("float", "__half") for b in ("true", "false")},
    "location_scores": Budget(32, 256, 0),
    "resize_taps": Budget(48, 256, 0),
    "resize_rows": Budget(84, 256, 0),
    "resize_rows_nv12": Budget(84, 256, 0),
    "resize_columns": Budget(48, 256, 0),
    "map_smooth": Budget(56, 256, 32),
    "map_resize": Budget(48, 256, 0),
    "map_regions": Budget(64, 256, 64),
}


def complaints(codes: dict[str, sass.Code], architecture: int) -> list[str]:
    """What of a target's machine code is not within the budgets."""
    found = [f"{name}: no budget" for name in codes.keys() - BUDGETS.keys()]
    found += [f"{name}: no code" for name in BUDGETS.keys() - codes.keys()]
    for name, code in codes.items():
        budget = BUDGETS.get(name)
        if budget is None:
            continue
        if code.registers > budget.registers:
            found.append(f"{name}: {code.registers} registers, more than {budget.registers}")
        if code.local_bytes or code.count("LDL", "STL"):
            found.append(f"{name}: uses local memory")
        tensor = budget.tensor if architecture >= 80 else budget.tensor_75
        if tensor is None:
            continue
        if code.count(tensor[0]) < tensor[1]:
            found.append(f"{name}: {code.count(tensor[0])} x {tensor[0]}, fewer than {tensor[1]}")
        if code.count("LDSM") < 8:
            found.append(f"{name}: {code.count('LDSM')} x LDSM, fewer than 8")
        if architecture >= 80 and code.count("LDGSTS") < 6:
            found.append(f"{name}: {code.count('LDGSTS')} x LDGSTS, fewer than 6")
    return found


@dataclass(frozen=True)
class Device:
    """Peaks of a device: dense TFLOP/s or TOP/s, GB/s; threads and shared KiB of a multiprocessor."""

    name: str
    architecture: int
    multiprocessors: int
    fp32: float
    fp16: float
    int8: float
    bandwidth: float


DEVICES = (
    Device("Orin Nano Super", 87, 8, 2.09, 16.7, 33.4, 102.0),
    Device("Orin NX 16GB", 87, 8, 1.88, 15.0, 30.1, 102.4),
    Device("AGX Orin 64GB", 87, 16, 5.33, 42.6, 85.2, 204.8),
    Device("Thor T5000", 110, 20, 8.06, 259.0, 517.0, 273.0),
    Device("RTX 4090", 89, 128, 82.6, 165.2, 660.6, 1008.0),
    Device("H100 SXM", 90, 132, 66.9, 989.4, 1978.9, 3350.0),
)

# Threads and shared KiB a multiprocessor: CUDA programming guide, technical specifications per compute capability.
_MULTIPROCESSOR = {
    75: (1024, 64), 80: (2048, 164), 86: (1536, 100), 87: (1536, 164), 89: (1536, 100), 90: (2048, 228),
    110: (1536, 228), 120: (1536, 100),
}  # fmt: skip


def occupancy(architecture: int, registers: int, budget: Budget) -> tuple[int, float]:
    """Blocks of a kernel on one multiprocessor, and the part of its threads that they are."""
    program = toolchain.host_program("occupancy.cpp", toolchain.CUDA_TESTS)
    threads, shared = _MULTIPROCESSOR[architecture]
    values = (architecture, threads, shared, registers, budget.threads, budget.shared_bytes)
    done = subprocess.run([program, *map(str, values)], capture_output=True, text=True, check=True, timeout=300)
    blocks = int(done.stdout)
    return blocks, blocks * budget.threads / threads


def knn_floor(device: Device, code: knn.Code, queries: int, rows: int, channels: int) -> tuple[float, float, float]:
    """Least milliseconds of a scan: arithmetic; memory if tiles are read once; memory if every query tile reads all."""
    pitch = code.pitch(channels)
    size = np.dtype(code.dtype).itemsize
    peak = {"float": device.fp32, "__half": device.fp16, "int8_t": device.int8}[code.name]
    arithmetic = 2.0 * queries * rows * pitch / (peak * 1e9)
    tiles = ceil(queries / code.geometry[1])
    splits = min(max(1, ceil(2 * device.multiprocessors / tiles)), ceil(rows / 64))
    candidates = 2.0 * queries * splits * code.geometry[3] * knn.KEEP * 8
    once = ((queries + rows) * pitch * size + candidates) / (device.bandwidth * 1e6)
    each = ((queries + tiles * rows) * pitch * size + candidates) / (device.bandwidth * 1e6)
    return arithmetic, once, each


def location_floor(
    device: Device, locations: int, channels: int, factor_bytes: int, frames: int
) -> tuple[float, float]:
    """Least milliseconds of triangular Mahalanobis distances: arithmetic and memory."""
    factors = channels * (channels + 1) / 2
    arithmetic = 2.0 * locations * frames * factors / (device.fp32 * 1e9)
    memory = locations * (factors * factor_bytes + channels * 4 * (1 + frames)) / (device.bandwidth * 1e6)
    return arithmetic, memory


def resources_table(codes: dict[int, dict[str, sass.Code]]) -> str:
    """Registers of each kernel by target, and how many of its blocks fit on a multiprocessor."""
    lines = ["| kernel | " + " | ".join(f"sm_{a}" for a in codes) + " |", "| --- |" + " --- |" * len(codes)]
    for name, budget in BUDGETS.items():
        cells = []
        for architecture, code in codes.items():
            blocks, part = occupancy(architecture, code[name].registers, budget)
            cells.append(f"{code[name].registers}, {blocks} ({part:.0%})")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def instructions_table(codes: dict[int, dict[str, sass.Code]]) -> str:
    """Instructions that the scans must consist of, by target."""
    lines = ["| target | FP16 scan | INT8 scan | FP32 scan |", "| --- | --- | --- | --- |"]
    for architecture, code in codes.items():
        cells = []
        for name, prefixes in (
            ("knn_scan_mma<__half>", ("HMMA", "LDGSTS", "LDSM")),
            ("knn_scan_mma<int8_t>", ("IMMA", "LDGSTS", "LDSM")),
            ("knn_scan_simt", ("FFMA", "LDS", "LDL")),
        ):
            cells.append(", ".join(f"{code[name].count(prefix)} {prefix}" for prefix in prefixes))
        lines.append(f"| sm_{architecture} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def roofline_table() -> str:
    """Least milliseconds by device; "a" where arithmetic is the floor, "m" where memory is."""
    lines = [
        "| work | GFLOP | " + " | ".join(d.name for d in DEVICES) + " |",
        "| --- | --- |" + " --- |" * len(DEVICES),
    ]
    for queries, rows, channels in ((784, 10_000, 128), (784, 10_000, 512), (1024, 10_000, 384)):
        for label, code in knn.CODES.items():
            cells = []
            for device in DEVICES:
                arithmetic, once, each = knn_floor(device, code, queries, rows, channels)
                floor, bound = (arithmetic, "a") if arithmetic > once else (once, "m")
                cells.append(f"{floor:.3f} {bound} (no L2: {max(arithmetic, each):.3f})")
            work = 2e-9 * queries * rows * channels
            lines.append(f"| scan {label}, {queries} x {rows} x {channels} | {work:.2f} | " + " | ".join(cells) + " |")
    for size, label in ((4, "fp32"), (2, "fp16")):
        for frames in (1, 4):
            cells = []
            for device in DEVICES:
                arithmetic, memory = location_floor(device, 3136, 100, size, frames)
                cells.append(f"{max(arithmetic, memory):.3f} {'a' if arithmetic > memory else 'm'}")
            work = 2e-9 * 3136 * frames * 5050
            name = f"locations {label}, 3136 x 100, {frames} frame{'s' if frames > 1 else ''}"
            lines.append(f"| {name} | {work:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    codes = {architecture: sass.read(toolchain.cubin(architecture)) for architecture in ARCHITECTURES}
    tables.write("resources", resources_table(codes))
    tables.write("instructions", instructions_table(codes))
    tables.write("roofline", roofline_table())
    found = [f"sm_{a}: {text}" for a, code in codes.items() for text in complaints(code, a)]
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
