"""`tune` on small real bundles: what is tried, what must not be used, the front, the choice and the budgets."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.references import EXPECTED_NAME, pack_expected
from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.device.tuning.evaluation import Judgement, Picture, Trial
from edgead.runtime.device.tuning.pareto import complain, mark, pick
from edgead.runtime.device.tuning.report import Candidate
from edgead.runtime.device.tuning.search_space import Setup, find_setups, thread_counts
from edgead.runtime.device.tuning.tune import TuneOptions, tune
from edgead.runtime.errors import BackendUnavailable, BundleError, ConfigError, DataError
from edgead.runtime.inspection.device_profile import Choice
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.machine import describe_machine
from edgead.runtime.status.latency import Latency

pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")
SMALL = (64, 48)


def even(seed: int, spot: int | None = None) -> NDArray[np.uint8]:
    """An even part, or one with a spot of a brightness; above the threshold of 20 from 200 on."""
    random = np.random.default_rng(seed)
    image = random.integers(90, 110, (31, 45, 3), dtype=np.uint8)
    if spot is not None:
        image[8:24, 10:30] = random.integers(0, spot, (16, 20, 3), dtype=np.uint8)
        image[12:20, 14:24] = (spot, 0, spot)
    return image


def parts(count: int, spot: int) -> list[Picture]:
    """Good parts, each with a planted copy."""
    found = []
    for number in range(count):
        found.append(Picture(f"part {number}", even(100 + number), "good"))
        found.append(Picture(f"part {number} with a spot", even(100 + number, spot), "planted", f"part {number}"))
    return found


def test_what_opens_is_measured_judged_and_chosen_from(make_bundle, tmp_path, monkeypatch):
    path = make_bundle()
    # A board on which not all of them fit into the free memory at once.
    monkeypatch.setattr("edgead.runtime.device.tuning.tune._free_bytes", lambda: 1)
    steps: list[tuple[str, int, int]] = []
    report = tune(
        [path],
        TuneOptions(threads=[1], frames=12, frame_size=SMALL),
        pictures=parts(3, 255),
        progress=lambda *step: steps.append(step),
    )
    backends = [name for name in available() if not name.endswith("-bf16")]
    # What runs without a profile is there to compare with, though other numbers of threads were asked for.
    names = [(one.setup.choice.backend, one.setup.choice.threads) for one in report.candidates]
    assert names == [(backends[0], None), *((name, 1) for name in backends)]
    assert [one.setup.plain for one in report.candidates] == [True] + [False] * len(backends)
    assert not report.candidates[0].usable
    for one in report.candidates:
        assert one.judgement.excluded is None
        assert (one.judgement.images, one.judgement.flips, one.judgement.auroc) == (9, (), 1.0)
        assert one.judgement.drift < 1e-3
        assert one.latency is not None
        assert one.latency.count == 12
        assert 0 < one.latency.p50 <= one.latency.p99
        if sys.platform == "linux":
            assert one.peak_mb is not None
            assert 20 < one.peak_mb < 2000
            assert one.trial.resident_bytes <= one.trial.peak_bytes
    # Two at least take turns; they are sorted by how fast they were alone.
    groups = [one.group for one in report.candidates]
    assert sorted(groups) == [number // 2 for number in range(len(groups))]
    chosen = report.chosen
    assert chosen is not None
    assert chosen.front
    assert chosen.setup.choice.threads == 1
    assert {stage for stage, _, _ in steps} == {"combinations", "frames"}
    assert all(done <= total for _, done, total in steps)
    data = report.to_dict()
    assert data["schema"] == "edgead.tune/1"
    assert data["front"] == [index for index, one in enumerate(report.candidates) if one.front]
    assert data["pictures"] == {"references": 3, "good": 3, "planted": 3, "other": 0}
    json.dumps(data, allow_nan=False)
    profile = report.profile()
    assert profile is not None
    profile.save(tmp_path)
    with Inspector.open(path, profile=tmp_path) as inspect:
        assert inspect.left_out is None
        assert (inspect.describe().name, inspect.describe().threads) == (chosen.setup.choice.backend, 1)


def test_what_decides_otherwise_must_not_be_used_however_fast(make_bundle, tiny_model, tiny_threshold):
    reduced = {"max_drop": 1000.0, "runtimes": ["onnxruntime"]}
    limit = {**tiny_threshold.to_dict(), "value": 24.0}  # the reference with a spot lies above, the faint one below
    whole = tiny_model.graph().SerializeToString()
    path = make_bundle(
        files={
            "model.blind.onnx": type(tiny_model)(tiny_model.weights * 0).graph().SerializeToString(),
            "model.broken.onnx": b"no graph",
            "model.dull.onnx": whole,
        },
        precisions={
            "fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime"]},
            "blind": {"file": "model.blind.onnx", **reduced},
            "broken": {"file": "model.broken.onnx", **reduced},
            "dull": {"file": "model.dull.onnx", "threshold": limit, **reduced},
        },
    )
    report = tune(
        [path],
        TuneOptions(backends=["onnxruntime"], threads=[1], frames=4, frame_size=SMALL),
        pictures=[Picture("faint", even(7, 200)), Picture("plain", even(8))],
    )
    found = {one.setup.choice.precision: one for one in report.candidates if not one.setup.plain}
    assert sorted(found) == ["blind", "dull", "fp32"]
    (broken,) = [reason for name, reason in report.skipped.items() if "broken" in name]
    assert broken.startswith("onnxruntime cannot load")
    # As `edgead check` says it; decided like FP32 on the references, but not on the pictures.
    assert found["blind"].judgement.excluded == "spot.png: ANOMALY became OK"
    assert found["dull"].judgement.excluded == "faint: decided otherwise than in fp32"
    assert found["dull"].judgement.flips == ("faint",)
    for name in ("blind", "dull"):
        assert not found[name].front
        assert not found[name].fits
    assert report.chosen is found["fp32"]


def test_several_bundles_are_compared_by_planted_defects(make_bundle, tiny_model, tiny_references, tiny_expected):
    sharp = make_bundle()
    with pytest.raises(ConfigError, match="--normals DIR"):
        tune([sharp, make_bundle("same.edgead")], TuneOptions(threads=[1], frames=2, frame_size=SMALL))
    # A model that answers almost the same for all: its references say what it gives, so that it passes its check.
    names, score, grid = tiny_expected(tiny_references)
    weights = tiny_model.weights * np.float32(0)
    dull = make_bundle(
        "dull.edgead",
        model=type(tiny_model)(weights),
        files={EXPECTED_NAME: pack_expected(names, score * 0, grid * 0)},
    )
    report = tune(
        [dull, sharp],
        TuneOptions(backends=["onnxruntime"], threads=[1], frames=4, frame_size=SMALL),
        pictures=parts(4, 255),
    )
    areas = [{one.judgement.auroc for one in report.candidates if one.bundle == index} for index in (0, 1)]
    assert areas == [{0.5}, {1.0}]
    assert report.chosen is not None
    assert report.bundles[report.chosen.bundle].path == str(sharp)
    with Bundle.open(sharp) as bundle:
        profile = report.profile()
        assert profile is not None
        assert profile.bundle_sha256 == bundle.sha256


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"budget_ms": 0.0}, ConfigError, "--budget-ms"),
        ({"budget_mb": float("nan")}, ConfigError, "--budget-mb"),
        ({"frames": 0}, ConfigError, "--frames"),
        ({"frame_size": (8, 8)}, ConfigError, "--frame-size"),
        ({"threads": [0]}, ConfigError, "--threads"),
        ({"backends": ["onnxruntim"]}, ConfigError, "Did you mean 'onnxruntime'"),
        ({"backends": ["tensorrt"]}, BackendUnavailable, "needs an NVIDIA GPU|tensorrt"),
        ({"precisions": ["fp23"]}, ConfigError, "Did you mean 'fp32'"),
        ({"pictures": [Picture("a", even(0)), Picture("a", even(1))]}, DataError, "a is given twice"),
    ],
)
def test_wrong_arguments(make_bundle, arguments, error, match):
    pictures = arguments.pop("pictures", ())
    with pytest.raises(error, match=match):
        tune([make_bundle()], TuneOptions(**{"frame_size": SMALL, **arguments}), pictures=pictures)


def test_what_is_no_bundle_or_proves_nothing_cannot_be_tuned(make_bundle, tiny_references, tmp_path):
    files = {f"references/{name}": None for name in [*tiny_references, "expected.npz"]}
    with pytest.raises(BundleError, match="no reference images"):
        tune([make_bundle(files=files)])
    with pytest.raises(BundleError, match="does not exist"):
        tune([tmp_path / "no.edgead"])
    with pytest.raises(ConfigError, match="no bundle"):
        tune([])


def test_every_combination_is_there_and_bfloat16_only_where_it_is_asked_for(make_bundle, tiny_model):
    graph = tiny_model.graph().SerializeToString()
    cpu = [name for name in ("onnxruntime", "openvino") if name in available()]
    path = make_bundle(
        files={"model.int8-cpu.onnx": graph, "model.fp16.onnx": graph},
        precisions={
            "fp32": {"file": "model.fp32.onnx", "runtimes": [*cpu, "openvino-bf16", "tensorrt"]},
            "int8-cpu": {"file": "model.int8-cpu.onnx", "runtimes": cpu},
            "fp16": {"file": "model.fp16.onnx", "runtimes": ["tensorrt"]},
        },
    )
    with Bundle.open(path) as bundle:
        found = [one.choice for one in find_setups(bundle, threads=[2, 1, 2])]
        assert [(one.backend, one.precision, one.threads) for one in found[1:]] == [
            (backend, precision, threads) for backend in cpu for precision in ("fp32", "int8-cpu") for threads in (1, 2)
        ]
        assert {one.native_code for one in found} == {"absent"}
        plain, *others = find_setups(bundle, precisions=["int8-cpu"])
        assert (plain.plain, plain.eligible, plain.choice.precision) == (True, False, "fp32")
        assert {one.choice.precision for one in others} == {"int8-cpu"}
        assert find_setups(bundle)[0].eligible
        free = [one.choice for one in find_setups(bundle, precisions=["int8-cpu"])[1:]]
        cores = describe_machine()["cores"]
        assert [one.threads for one in free if one.backend == cpu[0]] == [None, *thread_counts(cores)]
        with pytest.raises(ConfigError, match="holds nothing of what was asked for"):
            find_setups(bundle, precisions=["fp16"])


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (6, [1, 2, 3, 4, 6]), (12, [1, 2, 3, 4, 8, 12])]
)
def test_numbers_of_threads_grow_with_the_cores(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def candidate(
    ms: float, mb: float, *, shift: float = 9.0, seed: int = 0, drift: float = 0.0, excluded: str | None = None
) -> Candidate:
    """A measured candidate; ``shift``: how far planted pictures score above good ones, of scores drawn by the seed."""
    drawn = np.random.default_rng(seed).normal(size=40)
    ranking = Ranking.of(drawn[:20], drawn[20:] + shift, np.arange(20))
    choice = Choice(backend="onnxruntime", precision="fp32", threads=1, native_code="absent")
    setup = Setup(Path("a.edgead"), choice)
    trial = Trial(setup, {}, 0.1, ms, int(mb * 1e6), int(mb * 1e6), (), {}, [])
    judgement = Judgement(40, drift, ranking=ranking, held_out=True, excluded=excluded)
    latency = None if excluded else Latency(ms, ms, ms, ms, 9)
    return Candidate(setup, 0, trial, judgement, latency)


def chosen(candidates: Sequence[Candidate], ms: float | None = None, mb: float | None = None) -> int | None:
    return pick(mark(candidates, ms, mb))


def test_the_front_is_what_nothing_beats_in_all_three() -> None:
    found = mark(
        [
            candidate(10, 100),
            candidate(10, 101),  # as fast, more memory
            candidate(8, 150),
            candidate(20, 90),
            candidate(21, 91),  # slower and larger than the one before
            candidate(7, 80, shift=0.0),  # least of both, and blind
            candidate(1, 10, excluded="good-0.png: OK became ANOMALY"),
        ],
        None,
        None,
    )
    assert [one.front for one in found] == [True, False, True, True, False, True, False]
    assert [one.fits for one in found] == [True, True, True, True, True, True, False]


def test_a_larger_drift_is_less_accurate_where_the_auroc_is_the_same() -> None:
    found = mark([candidate(10, 100), candidate(10, 100, drift=0.02), candidate(9, 100, drift=0.03)], None, None)
    assert [one.front for one in found] == [True, False, True]


def test_accuracy_decides_first_then_speed_then_memory() -> None:
    assert chosen([candidate(10, 100), candidate(5, 50, shift=0.0)]) == 0
    assert chosen([candidate(10, 100), candidate(5, 200)]) == 1
    # Five per cent are no gain of speed, ten are.
    assert chosen([candidate(10.4, 100), candidate(10, 200)]) == 0
    assert chosen([candidate(11, 100), candidate(10, 200)]) == 1
    # A difference of AUROC within its standard error counts as none.
    near = [candidate(10, 100, shift=1.2), candidate(5, 100, shift=1.2, seed=1)]
    assert [one.judgement.auroc for one in near] == [0.915, 0.8325]
    assert chosen(near) == 1
    assert chosen([near[0], candidate(5, 100, shift=1.2, seed=6)]) == 0
    # Another bundle is another model: speed that no budget asks for costs no accuracy.
    other = replace(near[1], bundle=1)
    assert chosen([near[0], other]) == 0
    assert chosen([near[0], other], ms=8) == 1
    # What is there stays where it fits, though something beats it, unless the other is more accurate for sure.
    three = mark([near[0], other, replace(candidate(6, 100, shift=1.2, seed=1), bundle=2)], None, None)
    assert not three[2].front
    assert [pick(three, keep) for keep in (None, 1, 2)] == [0, 1, 2]
    assert pick(mark([near[0], replace(candidate(6, 100, shift=0.0), bundle=2)], None, None), keep=2) == 0


def test_budgets_bound_the_choice_and_not_the_front() -> None:
    three = [candidate(10, 100), candidate(5, 200), candidate(20, 50)]
    assert [chosen(three, ms, mb) for ms, mb in ((None, 150), (6, None), (None, 60), (10, 100))] == [0, 1, 2, 0]
    assert all(one.front for one in mark(three, 6, None))
    assert chosen(three, 4, None) is None
    assert chosen(three, 6, 150) is None
    line = complain(mark(three, 4, 150), 4, 150, "buy a larger one")
    assert line.startswith("nothing keeps within 4 ms and 150 MB here: the nearest, onnxruntime fp32, 1 thread, takes ")
    assert "5.00 ms and 200 MB" in line
    assert line.endswith("raise the budget, or buy a larger one")


def test_what_was_only_there_to_compare_with_is_not_chosen() -> None:
    plain = candidate(5, 50)
    plain = replace(plain, setup=replace(plain.setup, plain=True, eligible=False))
    assert chosen([plain, candidate(10, 100)]) == 1
    assert chosen([plain]) is None


def test_where_nothing_decides_right_the_line_says_so() -> None:
    found = mark([candidate(5, 50, excluded="spot.png: ANOMALY became OK")], 10, None)
    assert pick(found) is None
    assert "no combination decides here as the model was validated (spot.png" in complain(found, 10, None, "")
