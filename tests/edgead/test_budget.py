"""``--budget-mb`` and ``--budget-ms``: ladders, the choice between rungs, and a bundle that keeps within them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgead.budget import Ranking, pick
from edgead.budget.tracing import SharedBackbone
from edgead.detectors import REGISTRY, create_detector, learns, pools_categories
from edgead.detectors.base import fit_module
from edgead.export.exporting import export_bundle
from edgead.features.backbones import BackboneSpec, build_backbone
from edgead.features.features import FeatureExtractor, build_extractor
from edgead.fitting import fit
from edgead.metrics.metrics import image_auroc
from edgead.model.card_sections import RungCard
from edgead.model.model import load_model
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.progress import silent

CLOSED_FORM = [name for name in REGISTRY if not learns(name)]  # what a budget chooses for
SIZE = (64, 64)
COUNT = 24
BACKBONE = "resnet10t@random"  # few layers, so that tracing is quick
QUICK = ("--backbone", BACKBONE, "--size", "64")
SMALL: dict[str, dict[str, Any]] = {"npad": {"dimensions": 16, "centroids": 64}, "protoad": {"prototypes": 64}}
THREE_RUNGS = {"max_patches": 576}  # of all that is kept, PatchCore's ladder takes 256, 512 and everything


class Images:
    """Two kinds of parts in turn, each noise around a pattern of its own."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    @classmethod
    def made(cls, count: int) -> Images:
        random = np.random.default_rng(0)
        patterns = np.stack([random.integers(40, 120, (*SIZE, 3)), random.integers(130, 216, (*SIZE, 3))])
        noise = random.integers(-12, 13, (count, *SIZE, 3))
        return cls((patterns[np.arange(count) % 2] + noise).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: Sequence[int]) -> Images:
        return Images(self.pixels[list(indices)])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return build_extractor(build_backbone(BackboneSpec.parse(BACKBONE), SIZE), SIZE)


def fitted(name: str, settings: Any, extractor: FeatureExtractor, images: Images) -> nn.Module:
    """The module of a rung; of a detector of several categories its router and heads."""
    detector = create_detector(name, settings.model_dump())
    if pools_categories(name):
        module: nn.Module = detector.fit(images, ["parts"] * len(images), extractor, seed=0, progress=silent).module
        return module
    return fit_module(detector, images, extractor, seed=0, progress=silent)


def ladder(name: str, extractor: FeatureExtractor, images: int, settings: Any = None, fixed: Any = ()) -> list[Any]:
    cells = extractor.grid[0] * extractor.grid[1]
    return list(create_detector(name, settings).ladder(extractor.channels, cells, images, fixed))


def weight(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


# Ladders


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_every_rung_fits_and_each_weighs_more_than_the_one_before(name: str, extractor: FeatureExtractor) -> None:
    images = Images.made(COUNT)
    rungs = ladder(name, extractor, COUNT, SMALL.get(name))
    assert len(rungs) >= 2
    weights = []
    for rung in rungs:
        module = fitted(name, rung, extractor, images)
        weights.append(weight(module))
        assert torch.isfinite(torch.cat([tensor.flatten().float() for tensor in module.buffers()])).all()
    if name != "fre":  # its heaviest part is one map of means, and of the rest the thinner of two complements is kept
        assert weights == sorted(set(weights))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_every_rung_exports_and_scores_as_torch_does(name: str, extractor: FeatureExtractor) -> None:
    images, judged = Images.made(COUNT), Images.made(COUNT + 2).pixels[COUNT:]
    shared = SharedBackbone(extractor.backbone, *SIZE)
    for rung in ladder(name, extractor, COUNT, SMALL.get(name)):
        module = fitted(name, rung, extractor, images)
        if pools_categories(name):
            module = module.heads[0]  # type: ignore[assignment,index]
        graph = shared.export(module, *SIZE, ["score", "map"])
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        score, _ = session.run(None, {"images": judged})
        with torch.inference_mode():
            expected = module(torch.from_numpy(judged))[0].numpy()
        np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_a_ladder_holds_the_settings_as_they_are_and_varies_nothing_that_is_fixed(
    name: str, extractor: FeatureExtractor
) -> None:
    plenty = 1_000
    rungs = ladder(name, extractor, plenty)
    if not pools_categories(name):
        assert create_detector(name).settings in rungs
    dumps = [json.dumps(rung.model_dump()) for rung in rungs]
    assert len(set(dumps)) == len(dumps)
    varied = {
        key
        for key in rungs[0].model_dump()
        if len({getattr(rung, key) for rung in rungs if key != "head_settings"}) > 1
    }
    for rung in ladder(name, extractor, plenty, fixed=varied):
        assert {key: getattr(rung, key) for key in varied} == {
            key: getattr(create_detector(name).settings, key) for key in varied
        }


def test_what_was_given_of_a_heads_settings_stays(extractor: FeatureExtractor) -> None:
    given = {"head": "padim", "head.regularisation": "0.5"}
    rungs = ladder("dfc", extractor, COUNT, given, given)
    assert len(rungs) > 2
    assert {rung.head_settings["regularisation"] for rung in rungs} == {"0.5"}
    only = {"head": "padim", "head.dimensions": "9"}
    assert [rung.head_settings for rung in ladder("dfc", extractor, COUNT, only, only)] == [{"dimensions": "9"}]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("patchcore", {}),
        ("padim", {}),
        ("npad", {"dimensions": 8, "centroids": 300}),
        ("protoad", {"prototypes": 300}),
        ("fre", {"variant": "global", "pool": 2}),
    ],
)
def test_more_images_make_no_larger_model(name: str, settings: dict[str, Any], extractor: FeatureExtractor) -> None:
    few = 8
    largest = ladder(name, extractor, few, settings)[-1]
    weights = {weight(fitted(name, largest, extractor, Images.made(count))) for count in (few, COUNT)}
    assert len(weights) == 1


