"""``edgead synth``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli._options import parse_size, require
from edgead.cli.training import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output


@command("synth", panel=PANEL, example="edgead synth parts/plate -o sheet.png")
def synth(
    out: Output,
    category: Annotated[
        Path,
        typer.Argument(
            metavar="CATEGORY_DIR", help="Folder with train/good (or only normal images).", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="SHEET.png", help="Where the sheet goes.", show_default=False)
    ],
    kinds: Annotated[
        str | None, typer.Option(metavar="KIND,...", help="Rows of the sheet, such as 'scar'.", show_default="all")
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=24, metavar="N", help="Images across.")] = 5,
    textures: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Images to take textures from, such as DTD.", show_default="made-up ones"),
    ] = None,
    size: Annotated[str, typer.Option(metavar="N|HxW", help="Network size in pixels.")] = "128",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides every random choice.")] = 0,
) -> None:
    """Show the forged defects that learned detectors are trained on, on your own images."""
    height, width = parse_size(size)
    require("train", "scipy")
    import io

    import numpy as np
    from PIL import Image

    from edgead.data import load_images, open_category
    from edgead.runtime.errors import ConfigError, DataError
    from edgead.runtime.files import atomic_write
    from edgead.synthesis.sheet import KINDS, check_kinds, contact_sheet, make_forgers

    if output.suffix.lower() != ".png":
        raise ConfigError(f"the sheet is a PNG; call it something like {output.with_suffix('.png')}")
    wanted = KINDS if kinds is None else tuple(part.strip() for part in kinds.split(",") if part.strip())
    check_kinds(wanted)
    opened = open_category(category, train_only=True)
    order = np.random.default_rng(seed).permutation(len(opened.train))[:count]
    pool = np.stack(list(load_images([opened.train[index] for index in order], height, width)))
    forgers = make_forgers(pool, textures)
    sheet = contact_sheet({name: forgers[name] for name in wanted}, range(len(pool)), seed)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    with atomic_write(output, DataError) as stream:
        stream.write(buffer.getvalue())
    payload = {
        "schema": "edgead.synth/1",
        "sheet": str(output),
        "kinds": list(wanted),
        "images": len(pool),
        "seed": seed,
    }
    out.finish(payload, f"Wrote {output}: {len(wanted)} kinds of forgery on {len(pool)} images")
