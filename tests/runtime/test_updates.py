"""Updates over a real HTTP server: what is taken, by whom, what it must pass, and each attack refused."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgead.runtime import Inspector
from edgead.runtime.backends import available
from edgead.runtime.bundle.signature import key_id
from edgead.runtime.bundle.trust import TrustedKey, add_key, trusting
from edgead.runtime.bundle.writing import sign_bundle
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Frame
from edgead.runtime.inspection.exchange import exchange, previous_path
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.sink import RecordOptions, RecordSink
from edgead.runtime.signing import Signer, make_key
from edgead.runtime.updates.repository import Repository, Wanted
from edgead.runtime.updates.rollout import Rollout
from edgead.runtime.updates.updating import UpdateOptions, Updates
from tests.waiting import LONG_S, wait_for

pytest.importorskip("tuf")
pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")

EDGEAD = [sys.executable, "-m", "edgead"]
PADIM: dict[str, Any] = {"detector": {"name": "padim", "settings": {}}}
NPAD: dict[str, Any] = {"detector": {"name": "npad", "settings": {}}}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``endless`` names a file that never ends."""

    endless = ""


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        if not self.server.endless or self.server.endless not in self.path:
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" " * 65536)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


class Line:
    """A station with its record, a repository and its server."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.repo, self.keys = folder, folder / "repo", folder / "keys"
        (folder / "station").mkdir()
        self.bundle = Path(shutil.copy(bundle, folder / "station" / "plate.edgead"))
        self.old = self.bundle.read_bytes()
        self.repository = Repository(self.repo, self.keys)
        self.root = folder / "root.json"
        self.server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(self.repo)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.place = f"http://127.0.0.1:{self.server.server_port}"
        self.inspector = Inspector.open(self.bundle, backend="onnxruntime")
        self.record = RecordSink(RecordOptions.parse(str(folder / "record")), self.inspector)
        self.updates: Updates | None = None

    def publish(self, bundle: Path, **wanted: Any) -> None:
        (self.folder / "release").mkdir(exist_ok=True)
        release = Path(shutil.copy(bundle, self.folder / "release" / "plate.edgead"))
        self.repository.publish(release, Wanted(**wanted))
        if not self.root.exists():
            shutil.copy(self.repo / "metadata" / "root.json", self.root)

    def look(self, place: str | None = None) -> Updates:
        if self.updates is None:
            options = UpdateOptions(place or self.place, "line3", self.root, 3600.0)
            self.updates = Updates(options, self.inspector, RunConfig("onnxruntime"), self.record)
            self.updates.start()
        else:
            self.updates.look()
        return self.updates

    def events(self) -> list[dict[str, Any]]:
        with JournalReader(self.folder / "record") as reader:
            return [dict(row.body) for row in reader.rows("takeover")]

    def wait(self, event: str, count: int = 1) -> dict[str, Any]:
        wait_for(lambda: sum(one["event"] == event for one in self.events()) >= count)
        return [one for one in self.events() if one["event"] == event][-1]

    def refused(self, *words: str) -> None:
        """One line, and the old bundle judges."""
        before = sum(one["event"] == "update refused" for one in self.events())
        self.look()
        reason = str(self.wait("update refused", before + 1)["reason"])
        assert any(word in reason for word in words), reason
        assert "\n" not in reason
        assert self.bundle.read_bytes() == self.old
        assert self.inspector(np.full((31, 45, 3), 100, np.uint8)).decision.value == "OK"

    def close(self) -> None:
        if self.updates is not None:
            self.updates.close()
        self.record.close()
        self.inspector.close()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def line(make_bundle: Callable[..., Path], tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path, make_bundle())
    yield made
    made.close()


def test_a_release_is_taken_once_and_the_one_before_stays_beside(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    line.look()
    line.wait("update taken")
    new = line.bundle.read_bytes()
    assert new != line.old
    assert previous_path(line.bundle).read_bytes() == line.old
    assert [one["event"] for one in line.events()] == ["update offered", "update begins", "update taken"]
    # A person puts another bundle there: the same release does not undo that.
    shutil.copy(previous_path(line.bundle), line.bundle)
    line.inspector.swap(line.bundle)
    line.look()
    line.publish(make_bundle("newer.edgead", **NPAD))
    line.look()
    line.wait("update taken", 2)
    assert [one["event"] for one in line.events()].count("update offered") == 2


def test_a_plain_folder_is_a_repository_too_and_survives_exchanged_keys(
    line: Line, make_bundle: Callable[..., Path]
) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    assert line.repository.renew(["root", "targets", "online"]) == ["root", "targets", "snapshot", "timestamp"]
    line.repository.renew(["root"])
    line.look(str(line.repo))  # its root is the first one, two rotations ago
    line.wait("update taken")


def test_a_station_takes_only_what_is_for_it(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM), stations=("line4",), share=0.0)
    line.look()
    wait_for(lambda: (line.bundle.with_name("plate.updates") / "metadata" / "targets.json").exists())
    line.publish(make_bundle("newer.edgead", **NPAD), stations=("line3",), share=0.0)
    line.look()
    assert line.wait("update taken")["release"] == 2
    assert [one["event"] for one in line.events()].count("update offered") == 1


def test_a_larger_share_contains_the_smaller_one() -> None:
    def chosen(share: float, bundle: str = "a" * 64) -> set[int]:
        rollout = Rollout(schema="edgead.rollout/1", bundle=bundle, release=1, share_ppm=round(share * 1e6))
        return {number for number in range(2000) if rollout.is_for(f"line{number}")}

    assert chosen(0.0) == set()
    assert len(chosen(1.0)) == 2000
    assert 120 < len(chosen(0.1)) < 280
    assert chosen(0.1) < chosen(0.3)
    assert chosen(0.1) != chosen(0.1, "b" * 64)


# In the shadow first


def feed(line: Line, updates: Updates, count: int, spot: bool = False) -> None:
    image = np.full((31, 45, 3), 100, np.uint8)
    if spot:
        image[12:20, 14:24] = (255, 0, 255)
    wait_for(lambda: updates._shadow is not None)
    for number in range(count):
        frame = Frame(image, number, 0, "camera", part_id=f"p{number}")
        result = line.inspector(frame)
        if updates.accepts(result, frame):
            updates.write(result, frame)


def test_what_decides_alike_in_the_shadow_is_taken(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM), shadow_parts=5)
    updates = line.look()
    feed(line, updates, 4)
    assert line.bundle.read_bytes() == line.old
    feed(line, updates, 1)
    line.wait("update taken")
    assert line.wait("update passed the shadow")["judged"] == 5


def test_what_decides_otherwise_in_the_shadow_never_judges(
    line: Line, make_bundle: Callable[..., Path], tiny_threshold: Any
) -> None:
    blind = {**tiny_threshold.to_dict(), "value": 1e9}
    line.publish(make_bundle("new.edgead", threshold=blind), shadow_parts=5, max_different=0.5)
    updates = line.look()
    feed(line, updates, 5, spot=True)
    assert "decided 5 of 5 parts otherwise" in line.wait("update refused")["reason"]
    assert line.bundle.read_bytes() == line.old
    assert "update begins" not in [one["event"] for one in line.events()]


# Return


def test_after_a_failed_self_test_the_bundle_before_judges_again(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    updates = line.look()
    line.wait("update taken")
    data = bytearray(line.bundle.read_bytes())
    assert data != line.old
    updates.note("self-test failed", {"problems": ["a memory that fails"]})
    assert "self-test failed" in line.wait("update returned")["reason"]
    assert line.bundle.read_bytes() == line.old
    assert line.inspector(np.full((31, 45, 3), 100, np.uint8)).decision.value == "OK"
    assert json.loads((line.bundle.with_name("plate.updates") / "done.json").read_text())["release"] == 1


def test_a_self_test_that_fails_while_another_release_is_in_the_shadow_returns_at_once(
    line: Line, make_bundle: Callable[..., Path]
) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    updates = line.look()
    line.wait("update taken")
    line.publish(make_bundle("newer.edgead", **NPAD), shadow_parts=5)
    line.look()
    wait_for(lambda: updates._shadow is not None)
    updates.note("self-test failed", {"problems": ["a memory that fails"]})
    line.wait("update returned")
    assert line.bundle.read_bytes() == line.old
    line.look()
    feed(line, updates, 5)
    assert line.wait("update taken", 2)["release"] == 2  # it was not to blame, and is tried again


def test_what_a_person_put_there_since_is_not_returned(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    updates = line.look()
    line.wait("update taken")
    waiting = Path(shutil.copy(make_bundle("taught.edgead", **NPAD), line.bundle.with_name("plate.next.edgead")))
    content = waiting.read_bytes()
    exchange(line.inspector, waiting, line.bundle)
    updates.note("self-test failed", {"problems": ["a memory that fails"]})
    updates.close()
    assert line.bundle.read_bytes() == content


def test_a_bundle_that_does_not_decide_here_as_it_should_never_judges(
    line: Line, make_bundle: Callable[..., Path], tiny_references: dict[str, bytes], tiny_expected: Any
) -> None:
    from edgead.runtime.bundle.references import pack_expected

    names, score, grid = tiny_expected(tiny_references)
    wrong = {"references/expected.npz": pack_expected(names, score + 5, grid)}
    line.publish(make_bundle("new.edgead", files=wrong))
    line.refused("does not decide here as it did")


# Attacks


def metadata(line: Line) -> Path:
    return line.repo / "metadata"


def test_rollback_is_refused(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM), stations=("line4",), share=0.0)
    before = shutil.copytree(line.repo, line.folder / "before")
    line.repository.renew()
    line.look()
    seen = line.bundle.with_name("plate.updates") / "metadata"
    wait_for((seen / "targets.json").exists)  # which a look reads last
    assert json.loads((seen / "timestamp.json").read_text())["signed"]["version"] == 3
    shutil.rmtree(line.repo)
    shutil.copytree(before, line.repo)
    line.refused("older than was seen")


def test_freeze_is_refused(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.repository = Repository(line.repo, line.keys, days=1e-9)
    line.publish(make_bundle("new.edgead", **PADIM))
    line.refused("out of date")


def test_mix_and_match_is_refused(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    old = (metadata(line) / "targets.json").read_bytes()
    line.publish(make_bundle("newer.edgead", **NPAD))
    newest = max(metadata(line).glob("*.targets.json"), key=lambda path: int(path.name.split(".")[0]))
    newest.write_bytes(old)  # rightly signed, and of another time than the snapshot
    line.refused("do not belong together")


@pytest.mark.parametrize("what", ["2.root.json", "timestamp.json", "snapshot.json", "targets.json", "plate.edgead"])
def test_endless_data_are_refused(line: Line, make_bundle: Callable[..., Path], what: str) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    line.server.endless = what
    line.refused("endless data")
    assert sum(path.stat().st_size for path in line.bundle.parent.rglob("*") if path.is_file()) < 20 << 20


@pytest.mark.parametrize("new_root", [False, True])
def test_a_wrong_key_is_refused(line: Line, make_bundle: Callable[..., Path], new_root: bool) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    other = Repository(line.folder / "other", line.folder / "other keys")
    bundle = line.folder / "release" / "plate.edgead"
    other.publish(bundle, Wanted())
    if new_root:
        other.renew(["root"])  # which then is the second root, as if the keys had been exchanged
    for path in (line.folder / "other" / "metadata").iterdir():
        shutil.copy(path, metadata(line) / path.name)
    line.refused("not signed by the keys")


def test_another_file_in_the_place_of_the_published_one_is_refused(
    line: Line, make_bundle: Callable[..., Path]
) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    (stored,) = (line.repo / "targets").iterdir()
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    line.refused("not the one that was signed")


def test_a_server_that_is_away_is_said_once_and_what_it_then_offers_is_taken(
    line: Line, make_bundle: Callable[..., Path]
) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    shutil.move(line.repo / "metadata" / "timestamp.json", line.folder / "timestamp.json")
    line.refused("cannot be reached")
    line.look()
    line.look()
    shutil.move(line.folder / "timestamp.json", line.repo / "metadata" / "timestamp.json")
    line.look()
    line.wait("update taken")
    assert [one["event"] for one in line.events()].count("update refused") == 1


def test_a_repository_whose_keys_were_stolen_brings_no_bundle_that_nobody_trusted_signed(
    line: Line, make_bundle: Callable[..., Path]
) -> None:
    make_key(line.folder / "release.key")
    signer, trust = Signer(line.folder / "release.key"), line.folder / "trust.json"
    add_key(trust, TrustedKey(name="release", public_key=signer.public))
    assert key_id(signer.public)
    new = make_bundle("new.edgead", **PADIM)
    line.publish(new)
    with trusting(trust):
        line.refused("is not signed")
        sign_bundle(new, new, signer)
    line.publish(new)
    with trusting(trust):
        line.look()
        line.wait("update taken")


def test_the_first_root_does_not_come_from_the_repository(line: Line, make_bundle: Callable[..., Path]) -> None:
    line.publish(make_bundle("new.edgead", **PADIM))
    options = UpdateOptions(line.place, "line3")
    with pytest.raises(ConfigError, match=r"root=root.json"):
        Updates(options, line.inspector, RunConfig("onnxruntime"))
    with pytest.raises(ConfigError, match="unknown parameter"):
        UpdateOptions.parse("repo?roots=x")
    with pytest.raises(ConfigError, match="would be read by everyone"):
        Repository(line.repo, line.repo / "keys")


# On the command line


def test_a_line_updates_itself_while_it_runs_and_both_commands_say_what_is_missing(
    make_bundle: Callable[..., Path], tiny_references: dict[str, bytes], tmp_path: Path
) -> None:
    images, station = tmp_path / "images", tmp_path / "station"
    for folder in (images, station):
        folder.mkdir()
    for name, data in tiny_references.items():
        (images / name).write_bytes(data)
    bundle = Path(shutil.copy(make_bundle(), station / "plate.edgead"))
    new = Path(shutil.copy(make_bundle("new.edgead", **PADIM), tmp_path / "plate.edgead"))
    repo, keys, log = tmp_path / "repo", tmp_path / "keys", tmp_path / "log"
    for arguments in (
        ("keygen", tmp_path / "r.key", "--add-to", tmp_path / "trust.json"),
        ("sign", bundle, "--key", tmp_path / "r.key"),
        ("sign", new, "--key", tmp_path / "r.key"),
        ("publish", new, repo, "--keys", keys, "--shadow-parts", "20", "--max-different", "0.1"),
        ("renew", repo, "--keys", keys),
    ):
        done = subprocess.run([*EDGEAD, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    updates = f"{repo}?root={repo / 'metadata' / 'root.json'}&station=line3"
    command = [*EDGEAD, "run", bundle, "--source", "synthetic://?fps=50", "--record", tmp_path / "record"]
    command += ["--trust", tmp_path / "trust.json", "--updates", updates, "--json"]
    with log.open("w") as stderr:
        process = subprocess.Popen([str(one) for one in command], stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            wait_for(lambda: "update taken" in log.read_text() or process.poll() is not None)
            process.send_signal(signal.SIGTERM)
            summary = json.loads(process.communicate(timeout=LONG_S)[0])
        finally:
            process.kill()
            process.wait()
    text = log.read_text()
    assert process.returncode == 0, text
    assert bundle.read_bytes() == new.read_bytes()
    assert summary["frames"]["inspected"] >= 20
    assert [text.count(f"update {word}:") for word in ("offered", "passed the shadow", "begins", "taken")] == [1] * 4
    (tmp_path / "lacking" / "tuf").mkdir(parents=True)
    (tmp_path / "lacking" / "tuf" / "__init__.py").write_text("raise ImportError('no')\n")
    lacking = os.pathsep.join([str(tmp_path / "lacking"), os.environ.get("PYTHONPATH", "")])
    for arguments in (("publish", new, tmp_path / "repo2", "--keys", keys), command[len(EDGEAD) :]):
        done = subprocess.run(
            [*EDGEAD, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": lacking},
        )
        assert done.returncode == 2
        assert "pip install 'edgead[updates]'" in done.stderr
    assert not (tmp_path / "repo2").exists()
