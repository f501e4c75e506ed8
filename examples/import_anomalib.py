"""A PatchCore or PaDiM of anomalib 2.7 as a bundle: the same scores, and a threshold for a false-alarm rate.

    python examples/import_anomalib.py model.ckpt parts/plate

Takes 18 s of one core's time with 40 test images.

``model.ckpt`` is what anomalib leaves in ``results/.../weights/lightning``; anomalib itself is not needed, and nothing
of the file is run. ``parts/plate`` is the category, with ``test/good`` and ``test/DEFECT``.

Look at the two thresholds and what they let pass: anomalib's is the one of the best F1 on its own validation images.
The other is made from half of the good test parts, which the model has not seen; the other half measures both.
By commands: docs/tutorials/anomalib.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgead.export.exporting import export_bundle
from edgead.importing import import_anomalib
from edgead.runtime import EdgeadError, Inspector, read_image
from edgead.runtime.imaging.decode import find_images


def count(bundle: Path, good: list[Path], defective: list[Path]) -> str:
    """Return in words how a bundle decides images that are known."""
    with Inspector.open(bundle) as inspect:
        rejected = sum(inspect(read_image(path)).decision != "OK" for path in good)
        passed = sum(inspect(read_image(path)).decision == "OK" for path in defective)
    return f"{passed} of {len(defective)} defects pass, {rejected} of {len(good)} good parts are rejected"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the checkpoint, or anomalib's ONNX export")
    parser.add_argument("category", type=Path, help="a folder with test/good and test/DEFECT")
    parser.add_argument("-o", "--output", type=Path, default=Path("imported.edgead"))
    asked = parser.parse_args()
    name, test = asked.output.stem, asked.category / "test"
    files = find_images([test])
    good = [path for path in files if path.parent.name == "good"]
    defective = [path for path in files if path.parent.name != "good"]
    unseen, measured = good[::2], good[1::2]

    exportable = import_anomalib(asked.model, name, images=[test]).exportable
    export_bundle(exportable, asked.output, images=[test])
    print(f"anomalib's threshold {exportable.threshold.value:.3f}: {count(asked.output, measured, defective)}")

    exportable = import_anomalib(asked.model, name, images=[test], calibration=unseen, false_alarm_rate=0.01).exportable
    export_bundle(exportable, asked.output, images=[test])
    print(exportable.threshold.explain())
    print(f"threshold {exportable.threshold.value:.3f}: {count(asked.output, measured, defective)}")
    print(f"wrote {asked.output}")


if __name__ == "__main__":
    try:
        main()
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
