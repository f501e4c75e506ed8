"""The images that tests use, made once: real solar cells of PyPI's ``elpv-dataset``, and drawn parts.

Four categories in MVTec layout, together 12 MB; training, good and defective images:

- ``plate``: 40, 12, 16. A blue plate on a wire, 192 x 192, colour; defects are rust whose texture is a real cell's.
- ``cell``: 80, 24, 30. Real polycrystalline cells of several sizes, grey, JPEG; five kinds of defects were planted.
- ``figure``: 30, 15, 24. A green figure on a light table, 276 x 190, colour; a limb or the head is missing. No masks.
- ``broken``: 40, 16, 24. Real monocrystalline cells, 150 x 150, grey; real defects, as experts labelled them. No masks.

Masks say to the pixel what was planted.

Every image follows from its number, so that they are the same on every machine but for the rounding of a library.
``elpv-dataset`` is CC BY-NC-SA 4.0 (Buerhop-Lutz et al. 2018); nothing made of it is distributed.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tests.cache import kept

_Floats = NDArray[np.float64]
_Pixels = NDArray[np.uint8]
_Mask = NDArray[np.bool_]
_Random = np.random.Generator


def image_root() -> Path:
    """Return the folder of the categories, made where it is not there yet.

    Its name holds what decides its content: this file and the versions of what draws.
    """

    def make(folder: Path) -> None:
        for number, (category, draw) in enumerate(_MAKERS.items()):
            draw(folder / category, number)

    content = Path(__file__).read_bytes() + "".join(map(version, ("numpy", "pillow", "elpv-dataset"))).encode()
    return kept(f"images-{hashlib.sha256(content).hexdigest()[:16]}", make)


# Real cells


@cache
def solar_cells(kind: str, probability: float) -> tuple[Path, ...]:
    """Return the package's cells of a kind, "mono" or "poly", that experts found defective with this probability."""
    import elpv_dataset

    data = Path(elpv_dataset.__file__).parent / "data"
    with (data / "labels.csv").open() as stream:
        rows = [row for row in csv.reader(stream, delimiter=" ", skipinitialspace=True) if row]
    found = [data / row[0] for row in rows if row[2] == kind and float(row[1]) == probability]
    return tuple(found[index] for index in np.random.default_rng(0).permutation(len(found)))


def _read(path: Path) -> _Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def _broken(root: Path, _number: int) -> None:
    """Real defects beside real normal cells."""
    normal, defective = iter(solar_cells("mono", 0.0)), iter(solar_cells("mono", 1.0))
    for folder, count, paths in (("train/good", 40, normal), ("test/good", 16, normal), ("test/defect", 24, defective)):
        for index in range(count):
            half = Image.fromarray(_read(next(paths))).resize((150, 150), Image.Resampling.BOX)
            _save(np.asarray(half), root / folder / f"{index:03d}.png")


def _cell(root: Path, number: int) -> None:
    """Real surfaces cut to several sizes; what is planted in them is known to the pixel."""
    paths = iter(solar_cells("poly", 0.0))

    def surface(random: _Random) -> _Pixels:
        height, width = random.integers(180, 260, 2)
        top, left = random.integers(10, 290 - height), random.integers(10, 290 - width)
        return _read(next(paths))[top : top + height, left : left + width]

    for folder, count, seed in (("train/good", 80, 0), ("test/good", 24, 1)):
        for index, random in _randoms(number, seed, count):
            _save(surface(random), root / folder / f"{index:03d}.jpg")
    for order, (kind, plant) in enumerate(_FLAWS.items()):
        for index, random in _randoms(number, 2 + order, 6):
            before = surface(random)
            after, mask = plant(before, random)
            _save(after, root / "test" / kind / f"{index:03d}.jpg")
            _save_mask(mask, root / "ground_truth" / kind / f"{index:03d}_mask.png")


def _walk(shape: tuple[int, int], random: _Random, turn: float, width: int) -> _Mask:
    """Return a line that wanders through the image: by how much ``turn`` says, in radians a step."""
    height, width_px = shape
    point = np.array([random.uniform(0.25, 0.5) * width_px, random.uniform(0.25, 0.5) * height])
    angle, points = random.uniform(0, 0.5 * np.pi), [tuple(point)]
    for _ in range(14):
        angle += random.normal(0, turn)
        point = point + 0.04 * min(shape) * np.array([np.cos(angle), np.sin(angle)])
        points.append(tuple(point))
    canvas = Image.new("L", (width_px, height))
    ImageDraw.Draw(canvas).line(points, 255, width, joint="curve")
    return np.asarray(canvas) > 0


