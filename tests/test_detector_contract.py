"""What every registered detector must do, from normal images to decisions on a stream of frames.

A detector is tested from the day its line is in the registry. Its settings here are those of `SMALL`, or its small
profile, or its defaults.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgead.data import Category, open_category
from edgead.detectors import REGISTRY, create_detector, learns, pools_categories
from edgead.evaluation.evaluation import evaluate
from edgead.export.exporting import export_bundle
from edgead.export.options import PRECISIONS
from edgead.export.parity.gate import ExportReport
from edgead.export.precision.simulate_fp16 import SIMULATED
from edgead.export.precision.simulate_int8 import SIMULATED_INT8
from edgead.fitting import fit
from edgead.model.model import TrainedModel, load_model
from edgead.opening import open_inspector
from edgead.runtime.bundle.manifest_schema import ParityRecord
from edgead.runtime.device.check import check_bundle
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.streaming.stream import Stream

# Pixels a side. What is trained takes the most time: smaller where a short training can still tell parts from flaws.
SIZE = 128
SIZES = {"sgsf": 64, "isstad": 64, "cutpaste": 64, "efficientad": 64}
BACKENDS = ("onnxruntime", "openvino")
# Wide enough that no layer has to be kept in FP32, which takes a run of the network for each of them. A network that
# was trained for seconds leaves a short way from good parts to the threshold, so rounding takes a larger share of it.
MAX_DROP, LEARNED_MAX_DROP = 0.6, 2.0
# Good images to learn from; of a learned detector a fifth of them sets the threshold.
GOOD, LEARNED_GOOD = 10, 40
# Banks of more than 1024 rows are exported in parts as well, for the native search.
SMALL: dict[str, dict[str, Any]] = {
    "patchcore": {"bank_size": 1100},
    "padim": {"dimensions": 24},
    "protoad": {"prototypes": 50},
    "npad": {"dimensions": 64, "centroids": 1100},
    "dfc": {"head.bank_size": 128},
    "slsg": {"steps": 80, "batch": 4, "width": 0.15, "pretraining_steps": 2, "evaluations": 1, "learning_rate": 3e-3},
    "sgsf": {"steps": 40, "batch": 4, "width": 6, "evaluations": 1, "learning_rate": 5e-3},
    "isstad": {
        "steps": 24,
        "pretraining_steps": 4,
        "batch": 4,
        "evaluations": 1,
        "decoder_depth": 2,
        "score": "product",
    },
    "cutpaste": {"steps": 40, "batch": 2, "width": 16, "evaluations": 1, "learning_rate": 5e-3},
    "efficientad": {"steps": 24, "batch": 2, "channels": 16, "evaluations": 1},
}


# Convolutions of the default backbone up to its last tap; a learned detector adds its own.
BACKBONE_LAYERS = 33
# These may keep a quarter of their layers in FP32; and one needs that, its distances being made of small variances.
EDGY, CLOSE = ("isstad", "cutpaste", "efficientad"), ("cutpaste",)
OWN_LAYERS = {"isstad": BACKBONE_LAYERS}


def settings(name: str) -> dict[str, Any]:
    small = {"profile": "small"} if "profile" in type(create_detector(name).settings).model_fields else {}
    return SMALL.get(name, small)


# A second process, imported once for all tests. It loads and scores models that it never fitted, and forks fits that
# kill themselves when they have reached a stage and touched so many files since; the answer says whether they did.
WORKER = """
import functools, json, os, signal, sys
from pathlib import Path
import torch
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.opening import open_inspector
from edgead.runtime.imaging.decode import read_image

torch.set_num_threads(1)  # a fork has none of its parent's threads

def score(model, images):
    with open_inspector(model, threads=1) as inspector:
        return [inspector(read_image(Path(image))).score.hex() for image in images]

loaded = functools.cache(load_model)

def kill(stage, files, target, folders, arguments, model):
    ready = loaded(Path(model))
    child = os.fork()
    if child == 0:
        left = None

        def tell(line, done, total):
            nonlocal left
            # "plate: features" of a head, "training | loss 0.3" of a learned detector.
            if left is None and line.strip().partition(" | ")[0].rpartition(": ")[2] == stage:
                left = files
                die()

        def die():
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def watch(event, _):
            nonlocal left
            if left and (event == "open" or event.startswith(("os.", "shutil."))):
                left -= 1
                die()

        sys.addaudithook(watch)
        fitted = ready if stage == "save" else fit(folders, **arguments, progress=tell)
        tell("save", 0, 1)
        fitted.save(Path(target))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

for request in sys.stdin:
    name, arguments = json.loads(request)
    print(json.dumps({"score": score, "kill": kill}[name](**arguments)), flush=True)
