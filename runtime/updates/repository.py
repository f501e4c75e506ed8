"""A TUF repository in a folder: bundles published, metadata signed again before they expire, keys exchanged."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import ConfigError, DataError, missing_extra
from edgead.runtime.files import atomic_write, file_sha256, reason
from edgead.runtime.signing import make_key
from edgead.runtime.updates.rollout import CUSTOM, Rollout

Owner = Literal["root", "targets", "online"]
_ROLES: dict[str, Owner] = {"root": "root", "targets": "targets", "snapshot": "online", "timestamp": "online"}
_YEAR = 365


def require_tuf() -> None:
    """Raise `ConfigError` with the pip command where python-tuf is missing."""
    try:
        import securesystemslib.signer  # noqa: F401
        import tuf.api.metadata  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"updates need it: {missing_extra('tuf', 'updates')}") from error


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a publication asks of stations: the fields of `Rollout` that a person chooses."""

    stations: tuple[str, ...] = ()
    share: float = 1.0
    shadow_parts: int = 0
    max_different: float = 0.0


class Repository:
    """A folder that stations read, as it is or through any web server: ``metadata/`` and ``targets/``.

    Args:
        folder: is made at the first `publish`.
        keys: folder of the private keys ``root.pem``, ``targets.pem`` and ``online.pem``, which are made with a new
            repository; never inside of it.
        days: how long what says that nothing newer exists stays valid: a station that sees nothing fresher refuses.

    Raises:
        ConfigError: python-tuf is missing (the message has the pip command), or the keys lie in the repository.
    """

    def __init__(self, folder: Path, keys: Path, days: float = 7.0) -> None:
        require_tuf()
        if folder.absolute() in (keys.absolute(), *keys.absolute().parents):
            raise ConfigError(f"the keys {keys} would be read by everyone in {folder}; choose another folder for them")
        self._folder, self._keys, self._days = folder, keys, days
        self._metadata = folder / "metadata"

    def publish(self, bundle: Path, wanted: Wanted) -> Rollout:
        """Publish a bundle under its file name; the one before it under this name is not offered any more.

        Raises:
            BundleError: it is damaged, or a trust file holds that does not know who signed it.
            ConfigError: a key is missing. DataError: the repository is damaged or cannot be written.
        """
        from tuf.api.metadata import TargetFile

        with Bundle.open(bundle) as opened:
            digest = opened.sha256
        self._begin()
        targets = self._load("targets")
        numbers = [one.custom[CUSTOM]["release"] for one in targets.signed.targets.values() if one.custom]
        rollout = Rollout(
            schema="edgead.rollout/1",
            bundle=digest,
            release=1 + max(numbers, default=0),
            stations=wanted.stations,
            share_ppm=round(wanted.share * 1e6),
            shadow_parts=wanted.shadow_parts,
            max_different_ppm=round(wanted.max_different * 1e6),
        )
        stored = self._folder / "targets" / f"{file_sha256(bundle)}.{bundle.name}"
        self._copy(bundle, stored)
        info = TargetFile.from_file(bundle.name, str(stored), ["sha256"])
        info.unrecognized_fields["custom"] = {CUSTOM: rollout.model_dump(by_alias=True, mode="json")}
        targets.signed.targets[bundle.name] = info
        self._sign(targets, "targets", _YEAR)
        self._tell_all(targets.signed.version)
        return rollout

    def renew(self, replace: Iterable[Owner] = ()) -> list[str]:
        """Sign again what would expire; ``snapshot`` and ``timestamp`` need no key but ``online.pem``.

        Args:
            replace: keys that are exchanged for new ones, which the old and the new root key sign; the old file stays
                as ``NAME.old.pem``.

        Returns:
            The roles that were signed.

        Raises:
            ConfigError: no repository, or a key is missing.
        """
        if not self._metadata.is_dir():
            raise ConfigError(f"{self._folder} holds no repository; publish a bundle first: edgead publish")
        done: list[str] = []
        targets = self._load("targets")
        replace = tuple(replace)
        root = self._load("root")
        if replace or (self._has("root") and _ages(root.signed.expires)):
            self._replace(root, replace)
            done.append("root")
        if "targets" in replace or (self._has("targets") and _ages(targets.signed.expires)):
            self._sign(targets, "targets", _YEAR)
            done.append("targets")
        self._tell_all(targets.signed.version)
        return [*done, "snapshot", "timestamp"]

    def _begin(self) -> None:
        from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

        if (self._metadata / "root.json").exists():
            return
        try:
            for folder in (self._metadata, self._folder / "targets", self._keys):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make the repository {self._folder}: {reason(error)}") from error
        for owner in ("root", "targets", "online"):
            if not self._has(owner):
                make_key(self._keys / f"{owner}.pem")
        root = _unsigned(Root(consistent_snapshot=True))
        for role, owner in _ROLES.items():
            root.signed.add_key(self._signer(owner).public_key, role)
        targets = _unsigned(Targets())
        self._sign(targets, "targets", _YEAR)
        self._tell_all(targets.signed.version, _unsigned(Snapshot()), _unsigned(Timestamp()))
        self._sign(root, "root", _YEAR)  # last: a repository that has a root is whole

    def _replace(self, root: Any, owners: tuple[Owner, ...]) -> None:
        before = self._signer("root")
        for owner in owners:
            old = self._signer(owner).public_key.keyid
            kept = self._keys / f"{owner}.old.pem"
            (self._keys / f"{owner}.pem").replace(kept)
            make_key(self._keys / f"{owner}.pem")
            for role, whose in _ROLES.items():
                if whose == owner:
                    root.signed.revoke_key(old, role)
                    root.signed.add_key(self._signer(owner).public_key, role)
        self._sign(root, "root", _YEAR, before if "root" in owners else None)

    def _tell_all(self, targets_version: int, snapshot: Any = None, timestamp: Any = None) -> None:
        """Say by snapshot and timestamp which targets hold now; the timestamp last, for it makes the others visible."""
        from tuf.api.metadata import MetaFile

        snapshot, timestamp = snapshot or self._load("snapshot"), timestamp or self._load("timestamp")
        snapshot.signed.meta["targets.json"] = MetaFile(version=targets_version)
        self._sign(snapshot, "snapshot", self._days)
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        self._sign(timestamp, "timestamp", self._days)

    def _sign(self, metadata: Any, role: str, days: float, before: Any = None) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = (datetime.now(timezone.utc) + timedelta(days=days)).replace(microsecond=0)
        metadata.signatures.clear()
        for signer in (before, self._signer(_ROLES[role])):
            if signer is not None:
                metadata.sign(signer, append=True)
        self._store(metadata, role, metadata.signed.version)

    def _store(self, metadata: Any, role: str, version: int) -> None:
        # The numbered file is what stations ask for; the other one is the newest, which `_load` reads.
        names = [f"{role}.json"] if role == "timestamp" else [f"{version}.{role}.json", f"{role}.json"]
        for name in names:
            with atomic_write(self._metadata / name, DataError) as stream:
                stream.write(metadata.to_bytes())

    def _load(self, role: str) -> Any:
        from tuf.api.exceptions import RepositoryError, StorageError
        from tuf.api.metadata import Metadata

        path = self._metadata / f"{role}.json"
        try:
            return Metadata[Any].from_file(str(path))
        except (RepositoryError, StorageError) as error:
            raise DataError(
                f"{path} is missing or damaged; take the repository from a copy ({reason(error)})"
            ) from error

    def _has(self, owner: str) -> bool:
        return (self._keys / f"{owner}.pem").is_file()

    def _signer(self, owner: str) -> Any:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner

        path = self._keys / f"{owner}.pem"
        try:
            return CryptoSigner(load_pem_private_key(path.read_bytes(), None))  # type: ignore[arg-type, unused-ignore]
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot read the key {path}: {reason(error)}; give its folder with --keys") from error

    def _copy(self, bundle: Path, stored: Path) -> None:
        try:
            with bundle.open("rb") as source, atomic_write(stored, DataError) as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
        except OSError as error:
            raise DataError(f"cannot copy {bundle} to {stored.parent}: {reason(error)}") from error


def _unsigned(signed: Any) -> Any:
    from tuf.api.metadata import Metadata

    signed.version = 0  # which `_sign` raises
    return Metadata(signed)


def _ages(expires: datetime) -> bool:
    return expires - datetime.now(timezone.utc) < timedelta(days=_YEAR / 2)