def _spot(shape: tuple[int, int], random: _Random, sides: int) -> _Mask:
    """Return a polygon around a place inside."""
    center = random.uniform(0.35, 0.65, 2) * shape[::-1]
    turns = np.sort(random.uniform(0, 2 * np.pi, sides))
    reach = random.uniform(0.1, 0.2, sides) * min(shape)
    canvas = Image.new("L", shape[::-1])
    corners = center + reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], 255)
    return np.asarray(canvas) > 0


def _planted(before: _Pixels, mask: _Mask, gain: float, offset: float, soft: float = 0.0) -> tuple[_Pixels, _Mask]:
    share = mask.astype(np.float64)
    if soft:
        blurred = Image.fromarray((255 * mask).astype(np.uint8)).filter(ImageFilter.GaussianBlur(soft))
        share = np.asarray(blurred) / 255.0
    after = np.clip(before + share * ((gain - 1.0) * before + offset), 0, 255).round().astype(np.uint8)
    return after, after != before


_FLAWS: dict[str, Any] = {
    "crack": lambda image, random: _planted(image, _walk(image.shape, random, 0.5, 3), 0.25, 0.0),
    "scratch": lambda image, random: _planted(image, _walk(image.shape, random, 0.05, 2), 1.0, 90.0),
    "dead": lambda image, random: _planted(image, _spot(image.shape, random, 7), 0.3, 0.0),
    "stain": lambda image, random: _planted(image, _spot(image.shape, random, 40), 0.55, 0.0, soft=5.0),
    "burn": lambda image, random: _planted(image, _spot(image.shape, random, 12), 1.0, 80.0, soft=3.0),
}


# Drawn parts


def _plate(root: Path, number: int) -> None:
    for folder, count, seed in (("train/good", 40, 0), ("test/good", 12, 1), ("test/defect", 16, 2)):
        for index, random in _randoms(number, seed, count):
            image, mask = _draw_plate(random, solar_cells("poly", 1.0)[index] if folder == "test/defect" else None)
            _save(image, root / folder / f"{index:03d}.png")
            if mask.any():
                _save_mask(mask, root / "ground_truth" / "defect" / f"{index:03d}_mask.png")


def _draw_plate(random: _Random, rust: Path | None, side: int = 192) -> tuple[_Pixels, _Mask]:
    """Return a plate with a cut corner and a hole before a wall, and where it is rusty.

    It is turned and moved, and light and noise differ. One in five reflects a lamp: good ones are not all alike, and
    the way from most of them to the threshold is long, as it is on real parts.
    """
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    angle = random.uniform(-0.45, 0.45)
    center = side * np.array([0.5, 0.52]) + random.uniform(-6, 6, 2)
    u = np.cos(angle) * (x - center[0]) + np.sin(angle) * (y - center[1])
    v = -np.sin(angle) * (x - center[0]) + np.cos(angle) * (y - center[1])
    corner = (u + v - 0.46 * side) / np.sqrt(2.0)
    outside = np.maximum.reduce(
        [np.abs(u) - 0.3 * side, np.abs(v) - 0.22 * side, corner, 0.065 * side - np.hypot(u, v)]
    )
    inside = np.clip(0.5 - outside, 0.0, 1.0)[..., None]
    wall = 185.0 + 20.0 * random.uniform(-1, 1) + 14.0 * (x + y - side)[..., None] / side * np.ones(3)
    wire = np.clip(1.0 - np.abs(x - center[0]), 0.0, 1.0) * (y < center[1])
    wall = wall - 50.0 * wire[..., None]
    light = random.uniform(0.85, 1.1) + 0.12 * random.uniform(0.5, 1.0) * np.cos((u - 0.1 * side) / (0.25 * side))
    away = np.hypot(u - random.uniform(-0.3, 0.3) * side, v - random.uniform(-0.2, 0.2) * side)
    glare = random.choice([0.0, 0.0, 0.0, 20.0, 150.0]) * np.exp(-0.5 * (away / random.uniform(12, 20)) ** 2)
    plate = np.array([10.0, 66.0, 185.0]) * light[..., None] + glare[..., None]
    mask = np.zeros((side, side), bool)
    if rust is not None:
        # Half of the plate or a spot of it, with a ragged edge.
        turn, reach = random.uniform(0, 2 * np.pi), random.uniform(-0.1, 0.12) * side
        edge = np.cos(turn) * u + np.sin(turn) * v + 4.0 * np.sin(u / 5.0 + turn) * np.sin(v / 4.0)
        texture = np.asarray(Image.fromarray(_read(rust)).resize((side, side)), np.float64)
        mask = (edge > reach) & (outside < 0)
        rusty = np.array([0.9, 0.62, 0.28]) * texture[..., None]
        plate = np.where(mask[..., None], rusty, plate)
    image = wall * (1.0 - inside) + plate * inside + random.normal(0, random.uniform(1.5, 4.0), (side, side, 3))
    return np.clip(image, 0, 255).round().astype(np.uint8), mask


