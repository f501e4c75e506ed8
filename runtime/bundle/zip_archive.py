"""The container of a bundle: a plain zip of stored members in which every byte of the file is accounted for.

Python's ``zipfile`` forgives: it skips bytes before the archive, cuts names at NUL, believes the central directory
where the local headers say otherwise. Two readers that forgive differently see two different bundles, so this
reader takes one form only: local headers and data follow each other without a gap from the first byte to the central
directory, which ends with the file. Any zip tool can read what is written here.
Format: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5 (zip64).
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from edgead.runtime.bundle.layout import check_member_name, fold_name
from edgead.runtime.errors import BundleError

MAX_MEMBERS = 4096
CHUNK = 1 << 20

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_UTF8 = 0x800
_LIMIT32 = 0xFFFFFFFF
_ZIP64_FIELD = 0x0001
_ALIGN_FIELD = 0xD935  # the field of Android's zipalign; readers skip fields they do not know
_DATE_1980 = 0x0021


@dataclass(frozen=True, slots=True)
class Entry:
    """One member as found: size in bytes, CRC-32, and where its data start in the file."""

    name: str
    size: int
    crc: int
    offset: int


@dataclass(frozen=True, slots=True)
class NewEntry:
    """One member to write: size and CRC-32 are known beforehand, ``chunks`` delivers the bytes.

    ``alignment`` (a power of two) is the multiple at which the data start, so that they can be mapped in place.
    """

    name: str
    size: int
    crc: int
    chunks: Callable[[], Iterable[bytes]]
    alignment: int = 1


def read_entries(stream: BinaryIO, label: str) -> dict[str, Entry]:
    """Read the directory of an archive; nothing is read or allocated on the word of a header alone.

    Raises:
        BundleError: no zip, truncated, bytes unaccounted for, or a member that is compressed, encrypted, a folder,
            a link, unsafely named, or there twice.
    """
    size = stream.seek(0, io.SEEK_END)
    directory, end = _read_directory(stream, size, label)
    found: list[tuple[int, bytes, int, int, int]] = []
    position = 0
    while position < len(directory):
        if len(directory) - position < _CENTRAL.size:
            damaged(label, "its directory is cut short")
        fields = _CENTRAL.unpack_from(directory, position)
        signature, _, _, flags, method, _, _, crc, packed, plain, n_name, n_extra, n_comment, disk, _, attr, at = fields
        position += _CENTRAL.size
        name = directory[position : position + n_name]
        extra = directory[position + n_name : position + n_name + n_extra]
        position += n_name + n_extra
        if signature != b"PK\1\2" or len(extra) != n_extra or n_comment or disk:
            damaged(label, "its directory is broken")
        text = _decode_name(name, flags, label)
        _check_kind(text, flags, method, attr, label)
        plain, packed, at = _widen(extra, (plain, packed, at), label)
        if packed != plain:
            damaged(label, f"member {text!r} has two sizes")
        if plain > size or at > size:
            damaged(label, f"member {text!r} claims {plain} bytes, the file has {size}")
        found.append((at, name, flags, crc, plain))
    return _locate(stream, found, end - len(directory), label)


def _read_directory(stream: BinaryIO, size: int, label: str) -> tuple[bytes, int]:
    """Return the central directory and the position where it ends."""
    head = _exact(stream, 0, min(size, 64), label)
    if head.startswith(b"version https://git-lfs"):
        raise BundleError(f"{label} is a Git LFS pointer, not the bundle itself; run: git lfs pull")
    if not head.startswith(b"PK\3\4"):
        raise BundleError(f"{label} is not a bundle ({'it is empty' if not size else 'no zip file'}); check the path")
    end = size - _END.size
    if end < _LOCAL.size:
        damaged(label, "it is truncated")
    signature, disk, disk0, here, count, length, start, n_comment = _END.unpack(_exact(stream, end, _END.size, label))
    if signature != b"PK\5\6" or n_comment:
        damaged(label, "it is truncated, or something was appended to it")
    if 0xFFFF in (here, count) or _LIMIT32 in (length, start):
        end -= _LOCATOR64.size + _END64.size
        if end < 0:
            damaged(label, "it is truncated")
        record = _exact(stream, end, _END64.size + _LOCATOR64.size, label)
        signature, n_record, _, _, disk, disk0, here, count, length, start = _END64.unpack_from(record)
        locator = _LOCATOR64.unpack_from(record, _END64.size)
        if signature != b"PK\6\6" or n_record != _END64.size - 12 or locator != (b"PK\6\7", 0, end, 1):
            damaged(label, "its end record is broken")
    if disk or disk0 or here != count or start + length != end:
        damaged(label, "its end record is broken, or bytes are missing before it")
    if count > MAX_MEMBERS or length > MAX_MEMBERS * 512:
        damaged(label, f"it claims {count} members, allowed are {MAX_MEMBERS}")
    return _exact(stream, start, length, label), end


def _locate(
    stream: BinaryIO, found: list[tuple[int, bytes, int, int, int]], data_end: int, label: str
) -> dict[str, Entry]:
    """Compare each local header with the directory, and demand that the members tile the file."""
    entries: dict[str, Entry] = {}
    folded: set[str] = set()
    position = 0
    for at, name, flags, crc, size in sorted(found):
        text = _decode_name(name, flags, label)
        if fold_name(text) in folded:
            damaged(label, f"member {text!r} is there twice")
        folded.add(fold_name(text))
        if at != position or at + _LOCAL.size > data_end:
            damaged(label, f"there are unaccounted bytes before member {text!r}")
        header = _LOCAL.unpack(_exact(stream, at, _LOCAL.size, label))
        n_name, n_extra = header[9], header[10]
        names = _exact(stream, at + _LOCAL.size, n_name + n_extra, label)
        plain, packed = _widen(names[n_name:], (header[8], header[7]), label)
        told = (header[0], header[2], header[3], header[6], packed, plain, names[:n_name])
        if told != (b"PK\3\4", flags, 0, crc, size, size, name):
            damaged(label, f"the two headers of member {text!r} disagree")
        offset = at + _LOCAL.size + n_name + n_extra
        position = offset + size
        entries[text] = Entry(text, size, crc, offset)
    if position != data_end:
        damaged(label, "there are unaccounted bytes before its directory")
    return entries


def _check_kind(name: str, flags: int, method: int, attributes: int, label: str) -> None:
    kind = stat.S_IFMT(attributes >> 16)
    if flags & 0x41:
        damaged(label, f"member {name!r} is encrypted")
    if method != 0:
        damaged(label, f"member {name!r} is compressed, which a bundle never is")
    if name.endswith("/") or attributes & 0x10 or kind not in (0, stat.S_IFREG):
        damaged(label, f"member {name!r} is no plain file")
    if flags & ~_UTF8:
        damaged(label, f"member {name!r} has flags that a bundle never has")
    try:
        check_member_name(name)
    except ValueError as error:
        damaged(label, str(error))


def _decode_name(name: bytes, flags: int, label: str) -> str:
    try:
        return name.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        damaged(label, f"member name {name[:60]!r} is not text")


def _widen(extra: bytes, values: tuple[int, ...], label: str) -> tuple[int, ...]:
    """Replace each value that is 0xFFFFFFFF by the next eight bytes of the zip64 field."""
    wide = b""
    while extra:
        kind, length = struct.unpack_from("<HH", extra) if len(extra) >= 4 else (0, len(extra))
        if len(extra) < 4 + length:
            damaged(label, "a header is broken")
        if kind == _ZIP64_FIELD:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    result = []
    for value in values:
        if value == _LIMIT32:
            if len(wide) < 8:
                damaged(label, "a header lacks its 64-bit sizes")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(value)
    return tuple(result)


def _exact(stream: BinaryIO, position: int, length: int, label: str) -> bytes:
    stream.seek(position)
    data = stream.read(length)
    if len(data) != length:
        damaged(label, "it is truncated")
    return data


def damaged(label: str, what: str) -> NoReturn:
    """Raise the one line for a file that must not be used."""
    raise BundleError(f"{label} is damaged or unsafe: {what}; copy it again, or export it again")


def write_entries(stream: BinaryIO, entries: Iterable[NewEntry], *, zip64_from: int = _LIMIT32) -> None:
    """Write an archive with the same bytes for the same entries on every platform.

    Args:
        stream: empty binary file.
        entries: written in this order, names already checked.
        zip64_from: sizes and offsets from this value on are written with 64 bits.

    Raises:
        BundleError: the chunks of an entry differ from its size or CRC (the file changed meanwhile).
    """
    position, count, directory = 0, 0, b""
    for entry in entries:
        name = entry.name.encode()
        flags = 0 if name.isascii() else _UTF8
        big = entry.size >= zip64_from
        sizes = struct.pack("<HH2Q", _ZIP64_FIELD, 16, entry.size, entry.size) if big else b""
        narrow = _LIMIT32 if big else entry.size
        extra = sizes + _padding(position + _LOCAL.size + len(name) + len(sizes), entry.alignment)
        common = (45 if big else 20, flags, 0, 0, _DATE_1980, entry.crc, narrow, narrow, len(name))
        header = _LOCAL.pack(b"PK\3\4", *common, len(extra)) + name + extra
        stream.write(header)
        for chunk in _checked(entry):
            stream.write(chunk)
        directory += _central(entry, name, common, position, zip64_from)
        position += len(header) + entry.size
        count += 1
    stream.write(directory)
    narrow_end = (min(count, 0xFFFF), min(count, 0xFFFF), min(len(directory), _LIMIT32), min(position, _LIMIT32))
    if position >= zip64_from or count >= 0xFFFF:
        end = position + len(directory)
        stream.write(_END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, len(directory), position))
        stream.write(_LOCATOR64.pack(b"PK\6\7", 0, end, 1))
        narrow_end = (*narrow_end[:3], _LIMIT32)
    stream.write(_END.pack(b"PK\5\6", 0, 0, *narrow_end, 0))


def _central(entry: NewEntry, name: bytes, common: tuple[int, ...], position: int, zip64_from: int) -> bytes:
    far = position >= zip64_from
    wide = ([entry.size, entry.size] if common[6] == _LIMIT32 else []) + ([position] if far else [])
    extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64_FIELD, 8 * len(wide), *wide) if wide else b""
    made_by = 3 << 8 | 45
    attributes = (stat.S_IFREG | 0o644) << 16
    tail = (len(extra), 0, 0, 0, attributes, _LIMIT32 if far else position)
    return _CENTRAL.pack(b"PK\1\2", made_by, *common, *tail) + name + extra


def _padding(position: int, alignment: int) -> bytes:
    length = -position % alignment
    if not length:
        return b""
    while length < 6:
        length += alignment
    return struct.pack("<3H", _ALIGN_FIELD, length - 4, alignment) + bytes(length - 6)


def _checked(entry: NewEntry) -> Iterator[bytes]:
    size = crc = 0
    for chunk in entry.chunks():
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if (size, crc) != (entry.size, entry.crc):
        raise BundleError(f"{entry.name} changed while it was written into the bundle; try again")
