"""Taught at the line: what labels teach, what the gate refuses, and that the new model is a fit on all images.

The line's cells are monocrystalline; then polycrystalline ones come, which are good too, and all rejected.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edgead
from edgead.data import open_category
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row
from edgead.runtime.journal.writer import Journal
from edgead.teaching import TeachConfig, teach
from edgead.teaching.gate import draw
from edgead.teaching.growing import grow
from edgead.teaching.lessons import read_lessons
from tests.images import solar_cells

POISON = 2  # defects that somebody calls good


def picture(path: Path) -> np.ndarray:
    """A cell as the line's camera gives it."""
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L").resize((150, 150), Image.Resampling.BOX))


@pytest.fixture(scope="module")
def line(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its bundle, and a record of 34 parts that nobody has labelled."""
    from edgead.cli import run

    root = tmp_path_factory.mktemp("line")
    shutil.copytree(made_images / "broken" / "train", root / "cell" / "train")
    model = edgead.fit(root / "cell", size=96, settings={"bank_size": 1024})
    model.save(root / "cell.model")
    model.export(root / "cell.edgead")
    parts = root / "parts"
    parts.mkdir()
    shown = sorted((made_images / "broken" / "test" / "good").iterdir())[:10]
    for number, path in enumerate(shown):
        shutil.copy(path, parts / f"mono{number:02d}.png")
    for number, path in enumerate(solar_cells("poly", 0.0)[:12]):
        Image.fromarray(picture(path)).save(parts / f"poly{number:02d}.png")
    for number, path in enumerate(sorted((made_images / "broken" / "test" / "defect").iterdir())[:12]):
        shutil.copy(path, parts / f"worn{number:02d}.png")
    code = run(["run", str(root / "cell.edgead"), "--source", str(parts), "--record", str(root / "record")])
    assert code == 0
    return root


def label(record: Path, what: Callable[[str], str | None], who: str = "Ann") -> None:
    """Say of each recorded part what ``what`` makes of its file name; None: nothing."""
    with JournalReader(record) as reader:
        rows = list(reader.parts())
    with Journal(record) as journal:
        for row in rows:
            word = what(Path(str(row.body["name"])).stem)
            if word is not None:
                journal.label(row.seq, word, who, defect="crack" if word == "defect" else None)


class Everything:
    """Any model's parts."""

    def judged(self, row: Row) -> bool:
        return row.kind == "part"


def truth(name: str) -> str:
    return "defect" if name.startswith("worn") else "good"


@pytest.fixture
def record(line: Path, tmp_path: Path) -> Path:
    """A copy of the record, to be labelled."""
    return Path(shutil.copytree(line / "record", tmp_path / "record"))


def tensors(path: Path) -> Mapping[str, torch.Tensor]:
    return dict(load_model(path).module.state_dict())


def test_right_labels_teach_and_nothing_right_becomes_wrong(edgead, line: Path, record: Path, tmp_path: Path) -> None:
    label(record, truth)
    out, page = tmp_path / "next.edgead", tmp_path / "lesson.html"
    done = edgead("teach", line / "cell.model", line / "cell", "--record", record, "-o", out, "--page", page, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert (found["good"], found["defects"], found["disputed"]) == (22, 12, [])
    alarms, escapes = found["gate"]["false_alarms"], found["gate"]["escapes"]
    assert alarms["old"] >= 12  # every polycrystalline cell
    assert alarms["new"] == 0
    assert escapes["new"] <= escapes["old"] < 12
    assert not any(one["problem"] for one in found["gate"]["labelled"])
    assert "may take over" in page.read_text()
    assert check_bundle(out).passed
    with Bundle.open(out) as bundle, Bundle.open(line / "cell.edgead") as old:
        taught = bundle.manifest.provenance["teaching"]
        assert taught["old_bundle"] == old.sha256
        assert (taught["good"], taught["defects"], taught["labelled_by"], taught["waived"]) == (22, 12, ["Ann"], [])
        with JournalReader(record) as reader:
            assert taught["record"] == dict(zip(("rows", "hash"), reader.head(), strict=True))
    # The next lesson starts from what this one wrote, and the same record teaches nothing new.
    again = teach(tmp_path / "next.model", tmp_path / "next.images" / "cell", record, tmp_path / "third.edgead",
                  TeachConfig(bundle=out))  # fmt: skip
    assert again.gate.passed
    assert again.after.value == load_model(tmp_path / "next.model").threshold.value
    left, right = tensors(tmp_path / "next.model"), tensors(tmp_path / "third.model")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_new_model_is_that_of_a_fit_on_all_images_to_the_bit(line: Path, record: Path, tmp_path: Path) -> None:
    label(record, lambda name: "good" if name.startswith("poly") else None)
    report = teach(line / "cell.model", line / "cell", record, tmp_path / "next.edgead")
    assert report.gate.passed
    assert (report.scored, len(report.lessons.good)) == (12, 12)
    whole = tmp_path / "all" / "cell"
    shutil.copytree(tmp_path / "next.images" / "cell", whole)
    card = load_model(line / "cell.model").card
    fresh = fit(whole, settings=card.settings, size=96, keep_stray=True)
    found = load_model(tmp_path / "next.model")
    assert fresh.card.threshold == found.card.threshold
    assert fresh.card.normal_scores == found.card.normal_scores
    ours, theirs = found.module.state_dict(), fresh.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_with_a_trust_file_only_a_signed_bundle_is_taught_and_the_lesson_is_signed_by_a_person(
    edgead, line: Path, record: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    label(record, truth)
    key, trust, old, out = (tmp_path / name for name in ("r.key", "trust.json", "cell.edgead", "next.edgead"))
    shutil.copy(line / "cell.edgead", old)
    assert edgead("keygen", key, "--add-to", trust).code == 0
    arguments = ["teach", line / "cell.model", line / "cell", "--record", record, "-o", out, "--trust", trust]
    for more in ([], ["--bundle", old]):
        done = edgead(*arguments, *more)
        assert (done.code, "is not signed" in done.err) == (2, True), done.err
    assert edgead("sign", old, "--key", key).code == 0
    done = edgead(*arguments, "--bundle", old)
    assert done.code == 0, done.err
    assert "is not signed" in edgead("check", out, "--trust", trust).err
    assert edgead("sign", out, "--key", key).code == 0
    assert edgead("check", out, "--trust", trust).code == 0


@pytest.mark.parametrize(("detector", "settings"), [("padim", {"dimensions": 20}), ("fre", {})])
def test_moments_are_those_of_all_images_in_any_order(
    detector: str, settings: dict[str, int], line: Path, record: Path, tmp_path: Path
) -> None:
    """The images of the first fit and the taught ones in another order: equal but for the order of sums."""
    label(record, lambda name: "good" if name.startswith("poly") else None)
    first = fit(line / "cell", detector=detector, settings=settings, size=64)
    first.save(tmp_path / "cell.model")
    edgead.load_model(tmp_path / "cell.model").export(tmp_path / "cell.edgead")
    config = TeachConfig(bundle=tmp_path / "cell.edgead", sample=0)
    assert teach(tmp_path / "cell.model", line / "cell", record, tmp_path / "next.edgead", config).gate.passed
    whole = tmp_path / "all" / "cell" / "train" / "good"
    whole.mkdir(parents=True)
    for path in (tmp_path / "next.images" / "cell" / "train" / "good").iterdir():
        shutil.copy(path, whole / (f"a{path.name}" if path.name.startswith("taught") else f"z{path.name}"))
    fresh = fit(whole.parent.parent, detector=detector, settings=first.card.settings, size=64, keep_stray=True)
    found = load_model(tmp_path / "next.model")
    if detector == "padim":  # FRE's is of folds, which follow the order
        assert fresh.threshold.value == pytest.approx(found.threshold.value, rel=1e-5)
    images = [picture(path) for path in solar_cells("mono", 1.0)[:4]]
    with found.inspector() as one, fresh.inspector() as other:
        assert [one(image).score for image in images] == pytest.approx([other(x).score for x in images], rel=1e-5)


def test_a_poisoned_label_set_is_refused_and_nothing_is_written(
    edgead, line: Path, record: Path, tmp_path: Path
) -> None:
    with JournalReader(record) as reader:
        caught = [row for row in reader.parts() if row.decision == "ANOMALY" and "worn" in str(row.body["name"])]
    poisoned = {Path(str(row.body["name"])).stem for row in caught[:POISON]}
    label(record, lambda name: "good" if name in poisoned else truth(name))
    out, page = tmp_path / "next.edgead", tmp_path / "lesson.html"
    arguments = ["teach", line / "cell.model", line / "cell", "--record", record, "-o", out]
    done = edgead(*arguments, "--page", page, "--json")
    assert done.code == 3, done.out
    assert "refused, nothing was written" in done.err
    assert "a defect that was caught now passes" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lesson.html", "record"]
    assert "data:image/jpeg" in page.read_text()
    refused = json.loads(done.out)
    problems = [one for one in refused["gate"]["labelled"] if one["problem"]]
    assert refused["written"] is None
    assert all((one["label"], one["old"], one["new"]) == ("defect", "ANOMALY", "OK") for one in problems)
    # Each of them waived by name: it is written, and says who let it pass.
    waivers = [text for one in problems for text in ("--waive", f"row:{one['row']}=scrap, not a defect")]
    assert edgead(*arguments, *waivers).code == 2  # by nobody
    done = edgead(*arguments, *waivers, "--by", "Ann", "--json")
    assert done.code == 0, done.err
    with Bundle.open(out) as bundle:
        waived = bundle.manifest.provenance["teaching"]["waived"]
    assert [(one["part"], one["by"], one["why"]) for one in waived] == [
        (one["part"], "Ann", "scrap, not a defect") for one in problems
    ]


# What labels teach


def test_the_last_word_of_each_person_counts_and_where_people_differ_nothing_is_taught(record: Path) -> None:
    label(record, lambda name: {"mono00": "good", "mono01": "good", "mono02": "unsure", "worn00": "good"}.get(name))
    label(record, lambda name: {"worn00": "defect"}.get(name))
    label(record, lambda name: {"mono00": "good", "mono01": "defect"}.get(name), "Ben")
    with JournalReader(record) as reader:
        found = read_lessons(reader, Everything())
        names = {row.seq: Path(str(row.body["name"])).stem for row in reader.parts()}
    assert [names[one.row.seq] for one in found.good] == ["mono00"]
    assert found.good[0].people == ("Ann", "Ben")
    assert [(names[one.row.seq], one.kind) for one in found.defective] == [("worn00", "crack")]
    assert len(found.disputed) == 2
    assert len(found.unlabelled) == 30


def test_a_part_is_one_file_and_the_images_of_the_fit_are_never_written(
    line: Path, record: Path, tmp_path: Path
) -> None:
    label(record, lambda name: {"poly00": "good", "worn00": "defect"}.get(name))
    category = open_category(line / "cell", train_only=True)
    before = {path: path.read_bytes() for path in (line / "cell").rglob("*.png")}
    with JournalReader(record) as reader:
        found = read_lessons(reader, Everything())
        first = grow(category, reader, found, tmp_path / "one" / "cell")
    label(record, lambda name: {"poly00": "defect", "worn00": "good"}.get(name))
    with JournalReader(record) as reader:
        found = read_lessons(reader, Everything())
        second = grow(open_category(first, train_only=True), reader, found, tmp_path / "two" / "cell")
        pixels = [reader.frame(one.row).image for one in found.good]
    taught = {
        folder: sorted(p.name for p in (second / "train" / folder).glob("taught-*")) for folder in ("good", "crack")
    }
    assert {folder: len(names) for folder, names in taught.items()} == {"good": 1, "crack": 1}
    assert taught["good"] == sorted(p.name for p in (first / "train" / "crack").iterdir())
    with Image.open(second / "train" / "good" / taught["good"][0]) as stored:
        assert np.array_equal(np.asarray(stored), pixels[0])
    assert len(list((second / "train" / "good").iterdir())) == 41
    assert {path: path.read_bytes() for path in before} == before


def test_the_sample_is_drawn_by_the_seed() -> None:
    rows: list = list(range(50))
    assert draw(rows, 60, 0) == rows
    assert len(draw(rows, 20, 0)) == 20
    assert draw(rows, 20, 0) == draw(rows, 20, 0) == sorted(draw(rows, 20, 0))
    assert draw(rows, 20, 0) != draw(rows, 20, 1)


# What is refused before any work


def test_what_cannot_be_taught_is_one_line(edgead, line: Path, record: Path, made_images: Path, tmp_path: Path) -> None:
    model, images, out = line / "cell.model", line / "cell", tmp_path / "next.edgead"
    with pytest.raises(DataError, match="no labelled part of this model with its image"):
        teach(model, images, record, out)
    label(record, lambda name: "good" if name == "poly00" else None)
    with pytest.raises(DataError, match="was fitted on other images"):
        teach(model, made_images / "plate", record, out)
    with pytest.raises(ConfigError, match="--waive 4711: no labelled part"):
        teach(model, images, record, out, TeachConfig(waivers={"4711": "why"}, teacher="Ann"))
    with pytest.raises(ConfigError, match="needs its reason"):
        TeachConfig(waivers={"4711": " "}, teacher="Ann")
    with pytest.raises(ConfigError, match="give --by NAME"):
        TeachConfig(waivers={"4711": "why"})
    fit(line / "cell", detector="padim", settings={"dimensions": 20}, size=64).save(tmp_path / "other.model")
    with pytest.raises(ConfigError, match="no bundle of the record"):
        teach(tmp_path / "other.model", images, record, out)
    with pytest.raises(ConfigError, match="was not exported from"):
        teach(tmp_path / "other.model", images, record, out, TeachConfig(bundle=line / "cell.edgead"))
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists; choose another -o"):
        teach(model, images, record, out)
    assert out.read_bytes() == b"mine"
    refused = edgead("teach", model, images, "--record", record, "-o", tmp_path / "x.edgead", "--waive", "nonsense")
    assert refused.code == 2
    assert "--waive takes row:N=REASON" in refused.error
    refused = edgead("teach", model, images, "--record", tmp_path / "nowhere", "-o", tmp_path / "x.edgead")
    assert refused.code == 2
    assert "\n" not in refused.error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["next.edgead", "other.model", "record"]


def test_a_stored_image_that_was_altered_ends_the_lesson(line: Path, record: Path, tmp_path: Path) -> None:
    label(record, lambda name: "good" if name == "poly00" else None)
    with JournalReader(record) as reader:
        (lesson,) = read_lessons(reader, Everything()).good
    (stored,) = [p for p in (record / "images").rglob("*.png") if int(p.stem) == lesson.row.seq]
    Image.fromarray(np.zeros((150, 150), np.uint8)).save(stored)
    with pytest.raises(DataError, match="holds other pixels than"):
        teach(line / "cell.model", line / "cell", record, tmp_path / "next.edgead")
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


# What a review found


def test_names_that_collide_cost_no_image_and_originals_stay_as_they_are(record: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    places = ("good/000", "good/001", "ok/000", "ok/001", "scratch 1/0", "scratch_1/0")
    for place in places:
        path = tmp_path / "part" / "train" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)).save(path)
    before = {path: path.read_bytes() for path in (tmp_path / "part").rglob("*.png")}
    category = open_category(tmp_path / "part", train_only=True)
    with JournalReader(record) as reader:
        grown = open_category(
            grow(category, reader, read_lessons(reader, Everything()), tmp_path / "new" / "part"), train_only=True
        )
    assert (len(grown.train), len(grown.defects)) == (len(category.train), len(category.defects)) == (4, 2)
    assert {path.read_bytes() for one in (grown.train, grown.defects) for path in (s.path for s in one)} == set(
        before.values()
    )
    assert {path: path.read_bytes() for path in before} == before


def test_a_label_that_was_taken_back_is_no_longer_taught(line: Path, record: Path, tmp_path: Path) -> None:
    category = open_category(line / "cell", train_only=True)
    label(record, lambda name: "good" if name in ("poly00", "poly01") else None)
    with JournalReader(record) as reader:
        first = grow(category, reader, read_lessons(reader, Everything()), tmp_path / "one" / "cell")
    label(record, lambda name: "unsure" if name == "poly00" else None)
    with JournalReader(record) as reader:
        second = grow(
            open_category(first, train_only=True), reader, read_lessons(reader, Everything()), tmp_path / "two" / "cell"
        )
    assert len(list((first / "train" / "good").glob("taught-*"))) == 2
    assert len(list((second / "train" / "good").glob("taught-*"))) == 1


def test_parts_of_another_product_teach_nothing(line: Path, record: Path, made_images: Path, tmp_path: Path) -> None:
    """One record, two models: what the plate's model judged is no lesson for the cell's."""
    from edgead.cli import run

    plate = edgead.fit(made_images / "plate", detector="padim", settings={"dimensions": 20}, size=64)
    plate.export(tmp_path / "plate.edgead")
    good = made_images / "plate" / "test" / "good"
    assert run(["run", str(tmp_path / "plate.edgead"), "--source", str(good), "--record", str(record)]) == 0
    label(record, lambda name: "good" if not name.startswith(("mono", "worn")) else None)
    model = load_model(line / "cell.model")
    from edgead.teaching.lineage import Lineage

    with JournalReader(record) as reader:
        lessons = read_lessons(reader, Lineage(reader, model.card, line / "cell.model"))
    assert len(lessons.good) == 12
    assert len(lessons.foreign) == len(list(good.iterdir()))


def test_what_the_line_caught_counts_and_waivers_name_one_part(record: Path) -> None:
    from edgead.teaching.gate import Judged, _problem, resolve_waivers

    one = Judged("part 1", 7, "defect", None, Decision.OK, Decision.OK, (0.9, 0.8), recorded="ANOMALY")
    assert _problem(one) == "a defect that was caught now passes"  # by a threshold that was set on the page
    unseen = Judged("part 1", 7, "defect", None, Decision.NOT_INSPECTED, Decision.OK, (0.9, 0.8))
    assert _problem(unseen) == "a defect that was caught now passes"
    disputed = Judged("part 1", 7, "disputed", None, Decision.ANOMALY, Decision.OK, (1.1, 0.8))
    assert _problem(disputed) == "what somebody calls a defect was caught now passes"
    assert _problem(Judged("p", 7, "defect", None, Decision.OK, Decision.OK, (0.9, 0.8), recorded="OK")) is None
    label(record, truth)
    with JournalReader(record) as reader:
        lessons = read_lessons(reader, Everything())
    rows = [one.row for one in lessons.good]
    twice = [replace(rows[0], part="5", seq=3), replace(rows[1], part="7", seq=5)]
    named = replace(lessons, good=tuple(replace(one, row=row) for one, row in zip(lessons.good, twice, strict=False)))
    with pytest.raises(ConfigError, match=r"--waive 5 fits 2 labelled parts, rows 3, 5"):
        resolve_waivers({"5": "why"}, named)
    assert resolve_waivers({"row:5": "a", "part:5": "b"}, named) == {5: "a", 3: "b"}


def test_a_model_that_had_defects_keeps_them_or_is_not_taught(line: Path, record: Path, tmp_path: Path) -> None:
    label(record, lambda name: "good" if name == "poly00" else None)
    worn = tmp_path / "defects" / "worn"
    worn.mkdir(parents=True)
    for number, path in enumerate(sorted((line / "parts").glob("worn*.png"))[:3]):
        shutil.copy(path, worn / f"{number}.png")
    model = fit(line / "cell", size=96, settings={"bank_size": 1024}, defects=tmp_path / "defects")
    model.save(tmp_path / "cell.model")
    bundle = TeachConfig(bundle=line / "cell.edgead")
    with pytest.raises(ConfigError, match=r"was fitted with 3 defects at hand, and .* has 0; give the others"):
        teach(tmp_path / "cell.model", line / "cell", record, tmp_path / "next.edgead", bundle)
    found = teach(
        tmp_path / "cell.model", line / "cell", record, tmp_path / "next.edgead",
        replace(bundle, defects=tmp_path / "defects"),
    )  # fmt: skip
    images = [one for one in found.gate.labelled if one.name.startswith("image ")]
    assert [one.label for one in images] == ["defect"] * 3  # which the gate judges, too
    if found.gate.passed:
        card = load_model(tmp_path / "next.model").card.defects
        assert card is not None
        assert card.images == 3


def test_the_second_of_two_lessons_to_one_place_takes_nothing_away(
    line: Path, record: Path, tmp_path: Path, monkeypatch
) -> None:
    from edgead.teaching import teaching

    label(record, lambda name: "good" if name == "poly00" else None)
    out, others = tmp_path / "next.edgead", tmp_path / "next.images"
    write = teaching._Lesson.write

    def late(self, *given) -> None:
        others.mkdir()
        (others / "theirs").write_text("kept")
        write(self, *given)

    monkeypatch.setattr(teaching._Lesson, "write", late)
    with pytest.raises(ConfigError, match="exists"):
        teach(line / "cell.model", line / "cell", record, out)
    assert (others / "theirs").read_text() == "kept"
    assert not out.exists()
