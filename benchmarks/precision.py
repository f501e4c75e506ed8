"""What INT8 buys on this CPU: each precision against FP32 in one process, with what it costs in score beside it.

    python -m benchmarks.precision NAME.edgead... [--rounds 100] [--threads 2]

The bundles come from ``edgead export MODEL_DIR -o NAME.edgead --int8``. Images are the bundle's references at network
size. All are timed in turns; a ratio is the median over the rounds of the FP32 time over the precision's in the same
round. The last column is the share of the network's FP32 time that its convolutions take in ONNX Runtime: the rest, as
the product with a memory bank, is never quantised. Score differences are
those that the export recorded against the trained model (99th percentile, as a share of the way from the median normal
score to the threshold).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.timing import interleaved
from edgead.runtime.backends import Backend
from edgead.runtime.backends.routed_backend import open_model
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize

PRECISIONS = ("fp32", "int8-cpu")
RUNTIMES = ("onnxruntime", "openvino")


def measure(path: Path, rounds: int, threads: int) -> list[str]:
    """Return one table row a runtime and precision of a bundle."""
    with Bundle.open(path) as bundle, ExitStack() as stack:
        manifest = bundle.manifest
        size = (manifest.input.height, manifest.input.width)
        images = [resize(decode_image(data, name), *size)[None] for name, data in bundle.references()]
        backends: dict[tuple[str, str], Backend] = {}
        share = 0.0
        for precision in PRECISIONS:
            if precision not in manifest.precisions:
                raise SystemExit(f"{path} has no {precision}; export it with --int8")
            model = stack.enter_context(bundle.model_files(precision))
            for runtime in RUNTIMES:
                opened = open_model(runtime, manifest, model, precision, threads=threads)
                stack.callback(opened.close)
                backends[runtime, precision] = opened
            share = _convolutions(model) if precision == "fp32" else share
        rows = []
        for runtime in RUNTIMES:
            functions = {precision: _runner(backends[runtime, precision], images) for precision in PRECISIONS}
            times = interleaved(functions, rounds)
            for precision in PRECISIONS:
                section = manifest.precisions[precision]
                record = manifest.parity.get(section.file, {}).get(runtime)
                drop = "-" if record is None or record.drop is None else f"{record.drop:.4f}"
                changed = "-" if record is None else f"{record.flips + record.borderline} of {record.images}"
                note = (record.note if record is not None else None) or ""
                ratio = median(full / own for full, own in zip(times["fp32"], times[precision], strict=True))
                rows.append(
                    f"| {manifest.name} ({manifest.detector.name}, {size[0]}x{size[1]}) | {runtime} | {precision} | "
                    f"{median(times[precision]):.2f} | {ratio:.2f} | {drop} | {changed} | {note} | {share:.0%} |"
                )
        return rows


def _convolutions(model: Path) -> float:
    """Return the share of a graph's time in ONNX Runtime that convolutions take, each by its least time of 30 runs."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        options.add_free_dimension_override_by_name("batch", 1)
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        shape = (1, *session.get_inputs()[0].shape[1:])
        for _ in range(30):
            session.run(None, {"images": np.zeros(shape, np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    least: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["name"])
            least[key] = min(least.get(key, float("inf")), event["dur"])
    return sum(time for (kind, _), time in least.items() if kind == "Conv") / sum(least.values())


def _runner(backend: Backend, images: Sequence[NDArray[np.uint8]]) -> Callable[[], object]:
    turn = cycle(images)
    return lambda: backend.run(next(turn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    columns = ["bundle", "runtime", "precision", "median ms", "times FP32's speed", "score drop", "changed decisions"]
    columns += ["how", "convolutions' share"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for path in arguments.bundles:
        for row in measure(path, arguments.rounds, arguments.threads):
            print(row)
    print(f"\nload average {', '.join(f'{load:.1f}' for load in os.getloadavg())}; {arguments.threads} threads")


if __name__ == "__main__":
    main()
