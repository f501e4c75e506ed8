"""``edgead fit --each``: one model a category, what is there is kept, and what fails fails alone."""

from __future__ import annotations

import json
import shutil

import pytest

from edgead.comparing import running
from edgead.comparing.measure import Options
from edgead.comparing.plan import make_jobs, open_subjects, parse_variants
from edgead.comparing.running import Listener, run_jobs
from edgead.dispatch.workers import Answer
from edgead.fitting import FitConfig
from edgead.fitting.each import EachListener, fit_each, plan_each
from edgead.model.model import load_model

QUICK = ("--detector", "padim", "--set", "dimensions=20", "--size", "64")


@pytest.fixture(scope="module")
def fitted(plate, parts, tmp_path_factory):
    """Models of two categories, and of one that holds nothing; do not change them, copy them."""
    from edgead.cli import run

    folder = tmp_path_factory.mktemp("each")
    (folder / "empty").mkdir()
    code = run(["fit", "--each", str(plate), str(folder / "empty"), str(parts), *QUICK, "-o", str(folder / "models")])
    return folder / "models", code


@pytest.fixture
def models(fitted, tmp_path):
    return shutil.copytree(fitted[0], tmp_path / "models", copy_function=shutil.copy2)


def ages(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*.model/model.json")}


def test_each_category_gets_a_model_and_the_empty_one_says_so(fitted):
    folder, code = fitted
    assert code == 3
    assert load_model(folder / "plate.model").card.categories == {"plate": 16}
    assert load_model(folder / "parts.model").card.categories == {"parts": 12}
    payload = json.loads((folder / "fits.json").read_text())
    assert payload["schema"] == "edgead.fit-each/1"
    assert [row["category"] for row in payload["rows"]] == ["plate", "parts", "empty"]
    (failed,) = payload["failed"]
    assert failed["category"] == "empty"
    assert "holds no images" in failed["error"]
    row = json.loads((folder / "rows" / "plate.json").read_text())
    assert row["fit"]["settings"]["dimensions"] == 20
    assert any("cannot support a false-alarm rate" in text for text in row["warnings"])


def test_a_model_is_the_one_that_fit_alone_makes(fitted, plate_model):
    # `plate_model` is fitted by plain `edgead fit` with the same settings.
    made = fitted[0] / "plate.model"
    for name in ("weights.safetensors", "model.json"):
        assert (made / name).read_bytes() == (plate_model / name).read_bytes()


def test_what_is_there_is_kept(edgead, models, plate, parts):
    before = ages(models)
    done = edgead("fit", "--each", plate, parts, *QUICK, "-o", models)
    assert done.code == 0, done.err
    assert "2 of 2 models are there already" in done.err
    assert ages(models) == before


def test_another_setting_or_image_is_fitted_again(edgead, models, plate, parts, tmp_path):
    before = ages(models)
    changed = shutil.copytree(parts, tmp_path / "parts")
    sorted((changed / "train" / "good").iterdir())[0].unlink()
    assert edgead("fit", "--each", plate, changed, *QUICK, "-o", models).code == 0
    assert ages(models)["plate.model"] == before["plate.model"]
    assert load_model(models / "parts.model").card.categories == {"parts": 11}
    assert edgead("fit", "--each", plate, *QUICK[:2], "--set", "dimensions=10", *QUICK[4:], "-o", models).code == 0
    assert load_model(models / "plate.model").card.settings["dimensions"] == 10


def test_a_damaged_row_or_another_model_in_its_place_is_fitted_again(edgead, models, plate, parts):
    (models / "rows" / "plate.json").write_text("{")
    shutil.rmtree(models / "parts.model")
    shutil.copytree(models / "plate.model", models / "parts.model")
    done = edgead("fit", "--each", plate, parts, *QUICK, "-o", models)
    assert done.code == 0
    assert "plate.json is damaged; it is fitted again" in done.err
    assert "parts.model is another model than parts.json tells of; it is fitted again" in done.err
    assert load_model(models / "parts.model").card.categories == {"parts": 12}


def test_what_is_no_model_is_not_replaced(edgead, plate, parts, tmp_path):
    precious = tmp_path / "out" / "plate.model" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    done = edgead("fit", "--each", plate, parts, *QUICK, "-o", tmp_path / "out")
    assert done.code == 3
    assert "plate: " in done.err
    assert precious.read_text() == "years of work"
    assert (tmp_path / "out" / "parts.model" / "model.json").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--exclude", "000.png"], "of one category"),
        (["--mask", "mask.png"], "of one category"),
        (["--detector", "padin"], "unknown detector"),
        (["--size", "63"], "multiple"),
        (["--budget-ms", "5", "--ray", "local"], "--budget-ms measures this machine"),
    ],
)
def test_what_no_category_can_be_fitted_with_ends_it_at_once(edgead, plate, tmp_path, more, message):
    done = edgead("fit", "--each", plate, *more, "-o", tmp_path / "out")
    assert done.code == 2
    assert message in done.error
    assert not list(tmp_path.glob("out/*"))


