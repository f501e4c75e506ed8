"""What a bundle says of the native code between a graph's parts: parsed as untrusted input."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from edgead.runtime.errors import BackendError


class Constant(BaseModel):
    """A file in ``weights/`` that holds an array."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(pattern=r"^weights/[0-9a-f]{64}\.bin$")
    dtype: Literal["<f4", "<f2"]
    shape: list[PositiveInt] = Field(min_length=1, max_length=3)


class Description(BaseModel):
    """What goes between the parts of a graph; `native_files` names the file that holds it, as JSON.

    Attributes:
        kind: ``search`` or ``gaussians``; constants: what these call them.
        carried: outputs of the first part that the second takes beside the distances.
        channels_first: queries are ``(N, C, P)`` instead of ``(N, P, C)``.
        triangular: of Gaussians: what lies above the diagonals of the factors is zero; bits: that they are held in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["search", "gaussians"]
    constants: dict[str, Constant]
    carried: list[str] = []
    channels_first: bool = False
    triangular: bool = False
    bits: Literal[16, 32] = 32


def parse_description(data: bytes, label: str) -> Description:
    """Parse a `Description`; raises `BackendError` for anything else, with the file's name as its label."""
    try:
        return Description.model_validate_json(data)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise BackendError(f"{label} does not say what to compute natively ({why}); export the bundle again") from error
