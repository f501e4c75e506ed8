"""A release: the same bytes in another folder at another time; uploaded is only what tag and digests name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_light_install import UNREACHABLE
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"twine": "twine", "cyclonedx": "cyclonedx-python-lib", "check_wheel_contents": "check-wheel-contents"}
NATIVE = "x86_64"
WHEELS = (
    *("any", "manylinux_2_17_x86_64.manylinux2014_x86_64", "musllinux_1_1_x86_64"),
    *("manylinux_2_17_aarch64.manylinux2014_aarch64", "musllinux_1_1_aarch64", "win_amd64"),
)
SECTION = "## [{version}] - 2026-12-01\n\n### Added\n\n- All of it.\n\n"


@pytest.fixture(autouse=True, scope="module")
def _tools() -> None:
    missing = [package for module, package in TOOLS.items() if find_spec(module) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install -e '.[release]'")


def call(*command: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"} | more
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=3600)


def git(tree: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    done = call("git", "-C", tree, *who, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def checkout(target: Path) -> Path:
    """Commit the working tree as it is into a repository of its own."""
    target.mkdir(parents=True)
    listed = call("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("these tests run in a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = ROOT / name, target / name
        # What is deleted and not committed yet is listed too.
        if name.startswith(("tests/", "docs/", "benchmarks/")) or not os.path.lexists(source):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)
    git(target, "init", "-q", "-b", "main")
    git(target, "add", "-A")
    git(target, "commit", "-q", "-m", "All")
    return target


def release(tree: Path, *only: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = call(sys.executable, tree / ".ci" / "release", "--no-dependencies", "--only", *only)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def files(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose ``dist/release`` holds source archive and the wheel without native code."""
    tree = checkout(tmp_path_factory.mktemp("released") / "tree")
    release(tree, "sdist", "any")
    return tree


def test_two_builds_give_the_same_bytes(released: Path, tmp_path: Path) -> None:
    other = tmp_path / "another folder" / "much deeper" / "tree"
    other.parent.mkdir(parents=True)
    git(tmp_path, "clone", "-q", str(released), str(other))
    # Other times of files, other rights, another locale and time zone.
    for path in other.rglob("*"):
        if path.is_file() and not path.is_symlink() and ".git" not in path.parts:
            os.utime(path, (1_000_000_000, 1_000_000_000))
    # git keeps no rights but x; umask 0077 is what the archive is unpacked with there.
    command = f"umask 077; exec {sys.executable} .ci/release --no-dependencies --only sdist any"
    done = call("sh", "-c", command, cwd=other, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert files(other / "dist" / "release") == files(released / "dist" / "release")


@pytest.mark.slow
def test_two_builds_of_native_code_give_the_same_bytes(released: Path, tmp_path: Path) -> None:
    if find_spec("ziglang") is None or not Path("/usr/include/nlohmann/json.hpp").is_file():
        pytest.skip("no ziglang, or no nlohmann-json3-dev")
    made = []
    for name in ("one", "two/and deeper"):
        tree = tmp_path / name
        git(released, "clone", "-q", str(released), str(tree))
        # Nothing of the first build's caches helps the second.
        caches = {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path / name / "zig"), "ZIG_LOCAL_CACHE_DIR": str(tmp_path / "local")}
        command = (sys.executable, tree / ".ci" / "wheels", NATIVE, "windows", "-o", tmp_path / f"out{len(made)}")
        done = call(*command, SOURCE_DATE_EPOCH="1800000000", **caches)
        assert done.returncode == 0, done.stdout + done.stderr
        made.append(files(tmp_path / f"out{len(made)}"))
    assert len(made[0]) == 2
    assert made[0] == made[1]


def test_every_file_is_named_by_its_digest(released: Path) -> None:
    folder = released / "dist" / "release"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    named = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    content = files(folder)
    del content["SHA256SUMS"]
    assert named == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    built = json.loads((folder / "build-info.json").read_text())
    assert built["commit"] == git(released, "rev-parse", "HEAD")
    assert str(built["SOURCE_DATE_EPOCH"]) == git(released, "log", "-1", "--format=%ct")


