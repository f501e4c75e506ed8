"""Scratch, stain, dent and crack: flaws of the surface, painted on the part in a crop around them.

Lengths are in pixels of the image and follow the extent of the part; tones are in levels (0 to 255) and follow the
brightness and the grain of the place. Whatever a generator draws does not depend on the strength, so that the same
seed gives the same flaw, fainter or clearer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgead.probes.drawing import Stroke, around, cloud, draw, jagged, smooth_step, taper, walk, wander
from edgead.probes.scene import Scene, Window

_Floats = NDArray[np.float64]
_Image = NDArray[np.uint8]


def scratch(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """A slightly bent line of varying width, broken in places, with one flank in shade; at times a fainter twin."""
    place = _place(scene, rng)
    length = _size(scene, rng.uniform(0.22, 0.5), strength, least=8)
    heading, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.5)
    points = walk(place, heading, length, bend, rng.normal(0, 0.05, 32))
    width = _width(scene, rng.uniform(0.7, 1.3), strength)
    ink = np.clip(0.8 + 0.5 * wander(rng, 33), 0.0, 1.0) * taper(33, 0.2)
    widths = width * (0.8 + 0.3 * wander(rng, 33)) * (0.4 + 0.6 * taper(33, 0.35))
    strokes = [Stroke(points, widths, ink)]
    twin, apart, shade = rng.random() < 0.35, rng.uniform(3, 7) * rng.choice((-1, 1)), rng.choice((-1, 1))
    normal = np.array([np.cos(heading), -np.sin(heading)])
    if twin:
        strokes.append(Stroke(points[6:24] + apart * width * normal, 0.8 * widths[6:24], 0.5 * ink[6:24]))
    window = around(scene, points, 10 * width + 2)
    crop = _Crop.of(image, scene, window, place)
    line = draw(window, strokes)
    flank = draw(window, [replace(stroke, points=stroke.points + shade * 1.2 * width * normal) for stroke in strokes])
    sign, pale = _sign(crop, rng, brighter=0.65), rng.uniform(0.4, 0.8)
    # Bare material shows: less colour than the surface had.
    target = crop.grey_mix(pale) + sign * crop.tone(55, strength)
    mixed = crop.pixels + (0.35 * flank * (1 - line) * -sign * crop.tone(32, strength))[:, :, None]
    return crop.put(mixed + line[:, :, None] * (target - mixed))


def stain(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """A soft blob of ragged outline and uneven density with a darker rim, the surface still to be seen through it."""
    place = _place(scene, rng)
    radius = _size(scene, rng.uniform(0.055, 0.11), strength, least=3)
    squeeze, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    window = scene.window((place[0], place[1]), 1.7 * radius)
    rows, columns = _axes(window, place, turn)
    ragged = cloud(window, place, radius, rng)
    level = 1.0 - np.hypot(rows, columns * squeeze) / radius / (0.85 + 0.15 * squeeze) + 0.6 * ragged
    soft = rng.uniform(0.2, 0.55)
    body = smooth_step(level / soft)
    rim = np.exp(-(((level - 0.5 * soft) / (0.6 * soft)) ** 2)) * body
    density = body * (0.75 + 0.5 * ragged) + rng.uniform(0.1, 0.45) * rim
    crop = _Crop.of(image, scene, window, place)
    sign = _sign(crop, rng, brighter=0.25)
    tint = np.array([1.0, 0.9, 0.68]) if rng.random() < 0.5 and not crop.is_grey else np.ones(3)
    tone = crop.tone(34, strength)
    # Dirt takes light away, blue first; haze and residue add a pale veil.
    change = -tone * (2.0 - tint) / 1.1 if sign < 0 else tone * tint
    opacity = min(0.5, 0.3 * strength) * np.clip(density, 0, 1)[:, :, None]
    veiled = crop.pixels + opacity * (crop.grey_mix(0.4) - crop.pixels)
    return crop.put(veiled + np.clip(density, 0, 1.3)[:, :, None] * change)


def dent(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """A smooth hollow lit from one side: one flank bright, the other dark, and a faint gleam on the bright one."""
    place = _place(scene, rng)
    radius = _size(scene, rng.uniform(0.06, 0.12), strength, least=3)
    squeeze, turn, light = rng.uniform(0.65, 1.0), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    steep = rng.uniform(1.3, 2.2)  # 1 is a bowl, more is a flat floor with steep flanks
    wobble, phase = rng.uniform(0.03, 0.12), rng.uniform(0, 2 * np.pi)
    window = scene.window((place[0], place[1]), 2.4 * radius / squeeze)
    rows, columns = _axes(window, place, turn)
    angle = np.arctan2(rows, columns * squeeze)
    reach = np.hypot(rows, columns * squeeze) / (radius * (1 + wobble * np.sin(3 * angle + phase)))
    depth = np.exp(-(reach ** (2 * steep)))
    down, across = np.gradient(depth)
    slope = down * np.sin(light) + across * np.cos(light)
    slope /= max(float(np.abs(slope).max()), 1e-9)
    crop = _Crop.of(image, scene, window, place)
    tone = crop.tone(42, strength)
    gleam = np.clip(slope, 0, 1) ** 4 * rng.uniform(0.1, 0.5)
    floor = -0.12 * depth
    return crop.put(crop.pixels + (tone * (slope + gleam + floor))[:, :, None])


def crack(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """A thin dark jagged line that narrows to its ends, with one to three branches and a pale edge."""
    place = _place(scene, rng)
    length = _size(scene, rng.uniform(0.25, 0.45), strength, least=8)
    width = _width(scene, rng.uniform(0.5, 0.95), strength)
    heading = rng.uniform(0, 2 * np.pi)
    trunk = jagged(place, heading, length, rng)
    narrowing = 0.3 + 0.7 * taper(len(trunk), 0.5)
    strokes = [Stroke(trunk, width * narrowing * (1 + 0.3 * wander(rng, len(trunk))), np.ones(len(trunk)))]
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(len(trunk) // 5, 4 * len(trunk) // 5))
        turn = rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)
        reach = rng.uniform(0.15, 0.4) * length
        way = heading + turn
        middle = trunk[start] + 0.5 * reach * np.array([np.sin(way), np.cos(way)])
        branch = jagged(middle, way, reach, rng, levels=3)
        branch += trunk[start] - branch[0]
        thin = np.linspace(0.65 * narrowing[start], 0.2, len(branch))
        strokes.append(Stroke(branch, width * thin, np.linspace(0.95, 0.5, len(branch))))
    points = np.concatenate([stroke.points for stroke in strokes])
    window = around(scene, points, 4 * width + 2)
    crop = _Crop.of(image, scene, window, place)
    line = draw(window, strokes)
    edge = draw(
        window, [replace(stroke, points=stroke.points + 0.9 * width, ink=0.6 * stroke.ink) for stroke in strokes]
    )
    sign = -1.0 if crop.brightness > 24 else 1.0  # nothing is darker than black
    tone = crop.tone(62, strength)
    mixed = crop.pixels + (0.3 * edge * (1 - line) * -sign * tone)[:, :, None]
    # A gap shows no colour of the surface, only what light gets into it.
    target = crop.grey_mix(0.5) + sign * tone
    return crop.put(mixed + line[:, :, None] * (target - mixed))


@dataclass(frozen=True, slots=True)
class _Crop:
    """The pixels around a flaw, and what is needed to choose its tones there."""

    image: _Image
    scene: Scene
    window: Window
    pixels: _Floats
    colour: _Floats
    grain: float

    @classmethod
    def of(cls, image: _Image, scene: Scene, window: Window, place: _Floats) -> _Crop:
        from scipy import ndimage

        reach = max(4.0, 0.05 * scene.extent)
        spot = image[scene.window((place[0], place[1]), reach).slices]
        # Large images have more pixels there than a median needs.
        spot = spot[:: 1 + spot.shape[0] // 128, :: 1 + spot.shape[1] // 128].astype(np.float64)
        grey = spot.mean(axis=2)
        grain = 1.48 * float(np.median(np.abs(grey - ndimage.uniform_filter(grey, 5))))
        pixels = image[window.slices].astype(np.float64)
        return cls(image, scene, window, pixels, np.median(spot, axis=(0, 1)), grain)

    @property
    def brightness(self) -> float:
        return float(self.colour.mean())

    @property
    def is_grey(self) -> bool:
        """Whether a grey camera took this: nothing on it may have a colour then."""
        return bool((self.pixels == self.pixels[:, :, :1]).all())

    def tone(self, levels: float, strength: float) -> float:
        """Return how far to go from the surface: less on dark ones, more where grain would hide it; never invisible."""
        base = levels * float(np.clip(0.55 + self.brightness / 255, 0.6, 1.2))
        return max(4.0, strength * max(base, min(3.0 * self.grain, 2.0 * base)))

    def grey_mix(self, share: float) -> _Floats:
        """Return the colour of the place, ``share`` of the way to grey."""
        return np.asarray(self.colour + share * (self.brightness - self.colour))

    def put(self, pixels: _Floats) -> _Image:
        """Return the image with this crop in it, changed on the part only."""
        part = self.scene.sample(_blurred(self.scene.foreground), self.window)[:, :, None]
        changed = self.pixels + part * (pixels - self.pixels)
        painted = np.array(self.image)
        painted[self.window.slices] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        return painted


def _blurred(mask: NDArray[np.bool_]) -> _Floats:
    from scipy import ndimage

    if mask.all():
        return mask.astype(np.float64)
    # Half a working pixel inside the edge, so that a flaw ends on the part and not on the air beside it.
    inner = ndimage.gaussian_filter(mask.astype(np.float64), 0.7)
    return np.asarray(np.clip(2.0 * inner - 0.9, 0.0, 1.0))


def _place(scene: Scene, rng: np.random.Generator) -> _Floats:
    """Return a row and column of the image on the part, not at its very edge."""
    from scipy import ndimage

    inside = ndimage.distance_transform_edt(np.pad(scene.foreground, 1))[1:-1, 1:-1]
    candidates = np.flatnonzero(inside >= 0.35 * inside.max())
    chosen = int(candidates[rng.integers(len(candidates))])
    row, column = divmod(chosen, scene.foreground.shape[1])
    shift = rng.uniform(-0.5, 0.5, 2)
    place = np.array(scene.full(row + shift[0], column + shift[1]))
    return np.asarray(np.clip(place, 0, (scene.height - 1, scene.width - 1)))


def _size(scene: Scene, share: float, strength: float, least: float) -> float:
    return float(max(least * scene.scale**0.5, share * scene.extent * strength**0.5))


def _width(scene: Scene, share: float, strength: float) -> float:
    """Return half the width of a line: about a pixel at network size, whatever the size of the image."""
    unit = max(scene.height, scene.width) / 256
    return float(max(0.45, 0.75 * share * unit * min(1.6, 0.7 + 0.3 * strength)))


def _sign(crop: _Crop, rng: np.random.Generator, brighter: float) -> float:
    """Return 1 for brighter than the surface, -1 for darker, where there is room for it."""
    wanted = 1.0 if rng.random() < brighter else -1.0
    if crop.brightness > 195:
        return -1.0
    return 1.0 if crop.brightness < 50 else wanted


def _axes(window: Window, place: _Floats, turn: float) -> tuple[_Floats, _Floats]:
    """Return pixel coordinates from a place, turned."""
    rows, columns = window.grid()
    rows, columns = rows - place[0], columns - place[1]
    return rows * np.cos(turn) - columns * np.sin(turn), rows * np.sin(turn) + columns * np.cos(turn)
