"""Names of a bundle's members: safe to extract on Linux, Windows and macOS."""

from __future__ import annotations

import unicodedata
from typing import Final

SUFFIX = ".edgead"
WEIGHTS = "weights/"


MANIFEST_NAME: Final = "manifest.json"
MASK_NAME: Final = "mask.png"
TEMPLATE_NAME: Final = "template.png"
SIGNATURE_NAME: Final = "signature.ed25519"

_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)


def check_member_name(name: str) -> str:
    """Return ``name`` where it is safe to extract on Linux, Windows and macOS; raises `ValueError` where not.

    Forward slashes separate components; nothing may be absolute, empty, ``.``, ``..``, longer than 240 bytes,
    or hold a backslash, a colon, a control character or another character that Windows refuses.
    """
    encoded = name.encode("utf-8", "surrogatepass")
    if not name or len(encoded) > 240:
        raise ValueError(f"unsafe member name {name[:60]!r}: it must have 1 to 240 bytes")
    if any(character in '\\:*?"<>|' or not character.isprintable() for character in name):
        raise ValueError(f"unsafe member name {name!r}: it holds a character that is not allowed")
    for component in name.split("/"):
        if component in ("", ".", "..") or component[-1] in ". ":
            raise ValueError(f"unsafe member name {name!r}: it is absolute or leaves its folder")
        if component.split(".")[0].casefold() in _WINDOWS_DEVICES:
            raise ValueError(f"unsafe member name {name!r}: '{component}' is a device on Windows")
    return name


def fold_name(name: str) -> str:
    """Return the form in which two names collide on a file system that ignores case or Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def head_file(category: str, precision: str) -> str:
    """Return the name of a head's graph file in a bundle."""
    return f"head-{category}.{precision}.onnx"


def native_files(graph: str) -> tuple[str, str, str]:
    """Return names for a graph file's parts, images to queries and distances to score, and for what is between them."""
    return f"native-queries.{graph}", f"native-score.{graph}", f"native.{graph.removesuffix('.onnx')}.json"
