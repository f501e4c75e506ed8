"""The kit: which parts lie where, what may vary, and the rules that a logical anomaly breaks, one at a time.

*Rules*: two long screws in the left compartment; in the right one, from above: one green figure, one blue plate, three
short screws. *May vary*: which screw, figure or plate it is; where in its compartment it lies, and how it is turned;
brightness by 8 %, light and noise of the whole picture. So every small patch of a logical anomaly is one that normal
scenes have, too, and at about the same place: what is wrong is how many there are, of what, and where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.logical.cutouts import CutOut, paste

SIDE = 384
_LONG, _SHORT, _FIGURE, _PLATE = 135, 78, 105, 95
_BRIGHT = 0.08
_TRIES = 200
# Left, top, right, bottom of the compartments.
_LEFT, _ABOVE, _MIDDLE, _BELOW = (0, 0, 190, 384), (194, 0, 384, 125), (194, 129, 384, 250), (194, 254, 384, 384)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """One part of the kit: what it is, in which compartment it lies, how long it is, and how it is coloured."""

    kind: str
    box: Box
    length: int
    hue: int = 0


@dataclass(slots=True)
class Scene:
    """One picture: ``image`` (SIDE, SIDE, 3) uint8; ``regions``: ``(mask, saturation in pixels)`` of what is wrong."""

    image: NDArray[np.uint8]
    regions: list[tuple[NDArray[np.bool_], int]] = field(default_factory=list)


KIT = (
    Item("screw", _LEFT, _LONG),
    Item("screw", _LEFT, _LONG),
    Item("figure", _ABOVE, _FIGURE),
    Item("plate", _MIDDLE, _PLATE),
    Item("screw", _BELOW, _SHORT),
    Item("screw", _BELOW, _SHORT),
    Item("screw", _BELOW, _SHORT),
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
    """Exchange the compartments of two parts; both are wrong."""

    def swap(kit: Sequence[Item]) -> tuple[list[Item], list[int], list[Item]]:
        items = list(kit)
        a, b = items[first], items[second]
        items[first], items[second] = replace(a, box=b.box), replace(b, box=a.box)
        return items, [first, second], []

    return swap


# Each breaks one rule: count, order, place, pairing, colour, length.
LOGICAL: Mapping[str, Break] = {
    "long-missing": _without(1),
    "long-extra": _added(Item("screw", _LEFT, _LONG)),
    "short-missing": _without(5),
    "short-extra": _added(Item("screw", _BELOW, _SHORT)),
    "order-swapped": _swapped(2, 3),
    "short-on-the-left": _changed(4, box=_LEFT),
    "pair-of-unequal": _changed(1, length=_SHORT),
    "figure-missing": _without(2),
    "two-plates": _changed(2, kind="plate", length=_PLATE),
    "blue-figure": _changed(2, hue=90),
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
            # Anywhere in its compartment is right, and a part's size of it is all that can be asked for.
            left, top, right, bottom = item.box
            mask = np.zeros((SIDE, SIDE), bool)
            mask[top:bottom, left:right] = True
            regions.append((mask, int((self._part(item).alpha > 127).sum())))
        return Scene(self._photographed(scene), regions)

    def structural(self, kind: str) -> Scene:
        """Return a scene with a fault on one part."""
        scene, covered = self._draw(KIT)
        place = int(self._random.integers(len(KIT)))
        mask = self._fault(scene, covered[place], kind)
        return Scene(self._photographed(scene), [(mask, int(mask.sum()))])

    def _draw(self, items: Sequence[Item]) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
        """Return the scene, and where each item lies: anywhere in its compartment, and not on another one."""
        scene = np.full((SIDE, SIDE, 3), 205, np.uint8)
        scene[:, 190:194] = scene[125:129, 194:] = scene[250:254, 194:] = 120
        taken = np.zeros((SIDE, SIDE), bool)
        covered = []
        for item in items:
            part = self._part(item)
            for _ in range(_TRIES):
                where = self._ghost(part, *self._place(item, part))
                if not (where & taken).any():
                    break
                part = self._part(item)
            paste(scene, part, *self._placed)
            taken |= _grown(where, 2)
            covered.append(where)
        return scene, covered

    def _place(self, item: Item, part: CutOut) -> tuple[int, int]:
        left, top, right, bottom = item.box
        rows, columns = part.alpha.shape
        low_x, high_x = left + columns // 2 + 2, right - columns // 2 - 2
        low_y, high_y = top + rows // 2 + 2, bottom - rows // 2 - 2
        x = int(self._random.integers(low_x, max(low_x, high_x) + 1))
        y = int(self._random.integers(low_y, max(low_y, high_y) + 1))
        self._placed = min(x, right), min(y, bottom)
        return self._placed

    def _part(self, item: Item) -> CutOut:
        own = self._parts[item.kind]
        angle = self._random.uniform(0.0, 360.0)
        bright = 1.0 + self._random.uniform(-_BRIGHT, _BRIGHT)
        return own[self._random.integers(len(own))].drawn(item.length, angle, hue=item.hue, brightness=bright)

    def _ghost(self, part: CutOut, x: int, y: int) -> NDArray[np.bool_]:
        return paste(np.zeros((SIDE, SIDE, 3), np.uint8), part, x, y)

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
