"""What a run ends with, for people."""

from __future__ import annotations

from typing import Any

from edgead.cli._output import listing, milliseconds, table
from edgead.runtime.inspection.shadow import ShadowReport
from edgead.runtime.status.summary import StreamSummary


def run_tables(summary: StreamSummary, shadow: ShadowReport | None = None) -> list[Any]:
    """Return the tables that ``edgead run`` ends with: frames, decisions, latency, losses, sinks, and a shadow's."""
    counts = {name: source.frames for name, source in summary.sources.items()}
    if len(counts) > 1:
        counts["all"] = summary.frames
    frames = [
        [name, str(c.captured), str(c.inspected), _reasons(c.dropped), _reasons(c.failed), str(c.in_flight)]
        for name, c in counts.items()
    ]
    stages = [("camera to decision", summary.latency), *summary.stages.items()]
    tables = [
        table("Frames", ["source", "captured", "inspected", "dropped", "failed", "in flight"], frames),
        listing("Decisions", {name: str(count) for name, count in summary.decisions.items()}),
        table(
            "Latency in ms",
            ["stage", "p50", "p95", "p99", "max"],
            [
                [name, *map(milliseconds, (one.p50, one.p95, one.p99, one.max) if one else (None,) * 4)]
                for name, one in stages
            ],
        ),
    ]
    troubled = {
        name: source.health
        for name, source in summary.sources.items()
        if source.health.last_loss is not None or source.health.resized
    }
    if troubled:
        losses = [
            [name, str(h.reconnects), str(h.attempts), str(h.stuck), str(h.resized), h.last_loss or "-"]
            for name, h in troubled.items()
        ]
        tables.append(table("Losses", ["source", "came back", "tries", "stuck", "resized", "last loss"], losses))
    if summary.sinks:
        reports = [[r.name, str(r.accepted), str(r.written), str(r.failed), str(r.missed)] for r in summary.sinks]
        tables.append(table("Sinks", ["sink", "results", "written", "failed", "missed"], reports))
    if shadow is not None:
        rows = {"judged by both": f"{shadow.judged} parts; it had no time for {shadow.missed}"}
        rows |= {f"known {place}": claim for place, claim in enumerate(shadow.claims(), 1)}
        tables.append(listing(f"Shadow {shadow.bundle}", rows))
    return tables


def _reasons(counts: Any) -> str:
    return "\n".join([str(sum(counts.values())), *(f"{count} {reason}" for reason, count in counts.items())])
