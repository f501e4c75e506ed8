"""Small defects in large pictures: the same detector on the whole picture, made small, and on tiles of it.

    python examples/images.py parts
    python examples/tiles.py parts/modules --tiles 3x4

Takes 33 s on two cores.

Look at the two lines: how well the scores separate defective from good pictures (image AUROC: 1 is perfect, 0.5 is
chance), and what that costs, since each tile is one run of the network. ``tiles.png`` is the picture with the highest
score. Tiles need not meet the borders of anything in the picture: they overlap, so that no seam hides a defect.
On these 20 pictures both separate about alike (0.81 and 0.83), for a broken cell is a twelfth of the picture; tiles
are for defects of which too few pixels are left. By commands:
``edgead fit parts/modules --tiles 3x4 --size 192 -o m.model``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from PIL import Image

import edgead
from edgead.runtime import EdgeadError, read_image
from edgead.runtime.imaging.tiling import parse_tiles


def measure(name: str, model: edgead.Model, category: Path) -> None:
    """Print how well a model separates the test images, and how long it takes for one."""
    report = model.evaluate(category)
    image = read_image(category / report.images[0].path)
    with model.inspector() as inspect:
        inspect(image)  # the first run takes longer
        started = time.perf_counter()
        inspect(image)
        seconds = time.perf_counter() - started
    decided = report.decisions
    print(
        f"{name}: image AUROC {report.image_auroc.value:.3f}, {decided.escapes} of {decided.anomalous} defects pass, "
        f"{decided.false_alarms} of {decided.normal} good rejected, {1000 * seconds:.0f} ms a picture on torch"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("category", type=Path, help="a folder of large pictures, with train/good and test")
    parser.add_argument("--tiles", default="3x4", metavar="RxC", help="rows and columns (%(default)s)")
    parser.add_argument("--size", type=int, default=192, help="side of a tile for the network (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("tiles.edgead"), help="the bundle")
    asked = parser.parse_args()
    tiles = parse_tiles(asked.tiles)

    whole = edgead.fit(asked.category, size=256)
    measure("whole picture, made 256 x 256", whole, asked.category)
    tiled = edgead.fit(asked.category, size=asked.size, tiles=tiles)
    measure(f"{asked.tiles} tiles, each made {asked.size} x {asked.size}", tiled, asked.category)

    tiled.export(asked.output, images=[asked.category / "test"])
    seen = [result for result in tiled.predict(asked.category / "test") if result.map is not None]
    worst = max(seen, key=lambda result: result.score)
    picture = asked.output.with_suffix(".png")
    small = Image.fromarray(worst.heatmap())
    small.thumbnail((400, 400))
    small.quantize(64).save(picture)
    print(f"wrote {asked.output} and {picture}")


if __name__ == "__main__":
    try:
        main()
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
