"""Categories on disk: layouts, order, fingerprints, masks, and every way in which a folder can be wrong."""

from __future__ import annotations

import os
import shutil
import threading
import time
import unicodedata
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgead.data import list_images, load_images, load_mask, open_category, prefetch, unclear_masks
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import find_images, read_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.sources import open_source


def save(path: Path, *, size: tuple[int, int] = (12, 10), seed: int = 0, **options) -> Path:
    """Write a small RGB image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_mask(path: Path, pixels: NDArray | None = None, *, size: tuple[int, int] = (12, 10)) -> Path:
    if pixels is None:
        pixels = np.zeros((size[1], size[0]), np.uint8)
        pixels[3:6, 2:8] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "widget"
    for index in range(3):
        save(root / f"train/good/{index:03}.png", seed=index)
    for index in range(2):
        save(root / f"test/good/{index:03}.png", seed=10 + index)
        save(root / f"test/scratch/{index:03}.png", seed=20 + index)
        save_mask(root / f"ground_truth/scratch/{index:03}_mask.png")
    return root


def names(category, split: str) -> list[str]:
    return [category.relative(sample) for sample in getattr(category, split)]


# Layouts.


def test_mvtec_layout(mvtec: Path) -> None:
    category = open_category(mvtec, need_test=True)
    assert (category.name, category.layout, category.has_masks) == ("widget", "mvtec", True)
    assert names(category, "train") == [f"train/good/{index:03}.png" for index in range(3)]
    assert names(category, "test") == [
        f"test/{kind}/{index:03}.png" for kind in ("good", "scratch") for index in (0, 1)
    ]
    assert [(sample.label, sample.anomalous) for sample in category.test] == [("good", False)] * 2 + [
        ("scratch", True)
    ] * 2
    assert category.test[2].masks == (mvtec / "ground_truth/scratch/000_mask.png",)


@pytest.mark.parametrize("name", ["{stem}_mask.png", "{stem}.png", "{stem}_mask.bmp", "{stem}.tif"])
def test_masks_may_have_other_names(mvtec: Path, name: str) -> None:
    shutil.rmtree(mvtec / "ground_truth")
    for stem in ("000", "001"):
        save_mask(mvtec / "ground_truth/scratch" / name.format(stem=stem))
    assert open_category(mvtec).has_masks


def test_loco_layout_unites_several_masks(mvtec: Path) -> None:
    shutil.rmtree(mvtec / "ground_truth")
    shutil.rmtree(mvtec / "test/scratch")
    save(mvtec / "validation/good/000.png", seed=5)
    for kind in ("logical_anomalies", "structural_anomalies"):
        save(mvtec / f"test/{kind}/000.png", seed=6)
        for index in range(2):
            pixels = np.zeros((10, 12), np.uint8)
            pixels[index * 5, :] = 251 - index  # LOCO writes the kind of defect as grey value
            save_mask(mvtec / f"ground_truth/{kind}/000/{index:03}.png", pixels)
    category = open_category(mvtec, need_test=True)
    assert names(category, "validation") == ["validation/good/000.png"]
    assert [sample.label for sample in category.test][2:] == ["logical_anomalies", "structural_anomalies"]
    mask = load_mask(category.test[2], (10, 12), 10, 12)
    assert len(category.test[2].masks) == 2
    assert mask[0].all()
    assert mask[5].all()
    assert mask.sum() == 24


def test_plain_folder_is_all_good(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"parts/{index}.jpg", seed=index)
    save(tmp_path / "parts/rejected/0.jpg")
    category = open_category(tmp_path / "parts", train_only=True)
    assert (category.layout, names(category, "train")) == ("folder", ["0.jpg", "1.jpg", "2.jpg"])
    with pytest.raises(DataError, match="no defective test images"):
        open_category(tmp_path / "parts", need_test=True)


def test_folder_a_label(tmp_path: Path) -> None:
    for label in ("OK", "dent", "crack"):
        save(tmp_path / f"{label}/a.png")
    save_mask(tmp_path / "ground_truth/dent/a.png")
    save_mask(tmp_path / "ground_truth/crack/a.png")
    category = open_category(tmp_path)
    assert names(category, "train") == ["OK/a.png"]
    assert [sample.label for sample in category.test] == ["crack", "dent"]
    assert category.train[0].label == "good"
    assert category.has_masks
    with pytest.raises(DataError, match=r"no good test images.*test/good"):
        open_category(tmp_path, need_test=True)


def test_sorted_filtered_and_with_any_name(tmp_path: Path) -> None:
    good = tmp_path / "train/good"
    for name in ("b.PNG", "a 1.JPG", "Z.bmp", "ä.png", "日本.png", "a/x.png"):
        save(good / name, format="JPEG" if name.endswith("JPG") else "PNG")
    for name in (".hidden.png", "._b.png", "Thumbs.db", "notes.txt", ".cache/c.png", "__MACOSX/d.png"):
        (good / name).parent.mkdir(exist_ok=True)
        (good / name).write_bytes(b"no image")
    inside = [name.removeprefix("train/good/") for name in names(open_category(tmp_path), "train")]
    assert inside == ["Z.bmp", "a 1.JPG", "a/x.png", "b.PNG", "ä.png", "日本.png"]


def test_links_are_followed_and_loops_end(mvtec: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere / "x.png")
    (mvtec / "train/good/linked").symlink_to(elsewhere)
    (mvtec / "train/good/again").symlink_to(elsewhere)
    (mvtec / "train/good/loop").symlink_to(mvtec / "train/good")
    (mvtec / "train/good/self").symlink_to(mvtec / "train/good/self")
    assert names(open_category(mvtec), "train")[3:] == ["train/good/again/x.png"]


def test_a_broken_link_fails_when_read_and_never_shrinks_the_set(mvtec: Path) -> None:
    (mvtec / "train/good/999.png").symlink_to(mvtec / "gone.png")
    category = open_category(mvtec)
    assert len(category.train) == 4
    with pytest.raises(DataError, match=r"999\.png"):
        list(load_images(category.train, 8, 8))


def test_train_only_never_looks_at_the_test_images(mvtec: Path) -> None:
    shutil.rmtree(mvtec / "ground_truth/scratch")
    save_mask(mvtec / "ground_truth/scratch/other_mask.png")  # would be refused for an evaluation
    save(mvtec / "test/misplaced.png")
    category = open_category(mvtec, train_only=True)
    assert category.test == ()
    assert len(category.train) == 3


def test_evaluation_needs_no_training_images(mvtec: Path) -> None:
    shutil.rmtree(mvtec / "train")
    assert len(open_category(mvtec, need_test=True).test) == 4


def test_masks_that_do_not_exist_at_all_are_fine(mvtec: Path) -> None:
    shutil.rmtree(mvtec / "ground_truth")
    assert not open_category(mvtec, need_test=True).has_masks


def test_list_images(mvtec: Path) -> None:
    samples = list_images(mvtec / "test")
    assert [sample.path.parent.name for sample in samples] == ["good", "good", "scratch", "scratch"]
    assert {sample.label for sample in samples} == {None}
    assert list_images(mvtec / "test/good/000.png")[0].path.name == "000.png"
    with pytest.raises(DataError, match="does not exist"):
        list_images(mvtec / "nothing")


# CSV.


def test_csv_list(mvtec: Path) -> None:
    (mvtec / "parts.csv").write_text(
        "path,label,split,mask\n"
        "train/good/001.png,good,,\n"
        "train/good/000.png,0,train,\n"
        "train/good/002.png,ok,val,\n"
        "\n"
        "test/good/000.png,normal,test,ground_truth/scratch/000_mask.png\n"
        "test\\scratch\\000.png,scratch,,ground_truth/scratch/000_mask.png; ground_truth/scratch/001_mask.png\n",
        encoding="utf-8-sig",
    )
    category = open_category(mvtec / "parts.csv", need_test=True)
    assert (category.name, category.layout, category.root) == ("parts", "csv", mvtec)
    assert names(category, "train") == ["train/good/000.png", "train/good/001.png"]
    assert names(category, "validation") == ["train/good/002.png"]
    assert [sample.label for sample in category.test] == ["good", "scratch"]
    assert category.test[0].masks == ()
    assert len(category.test[1].masks) == 2
    assert open_category(mvtec / "parts.csv", train_only=True).test == ()


def test_csv_inside_a_category_does_not_need_its_masks(mvtec: Path) -> None:
    (mvtec / "parts.csv").write_text("path,label\ntrain/good/000.png,good\ntest/scratch/000.png,scratch\n")
    assert not open_category(mvtec / "parts.csv").has_masks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path;label\na.png;good\n", "line 1: separated by ';'"),
        ("file,label\n", "line 1: unknown column 'file'"),
        ("path,split\n", "line 1: the header must be"),
        ("", "line 1: the header must be"),
        ("path,label\ntrain/good/000.png,good\ngone.png,good\n", "line 3: gone.png does not exist"),
        ("path,label\ntrain/good/000.png,\n", "line 2: no label"),
        ("path,label\n,good\n", "line 2: no path"),
        ("path,label,split\ntrain/good/000.png,scratch,train\n", "line 2: a defective image"),
        ("path,label,split\ntrain/good/000.png,good,tset\n", "line 2: unknown split 'tset'"),
        ("path,label\ntrain/good/000.png,good,x\n", "line 2: 3 cells under 2 columns"),
        ("path,label\ntrain/good/000.png,good\ntrain/good/000.png,ok\n", "line 3: .* is in line 2 already"),
        ("path,label,split,mask\ntest/scratch/000.png,scratch,test,no.png\n", "line 2: no.png does not exist"),
        ('path,label\n"train/good/000.png,good\n', "fix the quotes"),
    ],
)
def test_csv_errors_name_the_line(mvtec: Path, text: str, message: str) -> None:
    (mvtec / "parts.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_category(mvtec / "parts.csv")


def test_csv_must_be_utf8(mvtec: Path) -> None:
    (mvtec / "parts.csv").write_bytes("path,label\nä.png,good\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        open_category(mvtec / "parts.csv")


# Fingerprints.


def test_fingerprint_ignores_place_time_and_listing_order(mvtec: Path, tmp_path: Path) -> None:
    first = open_category(mvtec).fingerprint()
    copy = tmp_path / "far/away/renamed"
    for path in sorted(mvtec.rglob("*.png"), reverse=True):
        target = copy / path.relative_to(mvtec)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.utime(target, (1, 1))
    moved = open_category(copy)
    assert moved.fingerprint() == first
    assert moved.fingerprint("test") == open_category(mvtec).fingerprint("test")
    assert len(first) == 64


def test_fingerprint_ignores_how_a_file_system_writes_an_umlaut(tmp_path: Path) -> None:
    prints = []
    for form in ("NFC", "NFD"):
        save(tmp_path / form / "train/good" / unicodedata.normalize(form, "prüfling.png"))
        prints.append(open_category(tmp_path / form).fingerprint())
    assert prints[0] == prints[1]


def test_fingerprint_sees_content_names_and_masks(mvtec: Path) -> None:
    before = open_category(mvtec)
    train, test = before.fingerprint(), before.fingerprint("test")
    save_mask(mvtec / "ground_truth/scratch/000_mask.png", np.full((10, 12), 255, np.uint8))
    assert open_category(mvtec).fingerprint("test") != test
    assert open_category(mvtec).fingerprint() == train
    (mvtec / "train/good/000.png").rename(mvtec / "train/good/003.png")
    renamed = open_category(mvtec).fingerprint()
    save(mvtec / "train/good/003.png", seed=99)
    assert len({train, renamed, open_category(mvtec).fingerprint()}) == 3


# What can be wrong.


def test_missing_path_suggests_a_neighbour(mvtec: Path) -> None:
    with pytest.raises(DataError, match=r"widgit does not exist. Did you mean 'widget'\?"):
        open_category(mvtec.parent / "widgit")


def test_a_file_is_no_category(mvtec: Path) -> None:
    with pytest.raises(DataError, match=r"is a file; give the folder.*\.csv"):
        open_category(mvtec / "train/good/000.png")


def test_a_folder_of_categories(mvtec: Path) -> None:
    with pytest.raises(DataError, match=r"holds some: widget"):
        open_category(mvtec.parent)


def test_nothing_to_train_on(mvtec: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no images and no train/good"):
        open_category(tmp_path / "void")
    for index in (1, 2):
        (mvtec / f"train/good/{index:03}.png").unlink()
    with pytest.raises(DataError, match=r"train/good holds one image.*at least 2"):
        open_category(mvtec, train_only=True)
    (mvtec / "train/good/000.png").unlink()
    with pytest.raises(DataError, match=r"train/good holds no images.*at least 2"):
        open_category(mvtec, train_only=True)


@pytest.mark.parametrize(
    ("kind", "message"), [("good", "no good test images"), ("scratch", "no defective test images")]
)
def test_an_evaluation_needs_both_kinds(mvtec: Path, kind: str, message: str) -> None:
    shutil.rmtree(mvtec / "test" / kind)
    with pytest.raises(DataError, match=message):
        open_category(mvtec, need_test=True)


def test_images_in_the_wrong_place(mvtec: Path) -> None:
    stray = save(mvtec / "test/stray.png")
    with pytest.raises(DataError, match="test/<defect>"):
        open_category(mvtec)
    stray.unlink()
    shutil.rmtree(mvtec / "train/good")
    save(mvtec / "train/000.png")
    with pytest.raises(DataError, match="move the good ones into"):
        open_category(mvtec)
    save(mvtec.parent / "mixed/a.png")
    save(mvtec.parent / "mixed/good/a.png")
    with pytest.raises(DataError, match="directly and in a good folder"):
        open_category(mvtec.parent / "mixed")


def test_a_missing_mask_is_named(mvtec: Path) -> None:
    (mvtec / "ground_truth/scratch/001_mask.png").unlink()
    message = r"1 of 2 defective.*test/scratch/001\.png; add .*ground_truth/scratch/001_mask\.png"
    with pytest.raises(DataError, match=message):
        open_category(mvtec, need_test=True)


def test_masks_that_fit_no_image_are_not_dropped_silently(mvtec: Path) -> None:
    for stem in ("000", "001"):
        (mvtec / f"ground_truth/scratch/{stem}_mask.png").rename(mvtec / f"ground_truth/scratch/{stem}-label.png")
    with pytest.raises(DataError, match="2 of 2 defective"):
        open_category(mvtec, need_test=True)


def test_both_flags(mvtec: Path) -> None:
    with pytest.raises(ConfigError):
        open_category(mvtec, train_only=True, need_test=True)


# Loading.


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_load_images_is_decode_and_resize_in_order(tmp_path: Path, workers: int) -> None:
    good = tmp_path / "train/good"
    save(good / "0.png", size=(40, 30))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(good / "1.jpg", size=(40, 30), seed=1, exif=rotated)
    wide = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    Image.fromarray(wide).save(good / "2.png")
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (30, 40, 4), dtype=np.uint8)).save(good / "3.png")
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (30, 40), dtype=np.uint8)).save(good / "4.bmp")
    samples = open_category(tmp_path).train
    loaded = list(load_images(samples, 16, 24, workers=workers))
    assert [image.shape for image in loaded] == [(16, 24, 3)] * 5
    assert {image.dtype.name for image in loaded} == {"uint8"}
    for sample, image in zip(samples, loaded, strict=True):
        np.testing.assert_array_equal(image, resize(read_image(sample.path), 16, 24))
    assert read_image(samples[1].path).shape == (40, 30, 3)  # stood up by its EXIF tag


def test_an_unreadable_image_is_named_at_its_place(mvtec: Path) -> None:
    (mvtec / "train/good/001.png").write_bytes(b"\x89PNG broken")
    loaded = load_images(open_category(mvtec).train, 8, 8)
    next(loaded)
    with pytest.raises(DataError, match=r"train/good/001\.png"):
        next(loaded)


def test_prefetch_is_bounded_and_stops_early() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    before = threading.active_count()
    with closing(prefetch(work, range(1000), workers=2)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        time.sleep(0.1)  # whatever the threads may work ahead, they have done it by now
        assert len(begun) <= 6
    assert threading.active_count() == before
    assert len(begun) <= 6


def slow_nearest(mask: NDArray, height: int, width: int) -> NDArray[np.bool_]:
    picked = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            picked[y, x] = mask[int((y + 0.5) * mask.shape[0] / height), int((x + 0.5) * mask.shape[1] / width)] > 0
    return picked


@pytest.mark.parametrize("size", [(8, 8), (10, 12), (16, 16), (25, 31)])
def test_load_mask_is_nearest_with_aligned_centres(mvtec: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    pixels = (random.random((10, 12)) < 0.4).astype(np.uint8)
    save_mask(mvtec / "ground_truth/scratch/000_mask.png", pixels)
    sample = open_category(mvtec).test[2]
    mask = load_mask(sample, (10, 12), *size)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, slow_nearest(pixels, *size))


def test_masks_in_every_pixel_format_mean_the_same(mvtec: Path) -> None:
    path = mvtec / "ground_truth/scratch/000_mask.png"
    truth = np.zeros((10, 12), bool)
    truth[2:5, 3:9] = True
    palette = Image.fromarray(np.where(truth, 0, 1).astype(np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 0])  # index 0 is the defect's colour, index 1 black
    rgba = np.zeros((10, 12, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[truth, 2] = 9
    for picture in (
        Image.fromarray(truth),
        Image.fromarray(truth.astype(np.uint8)),
        Image.fromarray(truth.astype(np.uint16)),  # 1 of 65535 is anomalous too
        Image.fromarray(rgba),
        palette,
    ):
        picture.save(path)
        np.testing.assert_array_equal(load_mask(open_category(mvtec).test[2], (10, 12), 10, 12), truth)


def test_jpeg_dirt_around_a_mask_is_not_a_defect(mvtec: Path) -> None:
    (mvtec / "ground_truth/scratch/000_mask.png").unlink()
    pixels = np.zeros((64, 64), np.uint8)
    pixels[20:40, 20:40] = 255
    save(mvtec / "test/scratch/000.png", size=(64, 64))
    Image.fromarray(pixels).save(mvtec / "ground_truth/scratch/000_mask.jpg", quality=60)
    mask = load_mask(open_category(mvtec).test[2], (64, 64), 64, 64)
    assert abs(int(mask.sum()) - 400) <= 8


def test_a_mask_of_another_size_names_both(mvtec: Path) -> None:
    save_mask(mvtec / "ground_truth/scratch/000_mask.png", size=(6, 5))
    with pytest.raises(DataError, match=r"000_mask\.png is 6x5 pixels, its image .*000\.png 12x10"):
        load_mask(open_category(mvtec).test[2], (10, 12), 8, 8)


def test_an_unreadable_mask_is_named(mvtec: Path) -> None:
    (mvtec / "ground_truth/scratch/000_mask.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read mask .*000_mask\.png"):
        load_mask(open_category(mvtec).test[2], (10, 12), 8, 8)


def test_a_good_image_and_an_empty_mask_have_no_defect(mvtec: Path) -> None:
    save_mask(mvtec / "ground_truth/scratch/000_mask.png", np.zeros((10, 12), np.uint8))
    category = open_category(mvtec)
    assert not load_mask(category.test[0], (10, 12), 8, 8).any()
    assert not load_mask(category.test[2], (10, 12), 8, 8).any()


# Real data.


@pytest.mark.parametrize(
    ("name", "train", "normal", "anomalous", "masks"),
    [("cell", 80, 24, 30, True), ("plate", 40, 12, 16, True), ("figure", 30, 15, 24, False)],
)
def test_real_categories(made_images: Path, name: str, train: int, normal: int, anomalous: int, masks: bool) -> None:
    category = open_category(made_images / name, need_test=True)
    assert (category.name, len(category.train), category.has_masks) == (name, train, masks)
    assert sum(sample.anomalous for sample in category.test) == anomalous
    assert len(category.test) == normal + anomalous
    images = list(load_images(category.test[-3:], 64, 64))
    assert np.std(images) > 5
    if masks:
        sample = next(sample for sample in category.test if sample.anomalous)
        height, width = read_image(sample.path).shape[:2]
        assert 0 < load_mask(sample, (height, width), 256, 256).mean() < 0.9


# One rule of what is an image


def put(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path, "PNG")


@pytest.mark.parametrize(
    "noise",
    [
        "@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/1.png",
        "@Recycle/1.png",
        "__MACOSX/1.png",
        "$RECYCLE.BIN/1.png",
        ".ipynb_checkpoints/1-checkpoint.png",
        ".thumbnails/1.png",
        "Ground_Truth/bad/1_mask.png",
        "ground_truth/bad/1.png",
        "1_mask.png",
    ],
)
def test_every_door_takes_the_same_images(tmp_path, noise):
    good = tmp_path / "part" / "train" / "good"
    for number in range(4):
        put(good / f"{number}.png")
    put(good / noise)
    assert len(open_category(tmp_path / "part", train_only=True).train) == 4
    assert len(list_images(good)) == 4
    assert len(find_images([good])) == 4
    with open_source(good) as source:
        assert len(source.paths) == 4


def test_masks_are_found_in_a_folder_of_any_case(tmp_path):
    put(tmp_path / "test" / "good" / "0.png")
    put(tmp_path / "test" / "bad" / "0.png")
    put(tmp_path / "Ground_Truth" / "bad" / "0_mask.png")
    category = open_category(tmp_path, need_test=True)
    assert category.has_masks


def test_what_is_omitted_is_counted_and_other_suffixes_of_jpeg_are_read(tmp_path):
    good = tmp_path / "train" / "good"
    for number in range(3):
        put(good / f"{number}.png")
    put(good / "3.jfif")
    put(good / "4.JPE")
    (good / "5.heic").write_bytes(b"x")
    (good / "notes.txt").write_text("x")
    put(good / "0_mask.png")
    category = open_category(tmp_path, train_only=True)
    assert len(category.train) == 5
    assert category.omitted == {".heic": 1, ".txt": 1, "masks": 1}


def test_masks_with_soft_edges_are_named_and_labels_are_not(tmp_path):
    sides = {"soft": [0, 3, 128, 255], "sharp": [0, 255], "labels": [0, 1, 2, 7], "loco": [0, 200]}
    for kind, levels in sides.items():
        put(tmp_path / "test" / kind / "0.png")
        (tmp_path / "ground_truth" / kind).mkdir(parents=True)
        mask = np.resize(np.array(levels, np.uint8), (8, 8))
        Image.fromarray(mask).save(tmp_path / "ground_truth" / kind / "0_mask.png")
    put(tmp_path / "test" / "good" / "0.png")
    found = unclear_masks(open_category(tmp_path, need_test=True).test)
    assert [path.parent.name for path in found] == ["soft"]
