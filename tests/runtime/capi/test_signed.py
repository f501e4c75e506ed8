"""Signed bundles: what Python opens under a trust file libedgead opens, and refuses the rest with the same line."""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from ctypes import byref, c_uint64
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.signature import FORMAT, MAX_SIGNATURE_BYTES, key_id, parse_signature, signed_message
from edgead.runtime.bundle.trust import TRUST_VARIABLE, add_key, read_trust, trusting
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.signing import Signer
from tests.runtime import test_signature
from tests.runtime.capi.building import run
from tests.runtime.capi.languages import build_program
from tests.runtime.capi.wrapper import CError, Library, Options, frame_of, wheel_library
from tests.runtime.test_signature import Keys, edgead, rewritten, sign

pytest.importorskip("cryptography")
pytest.importorskip("onnxruntime")

MakeBundle = Callable[..., Path]
_SIGNED = [
    "test_what_a_trusted_key_signed_is_opened_and_nothing_else",
    "test_a_changed_manifest_or_member_does_not_pass_under_the_old_signature",
    "test_a_signature_of_another_bundle_or_of_another_thing_does_not_fit",
    "test_a_key_holds_in_its_time_only",
    "test_a_damaged_trust_file_trusts_nobody",
    "test_a_damaged_signature_is_one_line",
]
globals().update({name: getattr(test_signature, name) for name in [*_SIGNED, "keys"]})
_open = Bundle.open.__func__  # type: ignore[attr-defined]


def plain(line: str) -> str:
    """A line without the second of the clock, and without what a JSON library says of where it stopped."""
    line = re.sub(r"this machine says [-0-9T:]+Z", "this machine says now", line)
    return re.sub(r"is no trust file \(.*\); edgead keygen", "is no trust file; edgead keygen", line)


class Verdict(NamedTuple):
    """What libedgead said: OPENED or the name of its code, and the line."""

    status: str
    line: str


def python_says(path: Path) -> str:
    try:
        with _open(Bundle, path):
            return "opened"
    except (BundleError, ConfigError) as error:
        return str(error)


def c_says(capi: Library, path: Path, trust: Path | str | None = None) -> Verdict:
    try:
        capi.open(path, trust=trust).close()
    except CError as error:
        return Verdict(error.status, error.message)
    return Verdict("OPENED", "opened")


def compare(capi: Library, path: Path) -> Verdict:
    """Hold what both say of a file against each other, under the trust file that $EDGEAD_TRUST names."""
    found = c_says(capi, path)
    assert plain(found.line) == plain(python_says(path))
    assert "\n" not in found.line
    return found


