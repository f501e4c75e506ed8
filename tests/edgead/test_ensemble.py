"""Ensembles: the sum of z-scores, member by member; saved, exported, checked and run as one; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgead.detectors import create_detector, learns, members, pools_categories
from edgead.detectors.ensemble import EnsembleModule
from edgead.fitting import fit
from edgead.model.model import TrainedModel, load_model
from edgead.runtime.errors import ConfigError

NAME = "padim+patchcore"
BACKBONE_LAYERS = 33
SETTINGS = {"padim.dimensions": 24, "patchcore.bank_size": 1100}
LEARNED = {"slsg.steps": 6, "slsg.pretraining_steps": 2, "slsg.batch": 2, "slsg.width": 0.1, "slsg.evaluations": 1}


def of_member(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{name}.")}


def held_out(model: TrainedModel) -> dict[int, float]:
    card = model.card
    images = range(len(card.normal_scores)) if card.training is None else card.training.held_out
    return dict(zip(images, card.normal_scores, strict=True))


@pytest.fixture(scope="module")
def plate(made_images: Path) -> Path:
    return made_images / "plate"


@pytest.mark.parametrize(("name", "settings"), [(NAME, SETTINGS), ("patchcore+slsg", {**SETTINGS, **LEARNED})])
def test_scores_and_map_are_the_sum_of_the_members_z_scores(
    name: str, settings: dict[str, Any], plate: Path, tmp_path: Path
) -> None:
    settings = {key: value for key, value in settings.items() if key.partition(".")[0] in name}
    together = fit([plate], detector=name, settings=settings, size=64)
    alone = [fit([plate], detector=one, settings=of_member(one, settings), size=64) for one in members(name)]
    own = [held_out(model) for model in alone]
    common = sorted(set(own[0]) & set(own[1]))
    scores = np.array([[held[index] for index in common] for held in own])
    middle, spread = scores.mean(1, keepdims=True), scores.std(1, keepdims=True)
    np.testing.assert_allclose(together.card.normal_scores, ((scores - middle) / spread).sum(0), rtol=1e-5, atol=1e-5)
    if together.card.training is not None:
        assert list(together.card.training.held_out) == common
        assert together.card.grid == alone[1].card.grid  # the finer one
    image = torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.inference_mode():
        parts = [model.module(image) for model in alone]
        score, grid = together.module(image)
    expected = sum((part[0].double() - m) / s for part, m, s in zip(parts, middle[:, 0], spread[:, 0], strict=True))
    torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=1e-4)
    if name == NAME:
        maps = sum((part[1].double() - m) / s for part, m, s in zip(parts, middle[:, 0], spread[:, 0], strict=True))
        torch.testing.assert_close(grid.double(), maps, rtol=1e-4, atol=1e-4)
    together.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded.module, EnsembleModule)
    assert loaded.card == together.card
    with torch.inference_mode():
        again = loaded.module(image)
    assert torch.equal(again[0], score)
    assert torch.equal(again[1], grid)


def test_an_ensemble_is_exported_checked_and_run_as_one_graph(edgead: Any, plate: Path, tmp_path: Path) -> None:
    model, bundle = tmp_path / "both.model", tmp_path / "both.edgead"
    pairs = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    fitted = edgead("fit", plate, "--detector", NAME, *pairs, "--size", "64", "-o", model, "--json")
    assert fitted.code == 0, fitted.err
    # Wide enough that no layer has to be kept in FP32, which takes a run of the network for each of them.
    exported = edgead("export", model, "-o", bundle, "--int8", "--max-drop", "0.6", "--allow-drift", "--json")
    assert exported.code == 0, exported.err
    # Both members read the features of one backbone, which runs once.
    assert exported.json["precisions"]["int8-cpu"]["int8"]["layers"] == BACKBONE_LAYERS
    for figures in exported.json["parity"]["model.fp32.onnx"].values():
        assert figures["flips"] == 0
    assert edgead("check", bundle).code == 0
    results = tmp_path / "results.jsonl"
    assert edgead("run", bundle, "--source", plate / "test", "--sink", results).code == 0
    decisions = {json.loads(line)["decision"] for line in results.read_text().splitlines()}
    assert decisions == {"OK", "ANOMALY"}
    evaluated = edgead("eval", model, plate, "--json")
    assert evaluated.code == 0, evaluated.err


def test_what_does_not_go_together_is_refused_before_any_work(edgead: Any, plate: Path, tmp_path: Path) -> None:
    assert learns("slsg+patchcore")
    assert not learns(NAME)
    assert not pools_categories(NAME)
    for name, said in (
        ("padim+padim", "has a member twice"),
        ("padim+dfc", "'dfc' fits several categories"),
        ("slsg+sgsf", "trains more than one network"),
        ("padim+patchcor", "unknown detector 'patchcor'"),
    ):
        with pytest.raises(ConfigError, match=said):
            create_detector(name)
    with pytest.raises(ConfigError, match="setting 'dimensions' names no member of 'padim\\+patchcore'; write for"):
        create_detector(NAME, {"dimensions": 8})
    with pytest.raises(ConfigError, match="detector 'padim' has no setting 'dimension'"):
        create_detector(NAME, {"padim.dimension": 8})
    for more, said in ((["--tiles", "2x2"], "judges whole images"), (["--budget-mb", "5"], "give one detector alone")):
        outcome = edgead("fit", plate, "--detector", NAME, *more, "-o", tmp_path / "m")
        assert outcome.code == 2
        assert said in outcome.error
        assert not (tmp_path / "m").exists()
