"""`calibrate_bundle` on small real bundles: the rule, what is kept, what is recorded, what is refused."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest

from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.references import EXPECTED_NAME, pack_expected
from edgead.runtime.bundle.writing import replace_manifest
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.device.check import check_bundle
from edgead.runtime.device.recalibration import calibrate_bundle
from edgead.runtime.errors import BackendError, BundleError, ConfigError, DataError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.preprocess import resize, resize_reference
from edgead.runtime.sources import Delivery, Source

pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")


def parts(count: int, seed: int = 5) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(80, 130, (31, 45, 3), dtype=np.uint8) for _ in range(count)]


class Camera(Source):
    """A live source of given images (None: a lost picture), without end where ``repeat``."""

    def __init__(self, images, *, repeat: bool = False, period_ns: int = 1_000_000, source_id: str = "camera") -> None:
        self.source_id = source_id
        self.live = True
        self.delivery = Delivery("newest")
        self.closed = False
        self._images = itertools.cycle(images) if repeat else images
        self._period = period_ns

    def frames(self) -> Iterator[Frame | BadFrame]:
        for index, image in enumerate(self._images):
            if isinstance(image, Exception):
                raise image
            at = index * self._period
            if image is None:
                yield BadFrame(index, at, self.source_id, "cut off")
            else:
                yield Frame(image, index, at, self.source_id)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def folder(tmp_path, png):
    path = tmp_path / "good"
    path.mkdir()
    for number, image in enumerate(parts(20)):
        (path / f"{number:02d}.png").write_bytes(png(image))
    return path


@pytest.fixture(scope="module")
def png():
    import io

    from PIL import Image

    def encode(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        return stream.getvalue()

    return encode


def test_the_threshold_is_that_of_the_raw_scores_of_these_parts(make_bundle, tiny_model, folder, tmp_path):
    path, out = make_bundle(), tmp_path / "new.edgead"
    before = path.read_bytes()
    steps = []
    report = calibrate_bundle(
        path, folder, out, false_alarm_rate=0.1, progress=lambda done, total: steps.append((done, total))
    )
    images = np.stack([resize_reference(image, tiny_model.height, tiny_model.width) for image in parts(20)])
    expected = calibrate(tiny_model.numpy(images)[0], 0.1)
    found = report.new["fp32"]
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert (found.n_normals, found.low, found.high) == (20, expected.low, expected.high)
    assert found.supported
    assert (report.images, report.unreadable, report.old["fp32"].value) == (20, 0, 20.0)
    assert steps == [(number, 20) for number in range(1, 21)]
    assert path.read_bytes() == before
    with Bundle.open(out) as bundle:
        assert bundle.manifest.threshold.to_threshold() == found
    assert check_bundle(out, backend="onnxruntime").passed


def test_everything_else_is_kept_and_the_old_threshold_recorded(make_bundle, folder, tmp_path):
    record = {
        "max_score_difference": 1e-6, "p99_score_difference": 1e-6, "max_map_difference": 1e-6,
        "flips": 0, "borderline": 0, "images": 3,
    }  # fmt: skip
    path, out = make_bundle(parity={"model.fp32.onnx": {"onnxruntime": record}}), tmp_path / "new.edgead"
    calibrate_bundle(path, folder, out)
    calibrate_bundle(out, Camera(parts(30), source_id="rtsp://eve:secret@cam/1"), out, n=25)
    with Bundle.open(path) as old, Bundle.open(out) as new:
        assert new.manifest.members == old.manifest.members
        assert new.manifest.parity == old.manifest.parity
        changed = {"threshold": True, "precisions": True, "provenance": True, "categories": {"plate": {"normals"}}}
        assert new.manifest.model_dump(exclude=changed) == old.manifest.model_dump(exclude=changed)
        fresh = ("calibrations", "held_out_scores")
        kept = {key: value for key, value in new.manifest.provenance.items() if key not in fresh}
        assert kept == old.manifest.provenance
        first, second = new.manifest.provenance["calibrations"]
        assert first["old"]["fp32"] == old.manifest.threshold.model_dump()
        assert (first["source"], first["images"], first["backend"]["name"]) == (str(folder), 20, "onnxruntime")
        assert first["time"].endswith("+00:00")
        assert second["images"] == 25
        assert second["source"] == "rtsp://***@cam/1"
        assert second["old"]["fp32"]["n_normals"] == 20
    assert b"secret" not in out.read_bytes()


def test_what_good_parts_look_like_is_measured_anew_for_the_drift_watch(make_bundle, folder, tmp_path):
    path, out = make_bundle(), tmp_path / "new.edgead"
    report = calibrate_bundle(path, folder, out)
    with Bundle.open(path) as old, Bundle.open(out) as new:
        assert old.manifest.normals() == {}
        normals = new.manifest.normals()[None]
    assert normals.images == report.images == 20
    assert list(normals.quantiles["brightness"]) == sorted(normals.quantiles["brightness"])
    pictures = [resize(read_image(file), 8, 10) for file in sorted(folder.iterdir())]
    assert normals.quantiles["brightness"][10] == pytest.approx(np.median([one[:, :, 1].mean() for one in pictures]))


def test_each_precision_gets_a_threshold_of_its_own_scores(make_bundle, tiny_model, folder):
    double = type(tiny_model)(2 * tiny_model.weights)
    precisions = {
        "fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime"]},
        "fp16": {"file": "model.fp16.onnx", "runtimes": ["onnxruntime"]},
    }
    path = make_bundle(files={"model.fp16.onnx": double.graph().SerializeToString()}, precisions=precisions)
    report = calibrate_bundle(path, folder, path, false_alarm_rate=0.1)
    assert report.new["fp16"].value == pytest.approx(2 * report.new["fp32"].value, rel=1e-4)
    with Bundle.open(path) as bundle:
        assert bundle.manifest.precisions["fp32"].threshold is None
        assert bundle.manifest.precisions["fp16"].threshold.to_threshold() == report.new["fp16"]


def test_a_camera_gives_as_many_images_as_the_target_needs(make_bundle, tmp_path):
    out = tmp_path / "new.edgead"
    camera = Camera(parts(250), repeat=True)
    report = calibrate_bundle(make_bundle(), camera, out, false_alarm_rate=0.005)
    assert report.images == 199
    assert report.new["fp32"].supported
    assert camera.closed
    assert calibrate_bundle(make_bundle(), Camera(parts(120), repeat=True), out).images == 100


def test_frames_of_a_camera_keep_their_distance_and_lost_ones_are_left_out(make_bundle, tmp_path):
    camera = Camera([None, *parts(30)], period_ns=100_000_000)
    report = calibrate_bundle(make_bundle(), camera, tmp_path / "new.edgead", n=20, min_interval_s=0.3)
    assert (report.images, report.unreadable) == (10, 1)
    assert any("ended after 10 of 20 images" in warning for warning in report.warnings)
    assert any("1 frames" in warning for warning in report.warnings)


def test_what_the_numbers_cannot_bear_is_said(make_bundle, folder, tmp_path):
    report = calibrate_bundle(make_bundle(), folder, tmp_path / "new.edgead")
    assert not report.new["fp32"].supported
    assert any(
        "20 held-out good parts, which cannot support a false-alarm rate of 1.00%" in warning
        for warning in report.warnings
    )
    same = Camera(parts(1) * 5)
    report = calibrate_bundle(make_bundle(), same, tmp_path / "new.edgead", n=5)
    assert any("4 of 5 images have exactly the score of another" in warning for warning in report.warnings)


def test_planted_defects_that_would_pass_are_said(make_bundle, tiny_references, tiny_expected, tmp_path, folder):
    references = {
        "good-0.png": tiny_references["good_0.png"],
        "probe-0-spot.png": tiny_references["spot.png"],
    }
    files = {f"references/{name}": None for name in tiny_references}
    files |= {f"references/{name}": data for name, data in references.items()}
    path = make_bundle(files={**files, EXPECTED_NAME: pack_expected(*tiny_expected(references))})
    quiet = calibrate_bundle(path, folder, tmp_path / "new.edgead")
    assert not any("planted" in warning for warning in quiet.warnings)
    wild = parts(30)  # "good" parts, each with a spot brighter than the defect
    for image in wild:
        image[6:26, 10:34] = image[6:26, 10:34] // 40 + np.array([248, 0, 248], np.uint8)
    report = calibrate_bundle(path, Camera(wild), tmp_path / "new.edgead", n=30)
    warning = next(warning for warning in report.warnings if "planted" in warning)
    assert "1 of 1 planted defects of the bundle would now pass as OK (0 before)" in warning
    assert report.rejected_before["fp32"] > 20


@pytest.mark.parametrize("stray", ["black", "loud"])
def test_the_threshold_does_not_follow_a_stray_image(make_bundle, folder, tmp_path, png, stray):
    path, out = make_bundle(), tmp_path / "new.edgead"
    for number, image in enumerate(parts(21)):
        image[:, :20] //= 2  # something to see at the network's size as well
        (folder / f"{number:02d}.png").write_bytes(png(image))
    alone = calibrate_bundle(path, folder, out)
    assert alone.stray == {}
    odd = np.zeros((31, 45, 3), np.uint8)
    if stray == "loud":
        odd = np.minimum(parts(1, seed=8)[0], 127) * 2
        odd[:, :20] //= 2
    (folder / "99.png").write_bytes(png(odd))
    report = calibrate_bundle(path, folder, out)
    why = {"black": "it shows nothing", "loud": "its score is"}[stray]
    assert list(report.stray) == ["99.png"]
    assert why in report.stray["99.png"]
    assert (report.new, report.images) == (alone.new, 21)
    assert any(f"left out of the threshold: 99.png ({why}" in warning for warning in report.warnings)
    with Bundle.open(out) as bundle:
        assert bundle.manifest.normals()[None].images == 21


def test_images_that_the_model_learned_from_are_recognised(make_bundle, folder, tmp_path, png):
    path, out = make_bundle(), tmp_path / "new.edgead"
    calibrate_bundle(path, folder, out)
    with Bundle.open(out) as bundle:
        fitted = bundle.manifest.model_copy(update={"provenance": {}})
    replace_manifest(out, out, fitted)
    for number, image in enumerate(parts(10, seed=6)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
        shutil.copy(tmp_path / f"{number}.png", folder / f"new-{number}.png")
    said = "images that the model was fitted on are among those of"
    refused(DataError, said, out, folder, tmp_path / "b.edgead")
    new = calibrate_bundle(out, Camera(parts(30, seed=6)), tmp_path / "b.edgead", n=30)
    assert new.images == 30
    # From then on the bundle describes what this camera showed.
    again = calibrate_bundle(tmp_path / "b.edgead", Camera(parts(30, seed=6)), tmp_path / "b.edgead", n=30)
    assert again.images == 30


def test_scores_as_only_learned_images_have_are_doubted(make_bundle, folder, tmp_path):
    path, out = make_bundle(), tmp_path / "new.edgead"
    calibrate_bundle(path, folder, out)
    dark = Camera([image // 4 for image in parts(30, seed=6)])  # the score is linear in the light
    report = calibrate_bundle(out, dark, out, n=30)
    assert any("as if the model had been fitted on these images" in warning for warning in report.warnings)


def refused(error, match, path, source, out, **arguments):
    existed = out.exists()
    with pytest.raises(error, match=match):
        calibrate_bundle(path, source, out, **arguments)
    assert out.exists() == existed
    assert not list(out.parent.glob(".*.tmp"))


def test_an_image_without_a_score_is_refused(make_bundle, tiny_model, folder, tmp_path):
    out = tmp_path / "new.edgead"
    broken = type(tiny_model)(np.full_like(tiny_model.weights, np.nan))
    refused(BackendError, r"00\.png was not inspected \(.*finite", make_bundle(model=broken), folder, out)


@pytest.mark.parametrize("layout", ["train/good test/good test/scratch ground_truth/scratch", "good bad", "test/good"])
def test_the_folder_of_a_category_is_refused_and_the_right_one_named(make_bundle, folder, tmp_path, layout):
    # Its defects, and the masks beside them, would count as good parts, and raise the threshold above them.
    category = tmp_path / "day" / "plate"
    for name in layout.split():
        shutil.copytree(folder, category / name)
    right = category / ("test/good" if "test" in layout else "good")
    refused(DataError, f"only images of normal parts.*give {right}", make_bundle(), category, tmp_path / "new.edgead")
    # Listing looks below, and so does this.
    said = f"only images of normal parts.*give {right}"
    refused(DataError, said, make_bundle(), category.parent, tmp_path / "new.edgead")
    calibrate_bundle(make_bundle(), right, tmp_path / "new.edgead")


def test_bad_sources_are_refused(make_bundle, folder, tmp_path):
    path, out = make_bundle(), tmp_path / "new.edgead"
    refused(DataError, "showed 1 images", path, Camera(parts(1)), out, n=9)
    refused(DataError, "showed 0 images", path, Camera([None, None]), out, n=9)
    lost = [*parts(3), SourceLost("camera stopped after 3 frames")]
    refused(SourceLost, "stopped after 3", path, Camera(lost), out, n=9)
    refused(SourceError, "no file or folder", path, tmp_path / "no", out)
    (folder / "03.png").write_bytes(b"")
    refused(DataError, r"03\.png", path, folder, out)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 1}, "at least 2 images"),
        ({"false_alarm_rate": 0.0}, "between 0 and 1"),
        ({"false_alarm_rate": float("nan")}, "between 0 and 1"),
        ({"min_interval_s": -1.0}, "0 s or more"),
        ({"backend": "openvino-bf16"}, "another backend"),
        ({"backend": "onnxruntim"}, "Did you mean 'onnxruntime'"),
    ],
)
def test_wrong_arguments_are_refused(make_bundle, folder, tmp_path, arguments, match):
    refused(ConfigError, match, make_bundle(), folder, tmp_path / "new.edgead", **arguments)


def test_a_name_that_is_no_bundle_is_refused(make_bundle, folder, tmp_path):
    refused(ConfigError, "ends in .edgead", make_bundle(), folder, tmp_path / "new.onnx")


def test_a_bundle_that_changed_meanwhile_is_refused(make_bundle, tmp_path):
    path, other = make_bundle(), make_bundle("other.edgead", provenance={"made": "later"})
    assert path.read_bytes() != other.read_bytes()

    class Meanwhile(Camera):
        def frames(self) -> Iterator[Frame | BadFrame]:
            yield from super().frames()
            shutil.copy(other, path)

    refused(BundleError, "changed while it was calibrated", path, Meanwhile(parts(5)), tmp_path / "new.edgead", n=9)


def test_in_place_it_is_replaced_whole(make_bundle, folder):
    path = make_bundle()
    started = time.time()
    report = calibrate_bundle(path, folder, path)
    with Bundle.open(path) as bundle:
        assert bundle.manifest.threshold.value == report.new["fp32"].value
    assert path.stat().st_mtime >= started - 2
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == [path.name]


def test_an_unknown_record_of_earlier_calibrations_is_kept(make_bundle, folder, tmp_path):
    path = make_bundle(provenance={"calibrations": "by hand, in March"})
    calibrate_bundle(path, folder, tmp_path / "new.edgead")
    with Bundle.open(tmp_path / "new.edgead") as bundle:
        assert bundle.manifest.provenance["calibrations"][0] == "by hand, in March"
