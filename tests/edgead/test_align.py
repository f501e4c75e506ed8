"""``edgead fit --align``: learned from good parts, carried by model and bundle, the same bytes in both."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from edgead.api import fit, load_model
from edgead.cli import run
from edgead.data import load_views, open_category
from edgead.fitting.aligning import learn_alignment
from edgead.opening import open_inspector
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.pose import TURN
from edgead.runtime.imaging.roi import Box, Region
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.inspector import Inspector
from tests.parts import GROUND, draw_part

SIZE = (160, 144)
QUICK = ("--detector", "padim", "--set", "dimensions=20", "--size", "64")


def draw(number: int, shape: str = "bolt") -> np.ndarray:
    """A part that lies somewhere, turned anyhow, under a light that varies; its grain is its own."""
    random = np.random.default_rng(number)
    at = int(random.integers(66, 94)), int(random.integers(60, 84))
    picture = draw_part(SIZE, at, int(random.integers(0, TURN)), shape=shape).astype(int)
    picture += random.integers(-6, 7, picture.shape) + int(random.integers(-8, 9))
    return np.clip(picture, 0, 255).astype(np.uint8)


def spoil(picture: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A light spot on the darkest place that lies inwards; with its mask."""
    spoiled, mask = picture.copy(), np.zeros(picture.shape[:2], np.uint8)
    dark = np.argwhere(picture.sum(axis=2) < 300)
    y, x = dark[np.random.default_rng(number).integers(len(dark))]
    spoiled[y - 4 : y + 5, x - 4 : x + 5] = (250, 240, 90)
    mask[y - 4 : y + 5, x - 4 : x + 5] = 255
    return spoiled, mask


