"""``edgead recommend``: which detector for this part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._options import BitsOption, SizeOption, parse_size, require
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.recommending.looking import Look
    from edgead.recommending.recommendation import Recommendation
    from edgead.recommending.trying import Candidate, Trial


@command("recommend", panel=PANEL, example="edgead recommend parts/plate --minutes 5")
def recommend(
    out: Output,
    category: Annotated[
        Path,
        typer.Argument(
            metavar="CATEGORY_DIR",
            help="Folder with train/good (or only normal images), or a CSV list.",
            show_default=False,
        ),
    ],
    minutes: Annotated[float, typer.Option(metavar="X", help="When it stops, with what it has by then.")] = 5.0,
    defects: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Real defects, a folder a kind: how many would pass. They choose nothing. Those in train/KIND count.",
            show_default=False,
        ),
    ] = None,
    size: SizeOption = None,
    false_alarm_rate: Annotated[
        float, typer.Option(metavar="X", help="Share of good parts that may be rejected.")
    ] = 0.01,
    bits: BitsOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides every random choice.")] = 0,
) -> None:
    """Say which detector to take for this part: looks at the good images, tries a few, and gives the command to type.

    It chooses on good images and planted defects only; no test image is opened.
    """
    network_size = None if size is None else parse_size(size)
    require("train", "torch", "torchvision", "timm", "safetensors")
    from edgead.fitting import FitConfig
    from edgead.recommending.recommendation import recommend as choose

    config = FitConfig(size=network_size, false_alarm_rate=false_alarm_rate, bits=bits, seed=seed, defects=defects)

    def announce(candidates: Sequence[Candidate], look: Look) -> None:
        names = ", ".join(one.label for one in candidates)
        out.note(
            f"{look.images} good images, {'a texture' if look.texture else 'parts'}; will try, in this order and "
            f"for {minutes:g} minutes at most: {names}"
        )

    with out.progress() as step:
        found = choose(category, minutes=minutes, config=config, announce=announce, progress=step)
    for name, reason in found.tried.omitted.items():
        out.note(f"not tried: {name} ({reason})")
    out.finish(found.to_dict(), *_tables(found), next_command=found.command)


def _tables(found: Recommendation) -> list[Any]:
    from edgead.cli._output import listing, table

    trials = found.tried.trials
    real = any(one.real_escapes is not None for one in trials)
    columns = ["", "detector", "AUROC on planted defects", "good rejected", "planted pass"]
    columns += ["real pass"] if real else []
    rows = [_row(one, index == found.chosen, real) for index, one in enumerate(trials)]
    title = (
        f"{found.tried.images} good images, judged in {found.tried.rounds} round(s) by models of the others, and "
        f"{trials[0].escapes.n} planted defects"
    )
    return [
        listing(f"What {found.name} looks like", _facts(found.look)),
        table(title, [*columns, "KB", "seconds"], rows, text_columns=2),
        "\n" + "\n".join(found.why) + "\n",
    ]


def _row(trial: Trial, chosen: bool, real: bool) -> list[str]:
    shares = [trial.false_alarms, trial.escapes]
    cells = [f"{one.count} of {one.n}" for one in shares]
    if real:
        cells.append("-" if trial.real_escapes is None else f"{trial.real_escapes.count} of {trial.real_escapes.n}")
    return [
        ">" if chosen else "",
        trial.candidate.label,
        f"{trial.ranking.auroc:.3f} ± {trial.ranking.error():.3f}",
        *cells,
        f"{trial.bytes / 1e3:.0f}",
        f"{trial.seconds:.1f}",
    ]


def _facts(look: Look) -> dict[str, str]:
    counts = f"{look.images}, of {look.parts} parts"
    if look.odd:
        counts += f"; {look.odd} unlike the others, see 'edgead audit'"
    size = f"{look.width}x{look.height} pixels" + ("" if look.one_size else ", not all of them")
    pose = "no part whose pose can be found"
    if look.turned_deg is not None:
        pose = f"nine in ten turned by at most {look.turned_deg:g}°, moved by at most {look.moved or 0:.1%} of the side"
    low, high = look.brightness
    return {
        "good images": counts,
        "size": f"{size}; {look.lost_detail:.1%} of the contrast is detail that is lost at network size",
        "shows": "a texture, or a part that fills the image" if look.texture else "a part before a background",
        "lies": pose,
        "light": f"mean grey value {low:g} to {high:g}",
    }
