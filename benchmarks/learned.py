"""Trained detectors against themselves before training, and against the distance from the mean image.

    python -m benchmarks.learned DATA/metal_plate DATA/magnetic_tile --seeds 3,1 --json rows.json

The tables of docs/learned.md and docs/results.md. Every row is a fit through `edgead.fitting`, judged on the labelled
test images by `edgead.evaluation.evaluation`. *Untrained*: the same network of the same seed before its first step,
with the statistics that it takes from good images. *Mean image*: the mean absolute difference from the mean of the
images that the fit trained on, smoothed as maps are; neither with `--align`. Rows in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.cli._options import parse_settings
from edgead.data import Category, load_images, load_mask, open_category
from edgead.detectors import REGISTRY, create_detector, default_size, learns
from edgead.detectors.learned import LearnedModule, hold_out
from edgead.evaluation.evaluation import evaluate
from edgead.features.backbones import BackboneSpec
from edgead.features.scoring import GaussianSmoothing
from edgead.fitting import fit
from edgead.metrics.metrics import image_auroc
from edgead.metrics.pixels import count_pixels, pixel_auroc
from edgead.opening import open_inspector
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.imaging.decode import read_image

Pixels = NDArray[np.uint8]
Scoring = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 (1, h, w, 3) to score (1,) and map (1, gh, gw)

_HEAD = (
    "| category | detector | seed | image AUROC | pixel AUROC | AUPRO | false alarms, escapes at its threshold |"
    " CPU s | untrained: image, pixel | mean image: image, pixel | probes before, after |"
)


def untrained(name: str, settings: Mapping[str, Any], pixels: Pixels, seed: int) -> LearnedModule:
    """Return the network that `edgead.fitting` would train on images ``(n, h, w, 3)``, as it is before that."""
    detector: Any = create_detector(name, settings)
    size = pixels.shape[1], pixels.shape[2]
    kept, held = hold_out(len(pixels), seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = detector.network(detector.backbone(BackboneSpec()), size).eval()
        for stage in detector.stages(network, pixels[kept], seed):
            if stage.start is not None:
                stage.start()
    with torch.inference_mode():
        detector.complete(network, pixels[kept], pixels[held])
    return LearnedModule(network, size)


def mean_image(pixels: Pixels) -> Scoring:
    """Return the distance from the mean of images ``(n, h, w, 3)``."""
    mean = torch.from_numpy(pixels.mean(axis=0, dtype=np.float64)).float()
    smoothing = GaussianSmoothing(4.0 * min(pixels.shape[1:3]) / 256.0)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        grid: Tensor = smoothing((images.float() - mean).abs().mean(3))
        return grid.amax(dim=(1, 2)), grid

    return judge


def measure(scoring: Scoring, category: Category, size: tuple[int, int]) -> list[float]:
    """Return image and pixel AUROC on the test images."""
    scores, grids, masks = [], [], []
    with torch.inference_mode():
        for sample, image in zip(category.test, load_images(category.test, *size), strict=True):
            score, grid = scoring(torch.from_numpy(image.copy())[None])
            scores.append(float(score))
            grids.append(grid[0].numpy())
            shape = read_image(sample.path).shape
            masks.append(load_mask(sample, (shape[0], shape[1]), *size) if sample.anomalous else None)
    labels = [sample.anomalous for sample in category.test]
    by_pixel = pixel_auroc(count_pixels(grids, masks), bootstrap=0).value
    return [image_auroc(scores, labels, bootstrap=0).value, by_pixel]


def measure_row(
    name: str, settings: Mapping[str, Any], category: Category, seed: int, place: Path, align: bool = False
) -> dict[str, Any]:
    """Fit, save at ``place``, judge, and judge what it is compared with, which sees parts as they lie."""
    started, begun = time.process_time(), time.perf_counter()
    model = fit([category.root], detector=name, settings=settings, seed=seed, align=align)
    seconds, minutes = time.process_time() - started, (time.perf_counter() - begun) / 60
    model.save(place)
    with open_inspector(place, threads=torch.get_num_threads()) as inspector:
        found = evaluate(inspector, category, bootstrap=0)
    others: dict[str, list[float]] = {"untrained": [], "mean_image": []}
    if not align:
        size = default_size(name, settings)
        pixels = np.stack(list(load_images(category.train, *size)))
        others["untrained"] = measure(untrained(name, settings, pixels, seed), category, size)
        others["mean_image"] = measure(mean_image(pixels[hold_out(len(pixels), seed)[0]]), category, size)
    assert model.card.training is not None
    judged = model.card.training.log.judgements
    decisions = found.decisions
    return {
        "category": category.name,
        "detector": name,
        "seed": seed,
        "image_auroc": found.image_auroc.value,
        "pixel_auroc": None if found.pixel_auroc is None else found.pixel_auroc.value,
        "aupro": None if found.aupro is None else found.aupro.value,
        "decisions": [decisions.false_alarms, decisions.normal, decisions.escapes, decisions.anomalous],
        "cpu_s": seconds,
        "wall_minutes": minutes,
        "settings": model.card.settings,
        "align": align,
        **others,
        "probes": [judged[0].value, next(one.value for one in judged if one.chosen)],
        "steps": next(one.step for one in judged if one.chosen),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows in Markdown, and the mean of each detector and category that has several seeds."""
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    for category, name in dict.fromkeys((row["category"], row["detector"]) for row in rows):
        own = [row for row in rows if (row["category"], row["detector"]) == (category, name)]
        lines += [_line(row, str(row["seed"])) for row in own]
        if len(own) > 1:
            means = {key: np.mean([row[key] for row in own], axis=0) for key in own[0] if key in _AVERAGED}
            lines.append(_line({**own[0], **means, "decisions": None, "cpu_s": None}, f"mean of {len(own)}"))
    return "\n".join(lines)


