"""Bundles written: beside their place and moved there at the end, so that the old one stays whole."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.layout import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUFFIX,
    WEIGHTS,
    check_member_name,
    fold_name,
)
from edgead.runtime.bundle.manifest import Manifest, parse_manifest
from edgead.runtime.bundle.manifest_schema import MemberRecord
from edgead.runtime.bundle.signature import SignatureFile, add_signature
from edgead.runtime.bundle.zip_archive import (
    CHUNK,
    MAX_MEMBERS,
    NewEntry,
    write_entries,
)
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.signing import Signer

_WEIGHTS_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Content:
    size: int
    crc: int
    sha256: str
    chunks: Callable[[], Iterable[bytes]]


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
    """Write a bundle; the same content gives the same bytes on every platform.

    Args:
        path: must end in ``.edgead``; an existing bundle is replaced at the end, or stays as it is on any failure.
        manifest: its ``members`` are filled in.
        files: member name -> content, or the file that holds it (read twice in chunks, never held in memory).

    Raises:
        ConfigError: another suffix.
        BundleError: unsafe or missing member, too large a manifest, unreadable source, disk full.
    """
    path = check_bundle_path(path)
    _check_names(files)
    contents = {name: _measure(partial(_source_chunks, source)) for name, source in files.items()}
    with atomic_write(path, BundleError) as stream:
        _write(stream, manifest, contents)


def replace_manifest(path: str | Path, out: str | Path, manifest: Manifest, *, made_here: bool = False) -> None:
    """Write the bundle ``path`` with another manifest to ``out`` (which may be ``path``); members are copied.

    A signature is not: it belongs to the old manifest, and whoever answers for the new one signs that. ``made_here``
    and errors as of `Bundle.open`, and those of `write_bundle`.
    """
    out = check_bundle_path(out)
    # The inner context closes the bundle before the new file takes its place, which Windows insists on.
    with atomic_write(out, BundleError) as stream, Bundle.open(path, made_here=made_here) as bundle:
        _write(stream, manifest, _contents(bundle))


def sign_bundle(path: str | Path, out: str | Path, signer: Signer) -> SignatureFile:
    """Write the bundle ``path`` with one more signature to ``out`` (which may be ``path``); nothing else changes.

    Whoever signs answers for the content, so no signature is asked of it. Errors as of `Bundle.open` and
    `write_bundle`.
    """
    out = check_bundle_path(out)
    with atomic_write(out, BundleError) as stream, Bundle.open(path, made_here=True) as bundle:
        signature = add_signature(signer, bundle.manifest_bytes, bundle.signature)
        _write_bytes(stream, bundle.manifest_bytes, _contents(bundle), signature)
    return signature


def _contents(bundle: Bundle) -> dict[str, _Content]:
    return {
        name: _Content(record.size, bundle._entries[name].crc, record.sha256, partial(bundle._chunks, name))
        for name, record in bundle.manifest.members.items()
    }


def _write(stream: BinaryIO, manifest: Manifest, contents: Mapping[str, _Content]) -> None:
    records = {n: MemberRecord(sha256=c.sha256, size=c.size) for n, c in contents.items()}
    data = manifest.with_members(records).to_json()
    # What this version writes, this version must read: the same checks on both sides.
    parse_manifest(data, "the new bundle")
    _write_bytes(stream, data, contents, None)


def _write_bytes(
    stream: BinaryIO, data: bytes, contents: Mapping[str, _Content], signature: SignatureFile | None
) -> None:
    entries = [NewEntry(MANIFEST_NAME, len(data), zlib.crc32(data), lambda: (data,))]
    if signature is not None:
        signed = signature.to_json()
        entries.append(NewEntry(SIGNATURE_NAME, len(signed), zlib.crc32(signed), lambda: (signed,)))
    for name, content in sorted(contents.items()):
        alignment = _WEIGHTS_ALIGNMENT if name.startswith(WEIGHTS) else 1
        entries.append(NewEntry(name, content.size, content.crc, content.chunks, alignment))
    write_entries(stream, entries)


def check_bundle_path(path: str | Path) -> Path:
    """Return the path where a bundle may be written; call it before a long job, too.

    Raises:
        ConfigError: another suffix than ``.edgead``.
        BundleError: it is a folder, or there is no folder to write it into.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"a bundle's name ends in {SUFFIX}, got '{path.name}'; try {path.with_suffix(SUFFIX)}")
    if path.is_dir():
        raise BundleError(f"cannot write {path}: it is a folder; choose another name")
    if not path.parent.is_dir():
        raise BundleError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    return path


def _check_names(names: Iterable[str]) -> None:
    folded = {fold_name(MANIFEST_NAME), fold_name(SIGNATURE_NAME)}
    for name in names:
        try:
            check_member_name(name)
        except ValueError as error:
            raise BundleError(f"cannot write the bundle: {error}") from error
        if fold_name(name) in folded:
            raise BundleError(f"cannot write the bundle: member {name!r} is there twice or reserved")
        folded.add(fold_name(name))
    if len(folded) > MAX_MEMBERS:
        raise BundleError(f"cannot write the bundle: {len(folded)} members, allowed are {MAX_MEMBERS}")


def _measure(chunks: Callable[[], Iterable[bytes]]) -> _Content:
    digest, size, crc = hashlib.sha256(), 0, 0
    for chunk in chunks():
        digest.update(chunk)
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
    return _Content(size, crc, digest.hexdigest(), chunks)


def _source_chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    try:
        with source.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        raise BundleError(f"cannot read {source}: {reason(error)}") from error
