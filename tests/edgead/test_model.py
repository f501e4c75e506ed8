"""The model directory: what is saved comes back, and whatever goes wrong is one line and leaves what was there."""

from __future__ import annotations

import json
import resource
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgead.fitting import fit
from edgead.model.model import TrainedModel, load_model
from edgead.model.model_card import FORMAT_VERSION, check_size
from edgead.runtime.errors import BundleError, ConfigError

FILES = ["model.json", "weights.safetensors"]


@pytest.fixture
def saved(tiny_model: TrainedModel, tmp_path: Path) -> Path:
    path = tmp_path / "parts.model"
    tiny_model.save(path)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Everything at and beside a model directory, hidden leftovers included."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def scores(model: TrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(7)
    images = random.integers(0, 256, (3, model.card.height, model.card.width, 3), dtype=np.uint8)
    with torch.inference_mode():
        score, grid = model.module(torch.from_numpy(images))
    return score, grid


@pytest.mark.parametrize(
    ("detector", "settings", "size"),
    [
        ("patchcore", {"bank_size": 64}, (64, 64)),
        ("patchcore", {"bank_size": 64, "reweight": True, "smooth": False}, (64, 96)),
        ("padim", {"dimensions": 16}, (96, 64)),
    ],
)
def test_what_is_saved_comes_back(
    detector: str, settings: dict[str, Any], size: tuple[int, int], parts: Path, tmp_path: Path
) -> None:
    model = fit([parts], detector=detector, settings=settings, size=size, backbone="resnet18@random")
    model.save(tmp_path / "deep" / "parts.model")
    loaded = load_model(tmp_path / "deep" / "parts.model")
    assert loaded.card == model.card
    assert sorted(loaded.references) == sorted(model.references)
    assert sorted(loaded.calibration) == sorted(model.calibration)
    assert loaded.threshold == model.threshold
    for found, expected in zip(scores(loaded), scores(model), strict=True):
        assert torch.equal(found, expected)
    assert not loaded.module.training


def test_the_directory_holds_plain_formats_and_no_path_of_this_machine(saved: Path, tiny_model: TrainedModel) -> None:
    names = sorted(snapshot(saved))
    folders = {"references": tiny_model.references, "calibration": tiny_model.calibration}
    images = [f"{folder}/{name}" for folder, held in folders.items() for name, _ in held]
    assert names == sorted([*FILES, *images])
    assert (saved / "weights.safetensors").read_bytes()[8:9] == b"{"  # safetensors, no pickle
    card = json.loads((saved / "model.json").read_text())
    assert card["format_version"] == FORMAT_VERSION
    assert str(saved.parent) not in (saved / "model.json").read_text()
    assert card["threshold"]["n_normals"] == 12 == len(card["normal_scores"])


def test_saving_over_a_model_replaces_all_of_it(saved: Path, tiny_model: TrainedModel) -> None:
    (saved / "references" / "old.png").write_bytes(b"of another model")
    fewer = replace(tiny_model, references=tiny_model.references[:2])
    fewer.save(saved)
    assert sorted(load_model(saved).references) == sorted(tiny_model.references[:2])
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets two folders change places in one step")
def test_a_model_that_is_replaced_is_there_at_every_instant(saved: Path, tiny_model: TrainedModel) -> None:
    missing, done = 0, threading.Event()

    def look() -> None:
        nonlocal missing
        while not done.is_set():
            missing += not (saved / "model.json").exists()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(20):
            tiny_model.save(saved)
        done.set()
        looking.result()
    assert missing == 0


def test_an_empty_folder_may_be_filled(tiny_model: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    tiny_model.save(tmp_path / "made")
    assert load_model(tmp_path / "made").card == tiny_model.card


@pytest.mark.parametrize("limit", [0, 200, 2_000, 100_000])
@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_leaves_what_was_there(old: bool, limit: int, tiny_model: TrainedModel, tmp_path: Path) -> None:
    # No file may grow beyond the limit: the kernel refuses as it does on a full disk, at each file in turn.
    path = tmp_path / "parts.model"
    if old:
        tiny_model.save(path)
    before = snapshot(tmp_path)
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, previous[1]))
    try:
        with pytest.raises(BundleError, match="nothing was changed") as caught:
            tiny_model.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if old else [])