# The choice


def ranking(images: Sequence[float], painted: Sequence[Sequence[float]]) -> Ranking:
    owners = [index for index, scores in enumerate(painted) for _ in scores]
    flat = [score for scores in painted for score in scores]
    return Ranking.of(np.array(images), np.array(flat), np.array(owners))


def test_auroc_and_its_jackknife_are_those_of_the_definition() -> None:
    random = np.random.default_rng(0)

    def draw() -> tuple[list[float], list[list[float]]]:
        normal = random.integers(0, 20, 9).astype(float).tolist()
        return normal, [random.integers(5, 25, count).astype(float).tolist() for count in (3, 0, 1, 4, 2, 2, 3, 1, 5)]

    def auroc(normal: list[float], painted: list[list[float]]) -> float:
        scores = [*normal, *(score for scores in painted for score in scores)]
        return image_auroc(scores, np.arange(len(scores)) >= len(normal), bootstrap=0).value

    def without(index: int, values: list[Any]) -> list[Any]:
        return values[:index] + values[index + 1 :]

    first, second = draw(), draw()
    assert ranking(*first).auroc == pytest.approx(auroc(*first))
    left = [[auroc(*(without(index, part) for part in one)) for index in range(9)] for one in (first, second)]
    for expected, found in (
        (np.array(left[0]), ranking(*first).error()),
        (np.array(left[0]) - np.array(left[1]), ranking(*first).error(ranking(*second))),
    ):
        assert found == pytest.approx(np.sqrt(8 * expected.var()))
    assert ranking(*first).error(ranking(*first)) == 0


def rung(model: Ranking, size: int, *, fits: bool = True) -> RungCard:
    return RungCard(settings={}, auroc=model.auroc, standard_error=model.error(), bytes=size, ms=1.0, fits=fits)


def test_the_best_within_the_budget_wins_and_of_equals_the_smallest() -> None:
    normal = list(np.linspace(0, 1, 12))
    blind = ranking(normal, [[score] for score in normal[::-1]])
    good = ranking(normal, [[2.0 if index else 0.5] for index in range(12)])
    better = ranking(normal, [[2.0 if index else 0.6] for index in range(12)])
    perfect = ranking(normal, [[2.0]] * 12)
    assert blind.auroc < good.auroc < better.auroc < perfect.auroc
    models = [blind, good, better, perfect]
    # Good lies behind the last two by one image in twelve: no more than the error of that difference.
    assert pick([rung(model, size) for size, model in enumerate(models)], models) == 1
    assert pick([rung(model, -size) for size, model in enumerate(models)], models) == 3
    # Out of budget counts for nothing, however good or small.
    assert pick([rung(model, size, fits=size in (0, 3)) for size, model in enumerate(models)], models) == 3
    assert pick([rung(model, size, fits=size == 0) for size, model in enumerate(models)], models) == 0


# From images to a bundle


