"""Good test images in another light or focus than the good images that the model knows are said, and only those."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgead.evaluation.shift import find_shifts
from edgead.fitting import fit
from edgead.runtime.decision.baseline import SIGNALS, Normals


@pytest.fixture(scope="module")
def model(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("shift") / "plate.model"
    fit([made_images / "plate"], detector="padim", settings={"dimensions": 20}, size=64).save(path)
    return path


def changed(plate: Path, place: Path, change: Any) -> Path:
    """A copy of the test images in which the good ones are changed."""
    shutil.copytree(plate, place)
    for path in (place / "test" / "good").iterdir():
        with Image.open(path) as image:
            other = change(image.convert("RGB"))
        other.save(path)
    return place


@pytest.mark.parametrize(
    ("change", "signal", "side"),
    [
        (lambda image: image.point(lambda value: value * 0.75), "brightness", "darker"),
        (lambda image: image.point(lambda value: min(255, value * 1.3)), "brightness", "brighter"),
        (lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 64)), "focus", "less sharp"),
    ],
)
def test_another_light_or_focus_is_said_with_numbers(
    edgead: Any, model: Path, made_images: Path, tmp_path: Path, change: Any, signal: str, side: str
) -> None:
    outcome = edgead("eval", model, changed(made_images / "plate", tmp_path / "plate", change), "--json")
    assert outcome.code == 0, outcome.err
    # Light changes contrast, too: one line, of what changed.
    (found,) = outcome.json["categories"]["plate"]["unlike_normals"]
    assert found["signal"] == signal
    assert found["text"].startswith(f"the good test images are {side} than the good images that the model knows")
    assert not found["low"] <= found["median"] <= found["high"]
    assert f"Warning: plate: {found['text']}" in outcome.err.replace("\n", " ")


def test_pages_and_comparisons_say_it_too(edgead: Any, model: Path, made_images: Path, tmp_path: Path) -> None:
    dark = changed(made_images / "plate", tmp_path / "plate", lambda image: image.point(lambda value: value * 0.75))
    said = "the good test images are darker than the good images that the model knows"
    assert edgead("report", model, dark, "-o", tmp_path / "report.html").code == 0
    assert said in (tmp_path / "report.html").read_text()
    settings = ["--detectors", "padim,small=padim", "--set", "small:dimensions=8", "--size", "64", "--seeds", "2"]
    compared = edgead("compare", dark, *settings, "--no-latency", "-o", tmp_path / "compared", "--json")
    assert compared.code == 0, compared.err
    assert compared.err.count(said) == 1
    assert all(said in one["unlike_normals"][0] for one in compared.json["summary"])
    assert (tmp_path / "compared" / "compare.html").read_text().count(said) == 1


def test_nothing_is_said_of_images_taken_alike(edgead: Any, model: Path, made_images: Path) -> None:
    outcome = edgead("eval", model, made_images / "plate", "--json")
    assert outcome.json["categories"]["plate"]["unlike_normals"] == []
    assert "than the good images that the model knows" not in outcome.err


def test_few_images_say_nothing_and_each_category_is_compared_with_its_own() -> None:
    values = {name: np.linspace(100, 110, 40) for name in SIGNALS}
    normals: dict[str | None, Normals] = {
        "a": Normals.of(values),
        "b": Normals.of({n: v * 2 for n, v in values.items()}),
    }
    dark = {"brightness": 90.0, "focus": 105.0}
    assert find_shifts(normals, [("a", dark)] * 4) == ()
    (found,) = find_shifts(normals, [("a", dark)] * 5)
    assert (found.signal, found.category, found.images, found.median) == ("brightness", "a", 5, 90.0)
    (found,) = find_shifts(normals, [("b", dark)] * 5)
    assert (found.signal, found.low > 190) == ("brightness", True)
    assert "taken for b are darker" in found.explain()
    (found,) = find_shifts(normals, [("a", {"brightness": 105.0, "focus": 80.0})] * 5)
    assert found.signal == "focus"
    assert find_shifts(normals, [(None, dark)] * 5) == ()
    few = {"a": Normals.of({name: value[:19] for name, value in values.items()})}
    assert find_shifts(few, [("a", dark)] * 5) == ()
    # A trained detector judges a fifth of its images; the light of all of them is known.
    held_out = {name: value[:8] if name in ("score", "level") else value for name, value in values.items()}
    (found,) = find_shifts({"a": Normals.of(held_out)}, [("a", dark)] * 5)
    assert found.signal == "brightness"