def test_members_carry_the_time_of_the_commit_and_nobodys_name(released: Path) -> None:
    seconds = int(git(released, "log", "-1", "--format=%ct"))
    (archive,) = (released / "dist" / "release").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        assert {(one.mtime, one.uid, one.uname, one.mode) for one in opened.getmembers()} == {(seconds, 0, "", 0o644)}
    (wheel,) = (released / "dist" / "release").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert len({one.date_time for one in opened.infolist()}) == 1


def test_the_wheel_lists_what_it_holds(released: Path) -> None:
    (wheel,) = (released / "dist" / "release").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (one for one in opened.namelist() if one.endswith(".dist-info/sboms/edgead.cdx.json"))
        bill = json.loads(opened.read(name))
        notice = next(opened.read(one).decode() for one in opened.namelist() if one.endswith("/licenses/NOTICE"))
    # No native code in this one; the tables of the sources are Unicode's.
    assert [one["name"] for one in bill["components"]] == ["unicode-character-database"]
    assert "UNICODE LICENSE V3" in notice


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "mqtt"])
def test_what_an_extra_brings_is_a_valid_bill(extra: str, released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if int(version_of("pip").partition(".")[0]) < 25:
        pytest.skip("pip is too old: pip install -e '.[release]'")
    monkeypatch.syspath_prepend(ROOT / ".ci")
    import dependencies

    (wheel,) = (released / "dist" / "release").glob("*.whl")
    try:
        items = dependencies.resolve(wheel, extra)
    except dependencies.UnresolvedError as error:
        if any(text in str(error) for text in (*UNREACHABLE, "No matching distribution")):
            pytest.skip("no package index can be reached")
        raise
    # It validates what it writes.
    bill = json.loads(dependencies.bill(items, extra, datetime.fromtimestamp(0, timezone.utc)))
    names = {one["name"] for one in bill["components"]}
    assert {"numpy", "pillow", "pydantic", "typer", "rich"} <= names
    assert ("paho-mqtt" in names) == (extra == "mqtt")
    assert all(one["hashes"] and one["licenses"] for one in bill["components"])
    (own,) = (one for one in bill["dependencies"] if one["ref"].startswith("edgead@"))
    assert any(ref.startswith("numpy@") for ref in own["dependsOn"])
    listed = dependencies.licence_list({extra: items}, {"other": "why not"})
    assert "| numpy |" in listed
    assert "- extra other: not resolved here, so not listed: why not" in listed


def test_a_tree_with_changes_is_not_released(released: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(tmp_path, "clone", "-q", str(released), str(tree))
    (tree / "forgotten.txt").write_text("")
    assert "?? forgotten.txt" in release(tree, "any", code=1).stderr
    assert not (tree / "dist").exists()


# Publishing


@pytest.fixture
def tagged(released: Path, tmp_path: Path) -> Path:
    """A checkout that may be published: changelog dated, tag set, all packages there, though nothing is compiled."""
    tree = tmp_path / "tagged"
    git(tmp_path, "clone", "-q", str(released), str(tree))
    log = tree / "CHANGELOG.md"
    others = re.sub(r"^## \[.*$", "## [0.0.0]", log.read_text(), flags=re.MULTILINE)
    log.write_text(SECTION.format(version=version(tree)) + others)
    git(tree, "commit", "-q", "-a", "-m", "Release")
    git(tree, "tag", f"v{version(tree)}")
    shutil.copytree(released / "dist", tree / "dist")
    folder = tree / "dist" / "release"
    (pure,) = folder.glob("*.whl")
    for platform in WHEELS[1:]:
        retag(pure, folder / pure.name.replace("-any.whl", f"-{platform}.whl"), platform)
    seal(tree)
    return tree


def version(tree: Path) -> str:
    found = re.search(r'"(.+)"$', (tree / "runtime" / "version.py").read_text().strip())
    assert found is not None
    return found[1]


def retag(pure: Path, wheel: Path, platform: str) -> None:
    """Write the wheel anew for another platform, without what takes minutes to compile."""
    with zipfile.ZipFile(pure) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".dist-info/WHEEL"):
                data = data.replace(b"py3-none-any", f"py3-none-{platform.split('.')[0]}".encode())
            new.writestr(name, data)


def seal(tree: Path) -> None:
    """Write digests and commit anew, as a release of what lies there has them."""
    folder = tree / "dist" / "release"
    (folder / "build-info.json").write_text(json.dumps({"commit": git(tree, "rev-parse", "HEAD")}))
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files(folder).items())]
    (folder / "SHA256SUMS").write_text("".join(lines))


