"""Deliberate faults in the kernels: each must be caught, and by which layer is recorded.

    python -m tests.cuda.mutants            # tries all and writes the table of docs/kernels.md
    python -m tests.cuda.mutants NAME...    # tries some, and leaves the other rows as they are

A fault that no layer catches would be a hole in the checks. Layers: ``plain`` compares results and obeys the
simulator's own rules in three thread orders; ``asan`` adds the address and undefined-behaviour sanitizers, ``tsan`` the
thread sanitizer; ``ptx`` interprets what nvcc emits.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cuda import probe, tables, toolchain

LAYERS = ("plain", "asan", "tsan", "ptx")
ORDERS = ("forward", "reverse", "random:7")
SILENT = "-"


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: what is wrong.
        file: of export/kernels.
        edits: pairs of a piece of text that occurs once, and what takes its place.
        suites: of `probe.SUITES`, that touch it.
        layer: one that must catch it.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    suites: tuple[str, ...]
    layer: str

    def apply(self, folder: Path) -> Path:
        """Write the kernels with this fault into a folder."""
        shutil.copytree(toolchain.KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / self.file
        text = path.read_text()
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} occurs {text.count(old)} times in {self.file}")
            text = text.replace(old, new)
        path.write_text(text)
        return folder

    def try_layer(self, layer: str) -> str:
        """What a layer says of it: `SILENT`, or how it was caught."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.apply(Path(scratch) / "kernels")
            for order in ORDERS if layer == "plain" else ORDERS[:1]:
                status, said = probe.run(layer, order, *self.suites, kernels=folder, timeout=150, lines=False)
                if status != 0:
                    return _outcome(status, said)
        return SILENT


def _outcome(status: int, said: str) -> str:
    if status == probe.WRONG:
        return "wrong result"
    if "Traceback" in said and status == 1:
        raise RuntimeError(f"the probe itself failed:\n{said}")
    if status == probe.REPORTED:
        reason = next(
            (word for word in ("race", "out of bounds", "misaligned", "divergent", "deadlock") if word in said), ""
        )
        return f"reported: {reason}" if reason else "reported"
    if "ThreadSanitizer: data race" in said:
        return "data race"
    if "AddressSanitizer" in said:
        return next((kind for kind in ("heap-buffer-overflow", "SEGV") if kind in said), "AddressSanitizer")
    if "runtime error" in said:
        return "undefined behaviour"
    return "no end" if status == 124 else "crash"


_SIMT, _MMA, _PREPARE = "knn_scan_simt.cuh", "knn_scan_mma.cuh", "knn_prepare.cuh"
_RERANK, _IMAGE, _TYPES, _WARP = "knn_rerank.cuh", "knn_image.cuh", "knn_types.cuh", "warp.cuh"
_LOCATION, _PORT = "mahalanobis.cuh", "port.cuh"
_NODE, _RESIZE, _MAP = "knn_node.cuh", "preprocess.cuh", "anomaly_map.cuh"

_F16 = ("knn fp16",)
_PICTURES, _REGIONS = ("pictures",), ("regions",)
_FIRST_BARRIER = "first_row, bank_count, column);\n      __syncthreads();"

