"""Whose signature a bundle must bear before it is opened: a list of public keys, each with its name and validity."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from edgead.runtime.bundle.field_types import Section, Text, as_tuple, unique_keys
from edgead.runtime.bundle.signature import Hex32, SignatureFile, key_id, signed_message
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.signing import signature_holds

TRUST_VARIABLE: Final = "EDGEAD_TRUST"
_FORMAT: Final = "edgead.trust/1"
_MAX_BYTES: Final = 1 << 20
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_FORM = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}Z)?", re.ASCII)


def _time(text: str) -> str:
    parse_time(text)
    return text


def parse_time(text: str) -> datetime:
    """Return the instant of ``2026-01-31`` (its start) or ``2026-01-31T12:00:00Z``, both UTC; else `ValueError`."""
    # strptime alone takes digits of any script, and days without their 0: what another reader may refuse.
    for form in (_TIME, "%Y-%m-%d") if _FORM.fullmatch(text) else ():
        try:
            return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    raise ValueError(f"{text[:40]!r} is no time; write 2026-01-31 or 2026-01-31T12:00:00Z (UTC)")


_Time = Annotated[str, AfterValidator(_time)]


class TrustedKey(Section):
    """A public key: 32 bytes in hexadecimal, valid from the first instant up to and without the second."""

    name: Text
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: Hex32
    valid_from: _Time | None = None
    valid_until: _Time | None = None

    def period_problem(self, now: datetime) -> str | None:
        """Return why the key does not hold now; None where it does."""
        clock = f"the clock of this machine says {now.strftime(_TIME)}"
        if self.valid_from is not None and now < parse_time(self.valid_from):
            return f"is valid only from {self.valid_from}, and {clock}"
        if self.valid_until is not None and now >= parse_time(self.valid_until):
            return f"was valid until {self.valid_until}, and {clock}"
        return None


def _each_once(keys: tuple[TrustedKey, ...]) -> tuple[TrustedKey, ...]:
    for kind in ("public_key", "name"):
        if len({getattr(key, kind) for key in keys}) != len(keys):
            raise ValueError(f"a {kind} is there twice")
    return keys


class TrustFile(Section):
    """The content of a trust file."""

    format: Literal["edgead.trust/1"]
    keys: Annotated[
        tuple[TrustedKey, ...],
        BeforeValidator(as_tuple),
        Field(min_length=1, max_length=1000),
        AfterValidator(_each_once),
    ]

    def require(self, manifest: bytes, signature: SignatureFile | None, where: tuple[Path, str]) -> TrustedKey:
        """Return the key that signed a manifest.

        Args:
            manifest: its bytes.
            signature: what the bundle bears; None: nothing.
            where: the trust file and the bundle, for the message.

        Raises:
            BundleError: nobody has signed it whom this list knows, or with a key that does not hold now.
            ConfigError: ``cryptography`` is missing (the message has the pip command).
        """
        trust, label = where
        sign = f"sign it with a key of {trust}: edgead sign {label} --key FILE"
        if signature is None:
            raise BundleError(f"{label} is not signed, and {trust} asks for a signature; {sign}")
        now = datetime.now(timezone.utc)
        known = {key_id(key.public_key): key for key in self.keys}
        problems: list[str] = []
        for one in signature.signatures:
            key = known.get(one.key_id)
            if key is None:
                continue
            if not signature_holds(key.public_key, one.signature, signed_message(manifest)):
                raise BundleError(
                    f"{label} bears a signature of '{key.name}' that does not belong to its content: it was altered; "
                    "take it again from where it comes"
                )
            problem = key.period_problem(now)
            if problem is None:
                return key
            problems.append(f"its key '{key.name}' {problem}")
        if problems:
            raise BundleError(f"{label} is signed, but {problems[0]}; {sign}")
        raise BundleError(f"{label} is signed by nobody whom {trust} knows; {sign}")


def read_trust(path: Path) -> TrustFile:
    """Read a trust file.

    Raises:
        ConfigError: it cannot be read, or is none; nothing is trusted then.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the trust file {path}: {reason(error)}") from error
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("it is too large")
        return TrustFile.model_validate(json.loads(data, object_pairs_hook=unique_keys))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} is no trust file ({place}: {first['msg']}); see docs/bundle.md") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no trust file ({reason(error)}); edgead keygen --add-to writes one") from error


def add_key(path: Path, key: TrustedKey) -> TrustFile:
    """Add a key to a trust file, which is made where there is none; whoever it trusted it still trusts.

    Raises:
        ConfigError: it cannot be read or written, or knows the key or its name already.
    """
    before = read_trust(path).keys if path.exists() else ()
    for old in before:
        if old.public_key == key.public_key or old.name == key.name:
            raise ConfigError(f"{path} has the key '{old.name}' already; give the new one another --name")
    found = TrustFile(format=_FORMAT, keys=(*before, key))
    with atomic_write(path, ConfigError) as stream:
        stream.write(json.dumps(found.model_dump(exclude_none=True), indent=1).encode() + b"\n")
    return found


def trust_path() -> Path | None:
    """Return the trust file that holds for this process and those it starts (``$EDGEAD_TRUST``); None: none does."""
    chosen = os.environ.get(TRUST_VARIABLE)
    return Path(chosen) if chosen else None


@contextmanager
def trusting(path: Path | None) -> Iterator[None]:
    """Have another trust file hold, here and in processes started meanwhile; None: none, whatever the environment says.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    if path is not None:
        path = path.expanduser().absolute()
        read_trust(path)
    before = os.environ.pop(TRUST_VARIABLE, None)
    if path is not None:
        os.environ[TRUST_VARIABLE] = str(path)
    try:
        yield
    finally:
        os.environ.pop(TRUST_VARIABLE, None)
        if before is not None:
            os.environ[TRUST_VARIABLE] = before
