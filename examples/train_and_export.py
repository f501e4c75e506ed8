"""From a folder of normal images to a bundle, in Python.

    python examples/train_and_export.py data/screw screw.edgead

``data/screw`` holds ``train/good/*.png`` (and, for the proof, ``test/``), or the normal images directly.
"""

import sys
from pathlib import Path

import edgead

category, bundle = Path(sys.argv[1]), Path(sys.argv[2])
model = edgead.fit(category)
print(model.threshold.explain())

proof = [category / "test"] if (category / "test").is_dir() else []
report = model.export(bundle, images=proof)
for runtime, record in report.parity["model.fp32.onnx"].items():
    print(f"{runtime}: {record.flips + record.borderline} of {record.images} decisions changed")