MUTANTS = (
    # Barriers and copies
    Mutant(
        "SIMT: no barrier between storing a tile and reading it",
        _SIMT,
        ((_FIRST_BARRIER, "first_row, bank_count, column);"),),
        ("knn fp32",),
        "tsan",
    ),
    Mutant(
        "SIMT: no barrier before the next tile is stored",
        _SIMT,
        (("      __syncthreads();\n    }\n#pragma unroll\n    for (int j", "    }\n#pragma unroll\n    for (int j"),),
        ("knn fp32",),
        "ptx",
    ),
    Mutant("MMA: no wait for a copy under way", _MMA, (("      copy_wait<1>();\n", ""),), _F16, "ptx"),
    Mutant("MMA: no wait for the last copy", _MMA, (("      copy_wait<0>();\n", ""),), _F16, "plain"),
    Mutant("MMA: copies never grouped", _MMA, (("    copy_commit();\n", ""),), _F16, "plain"),
    Mutant(
        "MMA: no barrier after the wait",
        _MMA,
        (("    __syncthreads();\n    const unsigned char* query_tile", "    const unsigned char* query_tile"),),
        _F16,
        "tsan",
    ),
    Mutant(
        "MMA: no barrier before a buffer is filled again",
        _MMA,
        (("    __syncthreads();\n    first_row = next_row;", "    first_row = next_row;"),),
        _F16,
        "ptx",
    ),
    Mutant("MMA: one buffer instead of two", _MMA, (("    buffer ^= 1;\n", ""),), _F16, "plain"),
    Mutant(
        "exhaust: no barrier before the warps' lists are merged",
        _RERANK,
        (("found[warp * neighbours + lane] = held;\n  __syncthreads();", "found[warp * neighbours + lane] = held;"),),
        ("uncertain",),
        "tsan",
    ),
    Mutant(
        "exhaust: warps leave before the barrier",
        _RERANK,
        (
            (
                "found[warp * neighbours + lane] = held;\n  __syncthreads();\n  if (warp != 0) return;",
                "found[warp * neighbours + lane] = held;\n  if (warp != 0) return;\n  __syncthreads();",
            ),
        ),
        ("uncertain",),
        "plain",
    ),
    Mutant(
        "image: no barrier before the warps' maxima are read",
        _IMAGE,
        (("partial[warp] = worst;\n  __syncthreads();", "partial[warp] = worst;"),),
        ("image",),
        "ptx",
    ),
    Mutant(
        "locations: no barrier before the next tile is stored",
        _LOCATION,
        (("        // The next tile goes where this one was read.\n        __syncthreads();\n", ""),),
        ("locations",),
        "tsan",
    ),
    # Edges and sizes
    Mutant(
        "SIMT: a tile reads one row too far",
        _SIMT,
        (("first + row < count", "first + row <= count"),),
        ("knn fp32",),
        "asan",
    ),
    Mutant(
        "SIMT: a list is offered a row too many",
        _SIMT,
        (("if (row >= bank_count)", "if (row > bank_count)"),),
        ("knn fp32",),
        "ptx",
    ),
    Mutant(
        "MMA: copies rows that are not there",
        _MMA,
        (("const bool inside = row < bank_count;", "const bool inside = true;"),),
        _F16,
        "asan",
    ),
    Mutant(
        "MMA: shared memory 64 bytes too small",
        _MMA,
        (("= 2 * kMmaBufferBytes;", "= 2 * kMmaBufferBytes - 64;"),),
        ("launchers",),
        "asan",
    ),
    Mutant(
        "exhaust: shared memory for half the lists",
        _RERANK,
        (("kExhaustThreads / 32 * kMaxNeighbours *", "kExhaustThreads / 64 * kMaxNeighbours / 8 *"),),
        ("launchers",),
        "asan",
    ),
    Mutant(
        "locations: the diagonal is left out",
        _LOCATION,
        (("kTriangular ? row + 1 :", "kTriangular ? row :"),),
        ("locations",),
        "plain",
    ),
    Mutant(
        "scores: the window reaches beyond the right border",
        _LOCATION,
        (("right >= width) continue", "right > width) continue"),),
        ("locations",),
        "plain",
    ),
    # Strides and layouts
    Mutant(
        "MMA: wrong stride of bank rows",
        _MMA,
        (("row * row_bytes + offset", "row * (row_bytes - 16) + offset"),),
        _F16,
        "plain",
    ),
    Mutant(
        "MMA: halves of factor B swapped",
        _MMA,
        (("left[i], right[0], right[1]", "left[i], right[1], right[0]"),),
        _F16,
        "plain",
    ),
    Mutant("MMA: ldmatrix takes wrong rows of A", _MMA, (("(lane & 15);", "(lane & 7);"),), _F16, "plain"),
    Mutant(
        "MMA: ldmatrix takes wrong bytes of B", _MMA, (("(lane >> 3 & 1) * 16", "(lane >> 4 & 1) * 16"),), _F16, "plain"
    ),
    Mutant(
        "MMA: columns of the sum misplaced",
        _MMA,
        (("member * 2 + (j & 1);", "member + (j & 1) * 4;"),),
        _F16,
        "plain",
    ),
    Mutant(
        "MMA: pitch of shared rows no multiple of 16", _MMA, (("kStageBytes + 16;", "kStageBytes + 8;"),), _F16, "plain"
    ),
    Mutant(
        "SIMT: pitch of shared rows no multiple of 16",
        _SIMT,
        (("kSimtTile + 4;", "kSimtTile + 1;"),),
        ("knn fp32",),
        "ptx",
    ),
    Mutant(
        "SIMT: splits overlap",
        _SIMT,
        (("first_row += gridDim.y * kSimtTile", "first_row += kSimtTile"),),
        ("knn fp32",),
        "plain",
    ),
    Mutant(
        "locations: wrong stride of packed rows",
        _LOCATION,
        (("static_cast<size_t>(row) * (row + 1) / 2 + k", "static_cast<size_t>(row) * (row + 3) / 2 + k"),),
        ("locations",),
        "plain",
    ),
    Mutant(
        "scores: the window is mirrored",
        _LOCATION,
        (("row - cell / window + window / 2", "row + cell / window - window / 2"),),
        ("locations",),
        "plain",
    ),
    # Inside the inline PTX, which only the interpreter executes
    Mutant(
        "port: fragments of A swapped in the FP16 product",
        _PORT,
        (("f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}", "f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%6,%5,%7}"),),
        _F16,
        "ptx",
    ),
    Mutant(
        "port: registers of B swapped in the INT8 product",
        _PORT,
        (
            (
                "s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}",
                "s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%9,%8}",
            ),
        ),
        ("knn int8",),
        "ptx",
    ),
    Mutant(
        "port: cp.async zeroes what it should copy",
        _PORT,
        (('"r"(inside ? 16 : 0)', '"r"(inside ? 0 : 16)'),),
        _F16,
        "ptx",
    ),
    # Blocks and warps
    Mutant(
        "MMA: blocks of all splits write one list",
        _MMA,
        (("blockIdx.y * kMmaLists + (warp_row", "(warp_row"),),
        _F16,
        "tsan",
    ),
    Mutant(
        "rerank: a shuffle inside a branch",
        _RERANK,
        (("  let_go = warp_min(let_go);", "  if (lane < 16) let_go = warp_min(let_go);"),),
        ("knn fp32",),
        "plain",
    ),
    Mutant(
        "warp: the last step of a sum is missing",
        _WARP,
        (("offset > 0; offset >>= 1) value = exact_add", "offset > 1; offset >>= 1) value = exact_add"),),
        ("knn fp32",),
        "plain",
    ),
    # Numbers
    Mutant(
        "prepare: norms summed in FP16",
        _PREPARE,
        (("norm += kept * kept + (value - value);", "norm = to_float(__float2half_rn(norm + kept * kept));"),),
        ("prepare",),
        "plain",
    ),
    Mutant(
        "prepare: FP16 without a scale",
        _PREPARE,
        (("return power > 0.0f ? power : 1.0f;", "return 1.0f + 0.0f * power;"),),
        ("extremes",),
        "plain",
    ),
    Mutant(
        "prepare: INT8 cuts off instead of rounding",
        _PREPARE,
        (("rintf(scaled)", "truncf(scaled)"),),
        ("prepare",),
        "plain",
    ),
    Mutant(
        "prepare: NaN is coded away",
        _PREPARE,
        (
            (" + (value - value)", ""),
            (
                "largest = fmaxf(largest, fabsf(value));",
                "largest = fmaxf(largest, fabsf(value));\n    if (value != value) plain[column] = 0.0f;",
            ),
        ),
        ("extremes",),
        "plain",
    ),
    Mutant(
        "types: of equal distances the highest row",
        _TYPES,
        (
            ("32 | static_cast<unsigned>(row);", "32 | (0x7fffffffu - static_cast<unsigned>(row));"),
            (
                "return static_cast<int>(neighbour & 0xffffffffu);",
                "return neighbour == kNone ? -1 : static_cast<int>(0x7fffffffu - (neighbour & 0xffffffffu));",
            ),
        ),
        ("uncertain",),
        "plain",
    ),
    Mutant(
        "rerank: every query passes for certain",
        _RERANK,
        (("certain[query] = let_go == kNone || ", "certain[query] = true || let_go == kNone || "),),
        ("uncertain",),
        "plain",
    ),
    Mutant(
        "rerank: the bound leaves out the coding error",
        _RERANK,
        (("error = 1.001f * (query_error + bank.error)", "error = 0.0f * (query_error + bank.error)"),),
        ("uncertain",),
        "plain",
    ),
    Mutant(
        "exhaust: a warp's list is forgotten",
        _RERANK,
        (("int i = neighbours; i <", "int i = 2 * neighbours; i <"),),
        ("uncertain",),
        "plain",
    ),
    Mutant(
        "image: of equally bad patches the last",
        _IMAGE,
        (
            ("(0xffffffffu - patch);\n    worst", "patch;\n    worst"),
            (
                "static_cast<int>(0xffffffffu - static_cast<unsigned>(worst & 0xffffffffu))",
                "static_cast<int>(worst & 0xffffffffu)",
            ),
        ),
        ("image",),
        "plain",
    ),
    Mutant(
        "locations: low rank without its floor",
        _LOCATION,
        (("if (result < 0.0f) result = 0.0f;", ""),),
        ("locations",),
        "plain",
    ),
    # The ONNX node's keys
    Mutant(
        "keys: no barrier between storing a tile and reading it",
        _NODE,
        (("    __syncthreads();\n    const int column = start + lane;", "    const int column = start + lane;"),),
        ("node",),
        "tsan",
    ),
    Mutant(
        "keys: no barrier before the next tile is stored",
        _NODE,
        (("    // The next tile goes where this one was read.\n    __syncthreads();\n", ""),),
        ("node",),
        "ptx",
    ),
    Mutant(
        "keys: the line of lengths is read as a channel",
        _NODE,
        (("start + i < channels &&", "start + i <= channels &&"),),
        ("node",),
        "plain",
    ),
    Mutant(
        "keys: a row too many is written",
        _NODE,
        (("if (row < count && column < wide)", "if (row <= count && column < wide)"),),
        ("node",),
        "asan",
    ),
    Mutant(
        "keys: padding is not written",
        _NODE,
        (("row < count && column < wide)", "row < count && column < channels)"),),
        ("node",),
        "plain",
    ),
    Mutant(
        "locations: no precision is read all the same",
        _LOCATION,
        (("!kTriangular && precision != nullptr)", "!kTriangular)"),),
        ("node",),
        "asan",
    ),
    # Frames and maps
    Mutant("NV12: U and V swapped", _RESIZE, (("const int u = pair[0]", "const int u = pair[1]"),), _PICTURES, "plain"),
    Mutant(
        "NV12: weights of the other standard", _RESIZE, (("standard == 0 ?", "standard != 0 ?"),), _PICTURES, "plain"
    ),
    Mutant(
        "NV12: cut off instead of rounded",
        _RESIZE,
        ((" - 16) + (1 << (kNv12Bits - 1));", " - 16);"),),
        _PICTURES,
        "plain",
    ),
    Mutant(
        "NV12: the pair of the pixel to the right", _RESIZE, (("x / 2 * 2;", "(x + 1) / 2 * 2;"),), _PICTURES, "plain"
    ),
    Mutant(
        "NV12: not clipped before the mean",
        _RESIZE,
        (
            (
                "sum[0] += to_byte((light + weight.rv * v) >> kNv12Bits);",
                "sum[0] += (light + weight.rv * v) >> kNv12Bits;",
            ),
        ),
        _PICTURES,
        "plain",
    ),
    Mutant(
        "resize: a block reaches beyond the last line",
        _RESIZE,
        (("top + factor_y < source_height ? top + factor_y : source_height;", "top + factor_y;"),),
        _PICTURES,
        "asan",
    ),
    Mutant(
        "resize: weights cut off",
        _RESIZE,
        (("1 << kWeightBits), 0.5)", "1 << kWeightBits), 0.0)"),),
        _PICTURES,
        "plain",
    ),
    Mutant(
        "regions: cells that touch by a corner are two",
        _MAP,
        (("if (row < 0 || row >= height || column", "if (i * j != 0 || row < 0 || row >= height || column"),),
        _REGIONS,
        "plain",
    ),
    Mutant(
        "regions: a row goes on in the next",
        _MAP,
        (
            (
                " || column < 0 || column >= width) continue;\n            const int label",
                ") continue;\n            const int label",
            ),
        ),
        _REGIONS,
        "plain",
    ),
    Mutant(
        "regions: the threshold belongs to them",
        _MAP,
        (("map[cell] > threshold", "map[cell] >= threshold"),),
        _REGIONS,
        "plain",
    ),
    Mutant("regions: one turn is enough", _MAP, (("while (moved) {", "if (moved) {"),), _REGIONS, "plain"),
    Mutant(
        "regions: the right border is left out",
        _MAP,
        (("column + 1 > right ? column + 1", "column > right ? column"),),
        _REGIONS,
        "plain",
    ),
    Mutant(
        "regions: more boxes than there is room for",
        _MAP,
        (("if (count < capacity)", "if (count <= capacity)"),),
        _REGIONS,
        "plain",
    ),
    Mutant(
        "regions: labels are changed where they are read",
        _MAP,
        (("int* next = current + cells;", "int* next = current;"),),
        _REGIONS,
        "tsan",
    ),
    Mutant(
        "regions: no barrier before a maximum is read",
        _MAP,
        (("partial[threadIdx.x >> 5] = value;\n  __syncthreads();", "partial[threadIdx.x >> 5] = value;"),),
        _REGIONS,
        "ptx",
    ),
    Mutant(
        "regions: no barrier before the next maximum",
        _MAP,
        (("  // The next maximum goes where this one was read.\n  __syncthreads();\n", ""),),
        _REGIONS,
        "ptx",
    ),
)


