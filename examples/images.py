"""Images for the other examples: real solar cells, in folders as your own images should lie.

    python examples/images.py parts

Needs ``pip install 'edgead[demo]'``. Takes a few seconds.

| folder | what is in it |
|---|---|
| ``parts/mono``, ``parts/poly`` | single cells of two kinds, each one product |
| ``parts/modules`` | pictures of 3 x 4 such cells, put together; in a defective one, one cell is defective |

Each has ``train/good`` to fit on, and ``test/good`` and ``test/defective`` to measure with. The cells are those of
PyPI's ``elpv-dataset`` (Buerhop-Lutz et al. 2018, CC BY-NC-SA 4.0), as ``demo.py`` takes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo import copy_images, solar_cells
from PIL import Image

ROWS, COLUMNS, CELL = 3, 4, 300  # of a module; the side of a cell in pixels


def make(folder: Path, train: int = 40, test: int = 20) -> None:
    """Fill the folders of the three products; of modules, which take twelve cells each, there are fewer.

    Args:
        train: good images to fit on.
        test: good images, and as many defective ones, to measure with.
    """
    good, defective = solar_cells("mono")
    for name, (normal, faulty) in {"mono": (good, defective), "poly": solar_cells("poly")}.items():
        parts = {"train/good": normal[:train], "test/good": normal[train : train + test]}
        copy_images(folder / name, {**parts, "test/defective": faulty[:test]})
    unused = iter(good)  # no cell is in two modules
    for part, count in {"train/good": train // 2, "test/good": test // 2, "test/defective": test // 2}.items():
        (folder / "modules" / part).mkdir(parents=True)
        for number in range(count):
            cells = [next(unused) for _ in range(ROWS * COLUMNS)]
            if part == "test/defective":
                cells[(5 * number) % len(cells)] = defective[number]
            module(cells).save(folder / "modules" / part / f"{number:03d}.png", compress_level=1)


def module(cells: list[Path]) -> Image.Image:
    """Return one picture of ROWS x COLUMNS cells."""
    picture = Image.new("L", (COLUMNS * CELL, ROWS * CELL))
    for place, path in enumerate(cells):
        with Image.open(path) as cell:
            picture.paste(cell.convert("L"), (place % COLUMNS * CELL, place // COLUMNS * CELL))
    return picture


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/images.py FOLDER")
    folder = Path(sys.argv[1])
    for name in ("mono", "poly", "modules"):
        if (folder / name).exists():
            sys.exit(f"{folder / name} is there already; remove it, or name another folder")
    make(folder)
    for part in sorted(folder.glob("*/*/*")):
        print(f"{part}: {len(list(part.iterdir()))} images")


if __name__ == "__main__":
    main()
