"""`evaluate` against the same figures computed by hand, on a real inspector."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from edgead.data import Category, load_images, load_mask, open_category
from edgead.evaluation.costs import Costs
from edgead.evaluation.evaluation import METRICS, CategoryReport, EvalReport, evaluate
from edgead.runtime.backends import BackendInfo
from edgead.runtime.errors import BackendError, DataError
from edgead.runtime.frame import Decision, Frame, Inference, Result
from edgead.runtime.imaging.anomaly_map import resize_map
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector

INFO = BackendInfo(name="mean-image", provider="numpy", precision="fp32", device="cpu", threads=1, version="1")


class MeanImageBackend:
    """The simplest detector: distance to the mean training image, averaged over cells of 8x8 pixels."""

    def __init__(self, mean: NDArray[np.float32]) -> None:
        self._mean = mean
        self._output = np.empty((1, mean.shape[0] // 8, mean.shape[1] // 8), np.float32)

    @classmethod
    def fit(cls, category: Category, size: int) -> MeanImageBackend:
        return cls(np.mean(list(load_images(category.train, size, size)), axis=0, dtype=np.float32))

    def run(self, images: NDArray[np.uint8]) -> Inference:
        distance = np.abs(images.astype(np.float32) - self._mean).mean(axis=3)
        _, rows, columns = distance.shape
        cells = distance.reshape(-1, rows // 8, 8, columns // 8, 8).mean(axis=(2, 4))
        self._output[...] = cells  # one buffer for all calls, as device backends have
        return Inference(cells.max(axis=(1, 2)), self._output)

    def describe(self) -> BackendInfo:
        return INFO

    def close(self) -> None:
        pass


@pytest.fixture
def widget(tmp_path: Path) -> Category:
    """Grey parts of 64x48; a scratch is a white bar of growing contrast, the faintest is invisible."""
    random = np.random.default_rng(0)
    root = tmp_path / "widget"

    def save(name: str, contrast: int = 0) -> None:
        pixels = random.integers(100, 110, (48, 64, 3)).astype(np.uint8)
        pixels[16:24, 8:40] += np.uint8(contrast)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)

    mask = np.zeros((48, 64), np.uint8)
    mask[16:24, 8:40] = 255
    for index in range(8):
        save(f"train/good/{index}.png")
        save(f"test/good/{index}.png")
        save(f"test/scratch/{index}.png", contrast=index * 15)
        path = root / f"ground_truth/scratch/{index}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return open_category(root, need_test=True)


def inspector_of(category: Category, size: int = 64, threshold: float = 6.0) -> Inspector:
    return Inspector(MeanImageBackend.fit(category, size), height=size, width=size, threshold=threshold)


def test_report_is_what_one_computes_by_hand(widget: Category) -> None:
    report = evaluate(inspector_of(widget), widget, bootstrap=100)
    backend = MeanImageBackend.fit(widget, 64)
    scores, maps, masks = [], [], []
    for sample in widget.test:
        image = read_image(sample.path)
        score, anomaly_map, *_ = backend.run(resize(image, 64, 64)[None])
        scores.append(float(score[0]))
        maps.append(resize_map(anomaly_map[0], 64, 64))
        masks.append(load_mask(sample, image.shape[:2], 64, 64))
    labels = [sample.anomalous for sample in widget.test]

    assert [image.score for image in report.images] == scores
    assert report.image_auroc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert report.pixel_auroc is not None
    assert report.pixel_auroc.value == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(maps)), abs=1e-9)
    assert (report.n_normal, report.n_anomalous) == (8, 8)
    assert report.decisions.false_alarms == sum(s > 6.0 for s, bad in zip(scores, labels, strict=True) if not bad)
    assert report.decisions.escapes == sum(s <= 6.0 for s, bad in zip(scores, labels, strict=True) if bad) > 0
    assert report.decisions.not_inspected == report.empty_masks == 0
    # The invisible scratch makes the zero-escape threshold expensive, the seven others keep AUROC high.
    assert report.false_alarm_rate_at_zero_escapes.value > 0
    assert 0.5 < report.image_auroc.value < 1


def test_scores_of_every_image_are_kept(widget: Category) -> None:
    seen: list[tuple[int, int]] = []
    report = evaluate(
        inspector_of(widget), widget, bootstrap=0, progress=lambda done, total: seen.append((done, total))
    )
    assert [image.path for image in report.images] == [widget.relative(sample) for sample in widget.test]
    assert [image.label for image in report.images] == ["good"] * 8 + ["scratch"] * 8
    assert {(image.decision is Decision.ANOMALY) == (image.score > 6.0) for image in report.images} == {True}
    assert seen == [(done, 16) for done in range(1, 17)]


def test_json_form(widget: Category) -> None:
    report = EvalReport((evaluate(inspector_of(widget), widget, bootstrap=20),), INFO)
    content = json.loads(json.dumps(report.to_dict(images=True), allow_nan=False))
    assert content["schema"] == "edgead.eval/1"
    assert content["backend"]["name"] == "mean-image"
    category = content["categories"]["widget"]
    for name in METRICS:
        assert set(category[name]) == {"value", "low", "high"}
        assert content["mean"][name] == pytest.approx(category[name])
    assert (category["n_normal"], category["n_anomalous"]) == (8, 8)
    assert set(category["decisions"]) == {"false_alarms", "normal", "escapes", "anomalous", "not_inspected"}
    good = [one.score for one in report.categories[0].images if not one.anomalous]
    bad = [one.score for one in report.categories[0].images if one.anomalous]
    assert [point["at_false_alarm_rate"] for point in category["allowed"]] == [0.0, 0.01, 0.05]
    for point in category["allowed"]:  # of eight good images, none may be rejected at 5 % either
        assert (point["threshold"], point["false_alarms"], point["normal"]) == (max(good), 0, 8)
        assert (point["escapes"], point["anomalous"]) == (sum(score <= max(good) for score in bad), 8)
        assert set(point["escape_rate"]) == {"value", "low", "high"}
    escapes = category["decisions"]["escapes"]
    assert category["escape_rate"]["value"] == escapes / 8
    assert category["escape_rate"]["low"] < escapes / 8 < category["escape_rate"]["high"]
    assert category["false_alarm_rate"]["value"] == category["decisions"]["false_alarms"] / 8
    (kind,) = category["defects"]
    assert (kind["label"], kind["images"], kind["escapes"]) == ("scratch", 8, escapes)
    assert (category["costs"], category["cost_per_1000"]) == (None, None)
    keys = list(category)
    assert max(map(keys.index, ("decisions", "allowed", "defects"))) < min(map(keys.index, METRICS))
    assert category["images"][0]["path"] == "test/good/0.png"
    assert "images" not in report.to_dict()["categories"]["widget"]


def test_costs_are_those_of_the_threshold(widget: Category) -> None:
    costs = Costs(escape=100.0, false_alarm=1.0, defect_rate=0.02)
    report = evaluate(inspector_of(widget), widget, bootstrap=0, costs=costs)
    escapes, alarms = report.decisions.escapes / 8, report.decisions.false_alarms / 8
    assert escapes > 0
    content = report.to_dict()
    assert content["cost_per_1000"] == pytest.approx(20 * 100 * escapes + 980 * alarms)
    assert content["costs"] == {"escape": 100.0, "false_alarm": 1.0, "defect_rate": 0.02}


def test_without_masks_pixel_metrics_are_null(widget: Category) -> None:
    for path in (widget.root / "ground_truth/scratch").iterdir():
        path.unlink()
    category = open_category(widget.root, need_test=True)
    report = evaluate(inspector_of(category), category, bootstrap=10)
    assert report.pixel_auroc is None
    assert report.aupro is None
    content = EvalReport((report,), INFO).to_dict()
    assert content["categories"]["widget"]["aupro"] is None
    assert content["mean"]["aupro"] is None


def test_an_empty_mask_is_counted(widget: Category) -> None:
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(widget.root / "ground_truth/scratch/3_mask.png")
    report = evaluate(inspector_of(widget), widget, bootstrap=10)
    assert report.empty_masks == 1
    assert report.pixel_auroc is not None


def test_the_mean_over_categories(widget: Category) -> None:
    first = evaluate(inspector_of(widget), widget, bootstrap=200)
    second = CategoryReport(**{name: getattr(first, name) for name in first.__slots__} | {"name": "b", "aupro": None})
    report = EvalReport((first, second), INFO)
    mean = report.mean("image_auroc")
    assert mean is not None
    assert mean.value == pytest.approx(first.image_auroc.value)
    # Two independent test sets of the same width: the mean is known better by the root of two.
    assert mean.value - mean.low == pytest.approx((first.image_auroc.value - first.image_auroc.low) / np.sqrt(2))
    assert report.mean("aupro") == first.aupro
    with pytest.raises(DataError, match="two categories are called 'widget'"):
        EvalReport((first, first), INFO)


class BrokenBackend(MeanImageBackend):
    def run(self, images: NDArray[np.uint8]) -> Inference:
        raise BackendError(f"device lost with {len(images)} image")


def test_an_image_without_a_score_stops_the_evaluation(widget: Category) -> None:
    inspector = Inspector(BrokenBackend.fit(widget, 64), height=64, width=64, threshold=1.0)
    with pytest.raises(DataError, match=r"widget/test/good/0\.png was not inspected \(device lost with 1 image\)"):
        evaluate(inspector, widget)


class NanMapBackend(MeanImageBackend):
    def run(self, images: NDArray[np.uint8]) -> Inference:
        score, anomaly_map, *_ = super().run(images)
        anomaly_map[0, 0, 0] = np.nan
        return Inference(score, anomaly_map)


def test_a_broken_map_names_its_image(widget: Category) -> None:
    inspector = Inspector(NanMapBackend.fit(widget, 64), height=64, width=64, threshold=1.0)
    with pytest.raises(DataError, match=r"test/good/0\.png"):
        evaluate(inspector, widget)


class Routed:
    """Knows some images only, as a routed model does with parts of a product that it was not trained on."""

    def __init__(self, inner: Inspector, unknown: set[str]) -> None:
        self.height, self.width, self.region, self.bits = inner.height, inner.width, inner.region, inner.bits
        self.view, self.normals = inner.view, inner.normals
        self._inner = inner
        self._unknown = unknown

    def __call__(self, frame: Frame) -> Result:
        if frame.source_id not in self._unknown:
            return self._inner(frame)
        reason = "unknown category (similarity 0.21 < 0.60)"
        nothing = float("nan")
        return Result(nothing, 6.0, Decision.NOT_INSPECTED, frame.index, frame.timestamp_ns, reason=reason)


def test_images_that_a_router_does_not_know_are_counted_apart(widget: Category) -> None:
    routed = Routed(inspector_of(widget), {"test/good/0.png", "test/scratch/0.png"})
    report = evaluate(routed, widget, bootstrap=10)
    assert report.decisions.not_inspected == 2
    assert (report.decisions.normal, report.decisions.anomalous) == (7, 7)
    assert (report.n_normal, report.n_anomalous) == (8, 8)
    assert {(one.escapes.n, one.false_alarms.n) for one in report.allowed} == {(7, 7)}
    assert report.image_auroc.value == 1  # the invisible scratch is gone
    content = report.to_dict(images=True)["images"][0]
    assert (content["score"], content["decision"]) == (None, "NOT_INSPECTED")
    everything = {f"test/scratch/{index}.png" for index in range(8)}
    with pytest.raises(DataError, match=r"widget: .*no anomalous one"):
        evaluate(Routed(inspector_of(widget), everything), widget)


def test_a_category_without_test_images_is_refused(widget: Category) -> None:
    with pytest.raises(DataError, match="widget: metrics need normal and anomalous images"):
        evaluate(inspector_of(widget), open_category(widget.root, train_only=True))


def test_an_unreadable_image_or_mask_is_named(widget: Category) -> None:
    (widget.root / "test/scratch/2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"scratch/2\.png"):
        evaluate(inspector_of(widget), widget)


@pytest.mark.parametrize("name", ["cell", "plate", "figure"])
def test_real_categories(made_images: Path, name: str) -> None:
    category = open_category(made_images / name, need_test=True)
    report = evaluate(inspector_of(category, size=128), category, bootstrap=200)
    assert len(report.images) == len(category.test)
    for metric in METRICS:
        value = report.metric(metric)
        if value is None:
            assert not category.has_masks
            assert metric in ("pixel_auroc", "aupro")
        else:
            assert 0 <= value.low <= value.value <= value.high <= 1
    if name == "plate":
        # Parts that lie always alike: even the mean image tells most defects.
        assert report.image_auroc.value > 0.7
