"""What FP16 and INT8 do to detection: image AUROC of each precision on labelled test images, detector by category.

    python -m benchmarks.precision_accuracy CATEGORY_DIR... -o DIR [--detector patchcore] [--seed 0]

Each pair is fitted with default settings and exported as ``edgead export --fp16 --int8 --images CATEGORY_DIR/test``
does it; its bundle and its record stay in DIR, and what is there is not done again. Nothing is chosen by a label:
ranges, layers and thresholds come from good training images and planted defects; test images are only judged. A gate
that did not hold is shown in the table and does not stop it (``--allow-drift``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from edgead.export.exporting import export_bundle
from edgead.export.options import PRECISIONS
from edgead.fitting import fit
from edgead.runtime.files import atomic_write

HEADINGS = (
    "category",
    "detector",
    "graph",
    "computed by",
    "AUROC",
    "change",
    "95 % interval",
    "score drop",
    "changed decisions",
    "convolutions in FP32",
)


def measure(category: Path, detector: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the record of one pair, from the folder where it is there."""
    stem = f"{category.name}-{detector}-{seed}"
    record = folder / f"{stem}.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    trained = fit([category], detector=detector, seed=seed)
    report = export_bundle(
        trained.exportable(stem),
        folder / f"{stem}.edgead",
        precisions=PRECISIONS,
        images=[category / "test"],
        allow_drift=True,
        cache=folder / "cache",
    )
    found = {**report.to_dict(), "category": category.name, "detector": detector}
    with atomic_write(record, SystemExit) as stream:
        stream.write(json.dumps(found, indent=1).encode())
    return found


def rows(found: dict[str, Any]) -> list[str]:
    """Return the table's rows of one pair."""
    files = {one["file"]: (name, one.get("int8")) for name, one in found["precisions"].items()}
    result = []
    for file, records in found["parity"].items():
        precision, int8 = files[file]
        for runtime, one in records.items():
            if runtime.endswith("-bf16") or (precision == "fp16" and not runtime.startswith("simulated")):
                continue
            kept = "-" if int8 is None else f"{len(int8['kept'])} of {int8['layers']}"
            drop = "-" if one["drop"] is None else f"{one['drop']:.3f}"
            cells = [found["category"], found["detector"], precision, runtime, f"{one['auroc']:.4f}"]
            cells += [
                f"{one['auroc_change']:+.4f}",
                f"{one['auroc_change_low']:+.4f} to {one['auroc_change_high']:+.4f}",
            ]
            cells += [drop, f"{one['flips'] + one['borderline']} of {one['images']}", kept]
            result.append(f"| {' | '.join(cells)} |")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--detector", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for detector in arguments.detector or ["patchcore"]:
        for category in arguments.categories:
            for row in rows(measure(category, detector, arguments.seed, arguments.output)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