@pytest.fixture(scope="module")
def bolts(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "bolt"
    for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (root / folder).mkdir(parents=True)
    for number in range(24):
        Image.fromarray(draw(number)).save(root / f"train/good/{number:03}.png")
    for number in range(6):
        Image.fromarray(draw(100 + number)).save(root / f"test/good/{number:03}.png")
        spoiled, mask = spoil(draw(200 + number), number)
        Image.fromarray(spoiled).save(root / f"test/spot/{number:03}.png")
        Image.fromarray(mask).save(root / f"ground_truth/spot/{number:03}_mask.png")
    return root


@pytest.fixture(scope="module")
def fitted(bolts, tmp_path_factory):
    """A model and its bundle, as a person makes them."""
    folder = tmp_path_factory.mktemp("aligned")
    assert run(["fit", str(bolts), *QUICK, "--align", "-o", str(folder / "model")]) == 0
    assert run(["export", str(folder / "model"), "-o", str(folder / "bolt.edgead")]) == 0
    return folder / "model", folder / "bolt.edgead"


def test_training_and_runtime_see_the_same_bytes(fitted, bolts):
    model, bundle = load_model(fitted[0]), fitted[1]
    samples = open_category(bolts).test
    with Bundle.open(bundle) as opened:
        assert opened.align().same(model.align)
        assert opened.manifest.input.align == model.card.align
        view = opened.view()
    images = [read_image(sample.path) for sample in samples]
    trained = list(load_views(samples, model.inspector().view))
    assert all(map(np.array_equal, trained, map(view.prepare, images)))
    assert all(map(np.array_equal, trained, map(model.exportable("bolt").prepare, images)))


def test_model_and_bundle_decide_alike(fitted, bolts):
    images = [read_image(sample.path) for sample in open_category(bolts).test]
    images.append(draw_part(SIZE, (999, 999)))
    with Inspector.open(fitted[1], backend="onnxruntime") as onnx:
        for image, torch in zip(images, load_model(fitted[0]).predict(images), strict=True):
            other = onnx(image)
            assert (torch.decision, torch.threshold, torch.reason) == (other.decision, other.threshold, other.reason)
            assert torch.placement == other.placement
            if image is not images[-1]:
                assert torch.score == pytest.approx(other.score, rel=1e-4)
    assert other.decision is Decision.NOT_INSPECTED
    assert other.reason.startswith("part not found")


def test_every_good_part_is_brought_to_one_pose(fitted, bolts):
    """However the parts lie, what the network sees of them differs little; as the camera saw them, it differs much."""
    model = load_model(fitted[0])
    images = [read_image(sample.path) for sample in open_category(bolts).test if not sample.anomalous]
    seen = np.stack([model.exportable("bolt").prepare(image) for image in images]).astype(float)
    plain = np.stack([np.asarray(Image.fromarray(image).resize((64, 64))) for image in images]).astype(float)
    assert seen.std(axis=0).mean() < 0.5 * plain.std(axis=0).mean()


def test_maps_lie_where_the_defects_are(fitted, bolts, edgead):
    report = edgead("eval", fitted[1], bolts, "--json")
    assert report.code == 0, report.err
    found = report.json["categories"]["bolt"]
    assert found["pixel_auroc"]["value"] > 0.9
    assert found["decisions"]["not_inspected"] == 0


def test_a_part_without_a_piece_is_judged_and_is_a_defect(fitted):
    """A missing piece is what an inspection is for: it must not make the part one that is not looked at."""
    picture = draw_part(SIZE, (80, 72))
    picture[:, 44:57] = GROUND  # the head
    with open_inspector(fitted[0]) as judge:
        assert judge(picture).decision is not Decision.OK
        shorter = draw_part(SIZE, (80, 72))
        shorter[:, 100:] = GROUND  # the last quarter of the shaft
        assert judge(shorter).decision is Decision.ANOMALY


def test_commands_work_on_aligned_bundles(edgead, fitted, bolts, tmp_path):
    model, bundle = fitted
    assert edgead("check", bundle, "--json").json["passed"] is True
    assert edgead("eval", model, bolts, "--probe", "--per-kind", "2", "--json").code == 0
    benched = edgead("bench", bundle, "--backend", "onnxruntime", "--frames", "5", "--json")
    assert benched.code == 0, benched.err
    ran = edgead("run", bundle, "--source", bolts / "test" / "good", "--sink", tmp_path / "r.jsonl", "--json").json
    assert ran["frames"]["inspected"] == ran["frames"]["captured"]
    other = edgead("run", bundle, "--source", "synthetic://?frames=3&policy=every&width=96&height=96", "--json").json
    assert other["decisions"] == {"OK": 0, "ANOMALY": 0, "NOT_INSPECTED": 3}
    (reason,) = other["frames"]["failed_reasons"]
    assert "the frame is 96x96, but the model was aligned on frames of 160x144" in reason
    shutil.copytree(bolts / "test" / "good", tmp_path / "more")
    Image.fromarray(draw_part(SIZE, (999, 999))).save(tmp_path / "more" / "empty.png")
    done = edgead("calibrate", bundle, "--source", tmp_path / "more", "-o", tmp_path / "n.edgead")
    assert done.code == 0, done.err
    with Bundle.open(tmp_path / "n.edgead") as calibrated, Bundle.open(bundle) as old:
        assert calibrated.align().same(old.align())
    assert "plain graph cannot say" in edgead("export", model, "--onnx-only", "-o", tmp_path / "graphs").error


def test_another_alignment_does_not_take_over_in_a_stream(edgead, fitted, bolts, tmp_path):
    assert edgead("fit", bolts, *QUICK, "-o", tmp_path / "plain").code == 0
    assert edgead("export", tmp_path / "plain", "-o", tmp_path / "plain.edgead").code == 0
    with Inspector.open(fitted[1], backend="onnxruntime") as judge:
        judge.swap(fitted[1])
        with pytest.raises(ConfigError, match="or aligns it otherwise"):
            judge.swap(tmp_path / "plain.edgead")


def test_the_summary_says_how_parts_are_aligned(edgead, bolts, tmp_path):
    shutil.copytree(bolts, tmp_path / "bolt")
    Image.fromarray(draw(1, "disc")).save(tmp_path / "bolt" / "train" / "good" / "odd.png")
    done = edgead("fit", tmp_path / "bolt", *QUICK, "--align", "-o", tmp_path / "model", "--json")
    assert done.code == 0, done.err
    aligned = done.json["align"]
    assert 500 < aligned["minimum"] < 620
    assert aligned["turns"] is True
    assert "train/good/odd.png (the part to align overlaps by" in done.err
    assert "train/good/odd.png" in done.json["audit"]["excluded"]


def test_a_region_is_cut_before_the_part_is_found(bolts):
    region = Region(SIZE, Box(10, 4, 140, 136))
    align, lost = learn_alignment(open_category(bolts, train_only=True), region, (64, 64))
    assert align.frame_size == (140, 136)
    assert not lost
    model = fit(bolts, detector="padim", settings={"dimensions": 20}, size=64, roi=region.box, align=True)
    result = model.predict(draw(300))
    assert result.decision is not Decision.NOT_INSPECTED
    assert result.area == region.area


def with_arm(number: int, *, spot: bool = False, arm: bool = True) -> np.ndarray:
    """A dark bar with an arm that is half as far from the ground as Otsu's threshold lies."""
    rng = np.random.default_rng(number)
    at, angle = (int(rng.integers(120, 200)), int(rng.integers(100, 156))), int(rng.integers(0, 1024))
    picture = draw_part((320, 256), at, angle, shape="bar").copy()
    turn = 2 * np.pi * angle / 1024
    y, x = np.mgrid[:256, :320]
    along = np.cos(turn) * (x - at[0]) + np.sin(turn) * (y - at[1])
    across = np.cos(turn) * (y - at[1]) - np.sin(turn) * (x - at[0])
    if arm:
        picture[(along > 36) & (along < 90) & (abs(across) < 7)] = (152, 150, 147)
    if spot:
        picture[(abs(along - 70) < 5) & (abs(across) < 5)] = (200, 30, 30)
    return picture


def test_what_is_pale_belongs_to_the_part_and_is_judged(tmp_path):
    (tmp_path / "good").mkdir()
    for number in range(16):
        Image.fromarray(with_arm(number)).save(tmp_path / "good" / f"{number:02d}.png")
    model = fit(tmp_path / "good", size=96, align=True, detector="padim", settings={"dimensions": 20})
    scores = {}
    with model.inspector() as inspect:
        for name, change in (("good", {}), ("spot", {"spot": True}), ("no arm", {"arm": False})):
            scores[name] = [inspect(with_arm(number, **change)).score for number in range(50, 56)]
    assert min(scores["spot"]) > max(scores["good"])
    assert min(scores["no arm"]) > max(scores["good"])


def test_images_without_the_part_shape_no_template(bolts, tmp_path):
    settings = {"size": 96, "align": True, "detector": "padim", "settings": {"dimensions": 20}}
    with fit(bolts, **settings).inspector() as inspect:
        clean = inspect.view.align
    root = tmp_path / "bolts"
    shutil.copytree(bolts, root)
    ground = draw_part(SIZE, (-500, -500))
    for number in range(4):
        Image.fromarray(ground).save(root / "train" / "good" / f"z{number}.png")
    model = fit(root, **settings)
    assert len(model.card.audit.excluded) == 4
    with model.inspector() as inspect:
        assert np.array_equal(inspect.view.align.template, clean.template)
        assert inspect.view.align.minimum == clean.minimum


@pytest.mark.parametrize("size", [(64, 256), (256, 64), (512, 512)])
def test_networks_of_any_form_see_the_part(bolts, size):
    category = open_category(bolts, train_only=True)
    align, _ = learn_alignment(category, None, size)
    seen = list(load_views(category.train[:4], View(*size, align=align)))
    for picture in seen:
        share = float((picture.sum(axis=2) < 330).mean())  # of the part, which is dark
        assert 0.02 < share < 0.6
        rows, columns = np.nonzero(picture.sum(axis=2) < 330)
        assert (rows.min() > 0, columns.min() > 0) == (True, True)
        assert (rows.max() < size[0] - 1, columns.max() < size[1] - 1) == (True, True)


def test_round_parts_are_moved_and_not_turned(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    for number in range(8):
        Image.fromarray(draw(number, "disc")).save(tmp_path / f"train/good/{number}.png")
    align, _ = learn_alignment(open_category(tmp_path, train_only=True), None, (64, 64))
    assert align.turns is False
    assert align.find(align.to_canvas(draw(50, "disc"))).pose.angle == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tiles", "2x2"), "--align turns the image"),
        (("--mask", "mask.png"), "--align turns the image"),
        (("--budget-mb", "5"), "cannot be combined"),
    ],
)
def test_what_does_not_go_with_alignment_is_refused(edgead, bolts, tmp_path, arguments, message):
    done = edgead("fit", bolts, *QUICK, "--align", *arguments, "-o", tmp_path / "model")
    assert done.code == 2
    assert message in done.error
    assert not (tmp_path / "model").exists()