def publish(tree: Path, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    done = call(sys.executable, tree / ".ci" / "publish", *arguments, **more)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_dry_run_checks_all_and_sends_nothing(tagged: Path) -> None:
    # Nothing listens at this address.
    done = publish(tagged, "--dry-run", "--repository-url", "http://127.0.0.1:9/")
    assert "nothing was sent" in done.stdout
    assert done.stdout.count("PASSED") == len(WHEELS) + 1


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real package index on loopback that takes uploads."""
    if find_spec("pypiserver") is None:
        pytest.skip("no pypiserver: pip install -e '.[release]'")
    folder = tmp_path / "index"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pypiserver", "run", "-i", "127.0.0.1", "-p", str(port), "-P", ".", "-a", "."]
    with (tmp_path / "index.log").open("w") as log:
        server = subprocess.Popen([*command, "--disable-fallback", str(folder)], stdout=log, stderr=log)
        try:

            def listens() -> bool:
                assert server.poll() is None, (tmp_path / "index.log").read_text()
                with socket.socket() as one:
                    return one.connect_ex(("127.0.0.1", port)) == 0

            wait_for(listens)
            yield f"http://127.0.0.1:{port}/", folder
        finally:
            server.terminate()
            server.wait(60)


def test_what_was_released_arrives_at_the_index(tagged: Path, index: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = index
    name = {"TWINE_USERNAME": "anyone", "TWINE_PASSWORD": "anything", "HOME": str(tmp_path)}
    publish(tagged, "--repository-url", address, **name)
    sent = {one: data for one, data in files(tagged / "dist" / "release").items() if one.startswith("edgead-")}
    assert files(folder) == sent
    assert len(sent) == len(WHEELS) + 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dirty", "changes that are not committed"),
        ("no tag", "it has none"),
        ("other tag", "it has v9.9.9"),
        ("no section", "has no section"),
        ("no date", "needs a date"),
        ("empty section", "is empty"),
        ("altered wheel", "is not the file that SHA256SUMS names"),
        ("strange file", "differ by edgead-9.9.9.tar.gz"),
        ("other version", "edgead-9.9.9.tar.gz is not of version"),
        ("missing wheel", "packages are missing (win_amd64)"),
        ("other commit", "the tag is on"),
        ("nothing built", "is no release"),
    ],
)
def test_what_does_not_agree_is_not_published(fault: str, said: str, tagged: Path, index: tuple[str, Path]) -> None:
    spoil(tagged, fault)
    done = publish(tagged, "--repository-url", index[0], code=2, TWINE_USERNAME="anyone", TWINE_PASSWORD="anything")
    assert done.stderr.startswith("not published: ")
    assert said in done.stderr
    assert not list(index[1].iterdir())


def spoil(tree: Path, fault: str) -> None:
    folder, tag, log = tree / "dist" / "release", f"v{version(tree)}", tree / "CHANGELOG.md"
    section = SECTION.format(version=version(tree))
    texts = {
        "no section": log.read_text().replace(section, ""),
        "no date": log.read_text().replace("- 2026-12-01", "- unreleased"),
        "empty section": log.read_text().replace("- All of it.", ""),
    }
    if fault in texts:
        log.write_text(texts[fault])
        git(tree, "commit", "-q", "-a", "-m", "Other words")
        git(tree, "tag", "-f", tag)
        seal(tree)
    elif fault == "dirty":
        (tree / "NOTICE").write_text("")
    elif fault in ("no tag", "other tag"):
        git(tree, "tag", "-d", tag)
        if fault == "other tag":
            git(tree, "tag", "v9.9.9")
    elif fault == "altered wheel":
        with next(folder.glob("*-any.whl")).open("ab") as file:
            file.write(b"more")
    elif fault == "strange file":
        (folder / "edgead-9.9.9.tar.gz").write_bytes(b"")
    elif fault == "other version":
        shutil.copy(next(folder.glob("*.tar.gz")), folder / "edgead-9.9.9.tar.gz")
        seal(tree)
    elif fault == "missing wheel":
        next(folder.glob("*win_amd64.whl")).unlink()
        seal(tree)
    elif fault == "other commit":
        git(tree, "commit", "-q", "--allow-empty", "-m", "Later")
        git(tree, "tag", "-f", tag)
    else:
        shutil.rmtree(folder)
