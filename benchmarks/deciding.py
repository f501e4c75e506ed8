"""Escapes and false alarms of detectors, at their thresholds and as far as their scores allow; a Markdown table.

    python -m benchmarks.deciding DATA/mpdd/metal_plate DATA/magnetic_tile/tile --solar-cells
    python -m benchmarks.deciding parts/plate --detectors patchcore,padim --seeds 0,1,2 --json rows.json

An escape is a defective test image that passes (score <= threshold), a false alarm a good one that is rejected. The
first two pairs of columns are what a line gets: thresholds from normal training images only, at the default rate and as
``edgead fit --false-alarm-rate 0.05`` sets it. The next three are what the scores allow at 0, 1 and 5 % false alarms:
their thresholds are chosen on the test images. Each figure is the median over the seeds, with its range where seeds
differ. ``--solar-cells`` adds the cells of ``make demo``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from edgead.data import Category, open_category
from edgead.evaluation.evaluation import evaluate
from edgead.fitting import FitConfig, fit
from edgead.metrics.shares import RATES
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.frame import Decision
from examples.demo import prepare

OTHER_RATE = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One fit, judged on the test images.

    Attributes:
        normal, anomalous: inspected test images of either kind.
        escapes, false_alarms: at the default threshold; other_escapes, other_false_alarms: at that of `OTHER_RATE`.
        allowed: escapes at each of `RATES`.
    """

    category: str
    detector: str
    seed: int
    normal: int
    anomalous: int
    escapes: int
    false_alarms: int
    other_escapes: int
    other_false_alarms: int
    allowed: tuple[int, ...]
    image_auroc: float


def measure(category: Category, detector: str, seed: int, size: int | None) -> Row:
    """Fit and judge; the second threshold is applied to the scores of the first fit, which has the same model."""
    model = fit(category.root, detector=detector, seed=seed, size=size, learn_defects=False)
    # Fitted again, so that whatever `fit` takes a threshold from counts here as well.
    at_other = FitConfig(detector=detector, seed=seed, size=size, learn_defects=False, false_alarm_rate=OTHER_RATE)
    other = fit(category.root, at_other).threshold.value
    with model.inspector() as inspector:
        report = evaluate(inspector, category, bootstrap=0)
    inspected = [image for image in report.images if image.decision is not Decision.NOT_INSPECTED]
    good = [image.score for image in inspected if not image.anomalous]
    defective = [image.score for image in inspected if image.anomalous]
    return Row(
        category=category.name,
        detector=detector,
        seed=seed,
        normal=len(good),
        anomalous=len(defective),
        escapes=report.decisions.escapes,
        false_alarms=report.decisions.false_alarms,
        other_escapes=sum(score <= other for score in defective),
        other_false_alarms=sum(score > other for score in good),
        allowed=tuple(point.escapes.count for point in report.allowed),
        image_auroc=report.image_auroc.value,
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the table, one line a category and detector."""
    columns = ["category", "detector", "seeds", "escapes", "false alarms"]
    columns += [f"escapes at `--false-alarm-rate {OTHER_RATE:g}`", "false alarms there"]
    columns += [f"escapes that the scores allow at {rate * 100:g} % false alarms" for rate in RATES]
    columns.append("image AUROC")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for category, detector in dict.fromkeys((row.category, row.detector) for row in rows):
        members = [row for row in rows if (row.category, row.detector) == (category, detector)]
        good, defective = f" of {members[0].normal}", f" of {members[0].anomalous}"
        cells = [
            category,
            detector,
            str(len(members)),
            over_seeds([row.escapes for row in members]) + defective,
            over_seeds([row.false_alarms for row in members]) + good,
            over_seeds([row.other_escapes for row in members]) + defective,
            over_seeds([row.other_false_alarms for row in members]) + good,
            *(over_seeds([row.allowed[place] for row in members]) + defective for place in range(len(RATES))),
            over_seeds([row.image_auroc for row in members], ".4f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def over_seeds(values: Sequence[float], form: str = "g") -> str:
    """Return the median, with the range where the seeds differ."""
    middle, low, high = (format(value, form) for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


@contextmanager
def labelled(folders: Sequence[Path], *, solar_cells: bool) -> Iterator[list[Category]]:
    """Open categories with test images, and that of ``make demo`` if asked for, which is made for as long."""
    with TemporaryDirectory(prefix="edgead-solar-") as scratch:
        paths = list(folders)
        if solar_cells:
            paths.append(Path(scratch, "solar_cell"))
            prepare(paths[-1])
        yield [open_category(path, need_test=True) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="*", help="folders with train/good, test/good, test/<defect>")
    parser.add_argument("--detectors", default="patchcore,padim", help="names, with commas (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="whole numbers, with commas (default: %(default)s)")
    parser.add_argument("--size", type=int, help="pixels a side (default: each detector's own)")
    parser.add_argument("--solar-cells", action="store_true", help="add the category of make demo")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write each fit's figures")
    arguments = parser.parse_args()
    if not arguments.categories and not arguments.solar_cells:
        parser.error("give a category folder or --solar-cells")
    rows = []
    with labelled(arguments.categories, solar_cells=arguments.solar_cells) as opened:
        for seed in map(int, arguments.seeds.split(",")):
            for category in opened:
                for detector in arguments.detectors.split(","):
                    rows.append(measure(category, detector, seed, arguments.size))
                    print(f"{category.name}, {detector}, seed {seed}", file=sys.stderr, flush=True)
    if arguments.json is not None:
        with atomic_write(arguments.json, DataError) as stream:
            stream.write(json.dumps([asdict(row) for row in rows], indent=2).encode())
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
