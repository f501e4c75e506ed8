"""Learned detectors through the public doors: fit, save, load, probes, what they refuse, and a fit that is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgead.data import open_category
from edgead.detectors import REGISTRY, create_detector, default_size, learns
from edgead.detectors.learned import LearnedModule, ProbeJudge, hold_out
from edgead.evaluation.validation_normals import HELD_OUT, find_normals, read_training_record
from edgead.features.backbones import BackboneSpec
from edgead.fitting import fit
from edgead.model.model import TrainedModel, load_model
from edgead.runtime.errors import ConfigError, DataError

LEARNED = tuple(name for name in REGISTRY if learns(name))
TINY: dict[str, dict[str, Any]] = {
    "slsg": {"steps": 6, "pretraining_steps": 2, "batch": 2, "width": 0.1, "evaluations": 2},
    "sgsf": {"steps": 6, "batch": 2, "width": 4, "evaluations": 2},
    "isstad": {"steps": 6, "pretraining_steps": 2, "batch": 2, "decoder_width": 16, "evaluations": 2},
    "cutpaste": {"steps": 6, "batch": 2, "width": 8, "evaluations": 2},
    "efficientad": {"steps": 6, "distillation_steps": 2, "batch": 2, "width": 0.1, "channels": 8, "evaluations": 2},
}


@pytest.fixture(scope="module")
def parts(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good plates."""
    folder = tmp_path_factory.mktemp("learned") / "plate"
    (folder / "train" / "good").mkdir(parents=True)
    for image in sorted((made_images / "plate" / "train" / "good").iterdir())[:12]:
        shutil.copy(image, folder / "train" / "good")
    return folder


def tiny(name: str, parts: Path, **more: Any) -> TrainedModel:
    return fit([parts], detector=name, settings=TINY.get(name), size=64, **more)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LEARNED)
def test_equal_fits_give_equal_files_and_what_is_saved_is_what_was_fitted(
    name: str, parts: Path, tmp_path: Path
) -> None:
    first, second = tiny(name, parts), tiny(name, parts)
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    assert content(tmp_path / "first") == content(tmp_path / "second")
    other = tiny(name, parts, seed=1)
    assert other.card.normal_scores != first.card.normal_scores

    loaded = load_model(tmp_path / "first")
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(loaded.module(images), first.module(images), strict=True))
    loaded.save(tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "first")
    with Image.open(tmp_path / "first" / "training.png") as curve:
        assert min(curve.size) > 200


def test_a_model_says_all_of_its_settings_and_how_it_was_trained(parts: Path, tmp_path: Path) -> None:
    textures = tmp_path / "secret" / "dtd"
    textures.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(textures / "a.png")
    model = fit([parts], detector="sgsf", settings={**TINY["sgsf"], "textures": str(textures)}, size=64)
    settings = model.card.settings
    assert None not in (settings["encoder"], settings["width"], settings["learning_rate"], settings["steps"])
    assert settings["textures"] == "dtd"  # no folder of this machine
    training = model.card.training
    assert training is not None
    assert len(training.held_out) == 2 == len(model.card.normal_scores) == model.threshold.n_normals
    assert [one.step for one in training.log.judgements] == [0, 3, 6]
    # Two were judged; light and focus are known of all twelve.
    (normals,) = model.card.normals.values()
    assert (normals.images, normals.pictures) == (2, 12)
    assert sum(one.chosen for one in training.log.judgements) == 1
    assert create_detector("sgsf", settings).settings.model_dump() == settings


def test_probes_go_onto_the_images_that_were_held_out(parts: Path, tmp_path: Path) -> None:
    model = tiny("sgsf", parts)
    model.save(tmp_path / "m")
    category = open_category(parts, train_only=True)
    found = find_normals(category, read_training_record(tmp_path / "m"))
    assert model.card.training is not None
    assert found.source == HELD_OUT
    assert found.samples == tuple(category.train[index] for index in model.card.training.held_out)
    assert found.scores == tuple(model.card.normal_scores)