@pytest.fixture(scope="module")
def untested(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts without any test image."""
    target = tmp_path_factory.mktemp("untested") / parts.name
    shutil.copytree(parts / "train", target / "train")
    return target


@pytest.fixture(scope="module")
def roomy(untested: Path) -> Any:
    """A model chosen where everything fits."""
    torch.manual_seed(0)  # random weights come from there
    return fit([untested], settings=THREE_RUNGS, backbone=BACKBONE, size=64, budget_mb=1000, budget_ms=1e6)


def test_the_curve_says_what_was_measured(roomy: Any) -> None:
    card = roomy.card.budget
    assert [rung.settings for rung in card.curve] == [{"bank_size": size} for size in (256, 512, 576)]
    assert (card.budget_mb, card.budget_ms) == (1000, 1e6)
    # Of 12 images: what a rung judges it was not fitted on, and every structural defect can be painted on each.
    assert (card.fitted, card.held_out) == (9, 3)
    assert 3 * 4 <= card.probes <= 3 * 8
    assert card.frame_size == (1280, 1024)
    assert card.backend["name"] == "onnxruntime"
    assert card.machine["cores"] >= 1
    for rung in card.curve:
        assert rung.fits
        assert 0 <= rung.auroc <= 1
        assert rung.ms > 0
    sizes = [rung.bytes for rung in card.curve]
    assert sizes == sorted(set(sizes))
    assert roomy.card.settings == {**roomy.card.settings, **card.curve[card.chosen].settings, **THREE_RUNGS}


def test_the_bundle_keeps_within_the_budget(edgead: Any, roomy: Any, parts: Path, tmp_path: Path) -> None:
    free = roomy.card.budget
    limit = (free.curve[0].bytes + 100) / 1e6
    torch.manual_seed(0)
    setting = f"max_patches={THREE_RUNGS['max_patches']}"
    outcome = edgead("fit", parts, *QUICK, "--set", setting, "--budget-mb", limit, "-o", tmp_path / "m", "--json")
    assert outcome.code == 0, outcome.err
    budget = outcome.json["budget"]
    assert (budget["budget_mb"], budget["budget_ms"], budget["chosen"]) == (pytest.approx(limit), None, 0)
    assert [rung["fits"] for rung in budget["curve"]] == [True, False, False]
    assert outcome.json["settings"]["bank_size"] == 256
    # The same seed, with test images beside the others this time: the same figures.
    for rung, before in zip(budget["curve"], free.curve, strict=True):
        assert (rung["auroc"], rung["bytes"]) == (before.auroc, pytest.approx(before.bytes, abs=16))
    # What the curve calls its size is what the whole bundle stays below, and not by much.
    bundle = tmp_path / "m.edgead"
    report = export_bundle(load_model(tmp_path / "m").exportable("m"), bundle)
    assert budget["curve"][0]["bytes"] - (16 << 10) - 8192 < report.size <= limit * 1e6
    assert bundle.stat().st_size == report.size
    with Bundle.open(bundle) as opened:
        recorded: Any = opened.manifest.provenance["budget"]
        assert recorded["curve"][0]["settings"] == {"bank_size": 256}


def test_a_budget_that_nothing_keeps_is_refused(edgead: Any, parts: Path, tmp_path: Path) -> None:
    fixed = ("--set", "bank_size=7")
    outcome = edgead("fit", parts, *QUICK, *fixed, "--budget-mb", 0.1, "--budget-ms", 50000, "-o", tmp_path / "m")
    assert outcome.code == 3
    assert "no settings of detector 'patchcore' keep within 0.1 MB and 50000 ms: the nearest take" in outcome.error
    assert "raise the budget" in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget-mb", "0"], "--budget-mb must be a number above 0"),
        (["--budget-ms", "-3"], "--budget-ms must be a number above 0"),
        (["--budget-ms", "nan"], "--budget-ms must be a number above 0"),
    ],
)
def test_a_wrong_budget_is_refused(edgead: Any, parts: Path, tmp_path: Path, arguments: Any, expected: str) -> None:
    outcome = edgead("fit", parts, *arguments, "-o", tmp_path / "m")
    assert outcome.code == 2
    assert expected in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_too_few_parts_to_choose_by_are_refused(edgead: Any, parts: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for image in sorted((parts / "train" / "good").iterdir())[:7]:
        shutil.copy(image, few)
    outcome = edgead("fit", few, *QUICK, "--budget-mb", "5", "-o", tmp_path / "m")
    assert outcome.code == 2
    assert "7 good images are too few to choose settings by measurement, which takes 8" in outcome.error


def test_people_get_the_curve(edgead: Any, parts: Path, tmp_path: Path) -> None:
    outcome = edgead("fit", parts, *QUICK, "--set", "bank_size=7", "--budget-mb", "100", "-o", tmp_path / "m")
    assert outcome.code == 0, outcome.err
    for expected in ("Within 100 MB: 3 good images", "AUROC on painted defects", "chosen"):
        assert expected in outcome.out
