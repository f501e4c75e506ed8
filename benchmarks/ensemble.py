"""What two detectors are worth together: image AUROC of each, and of the sum of their z-scores on normals.

    python -m benchmarks.ensemble CATEGORY A.model B.model

Both models were fitted on the category's ``train/good`` with the same seed. The z-scores take mean and standard
deviation from good images that neither of the two had seen when it scored them: those that a learned detector held out,
and what closed-form ones say of the same images out of fold. No test image decides anything.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.data import open_category
from edgead.metrics.metrics import image_auroc
from edgead.model.model import TrainedModel, load_model
from edgead.runtime.imaging.decode import read_image


def held_out_scores(model: TrainedModel) -> dict[int, float]:
    """Return image index -> score of the good images that the model, or one without them, had not seen."""
    card = model.card
    if card.training is not None:
        return dict(zip(card.training.held_out, card.normal_scores, strict=True))
    images = range(len(card.normal_scores)) if card.scored is None else card.scored
    return dict(zip(images, card.normal_scores, strict=True))


def together(category: Path, first: Path, second: Path) -> dict[str, Any]:
    """Return the figures of both and of the two together, ready for JSON."""
    test = open_category(category, need_test=True).test
    labels = np.array([sample.anomalous for sample in test])
    models = [load_model(path) for path in (first, second)]
    own = [held_out_scores(model) for model in models]
    common = sorted(set(own[0]) & set(own[1]))
    scores, units = [], []
    for model, held in zip(models, own, strict=True):
        values = np.array([held[index] for index in common])
        with model.inspector() as inspect:
            scores.append(np.array([inspect(read_image(sample.path)).score for sample in test]))
        units.append((scores[-1] - values.mean()) / max(float(values.std()), 1e-12))

    def auroc(values: NDArray[np.float64]) -> float:
        return float(image_auroc(values, labels, bootstrap=0).value)

    return {
        "category": category.name,
        "detectors": [model.card.detector for model in models],
        "normals": len(common),
        "alone": [auroc(one) for one in scores],
        "sum": auroc(units[0] + units[1]),
        "larger": auroc(np.maximum(*units)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("models", nargs=2, type=Path)
    arguments = parser.parse_args()
    print(json.dumps(together(arguments.category, *arguments.models), indent=1))


if __name__ == "__main__":
    main()
