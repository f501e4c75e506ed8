"""``edgead signoff``: the study that a quality engineer wants to see before a station is released."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import BackendOption, BundleArgument, PrecisionOption, ThreadsOption
from edgead.cli._profiles import ProfileOption, profile_place
from edgead.cli.device import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.runtime.device.signoff.study import Signoff


@command("signoff", panel=PANEL, trusts=True, example="edgead signoff plate.edgead study -o signoff.html")
def signoff(
    out: Output,
    bundle: BundleArgument,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="good/PART/*.png and KIND/PART/*.png: captures of known parts.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PAGE.html", help="Page to print; its JSON goes beside.", show_default="no page"
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Ed25519 key that signs the JSON.", show_default="unsigned"),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    profile: ProfileOption = None,
) -> None:
    """Judge captures of parts whose condition is known, and say what that supports: agreement, escapes, repeatability.

    appraisers.csv in DIR (part,appraiser,trial,decision) adds what people decided. Exits with 3 where the bundle fails
    the check on this device.
    """
    from edgead.runtime.device.signoff.study import study
    from edgead.runtime.errors import ConfigError, ParityError
    from edgead.runtime.inspection.run_config import RunConfig

    if key is not None and output is None:
        raise ConfigError("--key signs the JSON beside the page; give the page with -o")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{output} must end in .html: its JSON goes beside it, under the same name")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent}; make it first")
    signer = None
    if key is not None:
        from edgead.runtime.signing import Signer

        signer = Signer(key)  # before the work: a key that cannot be used is said at once
    with out.progress() as step:
        asked = RunConfig(backend, precision, threads, profile=profile_place(profile))
        report = study(bundle, folder, asked, lambda done, total: step("captures", done, total))
    if report.provenance["profile_omitted"]:
        out.warn(report.provenance["profile_omitted"])
    made = datetime.datetime.now(datetime.timezone.utc)
    payload = {**report.to_dict(), "time": made.isoformat(timespec="seconds")}
    if output is not None:
        _write(output, report, payload, made, signer)
        payload["page"] = str(output)
    out.finish(payload, *_tables(report))
    check = report.provenance["check"]
    if not check["passed"]:
        raise ParityError(
            f"{bundle} fails the check on this device: {check['problems'][0]}; run: edgead check {bundle}"
        )


def _write(output: Path, report: Signoff, payload: dict[str, Any], made: datetime.datetime, signer: Any) -> None:
    import hashlib
    import json

    from edgead.pages.signoff_page import signoff_page
    from edgead.runtime.errors import DataError
    from edgead.runtime.files import atomic_write

    data = (json.dumps(payload, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    signature = None
    if signer is not None:
        digest = hashlib.sha256(data).hexdigest()
        signature = {"sha256": digest, "public_key": signer.public, "signature": signer.sign(data)}
    with atomic_write(output.with_suffix(".json"), DataError) as stream:
        stream.write(data)
    if signature is not None:
        with atomic_write(output.with_suffix(".json.sig"), DataError) as stream:
            stream.write(bytes.fromhex(signature["signature"]))
    with atomic_write(output, DataError) as stream:
        stream.write(signoff_page(report, made, signature).encode("utf-8", "replace"))


def _tables(report: Signoff) -> list[Any]:
    from edgead.cli._output import listing, table

    rows = [
        [
            one.name,
            one.effectiveness.explain(),
            one.miss.explain(),
            one.false_alarm.explain(),
            one.rating or "–",
        ]
        for one in report.appraisers
    ]
    headings = ["appraiser", "right in every trial", "defective parts that passed", "good parts rejected", "AIAG MSA"]
    changes = [[name, share.explain()] for name, share in report.changes.items()]
    near = report.repeatability.near
    facts = {
        "claim": report.claim,
        "near the threshold": f"{len(near)} parts within 3 standard deviations of repeatability"
        if report.repeatability.deviation is not None
        else "not known: every part was captured once",
    }
    return [
        table("Agreement with the reference", headings, rows),
        table("Small changes, made in software", ["change", "parts decided otherwise"], changes),
        listing("What this supports", facts),
    ]
