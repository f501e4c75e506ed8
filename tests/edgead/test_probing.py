"""``edgead eval --probe``: which good images it takes, what it counts, and that broken models look broken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgead.cli._probing import verdict
from edgead.data import open_category
from edgead.evaluation.probing import KindReport, ProbePlan, ProbeReport, probe
from edgead.evaluation.validation_normals import (
    PHOTOS,
    UNSEEN,
    VALIDATION,
    TrainingRecord,
    find_normals,
    read_training_record,
)
from edgead.metrics.metrics import Metric
from edgead.opening import open_inspector
from edgead.probes import KINDS, STRUCTURAL
from edgead.runtime.backends import BackendInfo
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Inference
from edgead.runtime.inspection.inspector import Inspector

INFO = BackendInfo(name="fixed", provider="numpy", precision="fp32", device="cpu", threads=1, version="1")


class FixedBackend:
    """A broken model: whatever it sees, it says the same."""

    def run(self, images: NDArray[np.uint8]) -> Inference:
        return Inference(np.full(len(images), 0.5, np.float32), np.full((len(images), 4, 4), 0.5, np.float32))

    def describe(self) -> BackendInfo:
        return INFO

    def close(self) -> None:
        pass


def fixed(threshold: float = 0.7) -> Inspector:
    return Inspector(FixedBackend(), height=64, width=64, threshold=threshold)


def photos(source: Path, target: Path, count: int, start: int = 0) -> Path:
    """A folder of normal images."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir())[start : start + count]:
        shutil.copy(path, target)
    return target


