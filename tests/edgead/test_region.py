"""A region and what it ignores: drawn at fit, carried by the bundle, applied by one code, refused where it is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from edgead.cli import run
from edgead.data import load_images, load_mask, open_category
from edgead.model.model import load_model
from edgead.opening import open_inspector
from edgead.probes import plant_in_region
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.frame import Frame
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.heatmap import heat, overlay
from edgead.runtime.imaging.preprocess import resize_reference
from edgead.runtime.imaging.roi import (
    FILL,
    Box,
    Region,
    decode_mask,
    encode_mask,
    make_region,
    parse_box,
    prepare,
)
from edgead.runtime.inspection.inspector import Inspector

QUICK = ("--detector", "padim", "--set", "dimensions=20", "--size", "64")
RNG = np.random.default_rng(0)


def drawn(width=60, height=40, box=(10, 5, 40, 30)):
    ignore = np.zeros((box[3], box[2]), bool)
    ignore[:10, :12] = True
    return Region((width, height), Box(*box), ignore)


def pictures(count=1, width=60, height=40):
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# Pixels


@pytest.mark.parametrize("layout", ["rgb", "bgr", "gray"])
def test_the_region_is_cut_filled_and_then_resized(layout):
    region = drawn()
    image = pictures()[0] if layout != "gray" else pictures()[0][:, :, 0]
    part = image[5:35, 10:50].copy()
    part[:10, :12] = FILL
    expected = resize_reference(part, 16, 24, layout)
    assert np.array_equal(prepare(image, 16, 24, layout, region), expected)


def test_nothing_that_is_ignored_or_outside_moves_the_input_by_one_bit():
    region, image = drawn(), pictures()[0]
    other = pictures()[0]
    other[5:35, 10:50][~region.ignore] = image[5:35, 10:50][~region.ignore]
    assert not np.array_equal(image, other)
    assert np.array_equal(prepare(image, 16, 24, region=region), prepare(other, 16, 24, region=region))
    assert np.array_equal(image, np.array(image)), "the frame itself is not painted over"


def test_another_size_of_frame_is_refused():
    with pytest.raises(DataError, match=r"the frame is 61x40, .* drawn on frames of 60x40; set the camera"):
        prepare(pictures(width=61)[0], 16, 24, region=drawn())


@pytest.mark.parametrize("box", [(-1, 0, 20, 20), (0, 0, 61, 40), (50, 0, 11, 20), (0, 33, 20, 8), (0, 0, 7, 20)])
def test_a_box_that_does_not_lie_in_the_frame_is_refused(box):
    with pytest.raises(ConfigError, match="does not lie in a frame of 60x40"):
        Region((60, 40), Box(*box))


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,x", "1,2,3,4,5", "-1,2,3,4", "1.5,2,3,4"])
def test_a_box_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--roi takes x,y,width,height"):
        parse_box(text)
    assert parse_box(" 1, 2,30,40") == Box(1, 2, 30, 40)


def test_masks_come_back_as_they_went():
    region = drawn()
    png = encode_mask(region)
    again = make_region((60, 40), region.box, decode_mask(png, "mask.png", (60, 40)))
    assert region.same(again)
    assert not region.same(Region((60, 40), region.box))
    assert not region.same(None)
    assert make_region((60, 40), None, None) is None
    assert make_region((60, 40), None, np.zeros((40, 60), np.uint8)).ignore is None
    with pytest.raises(ConfigError, match="the mask m is 60x40, the frames are 80x40"):
        decode_mask(png, "m", (80, 40))
    with pytest.raises(DataError, match="not a readable image"):
        decode_mask(b"no png", "m", (60, 40))
    with pytest.raises(ConfigError, match="ignores the whole region"):
        make_region((60, 40), None, np.full((40, 60), 255, np.uint8))


def test_probes_lie_where_the_model_looks():
    region, image = drawn(160, 120, (20, 10, 100, 80)), pictures(width=160, height=120)[0] // 8 + 100
    for seed in range(6):
        painted, mask = plant_in_region(image, region, "scratch", seed)
        changed = (painted != image).any(axis=2)
        assert np.array_equal(changed[10:90, 20:120], mask)
        assert changed.sum() == mask.sum() > 0
        assert not mask[region.ignore].any()


# From fit to the line


@pytest.fixture(scope="module")
def mask_file(plate, tmp_path_factory):
    rows, columns = read_image(sorted((plate / "train" / "good").iterdir())[0]).shape[:2]
    mask = np.zeros((rows, columns), np.uint8)
    mask[: rows // 3, : columns // 2] = 255
    path = tmp_path_factory.mktemp("mask") / "mask.png"
    Image.fromarray(mask).save(path)
    return path, (columns, rows)


@pytest.fixture(scope="module")
def fitted(plate, mask_file, tmp_path_factory):
    """A model and its bundle on a region with a mask, as a person makes them."""
    path, (columns, rows) = mask_file
    folder = tmp_path_factory.mktemp("region")
    box = f"{columns // 8},{rows // 8},{columns * 3 // 4},{rows * 3 // 4}"
    model = str(folder / "model")
    assert run(["fit", str(plate), *QUICK, "--roi", box, "--mask", str(path), "-o", model]) == 0
    assert run(["export", model, "-o", str(folder / "region.edgead")]) == 0
    return folder / "model", folder / "region.edgead"


def test_model_and_bundle_judge_the_same_region_alike(fitted, plate):
    model, bundle = fitted
    with Bundle.open(bundle) as opened:
        assert opened.region().same(load_model(model).region)
    images = [read_image(path) for path in sorted((plate / "test").rglob("*.png"))][:4]
    with open_inspector(model) as torch, Inspector.open(bundle, backend="onnxruntime") as onnx:
        for image in images:
            a, b = torch(image), onnx(image)
            assert (a.decision, a.threshold) == (b.decision, b.threshold)
            assert a.score == pytest.approx(b.score, rel=1e-4)
            assert b.area == pytest.approx(onnx.region.area)


def test_what_is_ignored_cannot_move_a_score(fitted, plate):
    image = read_image(sorted((plate / "test" / "good").iterdir())[0])
    with Inspector.open(fitted[1], backend="onnxruntime") as judge:
        before = judge(image).score
        x, y, width, height = judge.region.box
        noisy = pictures(1, image.shape[1], image.shape[0])[0]
        keep = np.zeros(image.shape[:2], bool)
        keep[y : y + height, x : x + width] = ~judge.region.ignore
        noisy[keep] = image[keep]
        assert judge(noisy).score == before
        noisy[y + height - 20 : y + height, x + width - 20 : x + width] ^= 255
        assert judge(noisy).score != before


def test_the_heat_map_lies_on_the_region(fitted, plate):
    image = read_image(sorted((plate / "test" / "good").iterdir())[0])
    with Inspector.open(fitted[1], backend="onnxruntime") as judge:
        judge.set_threshold(1e-6)
        result = judge(image)
        x, y, width, height = judge.region.box
    level = heat(result, *image.shape[:2])
    outside = np.ones(image.shape[:2], bool)
    outside[y : y + height, x : x + width] = False
    assert level[outside].max() == 0
    assert level[~outside].min() > 127
    drawn_over = overlay(image, result)
    assert np.array_equal(drawn_over[outside], image[outside])
    assert not np.array_equal(drawn_over[~outside], image[~outside])


def test_commands_work_on_a_region_and_refuse_frames_of_another_size(edgead, fitted, plate, tmp_path):
    model, bundle = fitted
    assert edgead("check", bundle, "--json").json["passed"] is True
    evaluated = edgead("eval", bundle, plate, "--json")
    assert evaluated.code == 0, evaluated.err
    assert edgead("eval", model, plate, "--probe", "--per-kind", "2", "--json").code == 0
    benched = edgead("bench", bundle, "--backend", "onnxruntime", "--frames", "5", "--json")
    assert benched.code == 0, benched.err
    ran = edgead("run", bundle, "--source", plate / "test" / "good", "--sink", tmp_path / "r.jsonl", "--json").json
    assert ran["frames"]["inspected"] == ran["frames"]["captured"]
    other = edgead("run", bundle, "--source", "synthetic://?frames=3&policy=every&width=96&height=96", "--json").json
    assert other["decisions"] == {"OK": 0, "ANOMALY": 0, "NOT_INSPECTED": 3}
    (reason,) = other["frames"]["failed_reasons"]
    assert "the frame is 96x96, but the model's region was drawn on frames of" in reason
    assert edgead("calibrate", bundle, "--source", plate / "test" / "good", "-o", tmp_path / "n.edgead").code == 0
    with Bundle.open(tmp_path / "n.edgead") as calibrated, Bundle.open(bundle) as old:
        assert calibrated.region().same(old.region())


def test_a_region_that_does_not_fit_the_photos_is_refused_before_any_work(edgead, plate, mask_file, tmp_path):
    _, (columns, rows) = mask_file
    for arguments, message in (
        (("--roi", f"0,0,{columns + 1},{rows}"), "does not lie in a frame"),
        (("--roi", "1,2"), "--roi takes"),
        (("--mask", tmp_path / "no.png"), "cannot read the mask"),
        (("--roi", "0,0,32,32", "--budget-mb", "5"), "cannot be combined"),
    ):
        done = edgead("fit", plate, *QUICK, *arguments, "-o", tmp_path / "model")
        assert done.code == 2
        assert message in done.error
        assert not (tmp_path / "model").exists()


def test_photos_of_several_sizes_are_refused_with_a_region(edgead, plate, tmp_path):
    shutil.copytree(plate / "train", tmp_path / "mixed" / "train")
    shutil.copytree(plate / "test", tmp_path / "mixed" / "test")
    last = sorted((tmp_path / "mixed" / "train" / "good").iterdir())[-1]
    Image.open(last).resize((50, 50)).save(last)
    done = edgead("fit", tmp_path / "mixed", *QUICK, "--roi", "0,0,40,40", "-o", tmp_path / "model")
    assert done.code == 2
    assert last.name in done.error
    assert "the frame is 50x50" in done.error


def test_damaged_regions_are_refused(fitted, tmp_path):
    model, _ = fitted
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "mask.png").unlink()
    with pytest.raises(BundleError, match="its region cannot be read"):
        load_model(tmp_path / "model")
    card = json.loads((model / "model.json").read_text())
    card["region"]["x"] = 60_000
    shutil.copy(model / "mask.png", tmp_path / "model" / "mask.png")
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="its region cannot be read"):
        load_model(tmp_path / "model")


def test_ground_truth_is_cut_as_the_image_is(plate):
    category = open_category(plate)
    sample = next(sample for sample in category.test if sample.masks)
    rows, columns = read_image(sample.path).shape[:2]
    whole = load_mask(sample, (rows, columns), rows, columns)
    box = Box(columns // 4, rows // 4, columns // 2, rows // 2)
    ignore = np.zeros((box.height, box.width), bool)
    ignore[: box.height // 2] = True
    found = load_mask(sample, (rows, columns), box.height, box.width, Region((columns, rows), box, ignore))
    expected = whole[box.y : box.y + box.height, box.x : box.x + box.width] & ~ignore
    assert np.array_equal(found, expected)
    (image,) = load_images([sample], 32, 32, region=Region((columns, rows), box, ignore))
    assert image.shape == (32, 32, 3)


def test_a_frame_from_a_camera_keeps_its_layout(fitted, plate):
    image = read_image(sorted((plate / "test" / "good").iterdir())[0])
    with Inspector.open(fitted[1], backend="onnxruntime") as judge:
        bgr = Frame(np.ascontiguousarray(image[:, :, ::-1]), 0, 0, "camera", "bgr")
        assert judge(bgr).score == judge(image).score
