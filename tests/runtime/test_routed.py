"""Routed bundles made of small real graphs: a router that looks at colour, and heads that differ in their gain."""

from __future__ import annotations

import io
import itertools
import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgead.runtime.backends import BackendInfo, available
from edgead.runtime.backends.routed_backend import FusedBackend, RoutedBackend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.layout import head_file
from edgead.runtime.bundle.manifest import Manifest, parse_manifest
from edgead.runtime.bundle.references import EXPECTED_NAME, pack_expected, unpack_expected
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.decision.threshold import Threshold, calibrate
from edgead.runtime.decision.verdict import UNKNOWN_CATEGORY, Limits
from edgead.runtime.device.bench import bench
from edgead.runtime.device.check import check_bundle
from edgead.runtime.device.recalibration import calibrate_bundle
from edgead.runtime.errors import BackendError, BundleError, DataError
from edgead.runtime.frame import Decision, Frame, Inference
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.sources import Delivery, Source
from edgead.runtime.streaming.stream import Stream

HEIGHT, WIDTH = 8, 10
BACKENDS = [name for name in ("onnxruntime", "openvino") if name in available()]
pytestmark = pytest.mark.skipif(not BACKENDS, reason="needs onnxruntime (edgead[cpu]) or openvino")

# By code point, not as a dictionary would have them: columns are red, green, blue.
NAMES = ("Zed", "a-green", "blau ü.1")
GAINS = dict(zip(NAMES, (1.0, 2.0, 3.0), strict=True))
LIMITS = dict(zip(NAMES, (150.0, 250.0, 350.0), strict=True))
MINIMUM = 0.4  # similarity is sqrt(brightness - 0.1): 0.54 at a level of 100, 0.28 at 45, NaN in the dark


