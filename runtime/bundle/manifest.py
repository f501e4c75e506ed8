"""``manifest.json``: what a bundle is, what it decides and what proves it. Parsed as untrusted input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Final, Literal, NoReturn

from pydantic import Field, ValidationError, model_validator

from edgead.runtime.bundle.field_types import ComponentName, GraphFile, Json, ListedMember, Section, Text, unique_keys
from edgead.runtime.bundle.manifest_schema import (
    CategorySection,
    DetectorSection,
    InputSection,
    MapSection,
    MemberRecord,
    ParityRecord,
    PrecisionSection,
    ThresholdSection,
)
from edgead.runtime.decision.baseline import Normals
from edgead.runtime.decision.conformal import normal_scores
from edgead.runtime.decision.known_images import unpack_known
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import BundleError
from edgead.runtime.imaging.preprocess import RESIZE_RULE
from edgead.runtime.imaging.tiling import Tiles
from edgead.runtime.version import __version__

FORMAT_VERSION: Final = 1
MAX_MANIFEST_BYTES = 1 << 20

_EXPORT_AGAIN = "export it again with 'edgead export'"


class Manifest(Section):
    """The manifest of a bundle (design section 2). `write_bundle` fills in ``members``."""

    format_version: Literal[1] = FORMAT_VERSION
    name: Text
    graph: Literal["single", "routed"] = "single"
    score_direction: Literal["higher is more anomalous"] = "higher is more anomalous"
    detector: DetectorSection
    input: InputSection
    map: MapSection | None = None
    threshold: ThresholdSection
    categories: dict[ComponentName, CategorySection] = Field(default_factory=dict)
    members: dict[ListedMember, MemberRecord] = Field(default_factory=dict)
    precisions: Annotated[dict[ComponentName, PrecisionSection], Field(min_length=1)]
    parity: dict[GraphFile, dict[Text, ParityRecord]] = Field(default_factory=dict)
    provenance: dict[Text, Json] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.graph == "single" and self.map is None:
            raise ValueError("a single graph must state its map grid")
        if self.input.tiles is not None:
            if self.graph != "single":
                raise ValueError("only a single graph judges tiles")
            self.tiles()
        if self.input.align is not None and self.graph != "single":
            raise ValueError("only a single graph judges aligned frames")
        if self.graph == "routed":
            if not self.categories:
                raise ValueError("a routed graph must state its categories")
            for name, category in self.categories.items():
                if category.threshold is None or category.minimum_similarity is None:
                    raise ValueError(f"category {name!r} of a routed graph lacks its threshold or minimum_similarity")
            for key, entry in self.precisions.items():
                if unknown := sorted(entry.categories.keys() - self.categories.keys()):
                    raise ValueError(f"precision {key!r} has a threshold of the category {unknown[0]!r}, which is none")
        return self

    def limits(self, precision: str = "fp32") -> Limits:
        """Return the thresholds that the scores of a precision are compared with."""
        entry = self.precisions.get(precision)
        value = ((entry.threshold if entry is not None else None) or self.threshold).value
        own = self.promised(precision) if self.graph == "routed" else {}
        categories = {name: one.value for name, one in own.items() if name is not None}
        return Limits(value, categories, self._normal_scores(precision, value, categories))

    def _normal_scores(
        self, precision: str, value: float, categories: Mapping[str, float]
    ) -> dict[str | None, tuple[float, ...]]:
        if self.graph == "single":
            thresholds = {"fp32": self.threshold.value, precision: value}
        else:
            full = {f"fp32/{name}": one.threshold.value for name, one in self.categories.items() if one.threshold}
            thresholds = full | {f"{precision}/{name}": one for name, one in categories.items()}
        return normal_scores(self.provenance, precision, thresholds)

    def promised(self, precision: str = "fp32") -> dict[str | None, Threshold]:
        """Return the thresholds with their meaning, by category where the graph is routed, else under None."""
        entry = self.precisions.get(precision)
        if self.graph == "single":
            return {None: ((entry.threshold if entry is not None else None) or self.threshold).to_threshold()}
        own = entry.categories if entry is not None else {}
        found = {name: own.get(name, category.threshold) for name, category in self.categories.items()}
        return {name: section.to_threshold() for name, section in found.items() if section is not None}

    def normals(self) -> dict[str | None, Normals]:
        """Return what good parts looked like, by category where the graph is routed, else under None."""
        fitted_on = unpack_known(self.provenance)
        known: dict[str | None, Normals] = {
            name: replace(category.normals.to_normals(), known=fitted_on)
            for name, category in self.categories.items()
            if category.normals is not None
        }
        if self.graph == "routed":
            return known
        return {None: next(iter(known.values()))} if known else {}

    def tiles(self) -> Tiles | None:
        """Return the tiles that frames are cut into, None where they are judged whole."""
        section = self.input.tiles
        if section is None or self.map is None:
            return None
        return Tiles(section.rows, section.columns, section.overlap, (self.map.height, self.map.width))

    def minimum_similarity(self) -> dict[str, float]:
        """Return the similarity below which an image is no part of a category, of each category; empty if single."""
        if self.graph == "single":
            return {}
        return {name: category.minimum_similarity or 0.0 for name, category in self.categories.items()}

    def to_json(self) -> bytes:
        """Return the canonical bytes of ``manifest.json``: UTF-8, sorted keys, two blanks of indent."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    def with_members(self, members: Mapping[str, MemberRecord]) -> Manifest:
        """Return a copy that lists ``members``; raises `BundleError` where a graph file is not among them."""
        for key, precision in self.precisions.items():
            if precision.file not in members:
                raise BundleError(f"precision '{key}' names {precision.file!r}, which the bundle does not hold")
        return self.model_copy(update={"members": dict(sorted(members.items()))})


