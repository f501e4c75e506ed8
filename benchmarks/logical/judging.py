"""How a model does on the scenes: image AUROC on logical and on structural anomalies, by rule, and sPRO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.logical.category import SATURATION, rule_of
from benchmarks.logical.scenes import LOGICAL, SIDE
from edgead.metrics.metrics import image_auroc
from edgead.metrics.spro import spro
from edgead.model.model import load_model
from edgead.runtime.imaging.decode import read_image

_KINDS = ("logical_anomalies", "structural_anomalies")


def judge(model: Path, folder: Path) -> dict[str, object]:
    """Return the figures of a model directory on a category that `make` wrote, ready for JSON."""
    saturation = json.loads((folder / SATURATION).read_text())
    scores: dict[str, list[float]] = {}
    maps: dict[str, list[NDArray[np.float32]]] = {}
    names: dict[str, list[str]] = {}
    loaded = load_model(model)
    with loaded.inspector() as inspect:
        for kind in ("good", *_KINDS):
            files = sorted((folder / "test" / kind).glob("*.png"))
            results = [inspect(read_image(path)) for path in files]
            scores[kind] = [result.score for result in results]
            maps[kind] = [result.map for result in results if result.map is not None]
            names[kind] = [path.name for path in files]
    found: dict[str, object] = {"detector": loaded.card.detector, "settings": loaded.card.settings}
    for kind in _KINDS:
        regions = [_regions(folder, kind, name, saturation) for name in names[kind]]
        none: list[list[tuple[NDArray[np.bool_], int]]] = [[] for _ in maps["good"]]
        found[kind] = {
            "image_auroc": _auroc(scores["good"], scores[kind]),
            "spro": spro([*maps["good"], *maps[kind]], [*none, *regions], (SIDE, SIDE)),
        }
    rules = [rule_of(name) for name in names[_KINDS[0]]]
    found["by_rule"] = {
        rule: _auroc(scores["good"], [s for s, own in zip(scores[_KINDS[0]], rules, strict=True) if own == rule])
        for rule in LOGICAL
    }
    return found


def _auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    labels = np.array([False] * len(good) + [True] * len(bad))
    return float(image_auroc(np.array([*good, *bad]), labels, bootstrap=0).value)


def _regions(folder: Path, kind: str, name: str, saturation: dict[str, int]) -> list[tuple[NDArray[np.bool_], int]]:
    found = []
    for path in sorted((folder / "ground_truth" / kind / Path(name).stem).glob("*.png")):
        with Image.open(path) as opened:
            found.append((np.asarray(opened) > 127, saturation[path.relative_to(folder).as_posix()]))
    return found
