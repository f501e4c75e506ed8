"""What INT8 buys on this CPU: each precision against FP32 in one process, with what it costs in score beside it.

    python -m benchmarks.precision NAME.edgead... [--rounds 100] [--threads 2]

The bundles come from ``edgead export MODEL_DIR -o NAME.edgead --int8``. Images are the bundle's references at network
size; a ratio is the median FP32 time over the median time of the precision, all taken in turns. Score differences are
those that the export recorded against the trained model (99th percentile, as a share of the way from the median normal
score to the threshold).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import interleave
from edgead.runtime.backends import Backend
from edgead.runtime.bundle import Bundle
from edgead.runtime.decode import decode_image
from edgead.runtime.preprocess import resize
from edgead.runtime.routed import open_model

PRECISIONS = ("fp32", "int8-cpu")
RUNTIMES = ("onnxruntime", "openvino")


def measure(path: Path, rounds: int, threads: int) -> list[str]:
    """Return one table row a runtime and precision of a bundle."""
    with Bundle.open(path) as bundle, ExitStack() as stack:
        manifest = bundle.manifest
        size = (manifest.input.height, manifest.input.width)
        images = [resize(decode_image(data, name), *size)[None] for name, data in bundle.references()]
        backends: dict[tuple[str, str], Backend] = {}
        for precision in PRECISIONS:
            if precision not in manifest.precisions:
                raise SystemExit(f"{path} has no {precision}; export it with --int8")
            model = stack.enter_context(bundle.model_files(precision))
            for runtime in RUNTIMES:
                opened = open_model(runtime, manifest, model, precision, threads=threads)
                stack.callback(opened.close)
                backends[runtime, precision] = opened
        rows = []
        for runtime in RUNTIMES:
            functions = {precision: _runner(backends[runtime, precision], images) for precision in PRECISIONS}
            medians = interleave(functions, rounds)
            for precision in PRECISIONS:
                section = manifest.precisions[precision]
                record = manifest.parity.get(section.file, {}).get(runtime)
                drop = "-" if record is None or record.drop is None else f"{record.drop:.4f}"
                changed = "-" if record is None else f"{record.flips + record.borderline} of {record.images}"
                note = (record.note if record is not None else None) or ""
                ratio = medians["fp32"] / medians[precision]
                rows.append(
                    f"| {manifest.name} ({manifest.detector.name}, {size[0]}x{size[1]}) | {runtime} | {precision} | "
                    f"{medians[precision]:.2f} | {ratio:.2f} | {drop} | {changed} | {note} |"
                )
        return rows


def _runner(backend: Backend, images: Sequence[NDArray[np.uint8]]) -> Callable[[], object]:
    turn = cycle(images)
    return lambda: backend.run(next(turn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print("| bundle | runtime | precision | median ms | times FP32's speed | score drop | changed decisions | how |")
    print("|---|---|---|---:|---:|---:|---:|---|")
    for path in arguments.bundles:
        for row in measure(path, arguments.rounds, arguments.threads):
            print(row)


if __name__ == "__main__":
    main()
