"""What the fields of a manifest may hold, one check for each kind of value; `Section` is what all its parts are."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from edgead.runtime.bundle.layout import MANIFEST_NAME, SIGNATURE_NAME, check_member_name, fold_name
from edgead.runtime.imaging.decode import ALL_BITS, FEWEST_BITS

_RESERVED = frozenset({MANIFEST_NAME, SIGNATURE_NAME})


def _component(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} must not hold a slash")
    return check_member_name(name)


def _listed_member(name: str) -> str:
    if fold_name(name) in _RESERVED:
        raise ValueError(f"{name!r} is never listed")
    return check_member_name(name)


def _graph_file(name: str) -> str:
    if not name.endswith(".onnx"):
        raise ValueError(f"{name!r} must end in .onnx")
    return _component(name)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds a control character")
    return text


def as_tuple(value: object) -> object:
    # Strict validation takes no list for a tuple, and pydantic 2.5 cannot switch that off for one field.
    return tuple(value) if isinstance(value, list) else value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's content; raises `ValueError` where a key is there twice, of which readers take either."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _finite(child)
    return value


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
FileBits = Annotated[int, Field(ge=FEWEST_BITS, le=ALL_BITS)]
Json = Annotated[JsonValue, AfterValidator(_finite)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
FramePixels = Annotated[int, Field(ge=1, le=65535)]
Offset = Annotated[int, Field(ge=-8192, le=8192)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Change = Annotated[float, Field(ge=-1.0, le=1.0)]
Difference = Annotated[float, Field(ge=0.0)]
ComponentName = Annotated[str, AfterValidator(_component)]
GraphFile = Annotated[str, AfterValidator(_graph_file)]
ListedMember = Annotated[str, AfterValidator(_listed_member)]


class Section(BaseModel):
    """What was written by others: no unknown field, no conversion, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
