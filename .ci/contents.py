"""What a wheel holds that was not written for edgead, as CycloneDX 1.6: compiled in, or made from another's data.

Plain JSON, so that wheels need no library; `make release` and a test validate it with cyclonedx-python-lib.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UNICODE_TABLE = ROOT / "runtime" / "capi" / "src" / "letters.h"
LIBEDGEAD = "libedgead.so.1"


def sbom(version: str, platform: str, libraries: Mapping[str, Path], json_headers: Path) -> str:
    """Return the bill of materials of one wheel; the same input gives the same text.

    Args:
        version: of edgead.
        platform: tag of the wheel, ``any`` for the one without native code.
        libraries: native code by its name in the wheel.
        json_headers: folder of nlohmann/json's headers, which libedgead is compiled with.
    """
    components = [_unicode()]
    if libraries:
        zig = installed("ziglang")
        components.append(_component("zig-compiler-rt", zig, ["MIT"], f"pkg:pypi/ziglang@{zig}"))
        if any(name.endswith(LIBEDGEAD) for name in libraries):
            components += _of_libedgead(zig, json_headers)
        if platform.startswith("win"):
            url = f"pkg:generic/mingw-w64-crt?download_url=https://pypi.org/project/ziglang/{zig}/"
            components.append(_component("mingw-w64-crt", f"as in zig {zig}", ["ZPL-2.1"], url))
    for name, file in sorted(libraries.items()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        components.append(
            {
                "type": "file",
                "bom-ref": name,
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "licenses": _licences(["Apache-2.0"]),
            }
        )
    metadata: dict[str, Any] = {
        "component": {
            "type": "library",
            "bom-ref": "edgead",
            "name": "edgead",
            "version": version,
            "description": f"the wheel for {platform}",
            "purl": f"pkg:pypi/edgead@{version}",
            "licenses": _licences(["Apache-2.0"]),
        }
    }
    if os.environ.get("SOURCE_DATE_EPOCH"):
        made = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
        metadata["timestamp"] = made.isoformat()
    refs = sorted(one["bom-ref"] for one in components)
    bill: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": metadata,
        "components": sorted(components, key=lambda one: one["bom-ref"]),
        "dependencies": [{"ref": "edgead", "dependsOn": refs}, *({"ref": ref} for ref in refs)],
    }
    content = json.dumps(bill, sort_keys=True)
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    return json.dumps(bill, indent=1, sort_keys=True) + "\n"


def _of_libedgead(zig: str, json_headers: Path) -> Iterable[dict[str, Any]]:
    text = (json_headers / "detail" / "abi_macros.hpp").read_text()
    numbers = [re.search(rf"#define NLOHMANN_JSON_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    json_version = ".".join(found[1] for found in numbers if found)
    yield _component("nlohmann-json", json_version, ["MIT"], f"pkg:github/nlohmann/json@v{json_version}")
    for part in ("libcxx", "libcxxabi", "libunwind"):
        url = f"pkg:generic/{part}?download_url=https://pypi.org/project/ziglang/{zig}/"
        yield _component(part, f"as in zig {zig}", ["Apache-2.0 WITH LLVM-exception"], url)


def _unicode() -> dict[str, Any]:
    found = re.search(r"of Unicode (\d+\.\d+\.\d+)", UNICODE_TABLE.read_text())
    if found is None:
        raise SystemExit(f"{UNICODE_TABLE} no longer says which Unicode its tables are of")
    url = f"pkg:generic/unicode-character-database@{found[1]}"
    return _component("unicode-character-database", found[1], ["Unicode-3.0"], url, "data")


def _component(name: str, version: str, licences: list[str], purl: str, kind: str = "library") -> dict[str, Any]:
    ref = {"bom-ref": name, "type": kind, "name": name, "version": version, "purl": purl}
    return {**ref, "licenses": _licences(licences)}


def _licences(expressions: list[str]) -> list[dict[str, str]]:
    return [{"expression": one} for one in expressions]
