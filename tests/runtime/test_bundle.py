from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.writing import replace_manifest, write_bundle
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import BundleError, ConfigError

MakeManifest = Callable[..., Manifest]
MakeBundle = Callable[..., Path]

SMALL = {"model.fp32.onnx": b"graph " * 9, "weights/a.bin": bytes(range(200)), "references/a.png": b"png"}


@pytest.fixture
def small(tmp_path: Path, make_manifest: MakeManifest) -> Path:
    path = tmp_path / "small.edgead"
    write_bundle(path, make_manifest(), SMALL)
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    return message


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in bundle.manifest.members}


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(small: Path, make_manifest: MakeManifest) -> None:
    with Bundle.open(str(small)) as bundle:
        assert content_of(bundle) == SMALL
        assert bundle.manifest.model_copy(update={"members": {}}) == make_manifest()
        assert bundle.manifest.members["model.fp32.onnx"].sha256 == hashlib.sha256(SMALL["model.fp32.onnx"]).hexdigest()
        assert bundle.path == small
    with zipfile.ZipFile(small) as archive:
        assert bundle.sha256 == hashlib.sha256(archive.read("manifest.json")).hexdigest()


def test_other_tools_can_read_it(small: Path) -> None:
    with zipfile.ZipFile(small) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "manifest.json"
        assert {name: archive.read(name) for name in SMALL} == SMALL
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-tqq", str(small)], check=True)


def test_weights_are_aligned_in_the_file(tmp_path: Path, make_manifest: MakeManifest) -> None:
    weights = {f"weights/{index}.bin": os.urandom(50 + index) for index in range(70)}
    path = tmp_path / "x.edgead"
    write_bundle(path, make_manifest(), {**SMALL, **weights})
    data = path.read_bytes()
    for content in weights.values():
        assert data.index(content) % 64 == 0


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, make_manifest: MakeManifest) -> None:
    source = tmp_path / "graph.onnx"
    source.write_bytes(SMALL["model.fp32.onnx"])
    os.utime(source, (1e9, 1e9))
    first, second = tmp_path / "first.edgead", tmp_path / "second.edgead"
    write_bundle(first, make_manifest(), SMALL)
    write_bundle(second, make_manifest(), {**dict(reversed(SMALL.items())), "model.fp32.onnx": source})
    assert first.read_bytes() == second.read_bytes()
    # Pinned, so that a change of the format is a decision and not an accident.
    data = first.read_bytes()
    assert data[:4] == b"PK\3\4"
    assert data[10:14] == b"\0\0\x21\0"


