"""From a folder of normal images to a bundle: the least that a nightly build of models needs.

    python examples/train_and_export.py data/screw screw.edgead

``data/screw`` holds ``train/good/*.png`` (and, for the proof, ``test/``), or the normal images directly.
Takes 13 s on two cores with 40 images to fit.

Look at what the threshold promises, and at the decisions that changed: where one did, nothing is written, and the exit
code is 3.
"""

import sys
from pathlib import Path

import edgead
from edgead.runtime import EdgeadError
from edgead.runtime.errors import ParityError


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python train_and_export.py FOLDER BUNDLE", file=sys.stderr)
        return 2
    category, bundle = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        model = edgead.fit(category)
        print(model.threshold.explain())
        proof = [category / "test"] if (category / "test").is_dir() else []
        report = model.export(bundle, images=proof)
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, ParityError) else 2
    for runtime, record in report.parity["model.fp32.onnx"].items():
        print(f"{runtime}: {record.flips + record.borderline} of {record.images} decisions changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