@pytest.mark.parametrize("obstacle", ["file", "other folder", "parent is a file"])
def test_what_is_no_model_is_not_replaced(obstacle: str, tiny_model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "place"
    if obstacle == "other folder":
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
    else:
        path.write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises((ConfigError, BundleError)) as caught:
        tiny_model.save(path / "parts.model" if obstacle == "parent is a file" else path)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999999])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_one_line(name: str, share: float, saved: Path) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: min(int(len(data) * share), len(data) - 3)])
    refuse(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line(name: str, saved: Path) -> None:
    (saved / name).unlink()
    refuse(saved)


def edit(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda card: card.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(format_version=FORMAT_VERSION + 1), "a newer edgead"),
        (edit(format_version=0), "another edgead"),
        (edit(format_version="one"), "another edgead"),
        (lambda card: card.pop("format_version"), "damaged"),
        (lambda card: card.pop("detector"), "'detector'"),
        (edit(surprise=1), "'surprise' is unknown to this edgead"),
        (edit(surprise=1), "a newer one made it; upgrade edgead, or fit again"),
        (edit(height="high"), "'height'"),
        (edit(normal_scores=[1.0, None]), "normal_scores"),
        (edit(resize="nearest/1"), "resize rule 'nearest/1'"),
        (edit(detector="crystalball"), "fit again"),
        (edit(settings={"bank_size": -1}), "fit again"),
        (edit(settings={"bank_sise": 64}), "fit again"),
        (edit(backbone={}), "fit again"),
        (edit(backbone={"name": "resnet18", "weights": "package", "strides": [8, 16]}), "fit again"),
        (edit(backbone={"name": "no such net", "weights": "package", "strides": [8, 16]}), "fit again"),
        (edit(threshold={}), "'threshold."),
        (edit(threshold={"value": 1.0}), "'threshold."),
    ],
)
def test_a_card_that_does_not_fit_is_one_line(change: Callable[[Any], object], message: str, saved: Path) -> None:
    card = json.loads((saved / "model.json").read_text())
    change(card)
    (saved / "model.json").write_text(json.dumps(card))
    assert message in refuse(saved)


@pytest.mark.parametrize("content", ["[]", '"model"', "null", "{", "\x00"])
def test_a_card_that_is_no_card_is_one_line(content: str, saved: Path) -> None:
    (saved / "model.json").write_text(content)
    refuse(saved)


@pytest.mark.parametrize("damage", ["missing", "surplus", "another shape", "another type"])
def test_weights_that_do_not_fit_are_one_line(damage: str, saved: Path) -> None:
    tensors = load_file(saved / "weights.safetensors")
    name = next(key for key in tensors if key.endswith("conv_stem.1.weight") or "conv" in key)
    if damage == "missing":
        del tensors[name]
    elif damage == "surplus":
        tensors["head.surplus"] = torch.zeros(3)
    elif damage == "another shape":
        tensors[name] = tensors[name][:-1].clone()
    else:
        tensors["head.bank"] = tensors["head.bank"].to(torch.int64)
    save_file(tensors, saved / "weights.safetensors")
    refuse(saved)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "file", "folder of images"])
def test_what_is_no_model_directory_is_named_as_such(what: str, parts: Path, tmp_path: Path) -> None:
    path = tmp_path / "place"
    if what == "empty folder":
        path.mkdir()
    elif what == "file":
        path.write_text("hello")
    elif what == "folder of images":
        path = parts
    with pytest.raises(BundleError, match="no model directory"):
        load_model(path)


@pytest.mark.parametrize("size", [(0, 64), (100, 64), (64, 100), (32, 64), (64, 4096), (-64, 64)])
def test_a_size_that_cannot_be_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiple of 32"):
        check_size(*size)


def refuse(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert str(path) in message
    return message
