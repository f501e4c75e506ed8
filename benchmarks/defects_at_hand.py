"""What a few defects at hand gain: image AUROC and escapes without and with what they teach; a Markdown table.

    python -m benchmarks.defects_at_hand DATA/magnetic_tile/tile --draws 5 --defects 10
    python -m benchmarks.defects_at_hand DATA/mvtec_ad/screw --leave-out-kinds

Of the defective test images so many are drawn and given to ``fit``; the others, and the good test images, are judged by
a model that learned from them and one that did not. Escapes are counted at the fitted threshold and at 5 % false
alarms of the test images. With ``--leave-out-kinds`` no image of one kind is drawn, and only those are judged: what a
term costs defects that nobody has shown it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.deciding import labelled
from edgead.data import Category, Sample
from edgead.fitting import fit
from edgead.metrics.metrics import image_auroc
from edgead.model.model import TrainedModel
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.imaging.decode import read_image

RATE = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One draw; each pair is without and with what the defects taught.

    Attributes:
        kind: that was left out, or "".
        escapes: at the threshold that ``fit`` would set. at_rate: at `RATE` false alarms of the test images.
    """

    category: str
    detector: str
    kind: str
    draw: int
    judged: int
    strength: float
    auroc: tuple[float, float]
    escapes: tuple[float, float]
    at_rate: tuple[float, float]
    false_alarms: tuple[float, float]


def draw_defects(category: Category, count: int, draw: int, kind: str) -> tuple[list[Sample], list[Sample]]:
    """Return the defects that are given to ``fit``, and those that are judged."""
    defects = [sample for sample in category.test if sample.anomalous]
    offered = [sample for sample in defects if not kind or sample.label != kind]
    picked = np.random.default_rng(draw).choice(len(offered), min(count, len(offered)), replace=False)
    given = [offered[index] for index in sorted(picked.tolist())]
    judged = [sample for sample in defects if (sample.label == kind if kind else sample not in given)]
    return given, judged


def scores(model: TrainedModel, samples: Sequence[Sample]) -> NDArray[np.float64]:
    with model.inspector() as inspect:
        return np.array([inspect(read_image(sample.path, inspect.bits)).score for sample in samples])


def measure(category: Category, detector: str, count: int, draw: int, kind: str = "") -> Row:
    """Fit, and fit again without learning if anything was learned; judge by both."""
    given, judged = draw_defects(category, count, draw, kind)
    with TemporaryDirectory(prefix="edgead-at-hand-") as folder:
        for number, sample in enumerate(given):
            place = Path(folder, sample.label or "defect")
            place.mkdir(exist_ok=True)
            shutil.copy(sample.path, place / f"{number}{sample.path.suffix}")
        model = fit(category.root, detector=detector, defects=folder)
        assert model.card.defects is not None
        assert model.card.defects.learned is not None
        strength = model.card.defects.learned.strength
        alone = fit(category.root, detector=detector, defects=folder, learn_defects=False) if strength else model
    good = [sample for sample in category.test if not sample.anomalous]
    found = []
    for one in (alone, model):
        normal, defective = scores(one, good), scores(one, judged)
        labels = np.r_[np.zeros(len(normal), bool), np.ones(len(defective), bool)]
        value, at_rate = one.threshold.value, np.sort(normal)[::-1][int(RATE * len(normal))]
        found.append(
            (
                image_auroc(np.r_[normal, defective], labels, bootstrap=0).value,
                float((defective <= value).mean()),
                float((defective <= at_rate).mean()),
                float((normal > value).mean()),
            )
        )
    auroc, escapes, at, alarms = ((before, after) for before, after in zip(*found, strict=True))
    return Row(category.name, detector, kind, draw, len(judged), strength, auroc, escapes, at, alarms)


def markdown(rows: Sequence[Row]) -> str:
    """Return the table: means over the draws, without -> with."""
    columns = ["category", "detector", "kind left out", "draws", "strength", "image AUROC"]
    columns += ["escapes at the threshold", f"escapes at {RATE:.0%} false alarms", "false alarms"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for key in dict.fromkeys((row.category, row.detector, row.kind) for row in rows):
        members = [row for row in rows if (row.category, row.detector, row.kind) == key]
        pairs = [
            " -> ".join(f"{mean(getattr(row, name)[side] for row in members):.3f}" for side in (0, 1))
            for name in ("auroc", "escapes", "at_rate", "false_alarms")
        ]
        strengths = ", ".join(f"{row.strength:g}" for row in members)
        lines.append("| " + " | ".join([key[0], key[1], key[2] or "none", str(len(members)), strengths, *pairs]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="*", help="folders with train/good, test/good, test/<defect>")
    parser.add_argument("--detectors", default="patchcore", help="names, with commas (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, metavar="N")
    parser.add_argument("--defects", type=int, default=10, metavar="N", help="images given (default: %(default)s)")
    parser.add_argument("--leave-out-kinds", action="store_true")
    parser.add_argument("--solar-cells", action="store_true", help="add the category of make demo")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write each draw's figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with labelled(arguments.categories, solar_cells=arguments.solar_cells) as opened:
        for category in opened:
            kinds = [""]
            if arguments.leave_out_kinds:
                kinds = sorted({sample.label or "" for sample in category.test if sample.anomalous})
            for detector in arguments.detectors.split(","):
                for draw, kind in [(draw, kind) for kind in kinds for draw in range(arguments.draws)]:
                    rows.append(measure(category, detector, arguments.defects, draw, kind))
                    print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    if arguments.json is not None:
        with atomic_write(arguments.json, DataError) as stream:
            stream.write(json.dumps([asdict(row) for row in rows], indent=2).encode())
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
