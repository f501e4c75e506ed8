"""DFC on made parts of several kinds: what it finds, what it refuses, and that it judges the same everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgead.detectors import create_detector
from edgead.detectors.anchors import group_images, make_anchors
from edgead.detectors.dfc import _names
from edgead.detectors.routing import RoutedModule, Router
from edgead.evaluation.evaluation import evaluate
from edgead.export.exporting import export_bundle
from edgead.export.torch_backend import TorchBackend
from edgead.fitting import fit
from edgead.model.model import TrainedModel, load_model
from edgead.opening import open_inspector
from edgead.runtime.backends.routed_backend import FusedBackend
from edgead.runtime.decision.verdict import UNKNOWN_CATEGORY
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import read_image

# timm's backbone for tests: real layers, quick to export; random weights tell patterns this plain apart.
QUICK = {"size": 64, "backbone": "test_resnet@random"}
HEADS: dict[str, dict[str, Any]] = {
    "patchcore": {"head.bank_size": 32},
    "padim": {"head.dimensions": 16},
    "npad": {"head.dimensions": 8, "head.centroids": 8},
    "fre": {"head.components": 6},
    "protoad": {"head.prototypes": 16},
}
KINDS = ("checks", "rings", "stripes", "blobs")


def part(kind: str, seed: int, defect: bool = False) -> Image.Image:
    """A 64x64 part of one kind with noise of its own; a defect is a bright bar."""
    y, x = np.mgrid[:64, :64]
    patterns: dict[str, NDArray[np.float64]] = {
        "stripes": np.sign(np.sin(x / 3.0)),
        "rings": np.sin(np.hypot(x - 32, y - 32) / 2),
        "checks": np.sign(np.sin(x / 5) * np.sin(y / 5)),
        "blobs": np.sin(x / 9) + np.cos(y / 7) - 0.5,
    }
    tint = {"stripes": (1, 0.4, 0.4), "rings": (0.4, 1, 0.4), "checks": (0.4, 0.4, 1), "blobs": (0.9, 0.9, 0.2)}[kind]
    random = np.random.default_rng([seed, KINDS.index(kind)])
    pixels = (128 + 90 * patterns[kind])[:, :, None] * np.array(tint) + random.normal(0, 12, (64, 64, 3))
    if defect:
        pixels[24:36, 10:50] = 250
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(folder: Path, kind: str, count: int, first: int = 0, defect: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        part(kind, seed, defect).save(folder / f"{kind}-{seed:02d}.png")
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A category folder of each kind: 12 good parts to learn from, 4 good and 4 defective ones to judge."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write(root / kind / "train" / "good", kind, 12)
        write(root / kind / "test" / "good", kind, 4, first=50)
        write(root / kind / "test" / "bar", kind, 4, first=60, defect=True)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def pooled(kinds: dict[str, Path]) -> TrainedModel:
    """A model of three kinds on the default backbone, given in no order; the fourth kind is omitted."""
    torch.manual_seed(0)
    folders = [kinds[kind] for kind in ("stripes", "checks", "rings")]
    return fit(folders, detector="dfc", settings={"head.bank_size": 32}, size=64)


def quick(folders: list[Path], **settings: Any) -> TrainedModel:
    torch.manual_seed(0)
    return fit(folders, detector="dfc", settings=settings, **QUICK)


def test_the_number_of_categories_is_found(pooled: TrainedModel) -> None:
    routing = pooled.card.routing
    assert routing is not None
    # The router's columns are the names in their order, in the model and in its file.
    assert list(routing.categories) == ["checks", "rings", "stripes"]
    assert pooled.card.categories == {"checks": 12, "rings": 12, "stripes": 12}
    assert {name: one.sources for name, one in routing.categories.items()} == {
        name: {name: 12} for name in routing.categories
    }
    assert routing.purity == 1.0
    assert max(routing.silhouettes, key=routing.silhouettes.__getitem__) == 3
    assert (routing.head, pooled.card.settings["head_settings"]["bank_size"]) == ("patchcore", 32)
    assert len(pooled.card.normal_scores) == 36


def test_every_category_has_a_threshold_in_its_own_deviations(pooled: TrainedModel) -> None:
    scores = np.array(pooled.card.normal_scores).reshape(3, 12)  # of stripes, checks, rings
    np.testing.assert_allclose(scores.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(scores.std(1), 1, atol=1e-6)
    for name, row in zip(("stripes", "checks", "rings"), scores, strict=True):
        threshold = pooled.limits.categories[name]
        assert row.max() < threshold < 3 * row.max()
    routing = pooled.card.routing
    assert routing is not None
    assert {one.threshold.n_normals for one in routing.categories.values()} == {12}


def test_known_parts_are_judged_and_a_kind_never_seen_is_not(
    pooled: TrainedModel, kinds: dict[str, Path], tmp_path: Path
) -> None:
    pooled.save(tmp_path / "m")
    with open_inspector(tmp_path / "m") as inspector:
        for kind, folder in kinds.items():
            for path in sorted((folder / "test").rglob("*.png")):
                result = inspector(read_image(path))
                assert np.isfinite(result.score)
                if kind == "blobs":
                    assert result.decision is Decision.NOT_INSPECTED, path
                    assert str(result.reason).startswith(UNKNOWN_CATEGORY)
                    continue
                assert result.category == kind, path
                assert result.threshold == pooled.limits.categories[kind]
                if path.parent.name == "bar":  # a defective part is still a part of its kind
                    assert result.decision is Decision.ANOMALY, path


def test_the_router_is_what_its_text_says() -> None:
    random = np.random.default_rng(0)
    anchors = random.normal(size=(3, 5, 7))
    anchors /= np.linalg.norm(anchors, axis=2, keepdims=True)
    features = random.normal(size=(4, 7, 2, 3))
    votes, similarity = Router(torch.nn.Identity(), torch.tensor(anchors).float()).route(  # type: ignore[arg-type]
        torch.tensor(features).float()
    )
    for n in range(4):
        best = np.empty((6, 3))
        for p, patch in enumerate(features[n].reshape(7, 6).T):
            for k in range(3):
                best[p, k] = max(patch @ anchor / np.linalg.norm(patch) for anchor in anchors[k])
        counts = np.bincount(best.argmax(1), minlength=3)
        assert votes[n].tolist() == pytest.approx(counts / 6)
        assert float(similarity[n]) == pytest.approx(best[:, counts.argmax()].mean(), abs=1e-6)


def test_anchors_are_unit_centres_and_all_categories_have_the_same_number() -> None:
    random = np.random.default_rng(1)
    patches = [torch.tensor(random.normal(size=(count, 4)), dtype=torch.float32) for count in (100, 2)]
    anchors = make_anchors(patches, 6, seed=0)
    assert anchors.shape == (2, 6, 4)
    torch.testing.assert_close(anchors.norm(dim=2), torch.ones(2, 6))
    few = patches[1] / patches[1].norm(dim=1, keepdim=True)
    torch.testing.assert_close(anchors[1], few[[0, 1, 0, 1, 0, 1]])


@pytest.mark.parametrize("head", HEADS)
def test_every_detector_is_a_head(head: str, kinds: dict[str, Path], tmp_path: Path) -> None:
    model = quick([kinds["stripes"], kinds["checks"]], head=head, **HEADS[head])
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.card == model.card
    images = np.stack([np.asarray(part(kind, 70)) for kind in ("checks", "stripes", "checks", "rings")])
    found, again = (one.exportable("m").torch_backend().run(images) for one in (model, loaded))
    for first, second in zip(found, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert found.category is not None
    assert list(found.category[:3]) == ["checks", "stripes", "checks"]
    # One pass for all gives what router and heads give apart.
    assert isinstance(model.module, RoutedModule)
    minimum = {name: one.minimum_similarity for name, one in model.card.routing.categories.items()}  # type: ignore[union-attr]
    fused = FusedBackend(TorchBackend(model.module), minimum).run(images)
    assert (fused.category, fused.reason) == (found.category, found.reason)
    np.testing.assert_allclose(fused.score, found.score, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fused.map, found.map, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        together = model.module(torch.from_numpy(images))
    np.testing.assert_allclose(together[0].numpy(), found.score, rtol=1e-4, atol=1e-4)


# Tracing a graph takes seconds. The detector contract exports PatchCore's heads apart, the command line PaDiM's as one.
EXPORTS = [
    pytest.param(head, fused, marks=() if (head, fused) == ("patchcore", True) else pytest.mark.slow)
    for head in HEADS
    for fused in (True, False)
]


@pytest.mark.parametrize(("head", "fused"), EXPORTS)
def test_every_head_exports_both_ways(head: str, fused: bool, kinds: dict[str, Path], tmp_path: Path) -> None:
    model = quick([kinds["stripes"], kinds["checks"]], head=head, **HEADS[head])
    bundle = tmp_path / "m.edgead"
    # Known parts, good and defective, and a kind that it never saw.
    tested = [kinds[kind] / "test" for kind in ("stripes", "checks", "blobs")]
    report = export_bundle(model.exportable("m"), bundle, images=tested, fused=fused)
    (records,) = report.parity.values()
    for runtime in ("onnxruntime", "openvino"):
        assert (records[runtime].images, records[runtime].flips, records[runtime].borderline) == (24, 0, 0)
        assert check_bundle(bundle, backend=runtime, images=tested).problems == ()


def test_heads_of_different_shapes_do_not_fit_into_one_graph(kinds: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path / "few", "rings", 10)
    model = quick([kinds["checks"], tmp_path / "few"], head="protoad", **{"head.prototypes": 65536})
    with pytest.raises(ConfigError, match=r"the heads differ in the shape of .*; export a router and heads") as refused:
        export_bundle(model.exportable("m"), tmp_path / "m.edgead", fused=True)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m.edgead").exists()


def test_one_folder_of_mixed_parts_gets_numbered_categories(tmp_path: Path) -> None:
    folder = write(write(tmp_path / "mixed", "rings", 11), "stripes", 13)
    model = quick([folder], head="padim", **HEADS["padim"])
    assert model.card.routing is not None
    assert sorted(model.card.categories) == ["category-1", "category-2"]
    assert sorted(model.card.categories.values()) == [11, 13]
    assert list(model.card.fingerprint) == ["mixed"]


def test_one_folder_of_one_kind_is_one_category(kinds: dict[str, Path]) -> None:
    model = quick([kinds["rings"]], head="padim", **HEADS["padim"])
    assert model.card.categories == {"rings": 12}
    assert model.card.routing is not None
    backend = model.exportable("m").torch_backend()
    images = np.stack([np.asarray(part("rings", 80)), np.asarray(part("rings", 81)), np.full((64, 64, 3), 255)])
    found = backend.run(images.astype(np.uint8))
    assert found.category == ["rings"] * 3
    assert found.reason is not None
    assert [reason is None for reason in found.reason] == [True, True, False]


def test_a_given_number_is_kept(kinds: dict[str, Path]) -> None:
    model = quick(list(kinds.values())[:3], head="padim", categories="1", **HEADS["padim"])
    assert list(model.card.categories.values()) == [36]
    assert model.card.routing is not None
    assert model.card.routing.silhouettes == {}
    assert model.card.routing.purity == pytest.approx(1 / 3)


def test_a_stray_image_is_no_category(kinds: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kinds["rings"], tmp_path / "rings"))
    Image.new("RGB", (64, 64)).save(folder / "train" / "good" / "zz-black.png")
    for settings in ({}, {"categories": 2}):
        model = quick([folder, kinds["checks"]], head="padim", **settings, **HEADS["padim"])
        assert list(model.card.categories) == ["checks", "rings"]
        # It shows nothing, and is not even fitted on.
        assert sorted(model.card.categories.values()) == [12, 12]


@pytest.mark.parametrize(
    ("sizes", "count", "found"),
    [
        ((12, 12, 12), None, [12, 12, 12]),
        ((30,), None, [30]),
        ((20, 20, 2), None, [20, 22]),
        ((20, 20, 1), 2, [20, 21]),
        ((20, 20, 3), None, [3, 20, 20]),
        ((1,), None, [1]),
        ((2,), None, [2]),
        ((10,) * 20, 20, [10] * 20),
    ],
)
def test_groups_of_images(sizes: tuple[int, ...], count: int | None, found: list[int]) -> None:
    random = np.random.default_rng(0)
    centers = random.normal(size=(len(sizes), 64))
    rows = np.repeat(centers, sizes, 0) + 0.2 * random.normal(size=(sum(sizes), 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    grouping = group_images(rows, count, 12)
    assert sorted(np.bincount(grouping.labels).tolist()) == found
    with pytest.raises(DataError, match="do not fall into 99 categories"):
        group_images(rows, 99, 12)


@pytest.mark.parametrize(
    ("members", "sources", "names"),
    [
        ([[0, 1], [2]], "aab", ["a", "b"]),
        ([[0], [1, 2]], "aab", ["a", "a-2"]),
        ([[0], [1], [2]], ["a", "a", "A-2"], ["a", "a-3", "A-2"]),
        ([[0], [1], [2]], ["a", "a-2", "a"], ["a", "a-2", "a-3"]),
        ([[0, 1, 2], []], "aab", ["a", "category-2"]),
        ([[0, 1], [2]], "aaa", ["category-1", "category-2"]),
        ([[0, 1, 2]], "aaa", ["a"]),
    ],
)
def test_names_of_categories_differ(members: list[list[int]], sources: list[str], names: list[str]) -> None:
    assert _names([np.array(rows, np.int64) for rows in members], sources) == names


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"head": "dfc"}, "the head of detector 'dfc' is a detector of one category, not 'dfc'"),
        ({"head": "padin"}, "Did you mean 'padim'"),
        ({"head.bank": "3"}, "detector 'patchcore' has no setting 'bank'. Did you mean 'bank_size'"),
        ({"head.bank_size": "many"}, "setting 'bank_size' of detector 'patchcore'"),
        ({"head": "padim", "head.bank_size": "3"}, "detector 'padim' has no setting 'bank_size'"),
        ({"head.": "3"}, "detector 'patchcore' has no setting ''"),
        ({"head_settings": "x", "head.bank_size": "3"}, "setting 'head_settings' of detector 'dfc'"),
        ({"smooth": "false"}, "detector 'dfc' has no setting 'smooth'"),
        ({"categories": "0"}, "setting 'categories' of detector 'dfc'"),
        ({"categories": "101"}, "setting 'categories' of detector 'dfc'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refused:
        create_detector("dfc", settings)
    assert "\n" not in str(refused.value)


def test_all_settings_of_the_head_are_recorded() -> None:
    settings = create_detector("dfc", {"head": "padim", "head.dimensions": "20", "head.smooth": "false"}).settings
    assert settings.head_settings == {
        **create_detector("padim").settings.model_dump(),
        "dimensions": 20,
        "smooth": False,
    }
    assert create_detector("dfc", settings.model_dump()).settings == settings


def test_too_few_images_are_refused(kinds: dict[str, Path], tmp_path: Path) -> None:
    few = write(tmp_path / "few", "stripes", 9)
    with pytest.raises(DataError, match="9 good images are too few, 10 are needed"):
        quick([few])
    with pytest.raises(DataError, match="24 good images are too few, 40 are needed, 10 a category"):
        quick([kinds["rings"], kinds["checks"]], categories=4)
    with pytest.raises(DataError, match="category 'few' of 2 has 9 of the 21 images and needs 10"):
        quick([few, kinds["checks"]])


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("a:b",), r"a category cannot be called 'a:b' .*; rename the folder"),
        (("con",), "is a device on Windows"),
        (("Plate", "plate"), "categories 'Plate' and 'plate' are one name on some systems; rename a folder"),
        (("x" * 151,), "at most 150 bytes"),
    ],
)
def test_names_that_a_bundle_cannot_hold_are_refused_before_the_fit(
    names: tuple[str, ...], match: str, tmp_path: Path
) -> None:
    folders = [write(tmp_path / str(number) / name, "rings", 2) for number, name in enumerate(names)]
    with pytest.raises(ConfigError, match=match):
        quick(folders)


def test_no_folder_and_two_for_one_category_are_refused(kinds: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no category to fit"):
        quick([])
    with pytest.raises(ConfigError, match="two categories are called 'rings'"):
        quick([kinds["rings"], kinds["rings"]])
    with pytest.raises(ConfigError, match=r"takes one category, got 2; .* --detector dfc"):
        fit([kinds["rings"], kinds["checks"]], detector="padim", size=64)


def change(model: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((model / "model.json").read_text())
    edit(card)
    (model / "model.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.update(routing=None),
        lambda card: card.update(detector="patchcore", settings={}),
        lambda card: card["routing"]["categories"].pop("rings"),
        lambda card: card["settings"].update(head="dfc"),
        lambda card: card["settings"].update(head="padim", head_settings={}),
        lambda card: card["routing"].pop("purity"),
    ],
    ids=["no routing", "another detector", "a category less", "a head of heads", "another head", "a field less"],
)
def test_a_damaged_model_is_refused(
    pooled: TrainedModel, edit: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    pooled.save(tmp_path / "m")
    change(tmp_path / "m", edit)
    with pytest.raises(BundleError) as refused:
        load_model(tmp_path / "m")
    assert "\n" not in str(refused.value)


def test_a_model_without_routing_is_of_one_category(kinds: dict[str, Path], tmp_path: Path) -> None:
    model = fit([kinds["rings"]], detector="padim", settings={"dimensions": 8}, **QUICK)
    model.save(tmp_path / "m")
    change(tmp_path / "m", lambda card: card.pop("routing"))
    assert load_model(tmp_path / "m").limits.categories == {}


def test_an_evaluation_counts_unknown_parts_apart(pooled: TrainedModel, kinds: dict[str, Path], tmp_path: Path) -> None:
    pooled.save(tmp_path / "m")
    with open_inspector(tmp_path / "m") as inspector:
        report = evaluate(inspector, _category(kinds["blobs"]), bootstrap=10)
    assert report.decisions.not_inspected == 8
    assert (report.decisions.normal, report.decisions.anomalous) == (0, 0)
    assert sum(report.routed_to.values()) == 8


def _category(folder: Path) -> Any:
    from edgead.data import open_category

    return open_category(folder, need_test=True)


def test_the_command_line_from_two_folders_to_categories(
    edgead: Callable[..., Any], kinds: dict[str, Path], tmp_path: Path
) -> None:
    folders = [kinds["stripes"], kinds["checks"]]
    model, bundle = tmp_path / "m", tmp_path / "m.edgead"
    arguments = ["--detector", "dfc", "--set", "head=padim", "--set", "head.dimensions=16", "--size", "64"]
    torch.manual_seed(0)
    fitted = edgead("fit", *folders, *arguments, "--backbone", "test_resnet@random", "-o", model, "--json")
    assert fitted.code == 0, fitted.err
    assert fitted.json["categories"] == {"checks": 12, "stripes": 12}
    assert list(fitted.json["thresholds"]) == ["checks", "stripes"]
    assert fitted.json["routing"]["head"] == "padim"
    assert fitted.json["settings"]["head_settings"]["dimensions"] == 16
    assert "Warning: checks: " in fitted.err  # 12 parts cannot support a rate of 1 %
    exported = edgead("export", model, "--single-graph", "-o", bundle, "--json")
    assert exported.code == 0, exported.err
    assert list(exported.json["parity"]) == ["model.fp32.onnx"]
    for judge in (model, bundle):
        report = edgead("eval", judge, *folders, "--json").json
        assert report["categories"]["stripes"]["routed_to"] == {"stripes": 8}
        assert report["categories"]["checks"]["routed_to"] == {"checks": 8}
    assert "taken for" in edgead("eval", bundle, *folders).out
    assert edgead("check", bundle).code == 0
    log = tmp_path / "results.jsonl"
    ran = edgead("run", bundle, "--source", kinds["stripes"] / "test", "--sink", f"jsonl://{log}", "--json")
    assert ran.code == 0, ran.err
    assert {json.loads(line)["category"] for line in log.read_text().splitlines()} == {"stripes"}
    calibrated = edgead("calibrate", bundle, "--source", kinds["checks"] / "test" / "good", "-o", bundle, "--json")
    assert calibrated.code == 0, calibrated.err
    assert list(calibrated.json["thresholds"]) == ["fp32/checks"]
    assert "fp32/stripes keeps its threshold" in calibrated.err
    refused = edgead("fit", *folders, "--detector", "padim", "-o", tmp_path / "n")
    assert refused.code == 2
    assert "--detector dfc" in refused.error