def test_the_written_file_follows_the_umask(small: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(small.stat().st_mode) == 0o666 & ~mask


def test_large_archives_use_64_bits(tmp_path: Path) -> None:
    from edgead.runtime.bundle.zip_archive import NewEntry, read_entries, write_entries

    contents = {"a": b"x" * 300, "b": b"y" * 50, "weights/c": b"z" * 500}
    path = tmp_path / "x.zip"
    with path.open("wb") as stream:
        entries = [NewEntry(n, len(d), zlib.crc32(d), lambda d=d: [d], 64) for n, d in contents.items()]  # type: ignore[misc]
        write_entries(stream, entries, zip64_from=100)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents
    with path.open("rb") as stream:
        found = read_entries(stream, "x")
        data = path.read_bytes()
        assert {n: data[e.offset : e.offset + e.size] for n, e in found.items()} == contents


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"../x": b""}, "unsafe"),
        ({"manifest.json": b""}, "reserved"),
        ({"A": b"", "a": b""}, "twice"),
        ({"é": b"", "e\u0301": b""}, "twice"),
        ({"model.fp32.onnx": None}, "model.fp32.onnx"),
        ({"x": Path("/does/not/exist")}, "cannot read"),
        ({f"references/{i}": b"" for i in range(5000)}, "members"),
    ],
)
def test_what_could_not_be_opened_is_not_written(
    tmp_path: Path, make_manifest: MakeManifest, files: dict[str, Any], word: str
) -> None:
    content = {name: data for name, data in {**SMALL, **files}.items() if data is not None}
    with pytest.raises(BundleError, match=word):
        write_bundle(tmp_path / "x.edgead", make_manifest(), content)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_more_than_1_mib_is_not_written(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with pytest.raises(BundleError, match="1 MiB"):
        write_bundle(tmp_path / "x.edgead", make_manifest(provenance={"x": "y" * (1 << 20)}), SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.zip", "x", "x.EDGEAD", ".edgead"])
def test_the_suffix_is_demanded(tmp_path: Path, make_manifest: MakeManifest, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.edgead"):
        write_bundle(tmp_path / name, make_manifest(), SMALL)


def test_a_missing_folder_is_named(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with pytest.raises(BundleError, match="there is no folder"):
        write_bundle(tmp_path / "no" / "x.edgead", make_manifest(), SMALL)


DISK_FULL = """
import sys
from pathlib import Path
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.errors import BundleError
from edgead.runtime.bundle.manifest import Manifest
if sys.argv[3] == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    manifest = Manifest.model_validate_json(Path(sys.argv[2]).read_bytes())
    write_bundle(sys.argv[1], manifest, {"model.fp32.onnx": bytes(1_000_000)})
except BundleError as error:
    print(error)
"""

# A file system of 200 kB, visible to this one process only; $0 is its folder, $1 the bundle in it.
SMALL_DISK = """
mount -t tmpfs -o size=200k none "$0" || exit 77
echo old > "$1"
"${@:2}"
ls -A "$0"
cat "$1"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, make_manifest: MakeManifest, how: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    path, manifest = disk / "x.edgead", tmp_path / "manifest.json"
    manifest.write_bytes(make_manifest().to_json())
    program = [sys.executable, "-c", DISK_FULL, str(path), str(manifest), how]
    if how == "limit":
        write_bundle(path, make_manifest(), SMALL)
        before = path.read_bytes()
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert path.read_bytes() == before
        assert names_in(disk) == ["x.edgead"]
    else:
        if not shutil.which("unshare"):
            pytest.skip("no unshare on this machine")
        mounted = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", SMALL_DISK, str(disk), str(path)]
        done = subprocess.run([*mounted, *program], capture_output=True, text=True)
        if not done.stdout:
            pytest.skip(f"this machine does not let a test mount a small file system: {done.stderr}")
        assert done.stdout.splitlines()[1:] == ["x.edgead", "old"]
        assert "No space left" in done.stdout
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert done.stderr == ""


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path, make_manifest: MakeManifest) -> None:
    # All sources are measured before the first is written: while the pipe is measured, the graph changes.
    graph, pipe = tmp_path / "graph", tmp_path / "pipe"
    graph.write_bytes(b"first")
    os.mkfifo(pipe)

    def change() -> None:
        with pipe.open("wb"):
            graph.write_bytes(b"other")

    changer = threading.Thread(target=change)
    changer.start()
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx changed while"):
        write_bundle(tmp_path / "x.edgead", make_manifest(), {"model.fp32.onnx": graph, "weights/pipe": pipe})
    changer.join()
    assert names_in(tmp_path) == ["graph", "pipe"]


# --- reading what is damaged -----------------------------------------------------------------------------------------


def test_a_bundle_cut_at_any_byte_is_refused(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    cut = tmp_path / "cut.edgead"
    cut.write_bytes(data)
    for length in range(len(data) - 1, -1, -1):
        os.truncate(cut, length)
        refused(cut)


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x20])
def test_no_flipped_byte_changes_what_is_loaded(small: Path, tmp_path: Path, mask: int) -> None:
    data = small.read_bytes()
    with Bundle.open(small) as bundle:
        manifest, content = bundle.manifest, content_of(bundle)
    damaged = tmp_path / "damaged.edgead"
    damaged.write_bytes(data)
    loaded = 0
    with damaged.open("r+b", buffering=0) as stream:
        for position, byte in enumerate(data):
            os.pwrite(stream.fileno(), bytes([byte ^ mask]), position)
            try:
                with Bundle.open(damaged) as bundle:
                    # Dates and the like in the headers are the only bytes without a meaning here.
                    assert (bundle.manifest, content_of(bundle)) == (manifest, content)
                    loaded += 1
            except BundleError as error:
                assert "\n" not in str(error)  # noqa: PT017
            os.pwrite(stream.fileno(), bytes([byte]), position)
    assert loaded < len(data) / 5


@pytest.mark.parametrize("where", ["before", "after", "between"])
def test_bytes_that_belong_to_nothing_are_refused(small: Path, tmp_path: Path, where: str) -> None:
    data = small.read_bytes()
    directory = data.index(b"PK\1\2")
    parts = {"before": (b"#!", data), "after": (data, b"\0"), "between": (data[:directory], b"junk", data[directory:])}
    path = tmp_path / "x.edgead"
    path.write_bytes(b"".join(parts[where]))
    refused(path)


def test_two_bundles_in_one_file_are_refused(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgead"
    path.write_bytes(small.read_bytes() * 2)
    refused(path, "damaged or unsafe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n", "not a bundle"),
        (b"<!DOCTYPE html>" * 9, "not a bundle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\5\6" + bytes(18), "not a bundle"),
    ],
)
def test_what_is_no_bundle_is_said_so(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.edgead"
    path.write_bytes(content)
    refused(path, words)


def test_what_is_no_file_is_said_so(tmp_path: Path) -> None:
    refused(tmp_path / "missing.edgead", "does not exist")
    refused(tmp_path, "folder")
    refused(tmp_path / "missing" / "x.edgead", "does not exist")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no plain file")
    refused(Path("/dev/null"), "no plain file")
    with pytest.raises(BundleError):
        Bundle.open("a\0b")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(loop, "cannot read")


# --- reading what is hostile -----------------------------------------------------------------------------------------


def raw_zip(members: list[dict[str, Any]], gap: bytes = b"") -> bytes:
    """A zip made by hand, so that it can lie: name, data, and where given size, flags, method, attributes, offset."""
    body, directory = b"", b""
    for member in members:
        name, data = member["name"], member.get("data", b"")
        size = member.get("size", len(data))
        narrow, crc = min(size, 0xFFFFFFFF), member.get("crc", zlib.crc32(data))
        extra = b""
        if narrow == 0xFFFFFFFF:
            extra = b"\1\0\x10\0" + 2 * size.to_bytes(8, "little")
        head = b"".join(
            value.to_bytes(width, "little")
            for value, width in (
                *((45, 2), (member.get("flags", 0), 2), (member.get("method", 0), 2), (0, 2), (33, 2), (crc, 4)),
                *((narrow, 4), (narrow, 4), (len(name), 2), (len(extra), 2)),
            )
        )
        attributes = member.get("attributes", 0).to_bytes(4, "little")
        offset = member.get("offset", len(body)).to_bytes(4, "little")
        directory += (
            b"PK\1\2\x2d\3" + head + bytes(8) + attributes[2:] + offset + name + extra
            if False
            else (b"PK\1\2\x2d\3" + head + bytes(6) + attributes + offset + name + extra)
        )
        body += b"PK\3\4" + head + member.get("local_name", name) + extra + data
    body += gap
    count = len(members).to_bytes(2, "little")
    sizes = len(directory).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    return body + directory + b"PK\5\6" + bytes(4) + count + count + sizes + bytes(2)


@pytest.fixture
def hostile(tmp_path: Path, make_manifest: MakeManifest) -> Callable[..., Path]:
    """A factory: an honest manifest for the honest content of ``listed``, then members with whatever properties."""

    def make(*members: dict[str, Any], listed: dict[str, bytes] | None = None, change: Any = None) -> Path:
        listed = {"model.fp32.onnx": b"graph"} if listed is None else listed
        content = json.loads(make_manifest().to_json())
        content["members"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in listed.items()
        }
        if change:
            change(content)
        first = {"name": b"manifest.json", "data": json.dumps(content).encode()}
        honest = [{"name": name.encode(), "data": data} for name, data in listed.items()]
        replaced = {member["name"] for member in members if not member.get("again")}
        path = tmp_path / "hostile.edgead"
        path.write_bytes(raw_zip([m for m in (first, *honest) if m["name"] not in replaced] + list(members)))
        return path

    return make


def test_the_hostile_factory_makes_good_bundles_too(hostile: Callable[..., Path]) -> None:
    with Bundle.open(hostile()) as bundle:
        assert content_of(bundle) == {"model.fp32.onnx": b"graph"}
    with zipfile.ZipFile(hostile()) as archive:
        assert archive.testzip() is None


GRAPH = {"name": b"model.fp32.onnx", "data": b"graph"}


@pytest.mark.parametrize(
    ("member", "word"),
    [
        ({"name": b"../evil"}, "unsafe"),
        ({"name": b"a/../../evil"}, "unsafe"),
        ({"name": b"/etc/cron.d/evil"}, "unsafe"),
        ({"name": b"C:\\evil"}, "unsafe"),
        ({"name": b"C:evil"}, "unsafe"),
        ({"name": b"a\0b"}, "unsafe"),
        ({"name": b"a//b"}, "unsafe"),
        ({"name": b""}, "unsafe"),
        ({"name": b"two\nlines"}, "unsafe"),
        ({"name": b"\xff\xfe", "flags": 0x800}, "not text"),
        ({"name": "ü".encode()}, "not text"),
        ({"name": b"folder/"}, "no plain file"),
        ({"name": b"folder", "attributes": 0x10}, "no plain file"),
        ({"name": b"extra.bin", "data": b"x"}, "not listed"),
        ({**GRAPH, "again": True}, "twice"),
        ({"name": b"Model.FP32.onnx", "data": b"graph"}, "twice"),
        ({"name": b"MANIFEST.json"}, "twice"),
        ({**GRAPH, "attributes": (stat.S_IFLNK | 0o777) << 16}, "no plain file"),
        ({**GRAPH, "attributes": (stat.S_IFIFO | 0o644) << 16}, "no plain file"),
        ({**GRAPH, "method": 8}, "compressed"),
        ({**GRAPH, "flags": 1}, "encrypted"),
        ({**GRAPH, "flags": 8}, "flags"),
        ({**GRAPH, "data": b"Graph"}, "SHA-256"),
        ({**GRAPH, "data": b"graph!"}, "size"),
        ({**GRAPH, "local_name": b"model.fp16.onnx"}, "disagree"),
        ({**GRAPH, "offset": 0}, "unaccounted"),
        ({**GRAPH, "size": 10 << 30}, "claims"),
        ({**GRAPH, "size": 0xFFFFFFF0}, "claims"),
        ({**GRAPH, "size": 100}, "damaged"),
        ({**GRAPH, "size": 1}, "damaged"),
        ({"name": b"signature.ed25519", "data": bytes(64)}, "signature"),
        ({"name": b"signature.ed25519", "data": b" " * (17 << 10)}, "allowed"),
        ({"name": b"manifest.json", "data": b" " * (2 << 20)}, "manifest.json"),
        ({"name": b"manifest.json", "data": b"{}", "crc": 1}, "checksum"),
    ],
)
def test_a_hostile_member_is_refused(hostile: Callable[..., Path], member: dict[str, Any], word: str) -> None:
    refused(hostile(member), word)


def test_a_claimed_size_is_refused_without_allocating_it(hostile: Callable[..., Path]) -> None:
    path = hostile({**GRAPH, "size": 10 << 30})
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_missing_member_is_refused(hostile: Callable[..., Path]) -> None:
    def list_more(content: dict[str, Any]) -> None:
        content["members"]["references/a.png"] = {"sha256": "0" * 64, "size": 1}

    refused(hostile(change=list_more), "references/a.png", "missing")
    refused(hostile(listed={}), "graph file", "missing")


def test_a_newer_format_is_said_so(hostile: Callable[..., Path]) -> None:
    refused(hostile(change=lambda content: content.update(format_version=2, more=1)), "newer edgead", "upgrade edgead")


def test_a_bundle_without_a_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.edgead"
    path.write_bytes(raw_zip([GRAPH]))
    refused(path, "manifest.json")


def test_a_thousand_times_too_many_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.edgead"
    path.write_bytes(raw_zip([{"name": b"%d" % index} for index in range(5000)]))
    refused(path, "5000 members")


def test_bytes_hidden_before_the_directory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.edgead"
    path.write_bytes(raw_zip([GRAPH], gap=b"hidden"))
    refused(path, "unaccounted")


def test_a_signature_is_no_ordinary_member(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with pytest.raises(BundleError, match="reserved"):
        write_bundle(tmp_path / "x.edgead", make_manifest(), {**SMALL, "signature.ed25519": bytes(64)})


# --- using it --------------------------------------------------------------------------------------------------------


def test_references_and_expected_results(make_bundle: MakeBundle, tiny_references: dict[str, bytes]) -> None:
    with Bundle.open(make_bundle()) as bundle:
        assert bundle.references() == sorted(tiny_references.items())
        expected = bundle.expected()
        assert expected["names"].tolist() == sorted(tiny_references)
        assert expected["score"].dtype == expected["map"].dtype == np.float32
        assert expected["map"].shape == (3, 4, 5)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("/tmp/edgead-pickle-was-run",))


def hostile_npz(kind: str) -> bytes:
    import io

    stream = io.BytesIO()
    names, score, grid = np.array(["a"]), np.zeros(1, np.float32), np.zeros((1, 2, 2), np.float32)
    if kind == "pickle":
        np.savez(stream, names=np.array([Evil()], dtype=object), score=score, map=grid)
    elif kind == "key":
        np.savez(stream, names=names, score=score)
    elif kind == "more":
        np.savez(stream, names=names, score=score, map=grid, more=grid)
    elif kind == "count":
        np.savez(stream, names=np.array(["a", "b"]), score=score, map=grid)
    elif kind == "same":
        np.savez(stream, names=np.array(["a", "a"]), score=np.zeros(2, np.float32), map=np.zeros((2, 1, 1), np.float32))
    elif kind == "dtype":
        np.savez(stream, names=names, score=score.astype(np.float64), map=grid)
    elif kind == "nan":
        np.savez(stream, names=names, score=score * np.nan, map=grid)
    elif kind == "shape":
        with zipfile.ZipFile(stream, "w") as archive:
            for key in ("names", "score", "map"):
                header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000,), }\n"
                archive.writestr(f"{key}.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    else:
        stream.write(b"no zip")
    return stream.getvalue()


def test_a_claimed_array_is_refused_without_allocating_it(make_bundle: MakeBundle) -> None:
    with Bundle.open(make_bundle(files={"references/expected.npz": hostile_npz("shape")})) as bundle:
        tracemalloc.start()
        with pytest.raises(BundleError, match="claims another size"):
            bundle.expected()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize("kind", ["pickle", "key", "more", "count", "same", "dtype", "nan", "shape", "junk"])
def test_hostile_expected_results_are_refused(make_bundle: MakeBundle, kind: str) -> None:
    with Bundle.open(make_bundle(files={"references/expected.npz": hostile_npz(kind)})) as bundle:
        with pytest.raises(BundleError, match=r"expected\.npz") as caught:
            bundle.expected()
        assert "\n" not in str(caught.value)
    assert not Path("/tmp/edgead-pickle-was-run").exists()


def test_numpy_savez_is_accepted(make_bundle: MakeBundle) -> None:
    import io

    stream = io.BytesIO()
    np.savez_compressed(stream, names=np.array(["a"]), score=np.ones(1, np.float32), map=np.ones((1, 2, 3), np.float32))
    with Bundle.open(make_bundle(files={"references/expected.npz": stream.getvalue()})) as bundle:
        assert bundle.expected()["map"].shape == (1, 2, 3)


def test_model_files_are_private_and_go_away(small: Path) -> None:
    with Bundle.open(small) as bundle, bundle.model_files("fp32") as model:
        bundle.close()
        assert model.read_bytes() == SMALL["model.fp32.onnx"]
        assert (model.parent / "weights" / "a.bin").read_bytes() == SMALL["weights/a.bin"]
        assert not (model.parent / "references").exists()
        assert stat.S_IMODE(model.parent.stat().st_mode) == 0o700
    assert not model.parent.exists()


def test_model_files_go_away_after_an_error(small: Path) -> None:
    with Bundle.open(small) as bundle:
        with pytest.raises(RuntimeError, match="boom"), bundle.model_files("fp32") as model:
            raise RuntimeError("boom")
        assert not model.parent.exists()
        with pytest.raises(ConfigError, match="fp32"), bundle.model_files("fp23"):
            pass


def test_routed_bundles_bring_their_heads(
    tmp_path: Path, make_manifest: MakeManifest, tiny_threshold: Threshold
) -> None:
    path = tmp_path / "x.edgead"
    category = {"n_train": 1, "threshold": tiny_threshold.to_dict(), "minimum_similarity": 0.5}
    manifest = make_manifest(
        graph="routed",
        precisions={"fp32": {"file": "router.fp32.onnx", "runtimes": ["onnxruntime"]}},
        categories={"plate": category, "tile": category},
    )
    files = {f"{name}.onnx": b"" for name in ("router.fp32", "head-plate.fp32", "head-tile.fp32", "head-tile.fp16")}
    write_bundle(path, manifest, files)
    with Bundle.open(path) as bundle, bundle.model_files("fp32") as model:
        graphs = sorted(p.name for p in model.parent.glob("*.onnx"))
        assert graphs == ["head-plate.fp32.onnx", "head-tile.fp32.onnx", "router.fp32.onnx"]


def test_a_file_that_changes_after_it_was_verified_is_not_used(tmp_path: Path, make_manifest: MakeManifest) -> None:
    graph = os.urandom(100_000)
    path, target = tmp_path / "x.edgead", tmp_path / "out"
    write_bundle(path, make_manifest(), {**SMALL, "model.fp32.onnx": graph})
    position = path.read_bytes().index(graph)
    with Bundle.open(path) as bundle:
        with path.open("r+b") as stream:
            stream.seek(position)
            stream.write(bytes(8))
        with pytest.raises(BundleError, match="SHA-256"):
            bundle.read("model.fp32.onnx")
        with pytest.raises(BundleError, match="SHA-256"):
            bundle.extract(target, ["weights/a.bin", "model.fp32.onnx"])
        assert [p for p in target.rglob("*") if p.is_file()] == []
        os.truncate(path, position)
        with pytest.raises(BundleError, match="shorter"):
            bundle.read("model.fp32.onnx")


def test_the_verified_file_is_used_even_where_another_takes_its_name(small: Path, make_manifest: MakeManifest) -> None:
    with Bundle.open(small) as bundle:
        write_bundle(small, make_manifest(), {"model.fp32.onnx": b"other"})
        assert content_of(bundle) == SMALL


def test_unknown_and_late_reads_are_refused(small: Path) -> None:
    bundle = Bundle.open(small)
    with pytest.raises(BundleError, match=r"no member 'x\.png'"):
        bundle.read("x.png")
    with pytest.raises(BundleError, match="no member"):
        bundle.read("manifest.json")
    bundle.close()
    bundle.close()
    with pytest.raises(BundleError, match="closed"):
        bundle.read("model.fp32.onnx")


def test_threads_may_read_together(tmp_path: Path, make_manifest: MakeManifest) -> None:
    files = {f"references/{index}.png": os.urandom(3 << 20) for index in range(3)}
    path = tmp_path / "x.edgead"
    write_bundle(path, make_manifest(), {**SMALL, **files})
    seen: dict[str, bytes] = {}
    with Bundle.open(path) as bundle:
        readers = [threading.Thread(target=lambda n=n: seen.update({n: bundle.read(n)})) for n in files]  # type: ignore[misc]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert seen == files


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgead.runtime import scratch

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "import sys, time, tempfile\nfrom edgead.runtime.scratch import private_directory\n" + (
        "with private_directory() as folder:\n    print(folder, flush=True)\n    time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    folders, processes = [], []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    stranger = tmp_path / "edgead-notes"
    stranger.mkdir()
    try:
        processes[0].kill()
        processes[0].wait()
        with scratch.private_directory():
            assert folders[0].exists(), "one that is seconds old may be on its way to take its lock"
        for folder in (*folders, stranger):
            os.utime(folder, (1e9, 1e9))
        with scratch.private_directory() as mine:
            assert not folders[0].exists()
            assert folders[1].exists()
            assert stranger.exists()
            assert mine.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# --- another manifest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_the_manifest_can_be_replaced(small: Path, tmp_path: Path, in_place: bool) -> None:
    out = small if in_place else tmp_path / "new.edgead"
    with Bundle.open(small) as bundle:
        manifest, sha256 = bundle.manifest, bundle.sha256
    threshold = type(manifest.threshold).from_threshold(Threshold(1.5, 0.02, 40, 0.0, 0.1, False))
    replace_manifest(small, out, manifest.model_copy(update={"threshold": threshold}))
    with Bundle.open(out) as bundle:
        assert bundle.manifest.threshold.value == 1.5
        assert bundle.manifest.members == manifest.members
        assert content_of(bundle) == SMALL
        assert bundle.sha256 != sha256
    again = tmp_path / "again.edgead"
    write_bundle(again, bundle.manifest, SMALL)
    assert again.read_bytes() == out.read_bytes()


def test_replacing_keeps_the_old_file_on_failure(small: Path, tmp_path: Path, make_manifest: MakeManifest) -> None:
    before = small.read_bytes()
    wrong = make_manifest(precisions={"fp16": {"file": "model.fp16.onnx", "runtimes": []}})
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx"):
        replace_manifest(small, small, wrong)
    with pytest.raises(ConfigError):
        replace_manifest(small, tmp_path / "x.zip", make_manifest())
    with pytest.raises(BundleError, match="does not exist"):
        replace_manifest(tmp_path / "no.edgead", small, make_manifest())
    assert small.read_bytes() == before
    assert names_in(tmp_path) == [small.name]
