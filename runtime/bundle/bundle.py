"""One file, ``NAME.edgead``: graphs, weights, references and the manifest that lists them, verified before use."""

from __future__ import annotations

import hashlib
import stat
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from numpy.typing import NDArray

from edgead.runtime.bundle.layout import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    SUFFIX,
    WEIGHTS,
    check_member_name,
    head_file,
    native_files,
)
from edgead.runtime.bundle.manifest import MAX_MANIFEST_BYTES, parse_manifest
from edgead.runtime.bundle.manifest_schema import MemberRecord
from edgead.runtime.bundle.native_description import parse_description
from edgead.runtime.bundle.references import EXPECTED_NAME, REFERENCES, unpack_expected
from edgead.runtime.bundle.signature import MAX_SIGNATURE_BYTES, SignatureFile, parse_signature
from edgead.runtime.bundle.trust import TrustedKey, read_trust, trust_path
from edgead.runtime.bundle.zip_archive import (
    CHUNK,
    Entry,
    damaged,
    read_entries,
)
from edgead.runtime.errors import BundleError, ConfigError, DataError, suggest
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.imaging.alignment import Alignment
from edgead.runtime.imaging.roi import Region
from edgead.runtime.imaging.view import View
from edgead.runtime.scratch import private_directory


class Bundle:
    """An opened bundle, all of it verified; use `Bundle.open`, as a context manager or with `close`.

    Thread-safe. The file stays open, and what is read later is hashed again while it is read, so a file that
    changes on disk after the verification is refused, not used.

    Attributes:
        path: where the bundle lies.
        manifest: the parsed manifest.
        sha256: hex digest of the manifest's bytes; it covers every member through the digests listed there.
        signature: what it bears, None where it is not signed; signer: the trusted key that made it, None where no
            trust file holds and nobody looked.
    """

    def __init__(self, path: Path, stream: BinaryIO, *, made_here: bool = False) -> None:
        self.path = path
        self._stream = stream
        self._lock = threading.Lock()
        self._entries = read_entries(stream, str(path))
        data = self._read_unlisted(MANIFEST_NAME, MAX_MANIFEST_BYTES)
        self.signature: SignatureFile | None = None
        if SIGNATURE_NAME in self._entries:
            self.signature = parse_signature(self._read_unlisted(SIGNATURE_NAME, MAX_SIGNATURE_BYTES), str(path))
        # Before anything of the manifest is looked at: what nobody vouches for is not even parsed.
        trust = None if made_here else trust_path()
        self.signer: TrustedKey | None = None
        if trust is not None:
            self.signer = read_trust(trust).require(data, self.signature, (trust, str(path)))
        self.manifest_bytes = data
        self.manifest = parse_manifest(data, str(path))
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._verify()

    @classmethod
    def open(cls, path: str | Path, *, made_here: bool = False) -> Bundle:
        """Open and verify a bundle: container, signature, manifest, and size and SHA-256 of every member.

        Args:
            path: a ``.edgead`` file.
            made_here: this process wrote it, or opened it before and compares the digest: no signature is asked for.
                Else, where a trust file holds (``$EDGEAD_TRUST``), a key of it must have signed.

        Raises:
            BundleError: missing, unreadable, truncated, altered, unsafe, or made by a newer edgead, or signed by nobody
                who is trusted; nothing is loaded.
            ConfigError: the trust file cannot be read, or ``cryptography`` is missing.
        """
        path = Path(path)
        stream = None
        try:
            # Before opening: to open a pipe would wait indefinitely.
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise BundleError(
                    f"{path} is a folder, not a bundle; give the {SUFFIX} file that 'edgead export' wrote"
                )
            if not stat.S_ISREG(mode):
                raise BundleError(f"{path} is no plain file; give the {SUFFIX} file that 'edgead export' wrote")
            stream = path.open("rb")
            return cls(path, stream, made_here=made_here)
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, FileNotFoundError):
                raise BundleError(f"{path} does not exist; check the path") from error
            if isinstance(error, (OSError, ValueError)) and not isinstance(error, BundleError | ConfigError):
                raise BundleError(f"cannot read {path}: {reason(error)}") from error
            raise

    def read(self, name: str) -> bytes:
        """Return the verified bytes of a listed member; raises `BundleError` where there is none of that name."""
        return b"".join(self._chunks(name))

    def references(self) -> list[tuple[str, bytes]]:
        """Return ``(name, PNG bytes)`` of the reference images, sorted; names are relative to ``references/``."""
        names = [name for name in self.manifest.members if name.startswith(REFERENCES) and name != EXPECTED_NAME]
        return [(name.removeprefix(REFERENCES), self.read(name)) for name in sorted(names)]

    def expected(self) -> dict[str, NDArray[Any]]:
        """Return what the torch model gave on the references.

        Returns:
            ``names (N,)`` str, as in `references`; ``score (N,)`` float32; ``map (N, gh, gw)`` float32; all finite.
            Of a routed model also ``category (N,)`` str and ``known (N,)`` bool.

        Raises:
            BundleError: the bundle holds none, or not these arrays.
        """
        return unpack_expected(self.read(EXPECTED_NAME), str(self.path))

    def region(self) -> Region | None:
        """Return the part of the frames that the model judges, None where it is all of them.

        Raises:
            BundleError: it does not lie in its frame, or its mask is missing or no mask of it.
        """
        section = self.manifest.input.region
        if section is None:
            return None
        try:
            return section.to_region(None if section.mask is None else self.read(section.mask))
        except (ConfigError, DataError) as error:
            raise BundleError(f"{self.path}: {error}; export it again with 'edgead export'") from error

    def align(self) -> Alignment | None:
        """Return how the part's pose is found and undone, None where frames are judged as they are.

        Raises:
            BundleError: its sizes do not belong together, or its template is missing or none.
        """
        section = self.manifest.input.align
        if section is None:
            return None
        try:
            return section.to_alignment(self.read(section.template))
        except (ConfigError, DataError) as error:
            raise BundleError(f"{self.path}: {error}; export it again with 'edgead export'") from error

    def view(self) -> View:
        """Return what the network sees of a frame.

        Raises:
            BundleError: as `region` and `align`, or these do not belong together.
        """
        size = self.manifest.input.height, self.manifest.input.width
        try:
            return View(*size, self.region(), self.manifest.tiles(), self.align())
        except ConfigError as error:
            raise BundleError(f"{self.path}: {error}; export it again with 'edgead export'") from error

    def extract(self, directory: Path, members: Iterable[str]) -> None:
        """Write members below ``directory`` (created where missing) under their own names, hashed while written.

        Raises:
            BundleError: a member is unknown or has changed, or the disk is full; what was written is removed.
        """
        written: list[Path] = []
        try:
            for name in members:
                self._record(name)
                target = directory / check_member_name(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                written.append(target)
                with atomic_write(target, BundleError, durable=False) as stream:
                    for chunk in self._chunks(name):
                        stream.write(chunk)
        except BaseException as error:
            for target in written:
                target.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise BundleError(f"cannot extract {self.path} to {directory}: {reason(error)}") from error
            raise

    def graph_files(self, precision: str) -> list[str]:
        """Return the names of a precision's graph files: the only one, or the router's and those of the heads."""
        heads = [head_file(category, precision) for category in self.manifest.categories]
        return [self.manifest.precisions[precision].file, *(name for name in heads if name in self.manifest.members)]

    def native_kinds(self, precision: str) -> set[str]:
        """Return what of a precision's graphs can be computed by native code: ``search``, ``gaussians``, or nothing."""
        described = [native_files(graph) for graph in self.graph_files(precision)]
        present = [files[-1] for files in described if set(files) <= set(self.manifest.members)]
        return {parse_description(self.read(name), name).kind for name in present}

    @contextmanager
    def model_files(self, precision: str, *, native_code: bool = True) -> Iterator[Path]:
        """Yield the path of a precision's graph file, its weights beside it, in a private folder.

        The folder is removed on exit; the bundle may be closed before. In a routed bundle the graph file is the
        router's, and the heads of the same precision lie beside it; so do the parts of graphs that native code speeds
        up (`edgead.runtime.backends.native`), unless ``native_code`` is False: then the whole graph runs.

        Raises:
            ConfigError: the bundle has no such precision.
            BundleError: the members changed since they were verified, or the disk is full.
        """
        if precision not in self.manifest.precisions:
            raise ConfigError(
                f"{self.path} has no precision '{precision}'.{suggest(precision, self.manifest.precisions)}"
            )
        graphs = self.graph_files(precision)
        native = [file for graph in graphs for file in native_files(graph)] if native_code else []
        wanted = {*graphs, *native}
        names = [n for n in self.manifest.members if n in wanted or n.startswith(WEIGHTS)]
        with private_directory() as directory:
            self.extract(directory, names)
            yield directory / graphs[0]

    def close(self) -> None:
        """Close the file; calling it twice is allowed."""
        self._stream.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verify(self) -> None:
        label = str(self.path)
        listed = set(self.manifest.members)
        present = set(self._entries) - {MANIFEST_NAME, SIGNATURE_NAME}
        for name in sorted(present - listed):
            damaged(label, f"member {name!r} is not listed in its manifest")
        for name in sorted(listed - present):
            damaged(label, f"member {name!r} is missing")
        for key, precision in self.manifest.precisions.items():
            if precision.file not in listed:
                damaged(label, f"the graph file of precision '{key}' is missing")
        for name, record in self.manifest.members.items():
            if self._entries[name].size != record.size:
                damaged(label, f"member {name!r} has another size than its manifest says")
        for name in self.manifest.members:
            for _ in self._chunks(name):
                pass

    def _record(self, name: str) -> MemberRecord:
        if name not in self.manifest.members:
            raise BundleError(f"{self.path} holds no member {name!r}; export it again")
        return self.manifest.members[name]

    def _read_unlisted(self, name: str, limit: int) -> bytes:
        entry = self._entries.get(name)
        if entry is None:
            damaged(str(self.path), f"it holds no {name}")
        if entry.size > limit:
            damaged(str(self.path), f"{name} has {entry.size} bytes, allowed are {limit}")
        data = b"".join(self._raw(entry))
        if zlib.crc32(data) != entry.crc:
            damaged(str(self.path), f"{name} has another checksum than its header says")
        return data

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Yield a listed member; the last chunk only after the digest was found right."""
        digest = hashlib.sha256()
        record = self._record(name)
        held = b""
        for chunk in self._raw(self._entries[name]):
            digest.update(chunk)
            yield held
            held = chunk
        if digest.hexdigest() != record.sha256:
            damaged(str(self.path), f"member {name!r} has another SHA-256 than its manifest says")
        yield held

    def _raw(self, entry: Entry) -> Iterator[bytes]:
        for start in range(0, entry.size, CHUNK):
            length = min(CHUNK, entry.size - start)
            with self._lock:
                if self._stream.closed:
                    raise BundleError(f"{self.path} is closed; open it again")
                try:
                    self._stream.seek(entry.offset + start)
                    chunk = self._stream.read(length)
                except OSError as error:
                    raise BundleError(f"cannot read {self.path}: {reason(error)}") from error
            if len(chunk) != length:
                damaged(str(self.path), "it became shorter while it was read")
            yield chunk
