"""Which stations a release is for, and what it must pass there: what the signed metadata of a target says."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from edgead.runtime.bundle.field_types import Section, Text, as_tuple
from edgead.runtime.bundle.signature import Hex32
from edgead.runtime.errors import DataError

CUSTOM = "edgead"


class Rollout(Section):
    """The custom metadata of a target.

    Attributes:
        bundle: digest of the manifest; release: number of the publication, each higher than the one before.
        stations: these take it in any case; share_ppm: millionths of all others, chosen by a hash of station and
            bundle, so that a larger share contains the smaller one. The signed form of JSON knows no fractions.
        shadow_parts: parts that it judges beside the bundle that decides before it takes over; max_different_ppm: the
            millionths of them that it may decide otherwise.
    """

    schema_: Literal["edgead.rollout/1"] = Field(alias="schema")
    bundle: Hex32
    release: Annotated[int, Field(ge=1, le=1 << 53)]
    stations: Annotated[tuple[Text, ...], BeforeValidator(as_tuple), Field(max_length=10_000)] = ()
    share_ppm: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000_000
    shadow_parts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    max_different_ppm: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    def is_for(self, station: str) -> bool:
        """Say whether a station takes it."""
        if station in self.stations:
            return True
        digest = hashlib.sha256(f"{self.bundle} {station}".encode()).digest()
        return (int.from_bytes(digest[:6], "big") * 1_000_000 >> 48) < self.share_ppm


def parse_rollout(custom: object, label: str) -> Rollout:
    """Read the custom metadata of a target; raises `DataError` where they are none of this version's."""
    try:
        return Rollout.model_validate(custom[CUSTOM] if isinstance(custom, dict) else None)
    except (ValidationError, KeyError) as error:
        raise DataError(f"{label} was not published by 'edgead publish' of a version like this one") from error
