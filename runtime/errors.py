"""Every error a user can cause or meet.

The command line prints the message of an ``EdgeadError`` as one line on stderr, so each message says
what is wrong *and what to do about it*.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

# More names than this would bury the message that lists them.
_LISTED = 30


class EdgeadError(Exception):
    """Base of all errors that edgead raises on purpose."""


class ConfigError(EdgeadError, ValueError):
    """A setting, name or argument that edgead does not accept."""


class DataError(EdgeadError):
    """Images, masks or folders that cannot be used as they are."""


class BundleError(EdgeadError):
    """A bundle or model directory that is damaged, unsafe or from another version; nothing of it was loaded."""


class BackendError(EdgeadError):
    """A backend that failed while it was opened or run."""


class BackendUnavailable(BackendError):  # noqa: N818 - the name the design and the user's except clause read
    """A backend whose library, driver or engine is missing; the message names the exact command that fixes it."""


class EngineMissing(BackendUnavailable):
    """No engine for this graph on this device is in the cache; the message names the command that builds it.

    Args:
        why: what is missing.
        arguments: of ``edgead build``, after the bundle.
        bundle: its path; `of_bundle` fills it in where it is known.
    """

    def __init__(self, why: str, arguments: str, bundle: str = "NAME.edgead") -> None:
        super().__init__(f"{why}; run: edgead build {shlex.quote(bundle)} {arguments}")
        self._why = why
        self._arguments = arguments

    def of_bundle(self, path: object) -> EngineMissing:
        """Return the same error with the path of the bundle in its command."""
        return EngineMissing(self._why, self._arguments, str(path))


class SourceError(EdgeadError):
    """A camera, stream, video or folder that cannot be opened or read."""


class SourceLost(SourceError):  # noqa: N818
    """A source that delivered frames and then stopped delivering them."""


class StreamFailed(EdgeadError):  # noqa: N818
    """A run that began in order and could not go on (exit code 4): another try may do, which a service makes."""


class ExportError(EdgeadError):
    """A model that could not be exported."""


class ParityError(ExportError):
    """An exported model that does not decide like the model it came from (exit code 3).

    Attributes:
        report: what was measured, in the form of the command's ``--json``; None where there is none.
    """

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class BudgetError(EdgeadError):
    """Nothing that keeps within a budget (exit code 3); the message names what comes nearest, and what to change."""


class LintError(ExportError):
    """A graph that breaks a rule of the runtimes it is meant for; the message names node and fix."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, else ``" Known: a, b, c."``, unless they are many."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if len(names) <= _LISTED else ""


def missing_extra(package: str, extra: str) -> str:
    """Return the one line that names a missing package and the exact pip command that installs it."""
    return f"{package} is not installed; run: pip install 'edgead[{extra}]'"
