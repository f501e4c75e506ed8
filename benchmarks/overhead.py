"""What the camera loop costs beside the network: camera to decision minus network, for a 1280x1024 frame.

    python -m benchmarks.overhead BUNDLE [--rounds 200]

Judged against a plain OpenCV INTER_AREA resize of the same frame, in the same process (aim: at most 1.3 times that
plus 0.5 ms). The frame goes through `Inspector`, as in the camera loop.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import cv2
import numpy as np

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.frame import Frame
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.inspection.inspector import Inspector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with Bundle.open(arguments.bundle) as bundle:
        name, data = bundle.references()[0]
        photo = cv2.resize(decode_image(data, name), (1280, 1024), interpolation=cv2.INTER_LINEAR)
    cv2.setNumThreads(1)
    for layout in ("rgb", "bgr", "gray"):
        image = np.ascontiguousarray(photo[:, :, 0] if layout == "gray" else photo)
        overheads, areas, totals = [], [], []
        with Inspector.open(arguments.bundle, backend=arguments.backend, threads=arguments.threads) as inspector:
            for index in range(arguments.rounds + 10):
                started = time.perf_counter()
                result = inspector(Frame(image, index, time.monotonic_ns(), "bench", layout))  # type: ignore[arg-type]
                total = (time.perf_counter() - started) * 1e3
                started = time.perf_counter()
                cv2.resize(image, (inspector.width, inspector.height), interpolation=cv2.INTER_AREA)
                area = (time.perf_counter() - started) * 1e3
                if index >= 10:
                    overheads.append(total - result.timings["network"])
                    areas.append(area)
                    totals.append(total)
        limit = 1.3 * median(areas) + 0.5
        print(
            f"{layout:5s} camera to decision {median(totals):6.2f} ms, minus network {median(overheads):5.2f} ms; "
            f"INTER_AREA {median(areas):5.2f} ms, limit {limit:5.2f} ms: "
            f"{'within' if median(overheads) <= limit else 'ABOVE'}"
        )


if __name__ == "__main__":
    main()
