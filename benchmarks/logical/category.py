"""A category of such scenes on disk, in the layout of MVTec LOCO AD: masks by region, with their saturation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.logical.cutouts import read_cutouts
from benchmarks.logical.scenes import LOGICAL, STRUCTURAL, KitMaker, Scene

TRAIN, GOOD, ANOMALOUS = 200, 60, 60
SATURATION = "saturation.json"  # of each mask file, in pixels
_SHEET = "contact-sheet.jpg"


def make(data: Path, out: Path, seed: int) -> Path:
    """Write 200 normal scenes to train on, 60 normal, 60 logical and 60 structural ones to test, and a contact sheet.

    Args:
        data: holds ``mvtec_ad/screw``, ``aws_aliens/toy`` and ``mpdd/metal_plate``.
        out: new folder; a category of ``edgead fit`` and ``edgead eval``.
        seed: decides everything; parts of training and test scenes are different ones.
    """
    parts = read_cutouts(data)
    known = {kind: found[::2] for kind, found in parts.items()}
    unseen = {kind: found[1::2] for kind, found in parts.items()}
    train, test = KitMaker(known, 1000 * seed + 1), KitMaker(unseen, 1000 * seed + 2)
    saturation: dict[str, int] = {}
    _write(out / "train" / "good", (train.normal() for _ in range(TRAIN)), saturation)
    _write(out / "test" / "good", (test.normal() for _ in range(GOOD)), saturation)
    rules = list(LOGICAL)
    logical = (test.logical(rules[number % len(rules)]) for number in range(ANOMALOUS))
    _write(out / "test" / "logical_anomalies", logical, saturation)
    structural = (test.structural(STRUCTURAL[number % len(STRUCTURAL)]) for number in range(ANOMALOUS))
    _write(out / "test" / "structural_anomalies", structural, saturation)
    (out / SATURATION).write_text(json.dumps(saturation, indent=1, sort_keys=True) + "\n")
    _contact_sheet(KitMaker(known, 7), out / _SHEET)
    return out


def rule_of(name: str) -> str:
    """Return which rule the logical anomaly with this file name breaks."""
    rules = list(LOGICAL)
    return rules[int(Path(name).stem) % len(rules)]


def _write(folder: Path, scenes: Iterable[Scene], saturation: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.parent.parent
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / f"{number:03d}.png")
        for region, (mask, area) in enumerate(scene.regions):
            path = root / "ground_truth" / folder.name / f"{number:03d}" / f"{region:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((mask * 255).astype(np.uint8)).save(path)
            saturation[path.relative_to(root).as_posix()] = area


def _contact_sheet(kit: KitMaker, path: Path) -> None:
    scenes = [kit.normal().image for _ in range(3)]
    scenes += [kit.logical(rule).image for rule in LOGICAL] + [kit.structural(kind).image for kind in STRUCTURAL]
    rows = [np.hstack(scenes[start : start + 4]) for start in range(0, 16, 4)]
    Image.fromarray(np.vstack(rows)).resize((1024, 1024), Image.Resampling.BOX).save(path, quality=88)
