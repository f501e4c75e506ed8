"""The journal: rows in a chain that shows what is missing, written so that no crash costs more than the last second."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import NewRow, part_row
from edgead.runtime.journal.schema import COLUMNS, FILE, chain_hash, image_path
from edgead.runtime.journal.verify import Known, verify
from edgead.runtime.journal.writer import Journal, now_ms

ROOT = Path(__file__).resolve().parents[2]


def made_frame(number, layout="rgb", size=(24, 32)):
    shape = size if layout == "gray" else (*size, 3)
    pixels = np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)
    return Frame(pixels, number, 0, "line", layout, part_id=f"P{number}")


def add_part(journal, number, *, layout="rgb", size=(24, 32), keep=True, time_ms=None):
    frame = made_frame(number, layout, size)
    decision = Decision.ANOMALY if number % 5 == 0 else Decision.OK
    grid = np.full((2, 2), number, np.float32)
    result = Result(number * 0.1, 1.0, decision, number, 0, "line", map=grid, part_id=frame.part_id)
    setup = journal.setup({"bundle": None, "model": "made"})
    return part_row(result, frame, setup, now_ms() if time_ms is None else time_ms, keep=keep)


def write(folder, count=20, **options):
    with Journal(folder, **options) as journal:
        for number in range(1, count + 1):
            journal.add(add_part(journal, number))
    return folder


def change(folder, *statements):
    with sqlite3.connect(folder / FILE) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def problems(folder, **options):
    return verify(folder, **options).problems


def test_what_was_added_is_read_back_to_the_bit(tmp_path):
    layouts = ["rgb", "bgr", "gray"] * 3
    with Journal(tmp_path) as journal:
        for number, layout in enumerate(layouts, 1):
            journal.add(add_part(journal, number, layout=layout, size=(17 + number, 31)))
    with JournalReader(tmp_path) as reader:
        rows = list(reader.parts())
        assert [row.seq for row in rows] == list(range(1, 10))
        for number, (row, layout) in enumerate(zip(rows, layouts, strict=True), 1):
            made = made_frame(number, layout, (17 + number, 31))
            stored = reader.frame(row)
            assert (stored.image == made.image).all()
            assert (stored.layout, stored.part_id, stored.index) == (layout, f"P{number}", number)
            assert (row.score, row.part) == (number * 0.1, f"P{number}")
            assert reader.setup(row) == {"bundle": None, "model": "made"}
            # Any viewer shows it as it looked.
            seen = np.asarray(Image.open(image_path(tmp_path, row.seq)).convert("RGB"))
            assert (seen == made.to_rgb()).all()
    assert problems(tmp_path) == []


def test_readers_see_committed_rows_while_the_writer_goes_on(tmp_path):
    with Journal(tmp_path) as journal, JournalReader(tmp_path) as reader:
        for number in range(1, 4):
            seq = journal.add_and_wait(add_part(journal, number))
            assert [row.seq for row in reader.parts()][-1] == seq == number
        assert problems(tmp_path) == []
        assert [row.seq for row in reader.parts(part="P2")] == [2]
        assert reader.part(2).part == "P2"
        with pytest.raises(ConfigError, match="no part in row 99"):
            reader.part(99)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM rows WHERE seq = 7", "row 7 is missing"),
        ("DELETE FROM rows WHERE seq BETWEEN 7 AND 9", "rows 7 to 9 are missing"),
        ("DELETE FROM rows WHERE seq = 1", "row 1 is missing"),
        ("DELETE FROM rows WHERE seq = 20", "the head is row 20, and the last row is 19"),
        ("UPDATE rows SET decision = 'OK' WHERE seq = 5", "row 5 was altered"),
        ("UPDATE rows SET score = 0.5000000000000001 WHERE seq = 5", "row 5 was altered"),
        ("UPDATE rows SET part = 'P8' WHERE seq = 7", "row 7 was altered"),
        ("UPDATE rows SET time_ms = time_ms + 1 WHERE seq = 7", "row 7 was altered"),
        ("UPDATE rows SET body = replace(body, '1.0', '2.0') WHERE seq = 3", "row 3 was altered"),
        ("UPDATE rows SET hash = zeroblob(32) WHERE seq = 3", "row 3 was altered"),
        ("UPDATE setups SET body = replace(body, 'made', 'more')", "was altered"),
        ("DELETE FROM setups", "is missing"),
    ],
)
def test_a_removed_or_altered_row_is_found(tmp_path, statement, said):
    write(tmp_path)
    assert problems(tmp_path) == []
    change(tmp_path, statement)
    found = problems(tmp_path)
    assert any(said in problem for problem in found), found


def test_exchanged_and_added_rows_are_found(tmp_path):
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    change(
        tmp_path / "a",
        "UPDATE rows SET seq = 1000 WHERE seq = 5",
        "UPDATE rows SET seq = 5 WHERE seq = 6",
        "UPDATE rows SET seq = 6 WHERE seq = 1000",
    )
    assert any("row 5 was altered" in problem for problem in problems(tmp_path / "a"))
    change(
        tmp_path / "b",
        "INSERT INTO rows SELECT 21, kind, time_ms, part, ref, decision, score, image, body, hash FROM rows "
        "WHERE seq = 20",
    )
    assert any("row 21 was altered" in problem for problem in problems(tmp_path / "b"))


def test_a_row_that_was_altered_with_its_own_hash_breaks_the_chain_after_it(tmp_path):
    write(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as connection:
        names = ", ".join(COLUMNS)
        before, row = (connection.execute(f"SELECT {names} FROM rows WHERE seq = {seq}").fetchone() for seq in (4, 5))
        altered = (*row[:5], "OK", *row[6:9])
        assert altered != row[:9]
        connection.execute(
            "UPDATE rows SET decision = 'OK', hash = ? WHERE seq = 5", (chain_hash(bytes(before[9]), altered),)
        )
    connection.close()
    assert problems(tmp_path) == ["row 6 was altered, or its place in the chain was"]


def test_rows_of_another_journal_are_found(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    with sqlite3.connect(tmp_path / "a" / FILE) as connection:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "b" / FILE),))
        connection.execute("DELETE FROM rows")
        connection.execute("INSERT INTO rows SELECT * FROM other.rows")
    connection.close()
    assert any("row 1 was altered" in problem for problem in problems(tmp_path / "a"))


def test_a_journal_made_anew_is_found_by_the_head_that_was_kept(tmp_path):
    write(tmp_path, 10)
    with JournalReader(tmp_path) as reader:
        head = reader.head()
    write(tmp_path, 10)
    assert problems(tmp_path, known=Known(head)) == []
    shutil.rmtree(tmp_path)
    write(tmp_path, 30)
    assert problems(tmp_path) == []
    assert any("made anew" in problem for problem in problems(tmp_path, known=Known(head)))
    shutil.rmtree(tmp_path)
    write(tmp_path, 5)
    assert any("head that was kept, is missing" in problem for problem in problems(tmp_path, known=Known(head)))


def test_an_altered_or_missing_image_is_found(tmp_path):
    write(tmp_path)
    with Image.open(image_path(tmp_path, 4)) as opened:
        pixels = np.asarray(opened).copy()
    pixels[3, 5, 1] ^= 1
    Image.fromarray(pixels).save(image_path(tmp_path, 4))
    image_path(tmp_path, 9).unlink()
    image_path(tmp_path, 11).write_bytes(image_path(tmp_path, 12).read_bytes())
    image_path(tmp_path, 13).write_bytes(b"no picture")
    found = problems(tmp_path)
    assert len(found) == 4
    assert any("other pixels than row 4 judged" in problem for problem in found)
    assert any("the image of row 9 is missing" in problem for problem in found)
    assert any("other pixels than row 11 judged" in problem for problem in found)
    assert any("0000000013.png is damaged" in problem for problem in found)
    assert len(problems(tmp_path, images=False)) == 1  # the missing one is seen without a look into any


def test_a_second_writer_is_refused_in_this_process_and_in_another(tmp_path):
    with Journal(tmp_path) as journal:
        with pytest.raises(ConfigError, match="is being written by another process"):
            Journal(tmp_path)
        code = f"from edgead.runtime.journal.writer import Journal; Journal({str(tmp_path)!r})"
        other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "is being written by another process" in other.stderr
        journal.add_and_wait(add_part(journal, 1))
    write(tmp_path, 3)
    assert verify(tmp_path).rows == 4


def test_another_version_and_what_is_no_journal_are_refused(tmp_path):
    write(tmp_path / "a", 2)
    change(tmp_path / "a", "PRAGMA user_version = 2")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILE).write_bytes(b"SQLite format 3\0" + bytes(100))
    (tmp_path / "c").mkdir()
    with sqlite3.connect(tmp_path / "c" / FILE) as connection:
        connection.execute("CREATE TABLE other(x)")
    connection.close()
    for name, said in (
        ("a", "version 2, this edgead knows 1: a newer edgead wrote it"),
        ("b", "cannot"),
        ("c", "no record"),
    ):
        for opened in (Journal, JournalReader):
            with pytest.raises(ConfigError, match=said) as caught:
                opened(tmp_path / name)
            assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="holds no record"):
        JournalReader(tmp_path / "nowhere")


def test_labels_are_rows_and_a_double_click_is_one(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(1, 4):
            journal.add_and_wait(add_part(journal, number))
        first = journal.label(2, "good", "Ann")
        assert journal.label(2, "good", " Ann ") == first
        other = journal.label(2, "defect", "Bo", defect="scratch")
        changed = journal.label(2, "unsure", "Ann", note="light was off")
        again = journal.label(2, "good", "Ann")
        assert first < other < changed < again
        with pytest.raises(ConfigError, match="no part in row 77"):
            journal.label(77, "good", "Ann")
        with pytest.raises(ConfigError, match="no part in row"):
            journal.label(first, "good", "Ann")
        for wrong in ({"label": "god"}, {"who": " "}, {"label": "good", "defect": "scratch"}):
            with pytest.raises(ConfigError):
                journal.label(2, **{"label": "good", "who": "Ann", **wrong})
    with JournalReader(tmp_path) as reader:
        said = [(row.body["who"], row.body["label"]) for row in reader.labels(2)]
        assert said == [("Ann", "good"), ("Bo", "defect"), ("Ann", "unsure"), ("Ann", "good")]
        assert reader.labels(1) == []
        assert reader.labels()[1].body["defect"] == "scratch"
    assert problems(tmp_path) == []


def test_a_clock_that_is_set_back_keeps_the_order_and_is_noted(tmp_path):
    with Journal(tmp_path) as journal:
        for number, time_ms in enumerate((2_000_000_000_000, 2_000_000_000_500, 1_000_000_000_000), 1):
            journal.add(add_part(journal, number, time_ms=time_ms))
    with JournalReader(tmp_path) as reader:
        rows = list(reader.rows())
        assert [row.kind for row in rows] == ["part", "part", "note", "part"]
        assert rows[2].body == {"event": "clock set back", "by_ms": 1_000_000_000_500}
        assert rows[3].time_ms == 1_000_000_000_000
    assert problems(tmp_path) == []


def test_names_that_are_no_text_are_kept_and_what_cannot_be_written_is_the_callers_to_know(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add(NewRow("note", now_ms(), body={"name": "part\udcff.png", "who": "Jürgen"}))
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.add_and_wait(NewRow("note", now_ms(), body={"value": float("nan")}))
        assert journal.add_and_wait(add_part(journal, 1)) == 2  # the writer goes on
    with JournalReader(tmp_path) as reader:
        assert next(reader.rows("note")).body == {"name": "part\udcff.png", "who": "Jürgen"}
    assert problems(tmp_path) == []


def test_rows_that_were_given_up_are_a_visible_gap(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add(add_part(journal, 1))
        journal.lose(7)
        journal.add(add_part(journal, 2))
    with JournalReader(tmp_path) as reader:
        assert sum(row.body["rows"] for row in reader.rows("gap")) == 7
    assert problems(tmp_path) == []


def kills(folder, count, *, seed=1, commit_s=0.02, life_s=0.12):
    arguments = [str(folder), str(count), str(seed), str(commit_s), str(life_s)]
    command = [sys.executable, "-m", "tests.runtime.journal_writer", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_whole(folder, killed):
    assert problems(folder) == []
    with JournalReader(folder) as reader:
        kept = [row.body["frame"] for row in reader.parts()]
    assert kept == sorted(set(kept))
    have = set(kept)
    lost = []
    for one in killed:
        # What was said to be safe is there, with all before it; what is lost is the end of that run.
        assert set(range(one["first"], one["safe"] + 1)) <= have
        missing = [number for number in range(one["first"], one["last"] + 1) if number not in have]
        assert missing == list(range(one["last"] + 1 - len(missing), one["last"] + 1))
        lost.append(missing)
    return lost


def test_kill_9_costs_the_end_of_a_run_and_never_the_file(tmp_path):
    lost = require_whole(tmp_path, kills(tmp_path, 100))
    assert any(lost)  # or none was killed while something was on its way
    # The next writer goes on where the last one was killed, and no image of a lost row is left.
    with Journal(tmp_path) as journal:
        journal.add_and_wait(add_part(journal, 10**6))
    with JournalReader(tmp_path) as reader:
        named = {row.seq for row in reader.parts() if row.image is not None}
    assert {int(path.stem) for path in (tmp_path / "images").rglob("*.png")} == named


@pytest.mark.slow
def test_a_thousand_kills(tmp_path):
    require_whole(tmp_path, kills(tmp_path, 1000, seed=7))


@pytest.mark.slow
def test_a_kill_costs_the_last_second_at_most(tmp_path):
    """On an idle machine, as the figure in docs/record.md: how old the oldest lost row was when it was killed."""
    killed = kills(tmp_path, 40, seed=3, commit_s=0.8, life_s=3.0)
    ages = []
    for one, missing in zip(killed, require_whole(tmp_path, killed), strict=True):
        said = {int(number): at for number, at in one["added"].items()}
        ages.append(max((one["killed"] - said[number] for number in missing if number in said), default=0.0))
    print(f"oldest lost row: {max(ages):.3f} s")
    assert max(ages) <= 1.0


posix = pytest.mark.skipif(sys.platform == "win32", reason="no limit for the size of files on Windows")


@posix
def test_a_full_disk_costs_what_found_no_room_and_says_so(tmp_path):
    command = [sys.executable, "-m", "tests.runtime.journal_on_full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["why"]
    assert seen["label"].startswith(f"cannot write the record {tmp_path}: ")
    assert "\n" not in seen["label"]
    assert seen["lost"] > 0
    assert problems(tmp_path) == []
    with JournalReader(tmp_path) as reader:
        frames = [row.body["frame"] for row in reader.parts()]
        # Rows that waited were written when there was room again; a gap says how many were not.
        assert frames == list(range(1, seen["last"] + 1))
        assert sum(row.body["rows"] for row in reader.rows("gap")) == seen["lost"]
        without = [row for row in reader.parts() if row.image is None]
        assert without
        assert all(row.body["no_image"] for row in without)
        # The label that was refused is not there after all, and the one that was taken is.
        (label,) = reader.labels(3)
        assert label.seq == seen["again"]
        assert "label withdrawn: it could not be written" in [row.body.get("event") for row in reader.rows("note")]


@posix
def test_a_journal_that_finds_no_room_at_the_end_says_what_is_lost(tmp_path):
    code = f"""