@pytest.mark.parametrize("name", LEARNED)
def test_images_need_not_be_square(name: str) -> None:
    detector = create_detector(name, TINY.get(name))
    spec = detector.backbone(BackboneSpec("efficientnet_lite0", "random"))
    network = detector.network(spec, (64, 96)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        for stage in detector.stages(network, pixels, 0):
            batch = {key: torch.from_numpy(values) for key, values in stage.batch(np.random.default_rng(0)).items()}
            assert all(torch.isfinite(loss) for loss in stage.losses(batch).values())
        score, grid = LearnedModule(network, (64, 96))(torch.from_numpy(pixels))
    assert score.shape == (4,)
    assert grid.shape[2] * 64 == grid.shape[1] * 96


def test_a_fifth_is_held_out_and_two_at_least() -> None:
    for count, held in ((4, 2), (10, 2), (40, 8), (101, 20)):
        kept, out = hold_out(count, 3)
        assert len(out) == held
        assert sorted([*kept, *out]) == list(range(count))
    assert hold_out(40, 0)[1].tolist() != hold_out(40, 1)[1].tolist()
    with pytest.raises(DataError, match="at least 4 good images"):
        hold_out(3, 0)


def test_the_judge_rewards_who_sees_the_probes(made_images: Path) -> None:
    from edgead.data import load_images

    samples = open_category(made_images / "plate", train_only=True).train[:3]
    images = np.stack(list(load_images(samples, 64, 64)))
    judge = ProbeJudge(images, seed=0)

    class Cheat(torch.nn.Module):
        """Knows the good images by heart."""

        def __init__(self, sign: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(sign))
            self.known = torch.from_numpy(images).float().permute(0, 3, 1, 2)

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            away = (pixels[:, None] - self.known[None]).abs().amax(2)
            nearest = away[torch.arange(len(pixels)), away.mean((2, 3)).argmin(1)]
            return self.weight * nearest.mean((1, 2)), self.weight * nearest

    with torch.inference_mode():
        assert judge(Cheat(1.0)) == pytest.approx(1.0, abs=1e-3)
        assert judge(Cheat(-1.0)) == pytest.approx(0.0, abs=1e-3)
        assert judge(Cheat(0.0)) == pytest.approx(0.5)


# What they refuse


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_for_closed_forms_is_refused(name: str, parts: Path) -> None:
    with pytest.raises(ConfigError, match=f"a budget chooses between closed-form fits; set the profile of '{name}'"):
        fit([parts], detector=name, budget_mb=5.0)
    with pytest.raises(ConfigError, match=f"closed-form detector, and '{name}' trains a network"):
        create_detector("dfc", {"head": name})
    with pytest.raises(ConfigError, match="setting 'profile'"):
        create_detector(name, {"profile": "large"})
    with pytest.raises(ConfigError, match=f"'{name}' takes taps of its own choice; omit --taps 8,16,32"):
        fit([parts], detector=name, taps=(8, 16, 32))
    assert default_size(name) == (128, 128)
    assert default_size(name, {"profile": "medium"}) == (256, 256)
    side = {"isstad": 224}.get(name, 256)
    assert default_size(name, {"profile": "full"}) == (side, side)


def test_the_full_profile_of_slsg_is_refused_without_its_backbone_before_any_training(edgead: Any, parts: Path) -> None:
    outcome = edgead("fit", parts, "--detector", "slsg", "--set", "profile=full", "-o", parts.parent / "m")
    assert outcome.code == 2
    assert "add --backbone resnet18@FILE" in outcome.error


# Killed


# One process, for its imports take seconds: a child is killed, then the same command is given again, then another name.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
import edgead.detectors.slsg, edgead.fitting
from edgead.cli import run

torch.set_num_threads(1)  # a fork has none of its parent's threads
folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
checkpoint = folder / ".killed.training"
child = os.fork()
if child == 0:
    # With the first file that is touched once the checkpoint is there.
    sys.addaudithook(lambda event, _: event == "open" and checkpoint.exists() and os.kill(os.getpid(), signal.SIGKILL))
    run([*arguments, "-o", str(folder / "killed")])
    os._exit(0)
assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert not (folder / "killed").exists()
for name in ("killed", "whole"):
    assert run([*arguments, "-o", str(folder / name)]) == 0
    if name == "killed":
        assert not checkpoint.exists()
"""


def test_a_fit_that_is_killed_goes_on_where_it_was_and_gives_the_same_model(parts: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as the first stage has left its checkpoint, through the command line."""
    more = {"steps": 8, "pretraining_steps": 2, "batch": 2, "width": 0.1, "evaluations": 1}
    pairs = [item for name, value in more.items() for item in ("--set", f"{name}={value}")]
    arguments = json.dumps(["fit", str(parts), "--detector", "slsg", *pairs, "--size", "64"])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