_AVERAGED = ("image_auroc", "pixel_auroc", "aupro", "untrained", "mean_image", "probes")


def _line(row: dict[str, Any], seed: str) -> str:
    alarms = "" if row["decisions"] is None else "{} of {}, {} of {}".format(*row["decisions"])
    cells = [row["category"], row["detector"], seed]
    cells += [f"{row[key]:.4f}" for key in ("image_auroc", "pixel_auroc", "aupro")]
    cells += [alarms, "" if row["cpu_s"] is None else f"{row['cpu_s']:.0f}"]
    cells += [", ".join(f"{value:.3f}" for value in row[key]) for key in ("untrained", "mean_image", "probes")]
    return "| " + " | ".join(cells) + " |"


def _same(
    row: Mapping[str, Any], category: str, name: str, seed: int, settings: Mapping[str, Any], align: bool
) -> bool:
    stated = create_detector(name, settings).settings.stated().model_dump(mode="json")
    held = (row["category"], row["detector"], row["seed"], row["settings"], row.get("align", False))
    return held == (category, name, seed, stated, align)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", type=Path)
    parser.add_argument("--detectors", default=",".join(name for name in REGISTRY if learns(name)))
    parser.add_argument("--seeds", default="3", help="how many, one number for all categories or one for each")
    parser.add_argument("--json", type=Path, help="file that the rows are kept in")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", default="small", choices=("small", "medium"))
    parser.add_argument("--align", action="store_true", help="how parts lie and are turned is undone first")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, for an ablation")
    parser.add_argument("--models", type=Path, help="folder that the fitted models are kept in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {"profile": arguments.profile, **parse_settings(arguments.set)}
    counts = [int(text) for text in arguments.seeds.split(",")]
    if len(counts) not in (1, len(arguments.categories)):
        raise SystemExit(
            f"{len(counts)} numbers of seeds for {len(arguments.categories)} categories; give one for each"
        )
    counts *= len(arguments.categories) // len(counts)
    held = arguments.json is not None and arguments.json.exists()
    rows: list[dict[str, Any]] = json.loads(arguments.json.read_text()) if held else []
    for path, count in zip(arguments.categories, counts, strict=True):
        category = open_category(path, need_test=True)
        for name in arguments.detectors.split(","):
            for seed in range(count):
                if any(_same(row, category.name, name, seed, settings, arguments.align) for row in rows):
                    continue
                with TemporaryDirectory() as folder:
                    kept = Path(folder) if arguments.models is None else arguments.models
                    place = kept / f"{category.name}-{name}-{seed}.model"
                    rows.append(measure_row(name, settings, category, seed, place, arguments.align))
                print(_line(rows[-1], str(seed)), flush=True)
                if arguments.json is not None:
                    with atomic_write(arguments.json, DataError) as file:
                        file.write(json.dumps(rows, indent=1).encode())
    print(table(rows))


if __name__ == "__main__":
    main()