import resource
from edgead.runtime.errors import DataError
from tests.runtime.test_journal import Journal, add_part
journal = Journal({str(tmp_path)!r})
journal.add_and_wait(add_part(journal, 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for number in range(2, 40):
    journal.add(add_part(journal, number, keep=False))
try:
    journal.close()
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"38 rows of the record {tmp_path} are lost: " in done.stdout, done.stderr
    assert problems(tmp_path) == []
    assert verify(tmp_path).rows == 1


def test_a_signed_head_is_verified_and_one_that_was_made_anew_is_not(tmp_path):
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization

    from edgead.runtime.signing import read_public_key

    keys = []
    for name in ("mine", "other"):
        private = ed25519.Ed25519PrivateKey.generate()
        plain = serialization.NoEncryption()
        path = tmp_path / f"{name}.pem"
        path.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        keys.append(path)
    folder = write(tmp_path / "line", 5, key=keys[0])
    mine, other = (Known(public_key=read_public_key(path)) for path in keys)
    assert verify(folder, known=mine).problems == []
    assert verify(folder, known=mine).signature == "valid"
    assert verify(folder).signature == "valid, by the key in the journal itself"
    assert problems(folder, known=other) == ["the head is signed with another key"]
    shutil.copytree(folder, tmp_path / "cut")
    with JournalReader(folder) as reader:
        (fourth,) = (row for row in reader.rows() if row.seq == 4)
    with sqlite3.connect(tmp_path / "cut" / FILE) as connection:
        digest = connection.execute("SELECT hash FROM rows WHERE seq = 4").fetchone()[0].hex()
        connection.execute("DELETE FROM rows WHERE seq = 5")
        connection.execute("UPDATE meta SET value = '4' WHERE name = 'head_seq'")
        connection.execute("UPDATE meta SET value = ? WHERE name = 'head_hash'", (digest,))
    connection.close()
    assert fourth.seq == 4
    assert problems(tmp_path / "cut", known=mine) == ["the signature of the head is wrong"]
    write(folder, 2)  # without the key
    assert problems(folder, known=mine) == ["the head is not signed"]
    (tmp_path / "no.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="no private key in PEM"):
        write(folder, 1, key=tmp_path / "no.pem")


def test_a_key_without_the_library_gives_the_pip_command(tmp_path, monkeypatch):
    for name in ("cryptography", "cryptography.exceptions", "cryptography.hazmat.primitives"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "key.pem").write_text("x")
    with pytest.raises(ConfigError, match=r"pip install 'edgead\[sign\]'"):
        Journal(tmp_path / "line", key=tmp_path / "key.pem")
    assert not (tmp_path / "line").exists()
