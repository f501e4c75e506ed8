"""False-alarm rates and escapes of thresholds from few normal images, drawn again and again; a Markdown table.

    python -m benchmarks.thresholds DATA/magnetic_tile/tile DATA/mvtec_ad/screw --solar-cells --json scores.json

PatchCore is fitted once a category. A threshold comes from n of the scores that it keeps of its normal training images,
each by a model without the image; the false-alarm rate is the share of the other scores above it. Escapes are
defective test images at or below it: they are shown, and chose nothing. *Odd*: one of the n is replaced by a defect.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.deciding import labelled
from edgead.data import Category
from edgead.fitting import FitConfig, fit
from edgead.opening import open_inspector
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.imaging.decode import read_image

DRAWS = 400
LEFT = 15  # scores at least that a rate is measured on

Scores = NDArray[np.float64]


def scores_of(category: Category, place: Path) -> tuple[Scores, Scores]:
    """Return the held-out scores of the normal training images, and the scores of the defective test images."""
    model = fit([category.root], FitConfig(detector="patchcore"))
    model.save(place)
    with open_inspector(place) as inspector:
        found = [inspector(read_image(sample.path)).score for sample in category.test if sample.anomalous]
    return np.array(model.card.normal_scores), np.array(found)


def draw(normals: Scores, defects: Scores, n: int, rate: float, *, odd: bool, seed: int = 0) -> tuple[float, float]:
    """Return the mean false-alarm rate and the mean share of escapes of thresholds from ``n`` scores."""
    rng = np.random.default_rng(seed)
    alarms, escapes = [], []
    for _ in range(DRAWS):
        order = rng.permutation(normals)
        taken, left = order[:n].copy(), order[n:]
        if odd:
            taken[0] = rng.choice(defects)
        threshold = calibrate(taken, rate).value
        alarms.append(float((left > threshold).mean()))
        escapes.append(float((defects <= threshold).mean()))
    return float(np.mean(alarms)), float(np.mean(escapes))


def table(known: dict[str, tuple[Scores, Scores]], counts: Sequence[int], rates: Sequence[float]) -> str:
    lines = [
        "| n | asked for | false alarms | escapes | with one defect: false alarms | escapes |",
        "|---|---|---|---|---|---|",
    ]
    for n in counts:
        for rate in rates:
            pairs = [pair for pair in known.values() if len(pair[0]) >= n + LEFT]
            cells = [np.mean([draw(*pair, n, rate, odd=odd) for pair in pairs], axis=0) for odd in (False, True)]
            figures = [
                f"{value:.4f}" if place == 0 else f"{value:.3f}" for one in cells for place, value in enumerate(one)
            ]
            lines.append(f"| {n} ({len(pairs)}) | {rate:.3g} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="*", type=Path)
    parser.add_argument("--solar-cells", action="store_true")
    parser.add_argument("--counts", default="20,30,45,60,90,120,150,190")
    parser.add_argument("--rates", default="0.01,0.02,0.05")
    parser.add_argument("--json", type=Path, required=True, help="file that the scores are kept in")
    arguments = parser.parse_args()
    kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    if not kept:
        opened = labelled(arguments.categories, solar_cells=arguments.solar_cells)
        with TemporaryDirectory() as folder, opened as categories:
            for category in categories:
                pair = scores_of(category, Path(folder) / f"{category.name}.model")
                kept[category.name] = [one.tolist() for one in pair]
        with atomic_write(arguments.json, DataError) as file:
            file.write(json.dumps(kept).encode())
    known = {name: (np.array(normals), np.array(defects)) for name, (normals, defects) in kept.items()}
    for name, (normals, defects) in known.items():
        print(f"{name}: {len(normals)} normals, {len(defects)} defects")
    counts, rates = ([float(text) for text in one.split(",")] for one in (arguments.counts, arguments.rates))
    print(table(known, [int(count) for count in counts], rates))


if __name__ == "__main__":
    main()
