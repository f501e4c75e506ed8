"""What the base install and each extra of a wheel bring with them: CycloneDX 1.6 by cyclonedx-python-lib, and licences.

pip resolves them, without installing: versions are those of constraints.txt and otherwise the newest of the day, for
the interpreter and the system that it runs on. Licences are what each package's own metadata say.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Sources whose set-up asks NVIDIA's own index, which a machine may not reach: said, and no reason to stop.
MAY_FAIL = ("tensorrt",)
# Extras for work on edgead itself.
NO_USERS = ("demo", "dev", "docs", "release")
# Licences that ask more of who passes a program on than a notice.
ASKS_MORE = re.compile(r"GPL|MPL|EPL|EUPL|CDDL|proprietary|NVIDIA|EULA|other/|unknown", re.IGNORECASE)


class UnresolvedError(Exception):
    """pip finds no set of packages; the message is what it says."""


def resolve(wheel: Path, extra: str, constraints: Path = ROOT / "constraints.txt") -> list[dict[str, Any]]:
    """Return what pip would install for the wheel and one extra (empty: none), as its report has it; edgead first.

    Raises:
        UnresolvedError: there is no such set, or no index to ask.
    """
    name = f"edgead[{extra}]" if extra else "edgead"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        asked = ["--report", str(report), "-c", str(constraints), f"{name} @ {wheel.resolve().as_uri()}"]
        done = subprocess.run([*pip, *asked], capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "╰─>"))]
            raise UnresolvedError(" ".join(line.strip(" ╰─>") for line in errors)[:200] or "pip failed")
        items: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return sorted(items, key=lambda item: (_name(item) != "edgead", _name(item)))


def licence(item: dict[str, Any]) -> str:
    """Return the licence that a package's metadata state, as an SPDX expression where they have one."""
    metadata = item["metadata"]
    if metadata.get("license_expression"):
        return str(metadata["license_expression"])
    classes = [one.split(" :: ")[-1] for one in metadata.get("classifier", []) if one.startswith("License :: ")]
    named = [one for one in classes if one != "OSI Approved"]
    text = str(metadata.get("license") or "").strip()
    # Some put the whole text there.
    short = text.splitlines()[0] if text and len(text.splitlines()[0]) <= 80 and text != "UNKNOWN" else ""
    return "; ".join(named) or short or "unknown"


def bill(items: Sequence[dict[str, Any]], extra: str, made: datetime) -> str:
    """Return the bill of materials of what was resolved as JSON; raises `ValueError` where it breaks the schema."""
    components = {_name(item): _component(item) for item in items}
    bom = Bom(components=[one for name, one in components.items() if name != "edgead"])
    bom.metadata.timestamp = made
    bom.metadata.component = components["edgead"]
    bom.metadata.properties.add(Property(name="edgead:extra", value=extra or "(base install)"))
    bom.metadata.properties.add(Property(name="edgead:python", value=sys.version.split()[0]))
    bom.metadata.properties.add(Property(name="edgead:platform", value=sys.platform))
    for item in items:
        needs = [components[name] for name in _needs(item) if name in components]
        bom.register_dependency(components[_name(item)], needs)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"the bill of {extra or 'the base install'} breaks CycloneDX's schema: {error}")
    return str(text) + "\n"


def licence_list(resolved: dict[str, list[dict[str, Any]]], failed: dict[str, str]) -> str:
    """Return Markdown: every package once, its version, licence, and the extras that bring it."""
    rows: dict[str, tuple[str, str]] = {}
    brought: dict[str, list[str]] = {}
    for extra, items in resolved.items():
        for item in items:
            rows[_name(item)] = (str(item["metadata"]["version"]), licence(item))
            brought.setdefault(_name(item), []).append(extra or "base")
    rows.pop("edgead")
    more = [name for name, (_, text) in rows.items() if ASKS_MORE.search(text)]
    lines = ["# Licences of what an install of edgead brings", ""]
    lines += [
        "None of these packages is in edgead's own files: pip fetches them. Licences are as their metadata state them.",
        "",
    ]
    lines += ["These ask for more than a notice, or do not say what they ask for:", ""]
    lines += [f"- {name}: {rows[name][1]} ({_extras(brought[name])})" for name in sorted(more)]
    lines += [f"- extra {extra}: not resolved here, so not listed: {why}" for extra, why in failed.items()]
    lines += ["", "| package | version | licence | extras |", "|---|---|---|---|"]
    for name in sorted(rows):
        version, text = rows[name]
        lines.append(f"| {name} | {version} | {text.replace('|', '/')} | {_extras(brought[name])} |")
    return "\n".join(lines) + "\n"


def extras(wheel_metadata: str) -> list[str]:
    """Return the extras that are for users, with the base install, an empty name, first."""
    found = re.findall(r"^Provides-Extra: (.+)$", wheel_metadata, re.MULTILINE)
    return ["", *sorted(set(found) - set(NO_USERS))]


def _extras(names: Iterable[str]) -> str:
    there = sorted(set(names))
    return "base" if "base" in there else ", ".join(there)


def _component(item: dict[str, Any]) -> Component:
    metadata, origin = item["metadata"], item["download_info"]
    name, version = str(metadata["name"]), str(metadata["version"])
    hashes = origin.get("archive_info", {}).get("hashes", {})
    stated = licence(item)
    made = DisjunctiveLicense(name=stated) if stated == "unknown" else LicenseFactory().make_from_string(stated)
    file = origin["url"].rpartition("/")[2]
    links = [ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(origin["url"]))]
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"{canonicalize_name(name)}@{version}",
        purl=PackageURL("pypi", name=canonicalize_name(name), version=version, qualifiers={"file_name": file}),
        licenses=[made],
        # Addresses of this machine's folders say nothing to others.
        external_references=links if origin["url"].startswith("https://") else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashes["sha256"])] if "sha256" in hashes else [],
    )


def _needs(item: dict[str, Any]) -> set[str]:
    asked = ["", *item.get("requested_extras", [])]
    needed = set()
    for text in item["metadata"].get("requires_dist", []):
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in asked):
            needed.add(canonicalize_name(one.name))
    return needed - {_name(item)}


def _name(item: dict[str, Any]) -> str:
    return canonicalize_name(str(item["metadata"]["name"]))
