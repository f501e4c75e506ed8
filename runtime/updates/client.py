"""What a station sees of a repository: only what python-tuf verified, and one line for all that it refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.updates.repository import require_tuf
from edgead.runtime.updates.rollout import Rollout, parse_rollout
from edgead.runtime.uri import redact_uri

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Release:
    """What the repository offers under the name of a bundle."""

    rollout: Rollout
    info: Any  # python-tuf's TargetFile


class UpdateClient:
    """Looks into a repository for one bundle.

    Args:
        place: a folder, or an address ``http://…`` or ``https://…``.
        name: file name of the bundle.
        state: folder of what was seen before, without which a rollback could not be told.
        root: the first root metadata, which came by another way than the repository; None: that of ``state``.

    Raises:
        ConfigError: python-tuf or the root is missing, or no repository of this kind.
    """

    def __init__(self, place: str, name: str, state: Path, root: Path | None) -> None:
        require_tuf()
        self.place, self._name, self._state = redact_uri(place), name, state
        scheme = place.partition("://")[0] if "://" in place else ""
        if scheme and scheme not in ("http", "https"):
            raise ConfigError(f"--updates takes a folder or an http(s) address, not '{self.place}'")
        self._base = place.rstrip("/") if scheme else Path(place).expanduser().absolute().as_uri()
        self._web = bool(scheme)
        try:
            (state / "metadata").mkdir(parents=True, exist_ok=True)
            self._root = None if root is None else root.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot use {error.filename} for updates: {reason(error)}") from error
        if self._root is None and not (state / "metadata" / "root.json").exists():
            raise ConfigError(
                f"the first time, --updates needs the root that it may trust: --updates '{self.place}?root=root.json'; "
                "copy metadata/root.json of the repository from where it is made"
            )
        self._updater: Any = None
        self._open()  # a damaged root is said at the start

    def look(self) -> Release | None:
        """Return what is offered; None where nothing is.

        Raises:
            DataError: the repository cannot be reached, or is not what its keys vouch for.
        """
        with self._explained():
            updater = self._updater = self._open()
            updater.refresh()
            info = updater.get_targetinfo(self._name)
        return None if info is None else Release(parse_rollout(info.custom, f"{self._name} of {self.place}"), info)

    def download(self, release: Release) -> Path:
        """Fetch what `look` returned last, and verify its size and digest; raises as `look`."""
        path = self._state / "offered.edgead"
        with self._explained():
            self._updater.download_target(release.info, str(path))
        return path

    def _open(self) -> Any:
        from tuf.api.exceptions import RepositoryError
        from tuf.ngclient import FetcherInterface, Updater

        fetcher = None if self._web else type("_Folder", (FetcherInterface,), {"_fetch": _read})()
        try:
            return Updater(
                str(self._state / "metadata"),
                f"{self._base}/metadata/",
                str(self._state),
                f"{self._base}/targets/",
                fetcher,
                bootstrap=self._root,
            )
        except (RepositoryError, OSError) as error:
            raise ConfigError(f"the root of the updates is damaged: {reason(error)}") from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from tuf.api import exceptions as tuf

        said = {
            tuf.ExpiredMetadataError: "what it says is out of date (it is frozen, or nobody ran 'edgead renew'; or the "
            "clock of this machine is wrong)",
            tuf.BadVersionNumberError: "it offers something older than was seen before, or versions that do not "
            "belong together (rollback or mix-and-match)",
            tuf.UnsignedMetadataError: "it is not signed by the keys that hold",
            tuf.LengthOrHashMismatchError: "a file is not the one that was signed",
            tuf.DownloadLengthMismatchError: "a file is longer than it may be (endless data)",
            tuf.DownloadError: "it cannot be reached",
            tuf.RepositoryError: "its metadata are damaged",
        }
        try:
            yield
        except tuple(said) as error:
            why = next(text for kind, text in said.items() if isinstance(error, kind))
            raise DataError(f"the repository {self.place} is refused: {why}: {reason(error)}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"the repository {self.place} cannot be used: {reason(error)}") from error


def _read(_fetcher: object, url: str) -> Iterator[bytes]:
    from tuf.api.exceptions import DownloadError, DownloadHTTPError

    try:
        with Path(unquote(urlsplit(url).path)).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except FileNotFoundError as error:
        raise DownloadHTTPError(f"{error.filename} is not there", 404) from error
    except OSError as error:
        raise DownloadError(f"cannot read {url}: {reason(error)}") from error