@pytest.fixture(scope="session")
def tiny_model_path(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "parts.model"
    tiny_model.save(path)
    return path


@pytest.fixture(scope="session")
def new_photos(made_images, tmp_path_factory) -> Path:
    """Normal images that the model of `plate` has not seen."""
    return photos(made_images / "plate" / "train" / "good", tmp_path_factory.mktemp("new") / "plates", 5, start=16)


def test_a_model_beats_chance_on_flaws_and_a_broken_one_does_not(tiny_model_path, parts):
    normals = find_normals(open_category(parts, train_only=True), read_training_record(tiny_model_path))
    assert (normals.source, len(normals.samples)) == (UNSEEN, 12)
    with open_inspector(tiny_model_path, threads=1) as inspector:
        report = probe(inspector, normals, ProbePlan(kinds=STRUCTURAL, per_kind=6, bootstrap=200))
    assert [one.kind for one in report.kinds] == list(STRUCTURAL)
    assert (report.overall.n, report.overall.skipped, report.n_normals) == (24, 0, 12)
    assert report.overall.image_auroc.low > 0.5
    assert report.overall.raised > 20
    assert report.overall.pixel_auroc.value > 0.7
    assert report.overall.caught == sum(one.caught for one in report.kinds) > 0

    with fixed() as inspector:
        broken = probe(
            inspector, dataclasses.replace(normals, scores=None), ProbePlan(kinds=("scratch", "crack"), per_kind=6)
        )
    for one in (*broken.kinds, broken.overall):
        assert one.image_auroc.value == one.image_auroc.low == one.image_auroc.high == 0.5
        assert one.pixel_auroc.value == 0.5
        assert (one.caught, one.raised) == (0, one.n / 2)


def test_the_same_seed_gives_the_same_report(tiny_model_path, parts):
    normals = find_normals(open_category(parts, train_only=True), read_training_record(tiny_model_path))
    with open_inspector(tiny_model_path, threads=1) as inspector:
        reports = [
            probe(inspector, normals, ProbePlan(kinds=("stain", "moved"), per_kind=3, seed=seed, bootstrap=20))
            for seed in (5, 5, 6)
        ]
    assert reports[0] == reports[1] != reports[2]


def test_strength_is_seen(tiny_model_path, parts):
    normals = find_normals(open_category(parts, train_only=True), read_training_record(tiny_model_path))
    with open_inspector(tiny_model_path, threads=1) as inspector:
        weak, strong = (
            probe(inspector, normals, ProbePlan(kinds=STRUCTURAL, per_kind=4, strength=strength, bootstrap=0)).overall
            for strength in (0.1, 2.0)
        )
    assert weak.image_auroc.value < strong.image_auroc.value
    assert weak.caught < strong.caught


def test_probes_are_dealt_evenly_and_all_counted(parts, tmp_path):
    normals = find_normals(open_category(photos(parts / "train/good", tmp_path / "p", 5)), TrainingRecord("m", None))
    assert (normals.source, normals.scores) == (PHOTOS, None)
    seen, steps = [], []

    class Watching(FixedBackend):
        def run(self, images):
            seen.append(images.copy())
            return super().run(images)

    with Inspector(Watching(), height=72, width=90, threshold=0.1) as inspector:
        report = probe(
            inspector, normals, ProbePlan(per_kind=3), progress=lambda done, total: steps.append((done, total))
        )
    assert report.overall.n == 3 * len(KINDS)
    assert len(seen) == 5 + 3 * len(KINDS)
    assert steps[-1] == (29, 29)
    assert [done for done, _ in steps] == list(range(1, 30))
    # At network size nothing was resized: a probe is its image but for the planted place, and no two are alike.
    originals = [np.asarray(Image.open(sample.path)) for sample in normals.samples]
    nearest = [
        min((int((one[0] != image).any(axis=2).sum()), index) for index, image in enumerate(originals)) for one in seen
    ]
    assert sorted(index for changed, index in nearest if changed == 0) == [0, 1, 2, 3, 4]
    counts = np.bincount([index for _, index in nearest])
    assert counts.max() - counts.min() <= 1
    assert len({one.tobytes() for one in seen}) == len(seen)
    # Everything lies above this threshold: all caught, all false alarms.
    assert (report.overall.caught, report.false_alarms, report.n_normals) == (24, 5, 5)


def test_kinds_that_cannot_be_planted_are_counted_and_skipped(tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(np.full((64, 64, 3), 100 + index, np.uint8)).save(folder / f"{index}.png")
    normals = find_normals(open_category(folder), TrainingRecord("m", frozenset({"0" * 64})))
    with fixed() as inspector:
        report = probe(inspector, normals, ProbePlan(kinds=("dent", "missing"), per_kind=3))
    dent, missing = report.kinds
    assert (dent.n, dent.skipped, missing.n, missing.skipped) == (3, 0, 0, 3)
    assert missing.image_auroc is missing.pixel_auroc is None
    assert missing.to_dict()["share_caught"] is None
    assert (report.overall.n, report.overall.skipped) == (3, 3)
    with fixed() as inspector, pytest.raises(DataError, match=r"not one probe .*neither a part before a background"):
        probe(inspector, normals, ProbePlan(kinds=("missing",), per_kind=3))


def test_images_without_a_score_are_counted_apart(parts, tmp_path):
    class Failing(FixedBackend):
        calls = 0

        def run(self, images):
            self.calls += 1
            found = super().run(images)
            return found._replace(score=found.score * np.nan) if self.calls in (2, 3) else found

    normals = find_normals(open_category(photos(parts / "train/good", tmp_path / "p", 4)), TrainingRecord("m", None))
    with Inspector(Failing(), height=64, width=64, threshold=0.7) as inspector:
        report = probe(inspector, normals, ProbePlan(kinds=("stain",), per_kind=4))
    # The first image's probe and the second image itself failed.
    assert (report.overall.n, report.overall.not_inspected, report.n_normals) == (3, 1, 3)


def test_bundles_refuse_what_they_were_trained_on(plate, plate_model, plate_bundle, new_photos):
    of_bundle, of_model = read_training_record(plate_bundle), read_training_record(plate_model)
    assert of_bundle.fingerprints == of_model.fingerprints != frozenset()
    assert of_bundle.normal_scores is None
    # However the folder of the training images is named.
    for path in (plate, plate / "train", plate / "train" / "good"):
        category = open_category(path, train_only=True)
        with pytest.raises(DataError, match=r"was trained on the good images of .* give a folder of normal images"):
            find_normals(category, of_bundle)
        found = find_normals(category, of_model)
        assert (found.source, found.scores) == (UNSEEN, of_model.normal_scores)
        # Where near-duplicates count once, the images without a score are left out.
        some = dataclasses.replace(of_model, normal_scores=of_model.normal_scores[:2], scored=(1, 4))
        assert find_normals(category, some).samples == (category.train[1], category.train[4])
    found = find_normals(open_category(new_photos, train_only=True), of_bundle)
    assert (found.source, found.scores, len(found.samples)) == (PHOTOS, None, 5)
    assert find_normals(open_category(new_photos, train_only=True), of_model).source == PHOTOS


def test_validation_images_serve_and_unknown_training_images_do_not(plate, plate_bundle, new_photos, tmp_path):
    category = tmp_path / "plate"
    shutil.copytree(plate / "train", category / "train")
    shutil.copytree(new_photos, category / "validation" / "good")
    found = find_normals(open_category(category, train_only=True), read_training_record(plate_bundle))
    assert (found.source, len(found.samples)) == (VALIDATION, 5)
    shutil.rmtree(category / "validation")
    next((category / "train" / "good").iterdir()).unlink()  # another training set, for the most part the same
    with pytest.raises(DataError, match="has no validation/good, and its train/good is not known to be new"):
        find_normals(open_category(category, train_only=True), read_training_record(plate_bundle))


def test_scores_of_several_categories_are_not_taken_for_one(plate, plate_model, tmp_path):
    model = tmp_path / "m"
    shutil.copytree(plate_model, model)
    card = json.loads((model / "model.json").read_text())
    card["categories"] = {"other": 8, **card["categories"]}
    card["fingerprint"]["other"] = "0" * 64
    (model / "model.json").write_text(json.dumps(card))
    record = read_training_record(model)
    assert record.normal_scores is None
    with pytest.raises(DataError, match="probes need others"):
        find_normals(open_category(plate, train_only=True), record)


def test_what_is_refused(parts, tmp_path):
    normals = find_normals(open_category(photos(parts / "train/good", tmp_path / "p", 2)), TrainingRecord("m", None))
    with fixed() as inspector:
        for options, words in (
            ({"kinds": ("stian",)}, "no probe 'stian'. Did you mean 'stain'"),
            ({"kinds": ()}, "at least one kind"),
            ({"kinds": ("dent", "dent")}, "asked for twice"),
            ({"per_kind": 0}, "at least 1"),
            ({"seed": -1}, "0 or more"),
            ({"strength": 9.0}, "between 0.05 and 4.0"),
        ):
            with pytest.raises(ConfigError, match=words):
                probe(inspector, normals, ProbePlan(**options))
        one = probe(inspector, normals, ProbePlan(kinds=("dent",), per_kind=1, bootstrap=0))
    with pytest.raises(DataError, match="two categories are called 'p'"):
        ProbeReport((one, one), INFO, 0, 1.0)


def test_the_command_reports_in_json_and_to_people(edgead, plate, plate_model, plate_bundle, new_photos):
    arguments = ("--probe", "--kinds", "scratch, missing", "--per-kind", "2", "--seed", "3", "--strength", "1.5")
    outcome = edgead("eval", plate_model, plate, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert (report["schema"], report["seed"], report["strength"]) == ("edgead.probe/1", 3, 1.5)
    assert report["backend"]["name"] == "torch"
    found = report["categories"]["plate"]
    assert found["normals"] == {"source": UNSEEN, "n": 16, "false_alarms": 0}
    assert list(found["kinds"]) == ["scratch", "missing"]
    shares = ("caught", "share_caught", "raised", "share_raised")
    for one in (*found["kinds"].values(), found["all"]):
        assert set(one) == {"image_auroc", "pixel_auroc", "n", "skipped", "not_inspected", *shares}
        assert one["image_auroc"]["low"] <= one["image_auroc"]["value"] <= one["image_auroc"]["high"]
    assert found["all"]["n"] == 4

    outcome = edgead("eval", plate_bundle, new_photos, *arguments)
    assert outcome.code == 0, outcome.err
    for expected in ("scratch", "missing", "all", "of 2", "normal images", "not a substitute for real defects"):
        assert expected in outcome.out


def test_the_command_says_what_to_do(edgead, plate, plate_model, plate_bundle):
    refused = edgead("eval", plate_bundle, plate, "--probe")
    assert refused.code == 2
    assert "give a folder of normal images that it has not seen, or probe the model directory" in refused.error
    without = edgead("eval", plate_model, plate, "--kinds", "scratch")
    assert (without.code, "add --probe" in without.error) == (2, True)
    unknown = edgead("eval", plate_model, plate, "--probe", "--kinds", "scratch,dint")
    assert (unknown.code, "Did you mean 'dent'" in unknown.error) == (2, True)


def test_no_test_image_is_looked_at(edgead, plate, plate_model, tmp_path):
    copied = tmp_path / "plate"
    shutil.copytree(plate, copied)
    for path in (copied / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    outcome = edgead("eval", plate_model, copied, "--probe", "--kinds", "stain", "--per-kind", "1", "--json")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("raised", "auroc", "caught", "said"),
    [
        (55, 0.5, 1, "raised 55%: the model hardly sees these flaws"),
        (100, 0.46, 26, "raised 100%, image AUROC 0.46: the model sees these flaws, but normal images differ"),
        (98, 0.9, 12, "raised 98%, caught 12%: the model sees these flaws, and its threshold lets most pass"),
        (98, 0.99, 90, "raised 98%, caught 90%: the model sees these flaws and rejects them."),
    ],
)
def test_the_figures_are_said_in_words(raised, auroc, caught, said):
    report = KindReport("all", 100, caught, raised, 0, 0, Metric(auroc, 0.0, 1.0), None)
    assert verdict(report).startswith(said)
