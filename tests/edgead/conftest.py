"""Fixtures of the training floor's tests: the command line, and one small model that all of its tests share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from edgead.model import TrainedModel

from edgead.cli import run

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
        lines = [line for line in self.err.splitlines() if not line.startswith(("Warning: ", "backend: "))]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("Error: "), self.err
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture
def edgead(capsys: pytest.CaptureFixture[str]) -> Command:
    """``edgead(*arguments)`` in this process, which has imported torch already."""

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
        return subprocess.Popen(
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
            out, err = child.communicate(timeout=60)
        return Outcome(child.returncode, out, err)

    return call


@pytest.fixture(scope="session")
def plate(ci_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of 16 good training images, 4 good and 4 defective test images, and masks."""
    source = ci_small / "metal_plate"
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