@pytest.fixture(autouse=True)
def _on_both(
    request: pytest.FixtureRequest, capi: Library, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Make the tests of the other file open whatever they open, or parse, with both."""
    compared = []

    def opened(cls: type[Bundle], path: str | Path, **how: Any) -> Bundle:
        if not how.get("made_here"):
            compared.append(compare(capi, Path(path)))
        return _open(cls, path, **how)  # type: ignore[no-any-return]

    def parsed(data: bytes) -> Any:
        bundle = make_bundle("around.edgead")
        compared.append(compare(capi, with_signature(bundle, data)))
        return parse_signature(data, "x.edgead")

    monkeypatch.setattr(Bundle, "open", classmethod(opened))
    monkeypatch.setattr(test_signature, "parse_signature", lambda data, _: parsed(data))
    yield
    assert compared or request.node.originalname not in _SIGNED


def with_signature(bundle: Path, data: bytes) -> Path:
    """The bundle beside itself, with another signature member."""
    return rewritten(
        bundle, bundle.with_name(f"signed-{bundle.name}"), lambda members: members.update({"signature.ed25519": data})
    )


# --- trust files and signature members, one case a row: what libedgead's code must be; the line is Python's ---

KEY = {"name": "plant 1", "public_key": "PUBLIC"}


def trust_text(*keys: dict[str, Any], **more: Any) -> str:
    return json.dumps({"format": "edgead.trust/1", "keys": list(keys) or [KEY], **more})


def in_days(days: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def others(count: int) -> list[dict[str, Any]]:
    return [{"name": f"n{index}", "public_key": f"{index:064x}"} for index in range(count)]


GOOD_TRUST = {
    "as keygen writes it": trust_text(),
    "all fields": trust_text(
        {**KEY, "algorithm": "ed25519", "valid_from": None, "valid_until": "9999-12-31T23:59:59Z"}
    ),
    "a leap day": trust_text({**KEY, "valid_from": "2024-02-29"}),
    "the first day": trust_text({**KEY, "valid_from": "0001-01-01"}),
    "from a moment ago": trust_text({**KEY, "valid_from": in_days(-0.001)}),
    "as many keys as may be": trust_text(*others(999), KEY),
    "a long name": trust_text({**KEY, "name": "ü" * 200}),
    "a byte-order mark": "\ufeff" + trust_text(),
}
UNTRUSTED = {
    "another key": trust_text(*others(2)),
    "ended": trust_text({**KEY, "valid_until": in_days(-0.001)}),
    "not begun": trust_text({**KEY, "valid_from": in_days(0.5)}),
    "ended in a leap year": trust_text({**KEY, "valid_until": "2000-02-29T23:59:59Z"}),
    "ended long ago": trust_text({**KEY, "valid_until": "0001-01-01"}),
    "never begins": trust_text({**KEY, "valid_from": "9999-12-31"}),
    "ends before it begins": trust_text({**KEY, "valid_from": in_days(1), "valid_until": in_days(-1)}),
}
TIMES = ["", "2028", "2028-1-1", "2028-01-01T12:00Z", "2028-01-01T12:00:00", "2028-01-01t12:00:00z", "2028-01-01 "]
TIMES += [
    "2028-02-30",
    "2027-02-29",
    "1900-02-29",
    "0000-01-01",
    "2028-13-01",
    "2028-00-01",
    "2028-01-00",
    "2028-04-31",
]
TIMES += [
    "2028-01-01T24:00:00Z",
    "2028-01-01T00:60:00Z",
    "2028-01-01T00:00:60Z",
    "2028-01- 1",
    "-028-01-01",
    "２028-01-01",
]
TIMES += ["so\non", "x" * 50, "it's", "2028-01-01T12:00:00+00:00", "20280101", "2028-01-01\x00"]
NO_TRUST = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "1",
    "no field": "{}",
    "no format": json.dumps({"keys": [KEY]}),
    "another format": trust_text(format="edgead.trust/2"),
    "a format that is none": trust_text(format=1),
    "no keys": json.dumps({"format": "edgead.trust/1"}),
    "an empty list": trust_text(keys=[]),
    "an object for a list": trust_text(keys={}),
    "keys that are none": trust_text(keys=[KEY, 1]),
    "too many keys": trust_text(*others(1001)),
    "more than the format has": trust_text(comment="x"),
    "more than a key has": trust_text({**KEY, "comment": "x"}),
    "a key without a name": trust_text({"public_key": "PUBLIC"}),
    "a name that is none": trust_text({**KEY, "name": 1}),
    "an empty name": trust_text({**KEY, "name": ""}),
    "too long a name": trust_text({**KEY, "name": "ü" * 201}),
    "a name of two lines": trust_text({**KEY, "name": "a\nb"}),
    "another algorithm": trust_text({**KEY, "algorithm": "rsa"}),
    "no algorithm": trust_text({**KEY, "algorithm": None}),
    "no key": trust_text({"name": "a"}),
    "a short key": trust_text({**KEY, "public_key": "12"}),
    "a key in capitals": trust_text({**KEY, "public_key": "A" * 64}),
    "a key and a line feed": trust_text({**KEY, "public_key": "0" * 64 + "\n"}),
    "a key twice": trust_text(KEY, {**KEY, "name": "b"}),
    "a name twice": trust_text(KEY, {**KEY, "public_key": "0" * 64}),
    "a field twice": trust_text().replace('"name"', '"name": "b", "name"'),
    "a format twice": trust_text().replace('"format"', '"format": "edgead.trust/0", "format"'),
    "behind its end": trust_text() + "x",
    "deep": "[" * 100000,
    "too large": trust_text() + " " * (1 << 20),
    **{f"the time {time!r}": trust_text({**KEY, "valid_until": time}) for time in TIMES},
}
TRUST_FILES = [
    *((name, text, "OPENED") for name, text in GOOD_TRUST.items()),
    *((name, text, "BUNDLE_UNTRUSTED") for name, text in UNTRUSTED.items()),
    *((name, text, "TRUST_FILE") for name, text in NO_TRUST.items()),
]


@pytest.mark.parametrize(("text", "status"), [row[1:] for row in TRUST_FILES], ids=[row[0] for row in TRUST_FILES])
def test_each_trust_file_is_judged_alike(
    capi: Library, keys: Keys, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, text: str, status: str
) -> None:
    key = keys.stranger("release")
    bundle = sign(make_bundle(), key)
    keys.trust.write_text(text.replace("PUBLIC", Signer(key).public), encoding="utf-8")
    monkeypatch.setenv(TRUST_VARIABLE, str(keys.trust))
    found = compare(capi, bundle)
    assert found.status == status
    monkeypatch.delenv(TRUST_VARIABLE)
    asked = c_says(capi, bundle, keys.trust)  # as an option of this one call
    assert (asked.status, plain(asked.line)) == (status, plain(found.line))
    assert c_says(capi, bundle).status == "OPENED"  # nobody asks


class Member(NamedTuple):
    """Makes signature members: of one signer, over a manifest."""

    signer: Signer
    manifest: bytes

    def one(self, **changes: Any) -> dict[str, Any]:
        made = {"algorithm": "ed25519", "key_id": key_id(self.signer.public)}
        return {**made, "signature": self.signer.sign(signed_message(self.manifest)), **changes}

    def file(self, *signatures: Any, **changes: Any) -> bytes:
        return json.dumps({"format": FORMAT, "signatures": list(signatures) or [self.one()], **changes}).encode()

    def stranger(self, number: int) -> dict[str, Any]:
        return self.one(key_id=f"{number:064x}")

    def flipped(self, digit: int) -> bytes:
        signature = self.one()["signature"]
        other = "0" if signature[digit] != "0" else "1"
        return self.file(self.one(signature=signature[:digit] + other + signature[digit + 1 :]))


SIGNATURES: list[tuple[str, str, Callable[[Member], bytes | None]]] = [
    ("right", "OPENED", lambda m: m.file()),
    ("beside strangers", "OPENED", lambda m: m.file(*(m.stranger(n) for n in range(7)), m.one())),
    ("none", "BUNDLE_UNTRUSTED", lambda _: None),
    ("strangers", "BUNDLE_UNTRUSTED", lambda m: m.file(m.stranger(1), m.stranger(2))),
    ("first digit", "BUNDLE_UNTRUSTED", lambda m: m.flipped(0)),
    ("last digit", "BUNDLE_UNTRUSTED", lambda m: m.flipped(127)),
    ("middle", "BUNDLE_UNTRUSTED", lambda m: m.flipped(64)),
    ("zeros", "BUNDLE_UNTRUSTED", lambda m: m.file(m.one(signature="0" * 128))),
    ("ones", "BUNDLE_UNTRUSTED", lambda m: m.file(m.one(signature="f" * 128))),
    ("of the bare manifest", "BUNDLE_UNTRUSTED", lambda m: m.file(m.one(signature=m.signer.sign(m.manifest)))),
    ("empty", "BUNDLE_SIGNED", lambda _: b""),
    ("64 bytes", "BUNDLE_SIGNED", lambda _: bytes(64)),
    ("no UTF-8", "BUNDLE_SIGNED", lambda _: b"\xff"),
    ("UTF-16", "BUNDLE_SIGNED", lambda m: m.file().decode().encode("utf-16")),
    ("a byte-order mark", "BUNDLE_SIGNED", lambda m: codecs.BOM_UTF8 + m.file()),
    ("a list", "BUNDLE_SIGNED", lambda _: b"[1]"),
    ("deep", "BUNDLE_SIGNED", lambda _: b"[" * 10000),
    ("another format", "BUNDLE_SIGNED", lambda m: m.file(format="edgead.signature/2")),
    ("one more field", "BUNDLE_SIGNED", lambda m: m.file(comment="x")),
    ("one more field within", "BUNDLE_SIGNED", lambda m: m.file(m.one(comment="x"))),
    ("no signature", "BUNDLE_SIGNED", lambda m: m.file(signatures=[])),
    ("nine", "BUNDLE_SIGNED", lambda m: m.file(m.one(), *(m.stranger(n) for n in range(8)))),
    ("a key twice", "BUNDLE_SIGNED", lambda m: m.file(m.one(), m.one())),
    ("another algorithm", "BUNDLE_SIGNED", lambda m: m.file(m.one(algorithm="rsa"))),
    ("no algorithm", "BUNDLE_SIGNED", lambda m: m.file({k: v for k, v in m.one().items() if k != "algorithm"})),
    ("short", "BUNDLE_SIGNED", lambda m: m.file(m.one(signature="12"))),
    ("capitals", "BUNDLE_SIGNED", lambda m: m.file(m.one(signature="A" * 128))),
    ("a field twice", "BUNDLE_SIGNED", lambda m: m.file().replace(b'"format"', b'"format": "x", "format"')),
    ("too large", "BUNDLE_DAMAGED", lambda m: m.file() + b" " * MAX_SIGNATURE_BYTES),
]


@pytest.mark.parametrize(("status", "make"), [row[1:] for row in SIGNATURES], ids=[row[0] for row in SIGNATURES])
def test_each_signature_is_judged_alike(
    capi: Library, keys: Keys, make_bundle: MakeBundle, status: str, make: Callable[[Member], bytes | None]
) -> None:
    signer, bundle = Signer(keys.make("plant 1")), make_bundle()
    with zipfile.ZipFile(bundle) as archive:
        data = make(Member(signer, archive.read("manifest.json")))
    path = bundle if data is None else with_signature(bundle, data)
    with trusting(keys.trust):
        assert compare(capi, path).status == status
    # Without a trust file its form alone is looked at.
    assert compare(capi, path).status == ("OPENED" if status in ("OPENED", "BUNDLE_UNTRUSTED") else status)


def test_a_file_that_cannot_be_read_trusts_nobody(
    capi: Library, keys: Keys, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = sign(make_bundle(), keys.make("plant 1"))
    (tmp_path / "folder").mkdir()
    for trust in (tmp_path / "missing.json", tmp_path / "folder", keys.trust / "within"):
        monkeypatch.setenv(TRUST_VARIABLE, str(trust))
        assert compare(capi, bundle).status == "TRUST_FILE"
    os.mkfifo(tmp_path / "pipe")  # Python would wait for somebody to write, and a camera loop must not
    found = c_says(capi, bundle, tmp_path / "pipe")
    assert found == ("TRUST_FILE", f"cannot read the trust file {tmp_path / 'pipe'}: it is no plain file")
    keys.trust.write_bytes(keys.trust.read_text().encode("utf-16"))
    assert "no UTF-8" in c_says(capi, bundle, keys.trust).line  # Python alone reads UTF-16


@pytest.mark.parametrize(
    "change", [{"valid_from": float("nan")}, {"name": "\ud800"}], ids=["a constant", "a surrogate"]
)
def test_what_only_python_takes_for_json_is_refused_by_both(
    capi: Library, keys: Keys, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    key = keys.stranger("release")
    keys.trust.write_text(trust_text({**KEY, "public_key": Signer(key).public, **change}))
    monkeypatch.setenv(TRUST_VARIABLE, str(keys.trust))
    bundle = sign(make_bundle(), key)
    assert "is no trust file" in python_says(bundle)
    assert c_says(capi, bundle).status == "TRUST_FILE"


def test_what_nobody_signed_is_refused_before_its_manifest_is_parsed(
    capi: Library, keys: Keys, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    keys.make("plant 1")
    broken = rewritten(
        make_bundle(), tmp_path / "broken.edgead", lambda members: members.update({"manifest.json": b"[]"})
    )
    assert compare(capi, broken).status == "BUNDLE_MANIFEST"
    with trusting(keys.trust):
        assert compare(capi, broken).status == "BUNDLE_UNTRUSTED"
        assert compare(capi, tmp_path / "no.edgead").status == "BUNDLE_MISSING"


def test_the_option_counts_before_the_environment_and_an_empty_one_is_refused(
    capi: Library, keys: Keys, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Keys(tmp_path / "keys" / "other")
    other.folder.mkdir()
    other.make("another plant")
    bundle = sign(make_bundle(), keys.make("plant 1"))
    monkeypatch.setenv(TRUST_VARIABLE, str(other.trust))
    assert c_says(capi, bundle).status == "BUNDLE_UNTRUSTED"
    assert c_says(capi, bundle, keys.trust).status == "OPENED"
    assert c_says(capi, bundle, "").status == "WRONG_OPTION"
    monkeypatch.setenv(TRUST_VARIABLE, str(keys.trust))
    assert c_says(capi, bundle, other.trust).status == "BUNDLE_UNTRUSTED"
    monkeypatch.setenv(TRUST_VARIABLE, "")  # as Python takes it: none
    assert c_says(capi, make_bundle("unsigned.edgead")).status == "OPENED"


def test_a_program_compiled_before_the_option_was_there_is_served(
    capi: Library, keys: Keys, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, handle = sign(make_bundle(), keys.make("plant 1")), c_uint64()
    options = Options(Options.trust.offset, 1, 0, 0, None, None, str(wheel_library()).encode())
    # What lies behind its struct is not looked at: read, it would name a file that is not there.
    options.trust = b"/no/such.json"
    capi.require(capi.raw.edgead_open(str(bundle).encode(), byref(options), byref(handle)))
    capi.require(capi.raw.edgead_close(handle.value))
    monkeypatch.setenv(TRUST_VARIABLE, str(keys.folder / "missing.json"))
    status = capi.raw.edgead_open(str(bundle).encode(), byref(options), byref(handle))
    assert capi.name(status) == "TRUST_FILE"
    # A program that names no options asks, too.
    assert capi.name(capi.raw.edgead_open(str(bundle).encode(), None, byref(handle))) == "TRUST_FILE"


def test_a_line_goes_on_after_its_key_ended_and_takes_no_other_bundle(
    capi: Library, keys: Keys, make_bundle: MakeBundle
) -> None:
    bundle = sign(make_bundle(), keys.make("plant 1"))
    with capi.open(bundle, trust=keys.trust) as inspector:
        ended = read_trust(keys.trust).keys[0].model_copy(update={"valid_until": "2020-01-01"})
        keys.trust.unlink()
        add_key(keys.trust, ended)
        inspector.check()
        assert "was valid until 2020-01-01" in c_says(capi, bundle, keys.trust).line
        make_bundle("other.edgead", detector={"name": "padim", "settings": {}}).replace(bundle)
        with pytest.raises(CError, match=r"BUNDLE_ALTERED.*not the bundle that was opened"):
            inspector.check()


def test_what_the_commands_make_and_sign_is_opened_and_judges(
    capi: Library, keys: Keys, make_bundle: MakeBundle
) -> None:
    bundle, key = make_bundle(), keys.folder / "release.key"
    assert edgead("keygen", key, "--name", "plant 1", "--until", "2090-01-01", "--add-to", keys.trust).returncode == 0
    assert c_says(capi, bundle, keys.trust).status == "BUNDLE_UNTRUSTED"
    done = edgead("sign", bundle, "--key", key)
    assert done.returncode == 0, done.stderr
    with capi.open(bundle, trust=keys.trust) as inspector:
        image = np.full((31, 45, 3), 100, np.uint8)
        assert inspector.inspect(frame_of(image)).decision in ("OK", "ANOMALY")
    data = bytearray(bundle.read_bytes())
    at = data.index(b'"value"')
    data[at + 9] = ord("9") if data[at + 9] != ord("9") else ord("8")
    bundle.write_bytes(data)
    assert (
        c_says(capi, bundle, keys.trust).status == "BUNDLE_ALTERED"
    )  # of the archive's checksum, before the signature


def test_a_wrong_signature_leaves_no_error_in_the_queue_of_openssl(
    capi: Library, keys: Keys, make_bundle: MakeBundle
) -> None:
    try:
        crypto = ctypes.CDLL("libcrypto.so.3")
    except OSError:
        pytest.skip("libcrypto.so.3 is missing; on Debian: apt-get install openssl")
    crypto.ERR_peek_error.restype = ctypes.c_ulong
    crypto.ERR_clear_error()
    signer, bundle = Signer(keys.make("plant 1")), make_bundle()
    with zipfile.ZipFile(bundle) as archive:
        member = Member(signer, archive.read("manifest.json"))
    wrong = with_signature(bundle, member.file(member.one(signature="f" * 128)))
    assert c_says(capi, wrong, keys.trust).status == "BUNDLE_UNTRUSTED"
    assert crypto.ERR_peek_error() == 0


@pytest.mark.parametrize(("content", "word"), [(None, "has no EVP_"), (b"no library", "cannot be loaded")])
def test_without_libcrypto_the_package_is_named_and_nothing_is_opened(
    installed: Path, keys: Keys, make_bundle: MakeBundle, tmp_path: Path, content: bytes | None, word: str
) -> None:
    bundle, unsigned = sign(make_bundle(), keys.make("plant 1")), make_bundle("unsigned.edgead")
    program = build_program("C", installed, tmp_path)
    frame = [np.full((31, 45, 3), 100, np.uint8)]
    arguments = (bundle, wheel_library())
    assert program.run(arguments, frame).returncode == 0
    libraries = tmp_path / "lacking"
    libraries.mkdir()
    for name in ("libcrypto.so.3", "libcrypto.so.1.1"):
        if content is None:
            (tmp_path / "empty.c").write_text("int nothing;\n")
            run(["gcc", "-shared", f"-Wl,-soname,{name}", tmp_path / "empty.c", "-o", libraries / name])
        else:
            (libraries / name).write_bytes(content)
    program.environment = {"LD_LIBRARY_PATH": f"{libraries}:{installed / 'lib'}"}
    assert program.run(arguments, frame).returncode == 0  # nobody asks, so nothing is missing
    program.environment[TRUST_VARIABLE] = str(keys.trust)
    done = program.run(arguments, frame)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, b"")
    assert lines[0].startswith("EDGEAD_CRYPTO_UNAVAILABLE: a signature needs libcrypto, and")
    assert word in lines[0]
    assert "apt-get install openssl" in lines[0]
    assert b"is not signed" in program.run((unsigned, wheel_library()), frame).stderr


@pytest.mark.parametrize("language", ["C", "C++", "C#"])
def test_the_examples_ask_where_the_environment_names_a_trust_file(
    language: str, installed: Path, keys: Keys, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    signed, unsigned = sign(make_bundle(), keys.make("plant 1")), make_bundle("unsigned.edgead")
    program = build_program(language, installed, tmp_path)
    program.environment[TRUST_VARIABLE] = str(keys.trust)
    frame = [np.full((31, 45, 3), 100, np.uint8)]
    assert len(program.judge((signed, wheel_library()), frame)) == 1
    done = program.run((unsigned, wheel_library()), frame)
    assert done.returncode == 2
    assert b"EDGEAD_BUNDLE_UNTRUSTED" in done.stderr