def try_layers(mutant: Mutant) -> dict[str, str]:
    """One row of the table; progress goes to stderr."""
    row = {layer: mutant.try_layer(layer) for layer in LAYERS}
    print(f"{mutant.name}: {row}", file=sys.stderr, flush=True)
    return row


def table(rows: dict[str, dict[str, str]]) -> str:
    """Markdown: mutant x layer; the layer that a test demands is in bold."""
    lines = ["| fault | " + " | ".join(LAYERS) + " |", "| --- |" + " --- |" * len(LAYERS)]
    for mutant in MUTANTS:
        row = rows[mutant.name]
        cells = [f"**{row[layer]}**" if layer == mutant.layer else row[layer] for layer in LAYERS]
        lines.append(f"| {mutant.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_table() -> dict[str, dict[str, str]]:
    """Rows of the page, by the mutant's name."""
    rows = {}
    for line in tables.read("mutants").splitlines()[2:]:
        name, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        rows[name] = dict(zip(LAYERS, cells, strict=True))
    return rows


def main(*names: str) -> int:
    rows = read_table() if names else {}
    rows.update({mutant.name: try_layers(mutant) for mutant in MUTANTS if not names or mutant.name in names})
    tables.write("mutants", table(rows))
    missed = [mutant.name for mutant in MUTANTS if rows[mutant.name][mutant.layer] == SILENT]
    print("\n".join(f"not caught where it must be: {name}" for name in missed), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
