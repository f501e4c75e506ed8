"""``edgead bench --league``: one backend and precision, measured for a time, as a signed row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgead.cli._output import Output


@dataclass(frozen=True, slots=True)
class LeagueOptions:
    """The options of ``edgead bench`` that count for a row; ``file`` is what is written."""

    rate: float | None
    frame_size: tuple[int, int]
    threads: int | None
    duration: float | None
    file: Path
    key: Path | None


def bench_for_league(
    out: Output, bundle: Path, backends: list[str], precisions: list[str], options: LeagueOptions
) -> None:
    """Measure one backend and precision for a time, and write the signed row."""
    from edgead.cli._output import backend_text, listing, milliseconds
    from edgead.runtime.device.bench import bench as measure
    from edgead.runtime.device.league import (
        DEFAULT_SECONDS,
        busy_processes,
        check_place,
        league_signer,
        make_entry,
        write_entry,
    )
    from edgead.runtime.errors import ConfigError

    if len(backends) > 1 or len(precisions) > 1:
        raise ConfigError("a row of the league is one backend and one precision; name one of each")
    # What can go wrong at the end is tried before ten minutes are spent.
    signer = league_signer(options.key)
    check_place(options.file)
    load = busy_processes()
    with out.progress() as step:
        report = measure(
            bundle,
            backends=backends or ["auto"],
            precisions=precisions or ["fp32"],
            rate_fps=options.rate,
            frame_size=options.frame_size,
            threads=options.threads,
            duration_s=DEFAULT_SECONDS if options.duration is None else options.duration,
            progress=lambda done, total: step("seconds", done, total),
        )
    entry = make_entry(report, load)
    made = write_entry(entry, signer, options.file)
    if not entry.idle:
        out.warn(f"this machine was not idle (load {entry.load_before:g}); the row says so")
    if entry.accuracy["decision_changes"]:
        out.warn("decisions differ from the model's, and the row says so; run: edgead check")
    latency = entry.latency_ms
    rows = {
        "device": entry.device,
        "backend": f"{backend_text(entry.backend)}, {entry.precision}",
        "camera to decision, ms": f"p50 {milliseconds(latency.p50)}, p99 {milliseconds(latency.p99)}",
        "measured": f"{entry.duration_s:g} s, {entry.frames} frames",
        "watts": "not told" if entry.watts is None else f"{entry.watts:.1f} at most",
        "key id": made.key_id,
    }
    out.finish(made.model_dump(mode="json", by_alias=True), listing(f"Wrote {options.file}", rows))