def _figure(root: Path, number: int) -> None:
    for folder, count, seed in (("train/good", 30, 0), ("test/good", 15, 1), ("test/anomaly", 24, 2)):
        for index, random in _randoms(number, seed, count):
            lost = list(_LIMBS)[index % len(_LIMBS)] if folder == "test/anomaly" else None
            _save(_draw_figure(random, lost), root / folder / f"{index:03d}.png")


# From where to where, relative to the middle, and half the thickness, in pixels; the figure lies on its side.
_LIMBS = {
    "head": ((-82, 0), (-74, 0), 28),
    "left arm": ((-34, -20), (-2, -62), 9),
    "right arm": ((-34, 20), (2, 60), 9),
    "left leg": ((34, -14), (112, -24), 11),
    "right leg": ((34, 14), (112, 24), 11),
}


def _draw_figure(random: _Random, lost: str | None, height: int = 190, width: int = 276) -> _Pixels:
    """Return a figure of round limbs, whose pose differs a little; ``lost`` names the limb that is not there."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    turn = random.normal(0, 0.03)
    x0, y0 = width / 2 + random.uniform(-4, 4), height / 2 + random.uniform(-4, 4)
    u = np.cos(turn) * (x - x0) + np.sin(turn) * (y - y0)
    v = -np.sin(turn) * (x - x0) + np.cos(turn) * (y - y0)
    inner = _capsule(u, v, (-40, 0), (30, 0), 26)
    for name, (start, end, radius) in _LIMBS.items():
        moved = tuple(np.add(end, random.normal(0, 2.0, 2)))
        if name != lost:
            inner = np.maximum(inner, _capsule(u, v, start, moved, radius))
    share = np.clip(inner + 0.5, 0.0, 1.0)[..., None]
    shade = 0.62 + 0.38 * np.clip(inner / 12.0, 0.0, 1.0)
    image = np.array([112.0, 224.0, 44.0]) * shade[..., None] * share + np.array([253.0, 254.0, 249.0]) * (1.0 - share)
    if lost != "head":
        for side in (-10.0, 10.0):
            eye = np.clip(6.5 - np.hypot((u + 84) / 1.4, v - side), 0.0, 1.0)[..., None]
            image = image * (1.0 - eye) + np.array([196.0, 30.0, 52.0]) * eye
    image = image + random.normal(0, 2.0, image.shape)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _capsule(u: _Floats, v: _Floats, start: Any, end: Any, radius: float) -> _Floats:
    """Return how deep each pixel lies in a round-ended stroke, below zero outside."""
    along = np.subtract(end, start).astype(np.float64)
    share = np.clip(((u - start[0]) * along[0] + (v - start[1]) * along[1]) / (along @ along), 0.0, 1.0)
    depth: _Floats = radius - np.hypot(u - start[0] - share * along[0], v - start[1] - share * along[1])
    return depth


def _randoms(category: int, part: int, count: int) -> Iterator[tuple[int, _Random]]:
    for index in range(count):
        yield index, np.random.default_rng([category, part, index])


def _save(image: _Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({"quality": 95} if path.suffix == ".jpg" else {"compress_level": 3}))


def _save_mask(mask: _Mask, path: Path) -> None:
    _save((255 * mask).astype(np.uint8), path)


_MAKERS = {"plate": _plate, "cell": _cell, "figure": _figure, "broken": _broken}
