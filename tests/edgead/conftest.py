"""Fixtures of the training floor's tests: the command line, and one small model that all of its tests share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from edgead.comparing.rows import Row
    from edgead.model.model import TrainedModel

from edgead.cli import run
from tests.waiting import LONG_S

SIZE = "64"
_SETTINGS = ("--detector", "padim", "--set", "dimensions=20", "--size", SIZE)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors on a shared machine: a second thread costs more in waiting than it computes."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)


class Outcome(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails where there is anything else."""
        content = json.loads(self.out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        assert isinstance(content, dict)
        return content

    @property
    def error(self) -> str:
        """The one line of an error; fails where there is more, such as a traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith(("Warning: ", "backend: ", "Still at "))]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("Error: "), self.err
        return lines[0]


Command = Callable[..., Outcome]


class _Child(subprocess.Popen[str]):
    """A process that ends with the test: leaving it by an error would otherwise wait for it, perhaps indefinitely."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self.kill()
        super().__exit__(kind, error, trace)


@pytest.fixture
def edgead(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """``edgead(*arguments)`` in this process, which has imported torch already."""
    # A test process of several is told a width of 80, in which paths are broken.
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.Popen[str]]:
    """``launch(arguments, without)`` starts ``edgead`` as a user does; ``without`` cannot be imported there."""

    def start(arguments: Sequence[str | Path], without: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgead"]
        if without:
            program = f"import sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
            command = [sys.executable, "-c", program + "from edgead.cli import main; main()"]
        return _Child(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )

    return start


@pytest.fixture(scope="session")
def process(launch: Callable[..., subprocess.Popen[str]]) -> Command:
    """``process(*arguments, without=[...])``: ``edgead`` to its end, in a process of its own."""

    def call(*arguments: str | Path, without: Sequence[str] = ()) -> Outcome:
        with launch(arguments, without) as child:
            out, err = child.communicate(timeout=LONG_S)
        return Outcome(child.returncode, out, err)

    return call


@pytest.fixture(scope="session")
def plate(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of 16 good training images, 4 good and 4 defective test images, and masks."""
    source = made_images / "plate"
    target = tmp_path_factory.mktemp("data") / "plate"
    for folder, count in (("train/good", 16), ("test/good", 4), ("test/defect", 4)):
        (target / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:count]:
            shutil.copy(path, target / folder)
    (target / "ground_truth" / "defect").mkdir(parents=True)
    for path in (target / "test" / "defect").iterdir():
        name = f"{path.stem}_mask.png"
        shutil.copy(source / "ground_truth" / "defect" / name, target / "ground_truth" / "defect" / name)
    return target


@pytest.fixture(scope="session")
def unseen(made_images: Path, plate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 normal images as those of `plate`, which no model of it has seen."""
    target = tmp_path_factory.mktemp("unseen")
    known = {path.name for path in (plate / "train" / "good").iterdir()}
    for path in (made_images / "plate" / "train" / "good").iterdir():
        if path.name not in known:
            shutil.copy(path, target)
    return target


@pytest.fixture(scope="session")
def plate_model(plate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PaDiM model of `plate`; do not change it, copy it."""
    path = tmp_path_factory.mktemp("model") / "plate.model"
    assert run(["fit", str(plate), *_SETTINGS, "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def plate_export(plate: Path, plate_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The bundle of `plate_model`, and what ``edgead export --json`` said of it, proved on the test images."""
    path = tmp_path_factory.mktemp("bundle") / "plate.edgead"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["export", str(plate_model), "-o", str(path), "--images", str(plate / "test"), "--json"])
    assert code == 0, err.getvalue()
    return path, Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def plate_bundle(plate_export: tuple[Path, Outcome]) -> Path:
    """The bundle of `plate_model`; do not change it, copy it."""
    return plate_export[0]


@pytest.fixture
def fit_arguments() -> tuple[str, ...]:
    """What makes a fit quick."""
    return _SETTINGS


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of made parts, 12 good ones for training, 4 good and 4 scratched ones for the test."""
    root = tmp_path_factory.mktemp("data") / "parts"
    random = np.random.default_rng(0)
    pattern = random.integers(80, 176, (72, 90, 3))
    for split, count in (("train/good", 12), ("test/good", 4), ("test/scratch", 4)):
        (root / split).mkdir(parents=True)
        for index in range(count):
            pixels = pattern + random.integers(-10, 11, pattern.shape)
            if split == "test/scratch":
                pixels[30:42, 20:70] = 250
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{index:03d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_model(parts: Path) -> TrainedModel:
    """A PatchCore model of `parts`, 64 pixels a side."""
    from edgead.fitting import fit

    return fit([parts], detector="patchcore", settings={"bank_size": 64}, size=64)


_RECORD: dict[str, Any] = {
    "max_score_difference": 1e-5,
    "p99_score_difference": 1e-6,
    "max_map_difference": 1e-4,
    "flips": 0,
    "borderline": 1,
    "images": 40,
}
_THRESHOLD = {
    "value": 1.0,
    "target_false_alarm_rate": 0.01,
    "n_normals": 20,
    "low": 0.0,
    "high": 0.2,
    "supported": False,
}
_TIMES: dict[str, Any] = {"p50": 2.0, "p95": 3.0, "p99": 4.0, "max": 5.0, "count": 9}


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    """``make_row(label, seed, category, ...)``: a row of a comparison that nobody had to fit for."""
    return _make_row


def _make_row(
    label: str = "a",
    seed: int = 0,
    category: str = "plate",
    *,
    strength: float = 1.5,
    images: int = 40,
    left_out: Sequence[int] = (),
    pooled: list[str] | None = None,
    error: str | None = None,
) -> Row:
    """A row of drawn scores: the first half of the images is good."""
    from edgead.comparing.rows import Outcome, Row
    from edgead.metrics.metrics import f1_max, image_auroc

    random = np.random.default_rng([seed, sum(map(ord, label))])
    anomalous = np.arange(images) >= images // 2
    scores = strength * anomalous + np.random.default_rng(9).normal(size=images) + 0.3 * random.normal(size=images)
    known = [i for i in range(images) if i not in left_out]
    metrics = {
        "image_auroc": image_auroc(scores[known], anomalous[known]),
        "f1_max": f1_max(scores[known], anomalous[known]),
    }
    outcome = Outcome(
        n_normal=images // 2,
        n_anomalous=images // 2,
        metrics={
            name: metrics[name].to_dict() if name in metrics else None
            for name in ("image_auroc", "pixel_auroc", "aupro", "f1_max", "false_alarm_rate_at_zero_escapes")
        },
        draws={name: metric.draws.tolist() for name, metric in metrics.items()},
        decisions={
            "false_alarms": 2,
            "normal": images // 2,
            "escapes": 1,
            "anomalous": images // 2 - len(left_out),
            "not_inspected": len(left_out),
        },
        empty_masks=0,
        images=[
            {
                "path": f"test/{i}.png",
                "label": "x" if anomalous[i] else "good",
                "anomalous": bool(anomalous[i]),
                "score": float(scores[i]) if i in known else None,
                "threshold": 1.0,
                "decision": "NOT_INSPECTED" if i in left_out else "ANOMALY" if scores[i] > 1 else "OK",
                "reason": None,
            }
            for i in range(images)
        ],
        threshold=_THRESHOLD,
        fit_seconds=2.0 + seed,
        fit_peak_rss_bytes=None if seed else 10**9,
        bytes=3_000_000,
        parity={
            "onnxruntime": _RECORD,
            "openvino-bf16": _RECORD | {"flips": 3, "note": "reduced precision, not gated"},
        },
        bundle_metric_differences={"onnxruntime": 1e-8},
        latency={
            "frames": 9,
            "frame_size": (640, 480),
            "runtimes": {
                "onnxruntime": {
                    "network": _TIMES | {"p50": 1.0 + seed},
                    "preprocess": _TIMES,
                    "end_to_end": _TIMES | {"p50": 3.0 + seed},
                }
            },
        },
        latency_missing=None,
        backbone_info={"name": "net", "weights": "hub", "random_weights": False},
        machine={"cpu": "x"},
        versions={"edgead": "0"},
    )
    return Row(
        key=f"{seed:064d}",
        setup="0" * 64,
        category=category,
        label=label,
        detector="padim",
        settings={"smooth": True},
        seed=seed,
        height=64,
        width=64,
        backbone="net@hub",
        edgead="0",
        pooled=pooled,
        measured_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        error=error,
        outcome=None if error else outcome,
    )


@pytest.fixture
def step_and_export() -> Callable[[Any, Any], None]:
    """A function that trains a full-size network for one step a stage, exports it and compares one frame."""

    def check(detector: Any, network: Any, side: int = 256) -> None:
        import onnxruntime
        import torch

        from edgead.detectors import create_detector
        from edgead.detectors.learned import LearnedModule
        from edgead.export.graph.lint import require_clean
        from edgead.export.graph.tracing import export_onnx
        from edgead.training.training import train

        one = {"steps": 1, "batch": 2, "evaluations": 1}
        one |= {
            f"{stage}_{what}": one[what] for stage in ("pretraining", "distillation") for what in ("steps", "batch")
        }
        known = detector.settings.model_dump()
        brief = create_detector(detector.name, {**known, **{k: v for k, v in one.items() if k in known}})
        pixels = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        log = train(network, brief.stages(network, pixels, 0), seed=0, device="cpu")
        assert np.isfinite([value for point in log.points for value in point.losses.values()]).all()
        assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
        module = LearnedModule(network, (side, side))
        graph = export_onnx(module, side, side)
        require_clean(graph)
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        score, grid = session.run(None, {"images": pixels[:1]})
        with torch.inference_mode():
            expected = module(torch.from_numpy(pixels[:1]))
        np.testing.assert_allclose(score, expected[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(grid, expected[1].numpy(), atol=1e-4)

    return check
