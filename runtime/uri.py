"""URIs of sources and sinks: their parameters, and never their secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, unquote_plus

from edgead.runtime.errors import ConfigError, suggest

T = TypeVar("T", bound=str)

HIDDEN = "***"

# People rarely percent-encode a password, so everything between `://` and the last `@` before the path is one.
# One slash is enough (a typing slip must not print it), after two letters (`C:/` is a drive).
_CREDENTIALS = re.compile(r"(?<=[A-Za-z0-9]{2}):/+[^\s/]*@")
# A password with slashes or spaces in it, up to the last `@` of the line or of what is quoted; `host:8554/path@x` is
# an address, not a password.
_SPACED = re.compile(r"://[^\s/:@]+:(?!\d{1,5}(?:[/?#\s]|$))(?:(?!://)[^'\"\n])*@")
# `user:password@host` without a scheme.
_BARE = re.compile(r"(?:(?<=[\s'\"(])|^)[^\s/:@'\"(]+:[^\s/@]*@")
# Query values, and the `user=admin_password=…` paths of cheap recorders. The value runs to the next `&`: too much
# hidden is an inconvenience, too little is a leak.
_SECRETS = re.compile(
    r"([?&;/_#][^=&;/?#\s]*?(?:pas|pw|token|key|secret|auth|sig|sess|cred|usr|user|login|jwt)[^=&;/?#\s]*=)[^&\s]*",
    re.IGNORECASE,
)
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"ms": 1e-3, "": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# Scheme and credentials; a password may have a slash in it where what stands before cannot be a host and its port.
_HEAD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/]*@|[^/:@\[]+:(?!\d{1,5}(?:[/?#]|$))[^@]*@)?")
# What is a host and no user: a numeric address or this machine, with a port or not, or a name with a dot and no port;
# of a path on a disk, which has no host, what stands before its first slash.
_HOST = re.compile(
    r"(?:(?:(?:\d{1,3}\.){3}\d{1,3}|\[[0-9A-Fa-f:.%]+\]|localhost)(?::\d{1,5})?|[^:@\s]*\.[^:@\s]*|[A-Za-z]:|)"
)
_ENCODED = "!$&'()*+,;=%"  # what RFC 3986 allows in credentials as it is


def redact(text: str) -> str:
    """Return ``text`` with user, password and token-like values of every URI in it replaced by ``***``."""
    text = _SPACED.sub(f"://{HIDDEN}@", text)
    text = _CREDENTIALS.sub(f"://{HIDDEN}@", text)
    text = _BARE.sub(f"{HIDDEN}@", text)
    return _SECRETS.sub(rf"\g<1>{HIDDEN}", text)


def redact_uri(uri: str) -> str:
    """Return one URI without its secrets: whatever stands before its last ``@`` is hidden, spaces and quotes too."""
    head = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/+", uri)
    scheme = "" if head is None else head[0]
    before, at, after = uri[len(scheme) :].rpartition("@")
    authority, slash, _ = before.partition("/")
    # Rather hidden than shown: what stands before the `@` of `user:1234/5@cam/x` may be a host and its port as well as
    # a password with a slash.
    is_address = bool(slash) and _HOST.fullmatch(authority) is not None
    is_file = head is None and re.match(r"[^/:@]{2,}:", uri) is None
    if not at or is_address or is_file:  # what has an `@` is the path
        return redact(uri)
    return redact(f"{scheme}{HIDDEN}@{after}")


def encode_credentials(uri: str) -> str:
    """Return a URL whose user and password are percent-encoded, for libraries that end the address at ``/?#`` or space.

    What is encoded already stays; a ``%`` that is meant as such must be written ``%25``.
    """
    head = _HEAD.match(uri)
    if head is None or "@" not in head[0]:
        return uri
    scheme, credentials = head[0][:-1].split("://", 1)
    user, colon, password = credentials.partition(":")
    return f"{scheme}://{quote(user, safe=_ENCODED)}{colon}{quote(password, safe=_ENCODED)}@{uri[head.end() :]}"


def split_query(uri: str) -> tuple[str, list[str]]:
    """Return what stands before the ``?`` and the raw ``key=value`` pieces after it; a ``?`` in a password stays."""
    head = _HEAD.match(uri)
    start = head.end() if head else 0
    location, _, query = uri[start:].partition("?")
    return uri[:start] + location, [piece for piece in query.split("&") if piece]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one URI, each read once with its type and range.

    Attributes:
        where: the URI without secrets, for messages.
        values: decoded values by name.
    """

    where: str
    values: Mapping[str, str]

    @classmethod
    def parse(cls, where: str, pieces: Iterable[str], known: Iterable[str]) -> Parameters:
        """Decode ``key=value`` pieces; a name that is unknown or given twice is a `ConfigError`."""
        known = tuple(known)
        values: dict[str, str] = {}
        for piece in pieces:
            name, _, value = piece.partition("=")
            name = unquote_plus(name)
            if name not in known:
                raise ConfigError(f"{where}: unknown parameter '{name}'.{suggest(name, known)}")
            if name in values:
                raise ConfigError(f"{where}: parameter '{name}' is given twice; keep one")
            values[name] = unquote_plus(value)
        return cls(where, values)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.values.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{self.where}: {name}={text} is not a whole number from {low} to {high}")
        return int(text)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        text = self.values.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ConfigError(f"{self.where}: {name}={text} is not a number from {low:g} to {high:g}")
        return value

    def seconds(self, name: str) -> float | None:
        """Read a duration above 0 such as ``0.5``, ``2s``, ``500ms``, ``10min``, ``8h`` or ``30d``; None where it is
        not given."""
        text = self.values.get(name)
        if text is None:
            return None
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)(ms|s|min|h|d)?", text)
        value = float(match[1]) * _SECONDS[match[2] or ""] if match else 0.0
        if value <= 0:
            raise ConfigError(f"{self.where}: {name}={text} is not a duration; write seconds (0.5), 500ms, 8h or 30d")
        return value

    def size(self, name: str, default: int = 0) -> int:
        """Read a size in bytes such as ``500000``, ``100MB`` or ``1.5GB`` (powers of ten)."""
        text = self.values.get(name)
        if text is None:
            return default
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)([kKMGT]?B)?", text)
        value = round(float(match[1]) * _SIZES[(match[2] or "").upper()]) if match else 0
        if value <= 0:
            raise ConfigError(f"{self.where}: {name}={text} is not a size; write bytes, 100MB or 2GB")
        return value

    def secret(self, name: str) -> str | None:
        """Read the first line of the file that a parameter such as ``password_file`` names; None where it is not given.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        text = self.values.get(name)
        if text is None:
            return None
        try:
            content = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{self.where}: cannot read {name} {text}: {error.__class__.__name__}") from error
        line = content.split("\n", 1)[0].strip()
        if not line:
            raise ConfigError(f"{self.where}: the first line of {name} {text} is empty")
        return line

    def choice(self, name: str, default: T, allowed: tuple[T, ...]) -> T:
        text = self.values.get(name)
        if text is None:
            return default
        for value in allowed:
            if text == value:
                return value
        raise ConfigError(f"{self.where}: {name}={text} is unknown.{suggest(text, allowed)}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service listens, and as whom to speak to it.

    Attributes:
        host, port: an IPv6 address without its brackets.
        path: what follows the first slash, decoded; empty where there is none.
        user, password: decoded; None where they are not given.
    """

    host: str
    port: int
    path: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, where: str, text: str, default_port: int) -> Endpoint:
        """Read ``[user[:password]@]host[:port][/path]``.

        Raises:
            ConfigError: no host, or a port that is none; ``where`` names the URI in the message.
        """
        authority, _, path = text.partition("/")
        login, _, address = authority.rpartition("@")
        user, colon, password = login.partition(":")
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s\[\]:/?#@]+))(?::([0-9]{1,5}))?", address)
        if match is None or not 0 < int(match[3] or default_port) < 65536:
            slash = "; write a / in a user or password as %2F" if "@" in path else ""
            raise ConfigError(f"{where}: write host, host:port or [IPv6]:port after the ://{slash}")
        return cls(
            match[1] or match[2],
            int(match[3] or default_port),
            unquote(path),
            unquote(user) if user else None,
            unquote(password) if colon else None,
        )
