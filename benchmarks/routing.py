"""DFC on an unlabelled pool: does the router know the parts, what does routing cost, and does it know what it does not?

    python -m benchmarks.routing ../shared/data/mpdd/metal_plate ../shared/data/aws_aliens/toy …

Three questions: (1) how often is a test image sent to its own category; (2) image AUROC routed, with the right head
given (oracle), and of models fitted on one category each; (3) each category left out in turn: how many of its images
are NOT_INSPECTED, and how many of the known good ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgead.data import Category, load_images, open_category
from edgead.export.torch_backend import TorchBackend
from edgead.fitting import fit
from edgead.metrics.metrics import image_auroc
from edgead.model.model import TrainedModel
from edgead.runtime.backends import Backend
from edgead.runtime.decision.verdict import Limits


def verdicts(backend: Backend, limits: Limits, category: Category, size: tuple[int, int]) -> list[tuple[Any, ...]]:
    """Return ``(score, category, known)`` of every test image."""
    found = []
    for image in load_images(category.test, *size):
        verdict = limits.judge(backend.run(image[None]), 0)
        found.append((verdict.score, verdict.category, verdict.reason is None))
    return found


def measure(paths: list[Path], head: str, size: int, seed: int) -> dict[str, Any]:
    categories = [open_category(path, need_test=True) for path in paths]
    pooled = fit(paths, detector="dfc", settings={"head": head}, size=size, seed=seed)
    routing = pooled.card.routing
    assert routing is not None
    report: dict[str, Any] = {
        "head": head,
        "seed": seed,
        "found": {name: one.sources for name, one in routing.categories.items()},
        "purity": routing.purity,
        "silhouettes": routing.silhouettes,
        "categories": {},
    }
    exportable = pooled.exportable("dfc")
    assert exportable.routing is not None
    for path, category in zip(paths, categories, strict=True):
        labels = [sample.anomalous for sample in category.test]
        routed = verdicts(exportable.torch_backend(), pooled.limits, category, (size, size))
        right = np.array([found == category.name for _, found, _ in routed])
        anomalous = np.array(labels)
        row: dict[str, Any] = {
            "routing_normal": float(right[~anomalous].mean()),
            "routing_anomalous": float(right[anomalous].mean()),
            "not_inspected_normal": float(np.mean([not known for _, _, known in np.array(routed, object)[~anomalous]])),
            "not_inspected_anomalous": float(
                np.mean([not known for _, _, known in np.array(routed, object)[anomalous]])
            ),
            "auroc_routed": image_auroc([one[0] for one in routed], labels, bootstrap=0).value,
        }
        if category.name in exportable.routing.heads:
            oracle = TorchBackend(exportable.routing.heads[category.name])
            scores = [one[0] for one in verdicts(oracle, Limits(0.0), category, (size, size))]
            row["auroc_oracle"] = image_auroc(scores, labels, bootstrap=0).value
        single = fit([path], detector=head, size=size, seed=seed)
        scores = [one[0] for one in verdicts(TorchBackend(single.module), Limits(0.0), category, (size, size))]
        row["auroc_separate"] = image_auroc(scores, labels, bootstrap=0).value
        report["categories"][category.name] = row
        print(category.name, row, flush=True)
    report["left_out"] = {}
    for number, unseen in enumerate(categories):
        # The router does not depend on the heads, so the quickest one serves.
        model = fit(
            paths[:number] + paths[number + 1 :], detector="dfc", settings={"head": "fre"}, size=size, seed=seed
        )
        report["left_out"][unseen.name] = _left_out(model, unseen, categories, (size, size))
        print("without", unseen.name, report["left_out"][unseen.name], flush=True)
    return report


def _left_out(
    model: TrainedModel, unseen: Category, categories: list[Category], size: tuple[int, int]
) -> dict[str, Any]:
    backend = model.exportable("dfc").torch_backend()
    foreign = [not known for _, _, known in verdicts(backend, model.limits, unseen, size)]
    own: list[bool] = []
    for category in categories:
        if category.name != unseen.name:
            found = verdicts(backend, model.limits, category, size)
            own += [not one[2] for one, sample in zip(found, category.test, strict=True) if not sample.anomalous]
    assert model.card.routing is not None
    return {
        "categories_found": len(model.card.routing.categories),
        "unseen_not_inspected": float(np.mean(foreign)),
        "known_normal_not_inspected": float(np.mean(own)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="+", type=Path)
    parser.add_argument("--head", default="patchcore")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    report = measure(arguments.categories, arguments.head, arguments.size, arguments.seed)
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