def parse_manifest(data: bytes, label: str) -> Manifest:
    """Parse the bytes of ``manifest.json``.

    Args:
        data: UTF-8 JSON, at most 1 MiB.
        label: name of the bundle, for messages.

    Raises:
        BundleError: not JSON, made by a newer edgead, or a field is missing, unknown or out of range (it is named).
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{label}: the manifest has {len(data)} bytes, allowed are 1 MiB; {_EXPORT_AGAIN}")
    try:
        content = json.loads(data.decode(), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{label}: the manifest is not valid JSON ({_line(error)}); {_EXPORT_AGAIN}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{label}: the manifest is not a JSON object; {_EXPORT_AGAIN}")
    # Before any field is judged: a newer format may have fields that this version rightly does not know.
    version = content.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise BundleError(f"{label}: the manifest has no format_version; {_EXPORT_AGAIN}")
    if version > FORMAT_VERSION:
        raise BundleError(f"{label} was made by a newer edgead (format {str(version)[:30]}); upgrade edgead")
    if version < 1:
        raise BundleError(f"{label} has an unknown format ({str(version)[:30]}); {_EXPORT_AGAIN}")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        if (field := unknown_field(error)) is not None:
            raise BundleError(f"{label}: {made_by_newer(field)}; upgrade edgead, or {_EXPORT_AGAIN}") from error
        raise BundleError(f"{label}: {explain(error)}; {_EXPORT_AGAIN}") from error
    if manifest.input.resize != RESIZE_RULE:
        # Another rule gives other pixels, and other pixels give other decisions.
        raise BundleError(
            f"{label} wants the resize rule '{manifest.input.resize}', this edgead has '{RESIZE_RULE}'; upgrade edgead"
        )
    return manifest


def unknown_field(error: ValidationError) -> str | None:
    """Return the first field that this version does not know, None where all are known: within one format version,
    fields are only added, so that whatever has more was made by a newer edgead."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    # So is one of another rule of the alignment: there is one yet.
    unknown = [
        one
        for one in problems
        if one["type"] == "extra_forbidden" or (one["type"] == "literal_error" and one["loc"][-1:] == ("rule",))
    ]
    return ".".join(str(part) for part in unknown[0]["loc"] if part != "[key]") if unknown else None


def made_by_newer(field: str) -> str:
    """Return the clause that says so of a file with an unknown field."""
    return _line(f"field {field[:120]!r} is unknown to this edgead ({__version__}), so a newer one made it")


def explain(error: ValidationError) -> str:
    """Return one line on the first wrong field, and how many more there are."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in problems[0]["loc"] if part != "[key]") or "(whole)"
    reason = problems[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _line(f"manifest field {where[:120]!r}: {reason}") + more


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