def test_two_categories_of_one_name_are_refused(edgead, plate, tmp_path):
    twin = shutil.copytree(plate, tmp_path / "other" / "plate")
    done = edgead("fit", "--each", plate, twin, *QUICK, "-o", tmp_path / "out")
    assert done.code == 2
    assert "two categories are called 'plate'" in done.error


def test_a_model_is_no_folder_of_models(edgead, plate, plate_model):
    done = edgead("fit", "--each", plate, *QUICK, "-o", plate_model)
    assert done.code == 2
    assert "is a model; with --each give -o a folder that holds the models" in done.error


def test_ray_alone_is_refused(edgead, plate, tmp_path):
    done = edgead("fit", plate, "--ray", "local", "-o", tmp_path / "m")
    assert done.code == 2
    assert "add --each" in done.error


# Answers that come in another order, or not at all.


def listener(said):
    return said.append, said.append, lambda *_: None


def test_models_that_nobody_could_fit_are_failed_rows(plate, parts, tmp_path):
    jobs, failed = plan_each([plate, parts], FitConfig("padim", {"dimensions": 20}, size=64), tmp_path)
    assert not failed
    said = []
    rows = fit_each(
        tmp_path,
        jobs,
        EachListener(*listener(said)),
        lambda asked: iter([Answer(len(list(asked)) - 1, None, "the worker was lost, 3 times"), Answer(0, None, "x")]),
    )
    assert [(row.category, row.error) for row in rows] == [("plate", "x"), ("parts", "the worker was lost, 3 times")]
    assert "parts failed: the worker was lost, 3 times" in said
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["parts.json", "plate.json"]


def test_rows_of_a_comparison_keep_their_order_whoever_is_first(plate, parts, make_row, tmp_path):
    variants = parse_variants("padim,patchcore")
    jobs = make_jobs(open_subjects([plate, parts]), variants, [0], size=(64, 64), backbone="efficientnet_lite0")

    def backwards(asked):
        listed = list(asked)
        for index in reversed(range(len(listed))):
            job = listed[index]
            row = make_row(job.variant.label, 0, job.subjects[0].name).model_copy(update={"key": job.keys[0]})
            yield Answer(index, None, "the worker was lost, 3 times") if index == 1 else Answer(index, [row])

    said = []
    rows = run_jobs(tmp_path, jobs, Options(0, 10), Listener(*listener(said)), backwards)
    assert [(row.category, row.label) for row in rows] == [(job.subjects[0].name, job.variant.label) for job in jobs]
    assert rows[1].error == "the worker was lost, 3 times"
    assert "plate patchcore seed 0 failed: the worker was lost, 3 times" in said
    # The lost one is tried again, the others are not.
    asked = []
    running.run_jobs(
        tmp_path,
        jobs,
        Options(0, 10),
        Listener(*listener(said)),
        lambda some: (asked.extend(some), iter([Answer(0, None, "again")]))[1],
    )
    assert asked == [jobs[1]]
