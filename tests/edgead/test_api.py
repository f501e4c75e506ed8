"""The public door: what a user types works, on real images, and what is wrong is said before work begins."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgead
from edgead import FitConfig, Model
from edgead.runtime import Decision, Inspector
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.imaging.decode import decode_image, read_image


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real solar cells in MVTec layout: 16 normal ones to fit, 4 normal and 4 defective ones to judge."""
    data = Path(pytest.importorskip("elpv_dataset").__file__).parent / "data"
    root = tmp_path_factory.mktemp("home") / "cells"
    with (data / "labels.csv").open() as stream:
        rows = [row for row in csv.reader(stream, delimiter=" ", skipinitialspace=True) if row and row[2] == "mono"]
    normal = [data / row[0] for row in rows if float(row[1]) == 0.0]
    defective = [data / row[0] for row in rows if float(row[1]) == 1.0]
    for folder, files in (("train/good", normal[:16]), ("test/good", normal[16:20]), ("test/crack", defective[:4])):
        (root / folder).mkdir(parents=True)
        for file in files:
            (root / folder / file.name).write_bytes(file.read_bytes())
    return root


@pytest.fixture(scope="module")
def model(cells: Path) -> Model:
    return edgead.fit(str(cells), detector="padim", settings={"dimensions": 20}, size=64)


def test_one_image_gives_one_result_and_a_folder_a_list(model: Model, cells: Path, monkeypatch) -> None:
    file = sorted((cells / "test" / "crack").iterdir())[0]
    by_path, by_name = model.predict(file), model.predict(str(file))
    by_array = model.predict(np.asarray(Image.open(file).convert("RGB")))
    assert by_path.score == by_name.score == by_array.score
    assert by_path.decision is by_array.decision
    folder = model.predict(cells / "test")
    assert len(folder) == 8
    assert folder[0].score == by_path.score
    several = model.predict([file, str(cells / "test" / "good")])
    assert [one.score for one in several] == [folder[0].score, *(one.score for one in folder[4:])]
    monkeypatch.setenv("HOME", str(cells.parent))
    assert model.predict(f"~/cells/test/crack/{file.name}").score == by_path.score
    with pytest.raises(DataError, match="does not exist"):
        model.predict(cells / "nothing")
    with pytest.raises(DataError, match="uint8"):
        model.predict(np.zeros((8, 8, 3), np.float32))


def test_a_result_can_be_seen_and_saved(model: Model, cells: Path, tmp_path: Path) -> None:
    file = sorted((cells / "test" / "crack").iterdir())[0]
    result = model.predict(file)
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert result.heatmap().shape == picture.shape
    assert not np.array_equal(result.heatmap(), picture)
    saved = result.save(tmp_path / "a.png")
    drawn = read_image(saved)
    assert drawn.shape[1] == picture.shape[1]
    assert np.array_equal(decode_image(result._repr_png_(), "shown"), drawn)
    assert result.decision.value in result._repr_html_()
    with pytest.raises(ConfigError, match=r"\.png or \.jpg"):
        result.save(tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_evaluation_and_export_keep_the_decisions(model: Model, cells: Path, tmp_path: Path) -> None:
    report = model.evaluate(str(cells))
    assert (report.n_normal, report.n_anomalous) == (4, 4)
    exported = model.export(str(tmp_path / "cells.edgead"), images=[str(cells / "test")])
    assert exported.passed
    with Inspector.open(tmp_path / "cells.edgead") as inspect:
        assert inspect.name == "cells"
        for one in report.images:
            picture = np.asarray(Image.open(cells / one.path).convert("RGB"))
            assert inspect(picture).decision is one.decision
    with pytest.raises(ConfigError, match="not both"):
        model.export(tmp_path / "b.edgead", fp16=True, precisions=["fp32"])
    with pytest.raises(ConfigError, match=r"ends in \.edgead"):
        model.export(tmp_path / "b.onnx")


def test_saved_models_come_back(model: Model, cells: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "cells.model")
    loaded = edgead.load_model(str(tmp_path / "cells.model"))
    file = sorted((cells / "test" / "good").iterdir())[0]
    assert loaded.predict(file).score == model.predict(file).score
    with pytest.raises(BundleError, match="no"):
        edgead.load_model(str(tmp_path))


def test_wrong_arguments_fail_before_work_begins(cells: Path) -> None:
    def never(*_: object) -> None:
        raise AssertionError("work began")

    config = FitConfig(detector="padim", false_alarm_rate=2.0)
    with pytest.raises(ConfigError, match="false-alarm rate"):
        edgead.fit(cells, config, progress=never)
    with pytest.raises(ConfigError, match="takes one category, got 2"):
        edgead.fit([cells, cells], detector="padim", progress=never)
    with pytest.raises(ConfigError, match="unknown detector"):
        edgead.fit(cells, detector="padin", progress=never)
    with pytest.raises(TypeError, match="detectr"):
        edgead.fit(cells, detectr="padim", progress=never)  # type: ignore[call-arg]
    with pytest.raises(DataError, match="does not exist"):
        edgead.fit("no/such/folder", progress=never)


def test_an_image_that_cannot_be_judged_is_not_inspected(model: Model) -> None:
    with model.inspector() as inspect:
        inspect._unfit = "self-test failed"  # as a device that decides otherwise sets it
        result = inspect(np.zeros((50, 50, 3), np.uint8))
    assert result.decision is Decision.NOT_INSPECTED
    with pytest.raises(DataError, match="self-test failed"):
        result.heatmap()