def part(category: str, level: int = 100, spot: int | None = None) -> NDArray[np.uint8]:
    """A part of one colour; its head scores it ``level * gain``, and ``spot * gain`` where a corner is brighter."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, :, NAMES.index(category)] = level
    if spot is not None:
        image[:4, :5, NAMES.index(category)] = spot
    return image


DARK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def graph(outputs: Mapping[str, int], nodes: Sequence[tuple[Any, ...]], **constants: Any) -> bytes:
    """An ONNX file from ``(operator, inputs, output, attributes)``; ``outputs``: name -> rank."""
    from onnx import TensorProto, checker, helper, numpy_helper

    start = [("Cast", "images", "float", {"to": TensorProto.FLOAT}), ("Mul", "float to_one", "shares", {})]
    made = [
        helper.make_node(operator, inputs.split(), [output], **attributes)
        for operator, inputs, output, attributes in [*start, *nodes]
    ]
    shapes = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])]
    found = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *[f"{name}{axis}" for axis in range(1, rank)]])
        for name, rank in outputs.items()
    ]
    values = {"to_one": np.float32(1 / 255), **constants}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    model = helper.make_model(
        helper.make_graph(made, "routed", shapes, found, tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    checker.check_model(model)
    return bytes(model.SerializeToString())


ROUTING = (
    ("ReduceMean", "shares cells", "colours", {"keepdims": 0}),
    ("ReduceMax", "colours last", "strongest", {"keepdims": 0}),
    ("Sub", "strongest least", "above", {}),
    ("Sqrt", "above", "similarity", {}),
)
AXES = {"cells": np.array([1, 2]), "last": np.array([1]), "least": np.float32(0.1)}


def router(columns: int = 3) -> bytes:
    nodes = [*ROUTING, ("Slice", "colours zero columns one", "votes", {})]
    constants = {"zero": np.array([0]), "one": np.array([1]), "columns": np.array([columns])}
    if columns > 3:
        nodes[-1:] = [("Concat", "colours colours", "votes", {"axis": 1})]
    return graph({"votes": 2, "similarity": 1}, nodes, **AXES, **constants)


def scoring(kernel: Sequence[int]) -> list[tuple[Any, ...]]:
    return [
        ("Transpose", "shares", "planes", {"perm": [0, 3, 1, 2]}),
        ("AveragePool", "planes", "pooled", {"kernel_shape": kernel, "strides": kernel}),
        ("ReduceMax", "pooled last", "raw", {"keepdims": 0}),
        ("Mul", "raw gain", "map", {}),
        ("ReduceMax", "map cells", "score", {"keepdims": 0}),
    ]


def head(gain: float, kernel: Sequence[int] = (4, 5)) -> bytes:
    return graph({"score": 1, "map": 3}, scoring(kernel), **AXES, gain=np.float32(255 * gain))


def fused() -> bytes:
    nodes = [
        *ROUTING,
        ("Identity", "colours", "votes", {}),
        ("ArgMax", "votes", "label", {"axis": 1, "keepdims": 0}),
        ("Gather", "gains label", "own", {}),
        ("Unsqueeze", "own cells", "gain", {}),
        *scoring((4, 5)),
    ]
    gains = np.array([255 * GAINS[name] for name in NAMES], np.float32)
    return graph({"score": 1, "map": 3, "votes": 2, "similarity": 1}, nodes, **AXES, gains=gains)


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


REFERENCES = {f"good-{name}.png": part(name) for name in NAMES}
REFERENCES |= {f"probe-{name}.png": part(name, spot=255) for name in NAMES}
REFERENCES["dim.png"] = part("Zed", 45)


def expected(**changes: Any) -> dict[str, Any]:
    """What the model gives on the references; keyword arguments replace what is said of ``good-Zed.png``."""
    rows = []
    for name, image in sorted(REFERENCES.items()):
        category = "Zed" if name == "dim.png" else name.partition("-")[2].removesuffix(".png")
        cells = image.max(2)[::4, ::5].astype(np.float32) * GAINS[category]
        row = {"score": cells.max(), "map": cells, "category": category, "known": name != "dim.png"}
        rows.append({**row, **(changes if name == "good-Zed.png" else {})})
    arrays = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        "names": sorted(REFERENCES),
        "score": np.array(arrays["score"], np.float32),
        "map": np.array(arrays["map"], np.float32),
        "category": arrays["category"],
        "known": arrays["known"],
    }


def section(value: float) -> dict[str, Any]:
    return Threshold(value, 0.1, 120, 0.05, 0.15, True).to_dict()


MakeRouted = Callable[..., Path]


@pytest.fixture
def make_routed(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> MakeRouted:
    """A factory of routed bundles; ``files`` adds or replaces members (None removes)."""

    def make(name: str = "parts.edgead", *, one_graph: bool = False, files: Any = None, **changes: Any) -> Path:
        graphs = {"router.fp32.onnx": router()}
        graphs |= {head_file(category, "fp32"): head(GAINS[category]) for category in NAMES}
        if one_graph:
            graphs = {"model.fp32.onnx": fused()}
        members = {
            **graphs,
            **{f"references/{key}": png(image) for key, image in REFERENCES.items()},
            EXPECTED_NAME: pack_expected(**expected()),
            **(files or {}),
        }
        fields = {
            "graph": "routed",
            "map": {"height": 2, "width": 2},
            "threshold": section(1.0),
            # Not in the order of the columns, which is that of the sorted names.
            "categories": {
                category: {"n_train": 20, "threshold": section(LIMITS[category]), "minimum_similarity": MINIMUM}
                for category in reversed(NAMES)
            },
            "precisions": {"fp32": {"file": next(iter(graphs)), "runtimes": ["onnxruntime", "openvino"]}},
        }
        path = tmp_path / name
        kept = {key: data for key, data in members.items() if data is not None}
        write_bundle(path, make_manifest(**{**fields, **changes}), kept)
        return path

    return make


def frames(*images: NDArray[np.uint8]) -> list[Frame]:
    return [Frame(image, index, index, "test") for index, image in enumerate(images)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("one_graph", [False, True], ids=["router and heads", "one graph"])
def test_each_part_is_judged_by_the_head_and_threshold_of_its_category(
    make_routed: MakeRouted, backend: str, one_graph: bool
) -> None:
    # The fourth scores less than the first and is a defect all the same: each category has its own threshold.
    mixed = [part("a-green", 120), part("Zed", 140), part("blau ü.1", 110), part("Zed", 160), part("a-green", 130)]
    with Inspector.open(make_routed(one_graph=one_graph), backend=backend, batch=4) as inspector:
        together = inspector.inspect_batch(frames(*mixed))
        apart = [inspector(image) for image in mixed]
    for results in (together, apart):
        assert [result.category for result in results] == ["a-green", "Zed", "blau ü.1", "Zed", "a-green"]
        assert [result.score for result in results] == pytest.approx([240, 140, 330, 160, 260], rel=1e-5)
        assert [result.threshold for result in results] == [250, 150, 350, 150, 250]
        assert [result.decision.value for result in results] == ["OK", "OK", "OK", "ANOMALY", "ANOMALY"]
        assert all(result.reason is None for result in results)
        for result, image in zip(results, mixed, strict=True):
            assert result.map is not None
            assert result.category is not None
            np.testing.assert_allclose(result.map, image.max(2)[::4, ::5] * GAINS[result.category], rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("one_graph", [False, True], ids=["router and heads", "one graph"])
def test_a_part_of_no_known_category_is_not_inspected_and_keeps_its_score(
    make_routed: MakeRouted, backend: str, one_graph: bool
) -> None:
    with Inspector.open(make_routed(one_graph=one_graph), backend=backend) as inspector:
        good, dim, dark = inspector.inspect_batch(frames(part("a-green"), part("a-green", 45), DARK))
    assert good.decision is Decision.OK
    for result, score in ((dim, 90.0), (dark, 0.0)):  # the similarity of the second is NaN
        assert result.decision is Decision.NOT_INSPECTED
        assert result.score == pytest.approx(score)
        assert result.reason is not None
        assert result.reason.startswith(f"{UNKNOWN_CATEGORY} (similarity ")
    assert (dim.category, dim.threshold) == ("a-green", 250.0)
    assert "0.277 to a-green, its parts reach 0.400" in str(dim.reason)
    assert "nan" in str(dark.reason)


class Fake:
    """A network and backend that gives the same whatever it is shown, and counts how often it was closed."""

    def __init__(self, *outputs: Any) -> None:
        self.outputs = [np.array(output, np.float32) for output in outputs]
        self.closed = 0

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [output[: len(images)] for output in self.outputs]

    def run(self, images: NDArray[np.uint8]) -> Inference:
        return Inference(*self.compute(images))

    def describe(self) -> BackendInfo:
        return BackendInfo("fake", "fake", "fp32", "cpu", 1, "0")

    def close(self) -> None:
        self.closed += 1


def test_columns_are_the_names_in_their_order_whatever_the_mapping_s_order() -> None:
    votes, similarity = [[0, 1, 0], [1, 0, 0], [0, 0, 1]], [1, 1, 1]
    minimum = {"b": 0.5, "c": 0.5, "a": 0.5}
    heads = {name: Fake([score] * 3, np.full((3, 2, 2), score)) for score, name in enumerate("cba")}
    router = Fake(votes, similarity)
    images = np.zeros((3, 1, 1, 3), np.uint8)
    backend = RoutedBackend(router, heads, minimum)
    found = backend.run(images)
    assert (found.category, found.score.tolist()) == (["b", "a", "c"], [1, 2, 0])
    assert found.map[:, 0, 0].tolist() == [1, 2, 0]
    network = Fake([1, 2, 0], np.zeros((3, 2, 2)), votes, similarity)
    one = FusedBackend(network, minimum)
    assert one.run(images).category == ["b", "a", "c"]
    backend.close()
    one.close()
    assert [fake.closed for fake in (router, *heads.values(), network)] == [1] * 5


def test_a_similarity_at_the_limit_is_known() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    router = Fake(np.ones((5, 1)), [0.5, below, np.inf, -np.inf, np.nan])
    backend = RoutedBackend(router, {"a": Fake(np.ones(5), np.ones((5, 2, 2)))}, {"a": 0.5})
    found = backend.run(np.zeros((5, 1, 1, 3), np.uint8))
    assert found.reason is not None
    assert [reason is None for reason in found.reason] == [True, False, True, False, False]


def test_a_non_finite_score_of_a_known_part_is_not_inspected() -> None:
    scores = np.array([np.nan, 3.0], np.float32)
    found = Inference(scores, np.ones((2, 1, 1), np.float32), ["a", "a"], [None, None])
    first, second = (Limits(1.0, {"a": 2.0}).judge(found, index) for index in range(2))
    assert (first.decision, first.reason) == (Decision.NOT_INSPECTED, "non-finite score")
    assert (second.decision, second.category, second.threshold) == (Decision.ANOMALY, "a", 2.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_that_lacks_a_head_is_refused(
    make_routed: MakeRouted, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_routed(files={head_file("Zed", "fp32"): None})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(BundleError, match=r"lacks head-Zed\.fp32\.onnx; export it again"):
        Inspector.open(path, backend=backend)
    # Without any head it would have to be one graph, and it is none.
    path = make_routed(files={head_file(name, "fp32"): None for name in NAMES})
    with pytest.raises(BackendError, match="must map images to score and map and votes and similarity"):
        Inspector.open(path, backend=backend)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("columns", [2, 6])
def test_a_router_of_other_categories_judges_nothing(make_routed: MakeRouted, backend: str, columns: int) -> None:
    path = make_routed(files={"router.fp32.onnx": router(columns)})
    with Inspector.open(path, backend=backend) as inspector:
        result = inspector(part("Zed"))
    assert result.decision is Decision.NOT_INSPECTED
    assert result.reason == (
        f"the router gave votes (1, {columns}) and similarity (1,) for 3 categories; export the bundle again"
    )
    with pytest.raises(BackendError, match="for 3 categories"):
        check_bundle(path, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_of_another_grid_judges_nothing(make_routed: MakeRouted, backend: str) -> None:
    path = make_routed(files={head_file("Zed", "fp32"): head(1.0, (8, 5))})
    with Inspector.open(path, backend=backend) as inspector:
        results = inspector.inspect_batch(frames(part("a-green"), part("Zed")))
    assert {result.decision for result in results} == {Decision.NOT_INSPECTED}
    assert results[0].reason == "the head of Zed gives a map of another grid; export the bundle again"
    with pytest.raises(BackendError, match=r"a map of \(1, 2\) cells, expected are \(2, 2\)"):
        check_bundle(path, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_that_does_not_load_leaves_nothing_behind(
    make_routed: MakeRouted, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_routed(files={head_file("blau ü.1", "fp32"): b"no graph"})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(BackendError, match=r"head-blau ü\.1\.fp32\.onnx"):
        Inspector.open(path, backend=backend)
    assert list(scratch.iterdir()) == []
    with Inspector.open(make_routed(), backend=backend) as inspector:
        assert len(list(scratch.iterdir())) == 1
    assert list(scratch.iterdir()) == []
    late = inspector(part("Zed"))
    assert (late.decision, late.reason) == (Decision.NOT_INSPECTED, "the inspector is closed")
    inspector.close()


def test_threads_that_share_an_inspector_get_their_own_results(make_routed: MakeRouted) -> None:
    wrong: list[tuple[Any, Any]] = []
    with Inspector.open(make_routed(), backend=BACKENDS[0]) as inspector:

        def work(category: str, level: int) -> None:
            for _ in range(40):
                result = inspector(part(category, level))
                if result.category != category or abs(result.score - level * GAINS[category]) > 1e-2:
                    wrong.append((category, result))

        threads = [
            threading.Thread(target=work, args=(name, 90 + 5 * n)) for n, name in enumerate(NAMES) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("one_graph", [False, True], ids=["router and heads", "one graph"])
def test_an_honest_bundle_passes_its_check(make_routed: MakeRouted, backend: str, one_graph: bool) -> None:
    report = check_bundle(make_routed(one_graph=one_graph), backend=backend)
    assert report.problems == ()
    decisions = {reference.name: (reference.decision, reference.category) for reference in report.references}
    for name in NAMES:
        assert decisions[f"good-{name}.png"] == (Decision.OK, name)
        assert decisions[f"probe-{name}.png"] == (Decision.ANOMALY, name)
    assert decisions["dim.png"] == (Decision.NOT_INSPECTED, "Zed")


def test_the_check_finds_swapped_heads(make_routed: MakeRouted) -> None:
    swapped = {head_file("Zed", "fp32"): head(2.0), head_file("a-green", "fp32"): head(1.0)}
    report = check_bundle(make_routed(files=swapped), backend=BACKENDS[0])
    assert "good-Zed.png: OK became ANOMALY" in report.problems
    assert any(problem.startswith("good-a-green.png: the score differs by 100") for problem in report.problems)
    assert not any("blau" in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"known": False}, "good-Zed.png: NOT_INSPECTED became OK"),
        ({"category": "a-green"}, "good-Zed.png: a-green was taken for Zed"),
        ({"category": "gone"}, "good-Zed.png: gone was taken for Zed"),
        # Far from its own threshold of 150, near enough to another category's.
        ({"score": 105.0}, "good-Zed.png: the score differs by 5, allowed are 0.0"),
    ],
)
def test_the_check_finds_what_differs_from_the_trained_model(
    make_routed: MakeRouted, changes: dict[str, Any], problem: str
) -> None:
    limits = {"threshold": section(1000.0)} if changes.get("category") == "gone" else {}
    path = make_routed(files={EXPECTED_NAME: pack_expected(**expected(**changes))}, **limits)
    report = check_bundle(path, backend=BACKENDS[0])
    assert len(report.problems) == 1
    assert report.problems[0].startswith(problem)
    changed = report.to_dict()["references"]["decision_changes"]
    assert changed == ([] if "score" in changes else ["good-Zed.png"])


def test_the_check_wants_expected_results_of_a_routed_model(make_routed: MakeRouted) -> None:
    single = {key: value for key, value in expected().items() if key not in ("category", "known")}
    path = make_routed(files={EXPECTED_NAME: pack_expected(**single)})
    with pytest.raises(BundleError, match="of another kind of graph; export it again"):
        check_bundle(path)


def test_bench_measures_a_routed_bundle(make_routed: MakeRouted) -> None:
    report = bench(make_routed(), backends=BACKENDS, frames=14, frame_size=(40, 32))
    for row in report.rows:
        assert (row.inspected, row.failed) == (14, 0)
        # Seven references in turn: three good ones, three with a spot, and one that nobody knows.
        assert row.decisions == {"OK": 6, "ANOMALY": 6, "NOT_INSPECTED": 2}
        assert row.accuracy.decision_changes == ()
        assert row.accuracy.max_score_difference < 1e-3
    wrong = make_routed("wrong.edgead", files={EXPECTED_NAME: pack_expected(**expected(category="a-green"))})
    row = bench(wrong, backends=BACKENDS[:1], frames=2, frame_size=(40, 32)).rows[0]
    assert row.accuracy.decision_changes == ("good-Zed.png",)


@pytest.fixture
def camera_parts(tmp_path: Path) -> Path:
    """Ten parts each of two categories, one of the third, and two that nobody knows."""
    folder = tmp_path / "good"
    folder.mkdir()
    shown = [part(name, 90 + step) for name in NAMES[:2] for step in range(10)]
    for index, image in enumerate([*shown, part("blau ü.1"), DARK, part("a-green", 45)]):
        (folder / f"{index:02d}.png").write_bytes(png(image))
    return folder


def test_calibration_sets_the_threshold_of_each_category_that_was_shown(
    make_routed: MakeRouted, camera_parts: Path, tmp_path: Path
) -> None:
    path, out = make_routed(), tmp_path / "new.edgead"
    report = calibrate_bundle(path, camera_parts, out, backend=BACKENDS[0])
    assert (report.images, report.unknown, report.unreadable) == (21, 2, 0)
    assert list(report.new) == ["fp32/Zed", "fp32/a-green"]
    for name in NAMES[:2]:
        wanted = calibrate([GAINS[name] * (90 + step) for step in range(10)], 0.1)
        assert report.new[f"fp32/{name}"].value == pytest.approx(wanted.value, rel=1e-5)
        assert report.old[f"fp32/{name}"].value == LIMITS[name]
        assert report.rejected_before[f"fp32/{name}"] == 0
    with Bundle.open(out) as bundle, Bundle.open(path) as before:
        manifest = bundle.manifest
        assert manifest.limits().categories == {
            **{name: report.new[f"fp32/{name}"].value for name in NAMES[:2]},
            "blau ü.1": 350.0,
        }
        assert manifest.minimum_similarity() == before.manifest.minimum_similarity()
        assert manifest.threshold == before.manifest.threshold
        (record,) = manifest.provenance["calibrations"]  # type: ignore[misc]
        assert {key: old["value"] for key, old in record["old"].items()} == {  # type: ignore[index, call-overload, union-attr]
            f"fp32/{name}": LIMITS[name] for name in NAMES
        }
    assert check_bundle(out, backend=BACKENDS[0]).passed
    text = "\n".join(report.warnings)
    assert "fp32/blau ü.1 keeps its threshold; the source showed it once" in text
    assert "2 frames of" in text
    assert "showed no known category and were omitted" in text
    assert json.loads(json.dumps(report.to_dict()))["unknown"] == 2


def test_calibration_warns_where_defects_of_a_category_would_now_pass(make_routed: MakeRouted, tmp_path: Path) -> None:
    folder = tmp_path / "bright"
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.png").write_bytes(png(part("Zed", 246 + index)))
    report = calibrate_bundle(make_routed(), folder, tmp_path / "new.edgead", false_alarm_rate=0.01)
    assert any(line.startswith("Zed: most: 1 of 1 planted defects") for line in report.warnings)
    assert report.rejected_before == {"fp32/Zed": 10}
    kept = [line for line in report.warnings if "keeps its threshold; the source showed it not at all" in line]
    assert len(kept) == 2


def test_calibration_without_any_known_part_is_refused(make_routed: MakeRouted, tmp_path: Path) -> None:
    folder = tmp_path / "dark"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(png(DARK))
    path, out = make_routed(), tmp_path / "new.edgead"
    with pytest.raises(DataError, match="showed 0 images and 3 of no known category"):
        calibrate_bundle(path, folder, out)
    (folder / "3.png").write_bytes(png(part("Zed")))
    (folder / "4.png").write_bytes(png(part("a-green")))
    with pytest.raises(DataError, match=r"showed 2 images and 3 .*; a threshold needs 2 of a category"):
        calibrate_bundle(path, folder, out)
    assert not out.exists()


class DarkCamera(Source):
    """A camera that looks at nothing, indefinitely."""

    def __init__(self) -> None:
        self.source_id, self.live, self.delivery = "dark camera", True, Delivery("newest")

    def frames(self) -> Iterator[Frame]:
        for index in itertools.count():
            yield Frame(DARK, index, index, self.source_id)

    def close(self) -> None:
        pass


def test_calibration_ends_where_a_camera_shows_no_known_part(make_routed: MakeRouted, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="200 pictures of dark camera in a row show no part that the model knows"):
        calibrate_bundle(make_routed(), DarkCamera(), tmp_path / "new.edgead", min_interval_s=0.0)
    assert not (tmp_path / "new.edgead").exists()


def test_results_carry_their_category_to_the_sinks(make_routed: MakeRouted, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    shown = {"0.png": part("Zed"), "1.png": part("a-green", spot=255), "2.png": DARK}
    for name, image in shown.items():
        (folder / name).write_bytes(png(image))
    log = tmp_path / "results.jsonl"
    with (
        Inspector.open(make_routed()) as inspector,
        Stream(inspector, folder, sinks=[f"jsonl://{log}"]) as stream,
    ):
        results = list(stream)
        ledger = stream.summary.to_dict()["frames"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["category"], line["decision"]) for line in lines] == [
        ("Zed", "OK"),
        ("a-green", "ANOMALY"),
        (results[2].category, "NOT_INSPECTED"),
    ]
    assert [line["threshold"] for line in lines] == [result.threshold for result in results]
    assert lines[2]["reason"].startswith(UNKNOWN_CATEGORY)
    # It was judged, with a score; only nobody knows the part.
    assert (ledger["inspected"], ledger["failed"]) == (3, 0)


def test_limits_are_those_of_the_precision(make_manifest: Callable[..., Manifest]) -> None:
    categories = {
        name: {"n_train": 1, "threshold": section(LIMITS[name]), "minimum_similarity": MINIMUM} for name in NAMES
    }
    entry = {"file": "router.fp16.onnx", "runtimes": [], "categories": {"Zed": section(7.0)}}
    precisions = {"fp32": {"file": "router.fp32.onnx", "runtimes": []}, "fp16": entry}
    manifest = make_manifest(graph="routed", categories=categories, precisions=precisions)
    assert manifest.limits() == Limits(20.0, LIMITS)
    assert manifest.limits("fp16") == Limits(20.0, {**LIMITS, "Zed": 7.0})
    assert manifest.minimum_similarity() == dict.fromkeys(NAMES, MINIMUM)
    single = make_manifest(categories=categories)
    assert single.limits() == Limits(20.0)
    assert single.minimum_similarity() == {}
    assert parse_manifest(manifest.to_json(), "x").limits("fp16") == manifest.limits("fp16")
    entry["categories"] = {"zed": section(7.0)}
    with pytest.raises(ValueError, match="'fp16' has a threshold of the category 'zed', which is none"):
        make_manifest(graph="routed", categories=categories, precisions=precisions)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"category": ["Zed"]}, "category does not belong to names"),
        ({"known": [True] * 6}, "known does not belong to names"),
        ({"known": None}, "known does not belong to names"),
        ({"category": None}, "category does not belong to names"),
    ],
)
def test_expected_results_that_do_not_fit_are_not_packed(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BundleError, match=match):
        pack_expected(**{**expected(), **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"known": None}, "must hold names, score and map"),
        ({"category": None}, "must hold names, score and map"),
        ({"extra": np.ones(7)}, "must hold names, score and map"),
        ({"known": np.ones(7, np.float32)}, "known does not belong to names"),
        ({"known": np.ones((7, 1), bool)}, "known does not belong to names"),
        ({"category": np.arange(7)}, "category does not belong to names"),
        ({"category": np.array(["Zed"] * 6)}, "category does not belong to names"),
        ({"category": np.array([None] * 7)}, "cannot be read"),
    ],
)
def test_damaged_expected_results_are_refused(changes: dict[str, Any], match: str) -> None:
    arrays = unpack_expected(pack_expected(**expected()), "x")
    assert arrays["category"].tolist() == expected()["category"]
    assert arrays["known"].tolist() == expected()["known"]
    stream = io.BytesIO()
    np.savez(stream, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    assert zipfile.is_zipfile(stream)
    with pytest.raises(BundleError, match=match) as refused:
        unpack_expected(stream.getvalue(), "x")
    assert "\n" not in str(refused.value)