"""
FILES = (1, 2, 3, 5, 8, 13, 21, 34)

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """A function that has the worker do something by name and returns its answer."""
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as worker:
        requests, answers = worker.stdin, worker.stdout
        assert requests is not None
        assert answers is not None

        def ask(name: str, **arguments: Any) -> Any:
            requests.write(json.dumps([name, arguments]) + "\n")
            return json.loads(answers.readline())

        yield ask
        requests.close()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """The same sums in the same order in both processes, and no threads that wait for each other on small images."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Made:
    """One detector after fit, save and export."""

    name: str
    categories: tuple[Category, ...]
    model: TrainedModel
    directory: Path
    bundle: Path
    report: ExportReport

    @property
    def images(self) -> list[Path]:
        return [sample.path for category in self.categories for sample in category.test]


@pytest.fixture(scope="module")
def folders(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Two categories of a few good images, a few good and defective ones to judge; the first again, with more."""
    root = tmp_path_factory.mktemp("contract")
    for where, category, good, tested in (
        (root, "plate", GOOD, 6),
        (root, "figure", GOOD, 2),
        (root / "more", "plate", LEARNED_GOOD, 6),
    ):
        for folder, count in (("train/good", good), ("test/good", tested), ("test/defect", tested)):
            source = made_images / category / folder
            if not source.is_dir():
                source = next(other for other in sorted(source.parent.iterdir()) if other.name != "good")
            (where / category / folder).mkdir(parents=True)
            for image in sorted(source.iterdir())[:count]:
                shutil.copy(image, where / category / folder)
    return root / "plate", root / "figure", root / "more" / "plate"


def training_images(name: str) -> int:
    """Images a category; few are not enough where something is learned, nor for the two deviations of N-pad."""
    return LEARNED_GOOD if learns(name) or name == "npad" else GOOD


def given(name: str, folders: tuple[Path, ...]) -> list[Path]:
    """What a detector is fitted on: two folders where it pools categories, the one with more where it takes many."""
    if training_images(name) == LEARNED_GOOD:
        return [folders[2]]
    return list(folders[:2] if pools_categories(name) else folders[:1])


def max_drop(name: str) -> float:
    return LEARNED_MAX_DROP if learns(name) and name not in CLOSE else MAX_DROP


@pytest.fixture(scope="module", params=REGISTRY)
def made(request: pytest.FixtureRequest, folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Made:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    model = fit(given(name, folders), detector=name, settings=settings(name), size=SIZES.get(name, SIZE))
    model.save(folder / "plate.model")
    categories = tuple(open_category(path, need_test=True) for path in given(name, folders))
    bundle = folder / "plate.edgead"
    images = [sample.path for category in categories for sample in category.test]
    # Export comes from the loaded model, as `edgead export` does it.
    report = export_bundle(
        load_model(folder / "plate.model").exportable("plate"),
        bundle,
        precisions=PRECISIONS,
        images=images,
        max_drop=max_drop(name),
    )
    return Made(name, categories, model, folder / "plate.model", bundle, report)


def test_every_image_that_was_not_seen_has_a_score_and_the_threshold_its_meaning(made: Made) -> None:
    scored = LEARNED_GOOD // 5 if learns(made.name) else training_images(made.name) * len(made.categories)
    assert len(made.model.card.normal_scores) == scored == made.model.threshold.n_normals
    training = made.model.card.training
    assert (training is not None) == learns(made.name)
    assert training is None or len(set(training.held_out)) == scored
    given = training_images(made.name)
    assert list(made.model.card.categories.values()) == [given] * len(made.categories)
    assert made.model.card.detector == made.name
    # The threshold lies between scores, never on one: rounding on another device must not flip a training image.
    assert made.model.threshold.value not in made.model.card.normal_scores


def test_another_process_loads_the_model_and_gives_the_same_scores(made: Made, ask: Ask) -> None:
    there = ask("score", model=str(made.directory), images=list(map(str, made.images)))
    with open_inspector(made.directory, threads=1) as inspector:
        assert there == [inspector(read_image(path)).score.hex() for path in made.images]


def test_every_runtime_decides_as_torch_does_on_every_image(made: Made) -> None:
    records = next(iter(made.report.parity.values()))
    assert made.report.passed
    assert set(BACKENDS) <= set(records)
    for runtime in BACKENDS:
        record = records[runtime]
        assert record.images == len(made.images)
        assert (record.flips, record.borderline) == (0, 0)
        spread = made.model.threshold.value - min(made.model.card.normal_scores)
        assert record.max_score_difference < 1e-3 * spread


def test_fp16_flips_no_decision_where_half_is_computed_in_half(made: Made) -> None:
    record = records_of(made, "fp16")[SIMULATED]
    assert record.images == len(made.images)
    assert record.flips == 0
    assert record.half_margin is not None
    assert record.half_margin > 2  # far from 65504
    assert record.drop is not None
    assert 0 < record.drop < 0.05


@pytest.mark.parametrize("precision", ["int8-trt", "int8-cpu"])
def test_int8_keeps_the_order_of_the_scores_on_every_runtime(made: Made, precision: str) -> None:
    for runtime in (SIMULATED_INT8, *(BACKENDS if precision == "int8-cpu" else ())):
        record = records_of(made, precision)[runtime]
        assert record.drop is not None
        assert 0 < record.drop <= max_drop(made.name)
        assert record.rank_correlation is not None
        assert record.rank_correlation > 0.7
    layers = made.report.precisions[precision]["int8"]
    if made.name in OWN_LAYERS:
        assert layers["layers"] == OWN_LAYERS[made.name]
    else:
        assert layers["layers"] > BACKBONE_LAYERS if learns(made.name) else layers["layers"] == BACKBONE_LAYERS
    # With a limit this loose; the first depthwise layer costs most. What training gives differs between processors.
    assert len(layers["kept"]) <= (layers["layers"] // 4 if learns(made.name) else 1)


# A CPU's kernels for the graph that is meant for TensorRT saturate on some processors, and are refused there.
@pytest.mark.parametrize("precision", ["fp16", "int8-cpu"])
def test_the_check_takes_every_precision_with_its_own_threshold(made: Made, precision: str) -> None:
    report = check_bundle(made.bundle, backend="onnxruntime", precision=precision)
    assert report.precision == precision
    # A network that was trained for seconds leaves a short way to the threshold, and rounds its high scores of flaws.
    most = 2.0 if learns(made.name) else 1.0
    others = [problem for problem in report.problems if "became" not in problem and "score differs" not in problem]
    assert others == []
    assert max(one.excess for one in report.references if one.decision is one.expected_decision) <= most
    assert report.threshold == made.report.precisions[precision]["threshold"] != made.model.threshold.value


def records_of(made: Made, precision: str) -> Mapping[str, ParityRecord]:
    return made.report.parity[made.report.precisions[precision]["file"]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bundle_passes_its_check_on_every_backend(made: Made, backend: str) -> None:
    report = check_bundle(made.bundle, backend=backend, images=made.images)
    assert report.problems == ()
    assert report.backend.name == backend
    assert len(report.references) >= 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stream_decides_as_the_evaluation_did(made: Made, backend: str) -> None:
    decisions = set()
    # Scores of several categories are in deviations around zero, so a share of the score alone means nothing.
    spread = made.model.threshold.value - min(made.model.card.normal_scores)
    # A network that was trained for seconds ends in a sigmoid of large numbers, which runtimes add in other orders.
    least = (3e-4 if learns(made.name) else 1e-5) * spread
    for category in made.categories:
        with open_inspector(made.directory) as inspector:
            validated = {image.path: image for image in evaluate(inspector, category, bootstrap=10).images}
        with (
            open_inspector(made.bundle, backend=backend) as inspector,
            Stream(inspector, category.root / "test") as stream,
        ):
            streamed = {f"test/{result.name}": result for result in stream}
        assert list(streamed) == sorted(validated)
        for path, result in streamed.items():
            assert (result.decision, result.category) == (validated[path].decision, validated[path].category), path
            assert result.score == pytest.approx(validated[path].score, rel=1e-4, abs=least)
            assert result.category == (category.name if len(made.categories) > 1 else None)
            decisions.add(result.decision)
    assert Decision.ANOMALY in decisions


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fit_that_is_killed_leaves_a_whole_model_or_what_was_there(
    made: Made, folders: tuple[Path, ...], tmp_path: Path, ask: Ask
) -> None:
    target = tmp_path / "plate.model"
    fixed: dict[str, Any] = {"target": str(target), "model": str(made.directory)}
    fixed["folders"] = [str(folder) for folder in given(made.name, folders)]
    fixed["arguments"] = {"detector": made.name, "settings": settings(made.name), "size": SIZES.get(made.name, SIZE)}
    stages = ("training",) if learns(made.name) else ("features", "held-out scores")
    for stage in stages:
        assert ask("kill", stage=stage, files=0, **fixed)
        assert not target.exists()
    interrupted = []
    for files in FILES:
        interrupted.append(ask("kill", stage="save", files=files, **fixed))
        if target.exists():
            assert contents(target) == contents(made.directory)
            shutil.rmtree(target)
    for files in FILES:
        replace(made.model, references=made.model.references[:1]).save(target)
        before = contents(target)
        interrupted.append(ask("kill", stage="save", files=files, **fixed))
        assert contents(target) in (before, contents(made.directory))
    assert interrupted[0]
    assert sum(interrupted) > len(FILES)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir() if path != target)
