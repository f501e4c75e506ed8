"""The kit: which parts lie where, what may vary, and the rules that a logical anomaly breaks, one at a time.

*Rules*: two long screws of one length in the left compartment; one green figure, head up, in the middle one above; one
blue plate in the middle one below; three short screws in the right compartment. *May vary*: which screw, figure or
plate it is; place by 7 pixels, angle by 7 degrees, brightness by 8 %, light and noise of the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.logical.cutouts import CutOut, paste

SIDE = 384
_LONG, _SHORT, _FIGURE, _PLATE = 225, 120, 150, 115
_JITTER, _TURN, _BRIGHT = 7, 7.0, 0.08


@dataclass(frozen=True, slots=True)
class Item:
    """One part of the kit: what it is, where its middle lies, how long it is, and how it is turned and coloured."""

    kind: str
    x: int
    y: int
    length: int
    angle: float = 0.0
    hue: int = 0


@dataclass(slots=True)
class Scene:
    """One picture: ``image`` (SIDE, SIDE, 3) uint8; ``regions``: ``(mask, saturation in pixels)`` of what is wrong."""

    image: NDArray[np.uint8]
    regions: list[tuple[NDArray[np.bool_], int]] = field(default_factory=list)


KIT = (
    Item("screw", 40, 192, _LONG),
    Item("screw", 112, 192, _LONG),
    Item("figure", 205, 105, _FIGURE),
    Item("plate", 205, 285, _PLATE),
    Item("screw", 290, 75, _SHORT),
    Item("screw", 330, 192, _SHORT),
    Item("screw", 290, 310, _SHORT),
)

Break = Callable[[Sequence[Item]], tuple[list[Item], list[int], list[Item]]]


def _without(place: int) -> Break:
    """Take one part away; wrong is where it should lie."""
    return lambda kit: ([one for n, one in enumerate(kit) if n != place], [], [kit[place]])


def _changed(place: int, **changes: object) -> Break:
    """Exchange one part for another one; wrong is what lies there."""

    def change(kit: Sequence[Item]) -> tuple[list[Item], list[int], list[Item]]:
        items = list(kit)
        items[place] = replace(items[place], **changes)  # type: ignore[arg-type]
        return items, [place], []

    return change


def _added(item: Item) -> Break:
    return lambda kit: ([*kit, item], [len(kit)], [])


def _swapped(first: int, second: int) -> Break:
    """Exchange the places of two parts; both are wrong."""

    def swap(kit: Sequence[Item]) -> tuple[list[Item], list[int], list[Item]]:
        items = list(kit)
        a, b = items[first], items[second]
        items[first], items[second] = replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)
        return items, [first, second], []

    return swap


# Each breaks one rule: count, order, place, pairing, colour, length, direction.
LOGICAL: Mapping[str, Break] = {
    "count-missing": _without(5),
    "count-extra": _added(Item("screw", 355, 100, _SHORT)),
    "order-swapped": _swapped(2, 3),
    "place-wrong": _changed(5, x=250, y=192),
    "pairing-length": _changed(1, length=_SHORT + 40),
    "colour-wrong": _changed(2, hue=90),
    "length-wrong": _changed(4, length=_SHORT + 55),
    "figure-for-plate": _changed(3, kind="figure"),
    "direction-wrong": _changed(2, angle=180.0),
    "pair-missing": _without(1),
}
STRUCTURAL = ("scratch", "stain", "crack")


class KitMaker:
    """Draws scenes from a seed; the same seed and parts give the same pictures."""

    def __init__(self, parts: Mapping[str, Sequence[CutOut]], seed: int) -> None:
        self._parts, self._random = parts, np.random.default_rng(seed)

    def normal(self) -> Scene:
        """Return a scene that keeps all rules."""
        scene, _ = self._draw(KIT)
        return Scene(self._photographed(scene))

    def logical(self, rule: str) -> Scene:
        """Return a scene that breaks one rule of `LOGICAL`."""
        items, wrong, missing = LOGICAL[rule](KIT)
        scene, covered = self._draw(items)
        regions = [(covered[place], int(covered[place].sum())) for place in wrong]
        for item in missing:
            mask = self._ghost(item)
            # Anywhere within the compartment is right, and a part's size of it is all that can be asked for.
            regions.append((_grown(mask, 12), int(mask.sum())))
        return Scene(self._photographed(scene), regions)

    def structural(self, kind: str) -> Scene:
        """Return a scene with a fault on one part."""
        scene, covered = self._draw(KIT)
        place = int(self._random.integers(len(KIT)))
        mask = self._fault(scene, covered[place], kind)
        return Scene(self._photographed(scene), [(mask, int(mask.sum()))])

    def _draw(self, items: Sequence[Item]) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
        scene = np.full((SIDE, SIDE, 3), 205, np.uint8)
        for edge in (150, 260):
            scene[:, edge - 2 : edge + 2] = 120
        scene[190:194, 152:258] = 120
        covered = []
        for item in items:
            x, y = (at + int(self._random.integers(-_JITTER, _JITTER + 1)) for at in (item.x, item.y))
            covered.append(paste(scene, self._part(item), x, y))
        return scene, covered

    def _part(self, item: Item) -> CutOut:
        own = self._parts[item.kind]
        angle = item.angle + self._random.uniform(-_TURN, _TURN)
        bright = 1.0 + self._random.uniform(-_BRIGHT, _BRIGHT)
        return own[self._random.integers(len(own))].drawn(item.length, angle, hue=item.hue, brightness=bright)

    def _ghost(self, item: Item) -> NDArray[np.bool_]:
        return paste(np.zeros((SIDE, SIDE, 3), np.uint8), self._part(item), item.x, item.y)

    def _fault(self, scene: NDArray[np.uint8], part: NDArray[np.bool_], kind: str) -> NDArray[np.bool_]:
        y, x = np.nonzero(part)
        at = self._random.integers(len(y))
        rows, columns = np.mgrid[:SIDE, :SIDE]
        if kind == "stain":
            radius = self._random.uniform(7, 13)
            mask = part & ((rows - y[at]) ** 2 + (columns - x[at]) ** 2 < radius**2)
            scene[mask] = (scene[mask] * 0.35 + np.array([90, 60, 20]) * 0.65).astype(np.uint8)
            return mask
        turn = self._random.uniform(0, np.pi)
        along = (rows - y[at]) * np.sin(turn) + (columns - x[at]) * np.cos(turn)
        across = (rows - y[at]) * np.cos(turn) - (columns - x[at]) * np.sin(turn)
        length, width = self._random.uniform(18, 34), 2.2 if kind == "scratch" else 1.6
        bent = across + (4.0 * np.sin(along / 5.0) if kind == "crack" else 0.0)
        mask = part & (np.abs(along) < length) & (np.abs(bent) < width)
        scene[mask] = 245 if kind == "scratch" else 15
        return mask

    def _photographed(self, scene: NDArray[np.uint8]) -> NDArray[np.uint8]:
        soft = np.asarray(Image.fromarray(scene).filter(ImageFilter.GaussianBlur(0.6)), np.float64)
        slope = self._random.uniform(-0.03, 0.03, 2)
        light = 1.0 + np.add.outer(np.linspace(-1, 1, SIDE) * slope[0], np.linspace(-1, 1, SIDE) * slope[1])
        light *= 1.0 + self._random.uniform(-0.03, 0.03)
        noise = self._random.normal(0.0, 1.5, soft.shape)
        return np.clip(soft * light[:, :, None] + noise, 0, 255).round().astype(np.uint8)


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    picture = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * by + 1))
    return np.asarray(picture) > 127
