"""Signed bundles: whose are opened where a trust file holds, and in which of all commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from edgead.runtime import Inspector
from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.signature import key_id, parse_signature
from edgead.runtime.bundle.trust import TRUST_VARIABLE, TrustedKey, add_key, read_trust, trusting
from edgead.runtime.bundle.writing import replace_manifest, sign_bundle
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.signing import Signer, make_key

pytest.importorskip("cryptography")

MakeBundle = Callable[..., Path]


class Keys:
    """Private keys and a trust file in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trust = folder, folder / "trust.json"

    def make(self, name: str, **period: str) -> Path:
        path = self.stranger(name)
        add_key(self.trust, TrustedKey(name=name, public_key=Signer(path).public, **period))
        return path

    def stranger(self, name: str) -> Path:
        make_key(self.folder / f"{name}.key")
        return self.folder / f"{name}.key"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    (tmp_path / "keys").mkdir()
    return Keys(tmp_path / "keys")


def sign(path: Path, key: Path) -> Path:
    sign_bundle(path, path, Signer(key))
    return path


def rewritten(path: Path, out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive again with other contents, as anybody with zipfile can make it."""
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(members)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out


def refused(path: Path, trust: Path, *words: str) -> str:
    with trusting(trust), pytest.raises(BundleError) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


def test_what_a_trusted_key_signed_is_opened_and_nothing_else(keys: Keys, make_bundle: MakeBundle) -> None:
    key, bundle = keys.make("plant 1"), make_bundle()
    refused(bundle, keys.trust, "not signed", "edgead sign")
    with Bundle.open(bundle) as opened:
        before = opened.sha256
    sign(bundle, key)
    with trusting(keys.trust), Bundle.open(bundle) as opened:
        assert opened.signer is not None
        assert opened.signer.name == "plant 1"
        assert opened.sha256 == before  # a signature changes no decision, and no name of what decided
    with Bundle.open(bundle) as opened:  # where nothing is asked for, a signature is no hindrance
        assert opened.signer is None
        assert opened.signature is not None
    refused(sign(make_bundle("other.edgead"), keys.stranger("stranger")), keys.trust, "nobody", "knows")


def test_a_changed_manifest_or_member_does_not_pass_under_the_old_signature(
    keys: Keys, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = sign(make_bundle(), keys.make("plant 1"))

    def other_threshold(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["threshold"]["value"] = 1e9  # nothing would ever be rejected again
        members["manifest.json"] = json.dumps(manifest).encode()

    def one_space(members: dict[str, bytes]) -> None:
        members["manifest.json"] += b" "

    def other_weights(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.startswith("weights/"))
        members[name] = bytes(len(members[name]))

    def no_signature(members: dict[str, bytes]) -> None:
        del members["signature.ed25519"]

    out = tmp_path / "changed.edgead"
    for change in (other_threshold, one_space):
        refused(rewritten(bundle, out, change), keys.trust, "plant 1", "altered")
    refused(rewritten(bundle, out, other_weights), keys.trust, "SHA-256")
    refused(rewritten(bundle, out, no_signature), keys.trust, "not signed")
    with trusting(keys.trust), Bundle.open(rewritten(bundle, out, lambda _: None)):
        pass  # the same members in another archive are the same bundle


def test_a_signature_of_another_bundle_or_of_another_thing_does_not_fit(
    keys: Keys, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    key = keys.make("plant 1")
    first, second = (
        sign(make_bundle(), key),
        sign(make_bundle("second.edgead", detector={"name": "padim", "settings": {}}), key),
    )
    with zipfile.ZipFile(first) as archive:
        taken = archive.read("signature.ed25519")

    def exchange(members: dict[str, bytes]) -> None:
        members["signature.ed25519"] = taken

    def bare(members: dict[str, bytes]) -> None:
        # The manifest alone, as a key that is also used elsewhere might be made to sign it.
        made = {
            "algorithm": "ed25519",
            "key_id": key_id(Signer(key).public),
            "signature": Signer(key).sign(members["manifest.json"]),
        }
        members["signature.ed25519"] = json.dumps({"format": "edgead.signature/1", "signatures": [made]}).encode()

    for change in (exchange, bare):
        refused(rewritten(second, tmp_path / "mixed.edgead", change), keys.trust, "altered")


def test_a_key_holds_in_its_time_only(keys: Keys, make_bundle: MakeBundle) -> None:
    def at(days: float) -> str:
        return (datetime.now(timezone.utc) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")

    old = keys.make("old", valid_until=at(-1))
    later = keys.make("later", valid_from=at(1))
    now = keys.make("now", valid_from=at(-1), valid_until=at(1))
    refused(sign(make_bundle("old.edgead"), old), keys.trust, "'old' was valid until", "clock")
    refused(sign(make_bundle("later.edgead"), later), keys.trust, "'later' is valid only from", "clock")
    rotated = sign(sign(make_bundle("both.edgead"), old), now)  # signed again; the old signature stays beside
    with trusting(keys.trust), Bundle.open(rotated) as opened:
        assert opened.signer is not None
        assert opened.signer.name == "now"
        assert opened.signature is not None
        assert len(opened.signature.signatures) == 2
    sign(rotated, now)
    with Bundle.open(rotated) as opened:
        assert opened.signature is not None
        assert len(opened.signature.signatures) == 2  # one a key


def test_another_manifest_has_no_signature(keys: Keys, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle, out = sign(make_bundle(), keys.make("plant 1")), tmp_path / "new.edgead"
    with trusting(keys.trust):
        with Bundle.open(bundle) as opened:
            manifest = opened.manifest.model_copy(update={"name": "changed"})
        replace_manifest(bundle, out, manifest)
        with Bundle.open(out, made_here=True) as opened:
            assert opened.signature is None
    refused(out, keys.trust, "not signed")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "edgead.trust/1", "keys": []}',
        '{"format": "edgead.trust/2", "keys": [{"name": "a", "public_key": "%064d"}]}',
        '{"format": "edgead.trust/1", "keys": [{"name": "a", "public_key": "12"}]}',
        '{"format": "edgead.trust/1", "keys": [{"name": "a", "public_key": "%064d", "valid_until": "soon"}]}',
        '{"format": "edgead.trust/1", "keys": [{"name": "a", "public_key": "%064d", "unknown": 1}]}',
        '{"format": "edgead.trust/1", "keys": [{"name": "a", "public_key": "%064d"}, '
        '{"name": "a", "public_key": "%064d"}]}',
        "[" * 100000,
    ],
)
def test_a_damaged_trust_file_trusts_nobody(keys: Keys, make_bundle: MakeBundle, text: str, tmp_path: Path) -> None:
    bundle = sign(make_bundle(), keys.make("plant 1"))
    damaged = tmp_path / "damaged.json"
    damaged.write_text(text.replace("%064d", "0" * 64))
    with pytest.raises(ConfigError, match="no trust file"):
        read_trust(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUST_VARIABLE, str(damaged))
        with pytest.raises(ConfigError, match="no trust file"):
            Bundle.open(bundle)
        patch.setenv(TRUST_VARIABLE, str(tmp_path / "missing.json"))
        with pytest.raises(ConfigError, match="cannot read the trust file"):
            Bundle.open(bundle)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"[" * 10000, b"\xff", b'{"format": "edgead.signature/2"}'])
def test_a_damaged_signature_is_one_line(data: bytes) -> None:
    with pytest.raises(BundleError, match="damaged or of a newer edgead"):
        parse_signature(data, "x.edgead")


@pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")
def test_an_inspector_swaps_to_signed_bundles_only_and_tests_itself_after_its_key_ran_out(
    keys: Keys, make_bundle: MakeBundle
) -> None:
    key = keys.make("plant 1")
    bundle, other = sign(make_bundle(), key), make_bundle("other.edgead", detector={"name": "padim", "settings": {}})
    with trusting(keys.trust), Inspector.open(bundle, backend="onnxruntime") as inspect:
        with pytest.raises(BundleError, match="not signed"):
            inspect.swap(other)
        assert inspect.bundle is not None
        assert inspect.bundle[0] == bundle
        inspect.swap(sign(other, key))
        assert inspect.bundle[0] == other
        ended = read_trust(keys.trust).keys[0].model_copy(update={"valid_until": "2020-01-01"})
        keys.trust.unlink()
        add_key(keys.trust, ended)
        assert inspect.self_test() == []  # the line goes on; what is opened anew is refused
        with pytest.raises(BundleError, match="was valid until"):
            inspect.swap(other)


# On the command line


def edgead(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "edgead", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def one_line(done: subprocess.CompletedProcess[str], word: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert word in lines[0]


def test_keygen_makes_a_key_that_only_its_owner_reads_and_never_replaces_one(keys: Keys) -> None:
    path = keys.folder / "release.key"
    done = edgead("keygen", path, "--add-to", keys.trust, "--until", "2090-01-01", "--json")
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    (trusted,) = read_trust(keys.trust).keys
    assert (trusted.name, trusted.valid_until) == ("release", "2090-01-01")
    assert json.loads(done.stdout)["key_id"] == key_id(trusted.public_key)
    content = path.read_bytes()
    one_line(edgead("keygen", path), "never replaced")
    one_line(edgead("keygen", keys.folder / "b.key", "--until", "soon"), "no time")
    one_line(edgead("keygen", keys.folder / "b.key", "--name", "release", "--add-to", keys.trust), "already")
    assert path.read_bytes() == content
    assert not (keys.folder / "b.key").exists()


@pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")
def test_each_command_that_opens_a_bundle_asks_for_the_signature(
    keys: Keys, make_bundle: MakeBundle, tiny_references: dict[str, bytes], tmp_path: Path
) -> None:
    bundle, images = make_bundle(), tmp_path / "images"
    for kind in ("good", "scratch"):
        (images / "test" / kind).mkdir(parents=True)
    (images / "train" / "good").mkdir(parents=True)
    for name, data in tiny_references.items():
        for place in ("test/good", "test/scratch", "train/good"):
            (images / place / name).write_bytes(data)
        for kind in ("good", "scratch"):
            (tmp_path / "study" / kind / name).mkdir(parents=True)
            (tmp_path / "study" / kind / name / name).write_bytes(data)
    key = keys.folder / "release.key"
    assert edgead("keygen", key, "--add-to", keys.trust).returncode == 0
    commands: list[list[Any]] = [
        ["run", bundle, "--source", images / "test" / "good"],
        ["check", bundle],
        ["bench", bundle, "--frames", "1"],
        ["calibrate", bundle, "--source", images / "test" / "good", "-o", tmp_path / "new.edgead"],
        ["signoff", bundle, tmp_path / "study", "-o", tmp_path / "s.html"],
        ["tune", bundle, "--normals", images / "test" / "good", "--budget-ms", "100"],
        ["eval", bundle, images],
        ["report", bundle, images, "-o", tmp_path / "r.html"],
    ]
    for command in commands:
        one_line(edgead(*command, "--trust", keys.trust), "is not signed")
    # Two by the environment, too; the rest is the same mechanism.
    one_line(edgead(*commands[1], EDGEAD_TRUST=str(keys.trust)), "is not signed")
    one_line(edgead(*commands[1], EDGEAD_TRUST=str(tmp_path / "none.json")), "cannot read the trust file")
    assert not (tmp_path / "new.edgead").exists()

    signed = edgead("sign", bundle, "--key", key)
    assert signed.returncode == 0, signed.stderr
    for command in commands[:4]:
        done = edgead(*command, "--trust", keys.trust)
        assert done.returncode == 0, done.stderr
    assert "not signed" in edgead("check", tmp_path / "new.edgead", "--trust", keys.trust).stderr
    shutil.copyfile(bundle, tmp_path / "altered.edgead")
    data = bytearray(bundle.read_bytes())
    data[data.index(b'"value"') + 9 : data.index(b'"value"') + 10] = b"9"
    (tmp_path / "altered.edgead").write_bytes(data)
    done = edgead("check", tmp_path / "altered.edgead", "--trust", keys.trust)
    one_line(done, "")


def test_without_the_library_the_pip_command_is_said_and_nothing_is_opened(
    keys: Keys, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = sign(make_bundle(), keys.make("plant 1"))
    (tmp_path / "lacking" / "cryptography").mkdir(parents=True)
    (tmp_path / "lacking" / "cryptography" / "__init__.py").write_text("raise ImportError('no')\n")
    import os

    path = os.pathsep.join([str(tmp_path / "lacking"), os.environ.get("PYTHONPATH", "")])
    one_line(edgead("check", bundle, "--trust", keys.trust, PYTHONPATH=path), "pip install 'edgead[sign]'")
    code = (
        "import sys; from edgead.runtime import Inspector; print(sorted(m for m in ('tuf', 'cryptography', "
        "'securesystemslib') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