def test_several_categories_are_refused(edgead, bolts, tmp_path):
    shutil.copytree(bolts, tmp_path / "other")
    done = edgead("fit", bolts, tmp_path / "other", "--detector", "dfc", "--align", "-o", tmp_path / "model")
    assert done.code == 2
    assert "judges several kinds of parts" in done.error


def test_textures_and_pictures_of_several_sizes_are_refused(edgead, made_images, tmp_path):
    texture = tmp_path / "texture"
    texture.mkdir()
    for path in sorted((made_images / "cell" / "train" / "good").iterdir())[:12]:
        Image.fromarray(read_image(path)[:170, :170]).save(texture / f"{path.stem}.png")
    for folder, message in (
        (texture, "show no part whose pose can be found"),
        (made_images / "broken", "show no part whose pose can be found"),  # cells that fill the frame
        (made_images / "cell", "takes images of one size"),
    ):
        done = edgead("fit", folder, *QUICK, "--align", "-o", tmp_path / "model")
        assert done.code == 2, folder
        assert message in done.error


def test_damaged_alignments_are_refused(fitted, tmp_path):
    model, bundle = fitted
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "template.png").unlink()
    with pytest.raises(BundleError, match="its alignment cannot be read"):
        load_model(tmp_path / "model")
    shutil.copy(model / "template.png", tmp_path / "model" / "template.png")
    card = json.loads((model / "model.json").read_text())
    card["align"]["canvas_width"] = 4000
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="its alignment cannot be read"):
        load_model(tmp_path / "model")
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
    assert "template.png" in names
    with Bundle.open(bundle) as opened:
        wanted = opened.manifest.model_dump(mode="json")
    assert wanted["input"]["align"]["rule"] == "pose-overlap/1"


def test_an_audit_looks_at_what_a_fit_would_judge(edgead, bolts, tmp_path):
    folder = tmp_path / "bolt"
    shutil.copytree(bolts / "train" / "good", folder)
    Image.fromarray(draw_part(SIZE, (999, 999))).save(folder / "nothing.png")
    page = tmp_path / "audit.html"
    outcome = edgead("audit", folder, "--size", "96", "--align", "-o", page, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert list(report["not_found"]) == ["nothing.png"]
    assert (report["images"], report["parts"]) == (25, 24)
    assert "nothing.png" not in report["unusual"]
    assert page.read_text().count("<figure>") == 1 + len({*report["stray"], *report["odd"], *report["unusual"]})
    # As a fit has it: the same images, scored in the same view.
    model = fit(folder, detector="patchcore", settings={"bank_size": 2048}, size=96, align=True)
    assert report["unusual"] == model.card.audit.unusual
    outcome = edgead("audit", folder, "--size", "96", "--align", "--mask", page)
    assert outcome.code == 2
    assert "--align turns the image" in outcome.error
