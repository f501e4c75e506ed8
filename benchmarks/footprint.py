"""What inference costs beside its milliseconds: import, first decision from a cold process, peak memory.

Run as a script by `benchmarks/peers.py` in the environment that is measured: `footprint.py KIND MODEL FRAMES`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

started = time.perf_counter()
kind, model, frames = sys.argv[1:4]
sys.path.pop(0)

if kind == "edgead":
    from edgead.runtime.inspection.inspector import Inspector

    imported = time.perf_counter()
    inspector = Inspector.open(model, backend="onnxruntime", threads=2)

    def decide(frame: object) -> object:
        return inspector(frame).decision  # type: ignore[arg-type]

else:
    from anomalib.deploy import OpenVINOInferencer  # type: ignore[import-not-found,unused-ignore]

    imported = time.perf_counter()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    inferencer = OpenVINOInferencer(path=model, device="CPU", config=settings)

    def decide(frame: object) -> object:
        return inferencer.predict(frame).pred_label


import numpy as np  # noqa: E402 - what is measured is imported first

images = np.load(frames)
decide(images[0])
first = time.perf_counter()
for image in images:
    decide(image)
# Not getrusage, whose maximum begins with that of the process which started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(
    json.dumps(
        {
            "import_s": imported - started,
            "first_decision_s": first - started,
            "peak_mb": int(status["VmHWM"].split()[0]) / 1024,
        }
    )
)
