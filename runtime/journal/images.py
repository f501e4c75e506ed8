"""The pixels of a part as a file, lossless, and back again just as they were judged."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError
from edgead.runtime.files import reason
from edgead.runtime.frame import Frame, Result

_UP = 2  # PNG's filter that takes the row above from each row


# An own chunk of the PNG file, which viewers pass over: anomaly map, and where it lies.
_MAP = b"edMp"


def encode(frame: Frame, heat: bytes = b"") -> bytes:
    """Return a frame as a PNG file, RGB or grey, any viewer shows it; ``heat`` of `encode_map` goes into it.

    Not Pillow's encoder: this one leaves the interpreter to the thread that judges while it compresses.
    """
    image = frame.image if frame.layout == "gray" else frame.to_rgb()
    height, width = image.shape[:2]
    flat = np.ascontiguousarray(image).reshape(height, -1)
    rows = np.empty((height, flat.shape[1] + 1), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if frame.layout == "gray" else 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", head), _chunk(_MAP, heat) if heat else b"", _chunk(b"IDAT", zlib.compress(rows.data, 1))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def encode_map(result: Result) -> bytes:
    """Return the anomaly map of a result, to the bit, with the part of the frame that it lies on; empty without one."""
    if result.map is None:
        return b""
    grid = np.ascontiguousarray(result.map, "<f4")
    head = json.dumps({"shape": grid.shape, "area": result.area, "placement": result.placement}).encode()
    return head + b"\n" + zlib.compress(grid.tobytes(), 1)


def decode_map(data: bytes, name: str) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
    """Return the map ``(gh, gw)`` in `encode`'s file, and ``area`` and ``placement``; None where there is none.

    Raises:
        DataError: that is no such file; ``name`` is in the message.
    """
    at = 8
    try:
        while at < len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind == _MAP:
                head, _, packed = data[at + 8 : at + 8 + length].partition(b"\n")
                said = json.loads(head)
                grid = np.frombuffer(zlib.decompress(packed), "<f4").reshape(said.pop("shape"))
                return grid, {key: None if value is None else tuple(value) for key, value in said.items()}
            at += 12 + length
    except (struct.error, ValueError, zlib.error, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"the anomaly map in {name} is damaged") from error
    return None


def decode(data: bytes, layout: str, name: str) -> NDArray[np.uint8]:
    """Return the pixels of `encode`'s file in the layout in which they were judged.

    Raises:
        DataError: that is no such file; ``name`` is in the message.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            pixels = np.asarray(opened.convert("L" if layout == "gray" else "RGB"))
    except Exception as error:
        raise DataError(f"{name} is damaged: {reason(error)}") from error
    return np.ascontiguousarray(pixels[:, :, ::-1] if layout == "bgr" else pixels)


def write(path: Path, data: bytes) -> None:
    """Write a file under its name or not at all; its content is on the disk then, its name after `sync_folders`.

    Raises:
        OSError: it could not be written, and nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            # One by one, and not all of them when the rows are committed: that would take the second that may be lost.
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync_folders(paths: Sequence[Path]) -> None:
    """Return when the names of files that `write` has written are on the disk."""
    for folder in {folder for path in paths for folder in (path.parent, path.parent.parent, path.parent.parent.parent)}:
        with suppress(OSError):  # not every system and file system can
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
