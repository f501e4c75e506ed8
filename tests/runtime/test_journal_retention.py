"""What a journal removes of its own, and that it is said before it is gone."""

from __future__ import annotations

import shutil

import pytest

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.retention import Limits
from edgead.runtime.journal.rows import NewRow
from edgead.runtime.journal.schema import FILE, image_path
from edgead.runtime.journal.verify import Known, verify
from edgead.runtime.journal.writer import Journal, now_ms
from tests.runtime.test_journal import add_part, change, problems, write


def test_the_oldest_images_go_first_and_those_of_labelled_parts_last(tmp_path):
    # Images of 30 kB each: noise cannot be compressed.
    size = (100, 100)
    with Journal(tmp_path, limits=Limits(max_bytes=1_000_000)) as journal:
        for number in range(1, 6):
            journal.add_and_wait(add_part(journal, number, size=size))
        journal.label(2, "defect", "Ann", defect="dent")
        for number in range(6, 81):
            journal.add_and_wait(add_part(journal, number, size=size))
    report = verify(tmp_path)
    assert report.problems == []
    assert report.removed == 0
    assert report.images_removed > 40
    assert image_path(tmp_path, 2).is_file()
    assert not image_path(tmp_path, 3).exists()
    assert sum(path.stat().st_size for path in (tmp_path / "images").rglob("*.png")) < 1_000_000
    with JournalReader(tmp_path) as reader:
        assert len(list(reader.parts())) == 80
        assert [reader.image_removed(reader.part(seq)) for seq in (2, 3)] == [False, True]
        with pytest.raises(DataError, match="cannot read the image of row 3"):
            reader.frame(reader.part(3))
    # An image that retention did not remove is still missed.
    image_path(tmp_path, 2).unlink()
    assert any("the image of row 2 is missing" in problem for problem in problems(tmp_path))


def test_rows_go_too_where_they_take_more_than_their_share_and_the_chain_holds(tmp_path):
    note = "x" * 190
    with Journal(tmp_path, limits=Limits(max_bytes=1_000_000)) as journal:
        for number in range(1, 3001):
            row = add_part(journal, number, size=(4, 4), keep=number % 50 == 0)
            journal.add(NewRow(row.kind, row.time_ms, row.part, None, row.decision, row.score,
                               {**row.body, "more": note}, row.frame))  # fmt: skip
        journal.add_and_wait(add_part(journal, 3001))
    report = verify(tmp_path)
    assert report.problems == []
    assert report.removed > 500
    assert report.first == report.removed + 1
    assert report.head == 3001 + verify_checkpoints(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 1_500_000
    with JournalReader(tmp_path) as reader:
        assert next(reader.parts()).seq >= report.first
        named = {row.seq for row in reader.parts() if row.image is not None}
        head = reader.head()
    assert {int(path.stem) for path in (tmp_path / "images").rglob("*.png")} == named
    write(tmp_path, 5)  # it is continued
    assert problems(tmp_path, known=Known(head)) == []
    change(tmp_path, f"DELETE FROM rows WHERE seq = {report.first}")
    assert any("missing" in problem for problem in problems(tmp_path))


def verify_checkpoints(folder):
    """How many checkpoint rows were ever written: their numbers are among those of the parts."""
    with JournalReader(folder) as reader:
        last = [row.body["frame"] for row in reader.parts()][-1]
        return reader.head()[0] - last


def test_old_rows_go_by_age_and_no_clock_that_was_not_set_removes_any(tmp_path):
    day = 86_400_000
    times = [now_ms() - 40 * day, now_ms() - 31 * day, now_ms() - 29 * day, 1000, now_ms() + 400 * day, now_ms()]
    with Journal(tmp_path) as journal:
        for number, time_ms in enumerate(times, 1):
            journal.add_and_wait(add_part(journal, number, time_ms=time_ms))
    with Journal(tmp_path, limits=Limits(max_age_s=30 * 86_400.0)) as journal:
        journal.add_and_wait(add_part(journal, 7))
    report = verify(tmp_path)
    assert report.problems == []
    with JournalReader(tmp_path) as reader:
        # From the third on: those from 1970 and from the future were written by a clock that was wrong.
        assert [row.body["frame"] for row in reader.parts()] == [3, 4, 5, 6, 7]
        (checkpoint,) = reader.rows("checkpoint")
        assert (checkpoint.body["why"], checkpoint.body["rows"]) == ("age", 2)
    assert not image_path(tmp_path, 2).exists()
    assert image_path(tmp_path, 3).exists()


@pytest.mark.parametrize("first_ms", [1000, 4_000_000_000_000])
def test_a_row_of_a_clock_that_was_wrong_is_as_old_as_this_run(tmp_path, first_ms):
    with Journal(tmp_path) as journal:
        for number, time_ms in enumerate((first_ms, now_ms() - 40 * 86_400_000), 1):
            journal.add_and_wait(add_part(journal, number, time_ms=time_ms))
    with Journal(tmp_path, limits=Limits(max_age_s=30 * 86_400.0)) as journal:
        journal.add_and_wait(add_part(journal, 3))
    # Rows go from the beginning only, so the old one behind it waits with it.
    with JournalReader(tmp_path) as reader:
        assert [row.body["frame"] for row in reader.parts()] == [1, 2, 3]


def test_what_a_crash_left_of_a_removal_is_swept_and_is_no_fault_before(tmp_path):
    size = (100, 100)
    with Journal(tmp_path, limits=Limits(max_bytes=1_000_000)) as journal:
        for number in range(1, 21):
            journal.add_and_wait(add_part(journal, number, size=size))
    shutil.copytree(tmp_path / "images", tmp_path / "before")
    with Journal(tmp_path, limits=Limits(max_bytes=1_000_000)) as journal:
        for number in range(21, 61):
            journal.add_and_wait(add_part(journal, number, size=size))
    removed = verify(tmp_path).images_removed
    assert removed > 10
    # As after a crash between the checkpoint and the removal, and within an image that belongs to no row yet.
    shutil.copytree(tmp_path / "before", tmp_path / "images", dirs_exist_ok=True)
    stray = image_path(tmp_path, 999)
    stray.write_bytes(b"half")
    assert problems(tmp_path) == []
    with Journal(tmp_path):
        pass
    assert verify(tmp_path).images_removed == removed
    assert not stray.exists()


def test_limits_in_which_nothing_has_room_are_refused():
    with pytest.raises(ConfigError, match="1 MB or more"):
        Limits(max_bytes=10)
    with pytest.raises(ConfigError, match="above 0"):
        Limits(max_age_s=0.0)
