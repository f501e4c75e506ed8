"""The sign-off of a station: one page, print-ready, in the terms of a measurement-system study."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from edgead.pages.markup import Markup, document, element, facts, section, table
from edgead.runtime.device.signoff.agreement import Share
from edgead.runtime.device.signoff.study import Appraiser, Signoff

# Two columns and small type, so that it fits one sheet of A4.
_PRINT = (
    "@page{size:A4;margin:11mm}@media print{main{padding:0}body{font-size:10.5px}h1{font-size:18px}h2{font-size:13px}"
    ".note{font-size:9.5px}section{margin-top:9px;padding-top:5px}table{font-size:10px}th,td{padding:2px 8px 2px 0}"
    "dl{gap:1px 12px}}"
    ".signed{font-family:monospace;font-size:11px;overflow-wrap:anywhere}"
    ".sign{display:grid;grid-template-columns:1fr 1fr;gap:40px;margin-top:34px}"
    ".sign div{border-top:1px solid;padding-top:4px;font-size:12px}"
)


def signoff_page(report: Signoff, made: datetime.datetime, signature: dict[str, str] | None = None) -> str:
    """Return the page.

    Args:
        report: the study.
        made: when; with its time zone.
        signature: ``public_key``, ``sha256`` of the JSON and ``signature``, in hexadecimal; None: unsigned.
    """
    found = report.provenance
    station = report.station
    rated = "not rated" if station.rating is None else station.rating
    checked = "passed" if found["check"]["passed"] else f"FAILED: {'; '.join(found['check']['problems'])}"
    rating = f"{station.parts} parts, attribute agreement {rated} by AIAG MSA (4th edition)"
    lead = f"{rating}. Check on this device: {checked}."
    return document(
        f"Sign-off of {found['bundle']}",
        element("style", Markup(_PRINT)),
        element("h1", f"Sign-off of {found['bundle']}"),
        element("p", lead, class_="lead"),
        element("p", report.claim),
        section("Agreement with the reference", _appraisers(report.appraisers), anchor="agreement"),
        section("Escapes by kind of defect", _shares(report.kinds, "kind", "passed in any trial"), anchor="kinds"),
        section("Repeatability of the score", facts(_repeatability(report)), anchor="repeatability"),
        section(
            "Small changes, made in software",
            _shares(report.changes, "change", "decided otherwise in any capture"),
            anchor="changes",
        ),
        section("What was judged, and by what", facts(_provenance(report, made)), anchor="provenance"),
        _signed(signature),
    )


def _appraisers(appraisers: Sequence[Appraiser]) -> Markup:
    headings = ["appraiser", "effectiveness", "miss rate", "false-alarm rate", "within appraiser", "kappa", "rating"]
    rows = [
        [
            f"{one.name}, {one.parts} parts x {one.trials}",
            _brief(one.effectiveness),
            _brief(one.miss),
            _brief(one.false_alarm),
            "one trial" if one.within is None else _brief(one.within),
            _kappa(one),
            one.rating or "–",
        ]
        for one in appraisers
    ]
    note = (
        "A part is right where every trial is; a part that is not inspected counts as rejected. Intervals are exact "
        "(95 %). Kappa: with the reference, first trials; between trials. Acceptable: effectiveness from 90 %, misses "
        "up to 2 %, false alarms up to 5 %; marginal: 80 %, 5 %, 10 %."
    )
    return table(headings, rows, text_columns=len(headings), note=note)


def _brief(share: Share) -> str:
    return "–" if not share.n else f"{share.seen}/{share.n} ({share.low:.1%} to {share.high:.1%})"


def _kappa(one: Appraiser) -> str:
    values = (one.kappa, one.kappa_within)
    return "; ".join("–" if value is None else f"{value:.2f}" for value in values)


def _shares(shares: Any, what: str, seen: str) -> Markup:
    rows = [[name, *_row(share)] for name, share in shares.items()]
    return table([what, seen, "share", "95 % interval"], rows, text_columns=4)


def _row(share: Share) -> list[str]:
    value = "–" if share.value is None else f"{share.value:.1%}"
    return [f"{share.seen} of {share.n}", value, f"{share.low:.1%} to {share.high:.1%}"]


def _repeatability(report: Signoff) -> list[tuple[str, str]]:
    one = report.repeatability
    if one.deviation is None:
        return [("not known", "every part was captured once; capture each part several times, taken out in between")]
    of_margin = "" if one.of_margin is None else f", {one.of_margin:.1%} of the way from good parts to the threshold"
    near = ", ".join(one.near[:12]) + (" …" if len(one.near) > 12 else "")
    return [
        ("within parts", f"standard deviation {one.deviation:.4g}{of_margin}"),
        ("within 3 deviations of the threshold", f"{len(one.near)} parts{': ' + near if near else ''}"),
    ]


def _provenance(report: Signoff, made: datetime.datetime) -> list[tuple[str, str]]:
    found = report.provenance
    backend = found["backend"]
    return [
        ("bundle", f"{found['bundle']}, SHA-256 {found['model_sha256']}"),
        ("made", " · ".join(f"{name} {value}" for name, value in found["versions"].items())),
        ("runs on", f"{backend['name']} {backend['version']}, {found['precision']}; {found['machine']['cpu']}"),
        *((f"threshold, {name}", one["meaning"]) for name, one in found["threshold"].items()),
        (
            "parity",
            f"{found['check']['references']} references replayed, scores differ by at most "
            f"{found['check']['max_score_difference']:.2g}"
            if found["check"]["max_score_difference"] is not None
            else "–",
        ),
        ("date", made.isoformat(timespec="seconds")),
    ]


def _signed(signature: dict[str, str] | None) -> Markup:
    if signature is None:
        return element(
            "div",
            element("div", "Quality, date, signature"),
            element("div", "Production, date, signature"),
            class_="sign",
        )
    lines = (f"{name.replace('_', ' ')}: {value}" for name, value in signature.items())
    return section("Signature (Ed25519, of the JSON beside)", *lines, anchor="signature")
