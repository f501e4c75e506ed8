"""URIs of sources and sinks: their parameters, and never their secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote_plus

from edgead.runtime.errors import ConfigError, suggest

T = TypeVar("T", bound=str)

HIDDEN = "***"

# People rarely percent-encode a password, so everything between `://` and the last `@` before the path is one.
# One slash is enough (a typing slip must not print it), after two letters (`C:/` is a drive).
_CREDENTIALS = re.compile(r"(?<=[A-Za-z0-9]{2}):/+[^\s/]*@")
# A password with a slash in it; `host:8554/path@x` is an address, not a password.
_SLASHED = re.compile(r"://[^\s/:@]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s@]*@")
# `user:password@host` without a scheme.
_BARE = re.compile(r"(?:(?<=[\s'\"(])|^)[^\s/:@'\"(]+:[^\s/@]*@")
# Query values, and the `user=admin_password=…` paths of cheap recorders. The value runs to the next `&`: too much
# hidden is an inconvenience, too little is a leak.
_SECRETS = re.compile(
    r"([?&;/_#][^=&;/?#\s]*?(?:pas|pw|token|key|secret|auth|sig|sess|cred|usr|user|login|jwt)[^=&;/?#\s]*=)[^&\s]*",
    re.IGNORECASE,
)
_HEAD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/]*@)?")


def redact(text: str) -> str:
    """Return ``text`` with user, password and token-like values of every URI in it replaced by ``***``."""
    text = _CREDENTIALS.sub(f"://{HIDDEN}@", text)
    text = _SLASHED.sub(f"://{HIDDEN}@", text)
    text = _BARE.sub(f"{HIDDEN}@", text)
    return _SECRETS.sub(rf"\g<1>{HIDDEN}", text)


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
        """Read a duration above 0 such as ``0.5``, ``2s`` or ``500ms``; None where it is not given."""
        text = self.values.get(name)
        if text is None:
            return None
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)(ms|s)?", text)
        value = float(match[1]) * (1e-3 if match[2] == "ms" else 1.0) if match else 0.0
        if value <= 0:
            raise ConfigError(f"{self.where}: {name}={text} is not a duration; write seconds (0.5) or 500ms")
        return value

    def choice(self, name: str, default: T, allowed: tuple[T, ...]) -> T:
        text = self.values.get(name)
        if text is None:
            return default
        for value in allowed:
            if text == value:
                return value
        raise ConfigError(f"{self.where}: {name}={text} is unknown.{suggest(text, allowed)}")
