"""Which resize? Candidates on a camera frame to network size: exactness first, then speed.

    python -m benchmarks.preprocess [--image FILE] [--rounds 60]

"exact" says whether the candidate equals edgead's integer rule byte for byte (the others define another rule; whether
they are the same on every platform is argued in docs/preprocess.md). One thread each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.timing import interleave
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.preprocess import resize, resize_reference

SIZES = ((1280, 1024), (1920, 1080), (2448, 2048), (640, 480), (448, 448))


def frame(width: int, height: int, image: Path | None) -> NDArray[np.uint8]:
    """Return an RGB frame ``(height, width, 3)``: a image where one is given, else structured noise."""
    rng = np.random.default_rng(0)
    if image is not None:
        photo = Image.fromarray(read_image(image)).resize((width, height))
        return np.asarray(photo) ^ rng.integers(0, 4, (height, width, 3), dtype=np.uint8)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def candidates(pixels: NDArray[np.uint8], side: int) -> dict[str, object]:
    """Return name -> callable giving ``(side, side, 3)`` uint8."""
    height, width = pixels.shape[:2]
    factor = max(1, width // side), max(1, height // side)
    reduced = (width // factor[0], height // factor[1])
    grey = np.ascontiguousarray(pixels[:, :, 0])

    def pillow(gap: float | None) -> NDArray[np.uint8]:
        picture = Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)
        return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=gap))

    def area_then_exact() -> NDArray[np.uint8]:
        small = cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR_EXACT))

    return {
        "edgead, RGB": lambda: resize(pixels, side, side),
        "edgead, BGR": lambda: resize(pixels, side, side, "bgr"),
        "edgead, grey": lambda: resize(grey, side, side, "gray"),
        "Pillow bilinear": lambda: pillow(None),
        "Pillow bilinear, reducing_gap=2": lambda: pillow(2.0),
        "OpenCV INTER_AREA": lambda: cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA),
        "OpenCV area by integer, then LINEAR_EXACT": area_then_exact,
        "OpenCV LINEAR_EXACT (aliases)": lambda: cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR_EXACT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--side", type=int, default=256)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for width, height in SIZES:
        pixels = frame(width, height, arguments.image)
        functions = candidates(pixels, arguments.side)
        medians = interleave(functions, arguments.rounds)  # type: ignore[arg-type]
        rule = resize_reference(pixels, arguments.side, arguments.side)
        print(f"\n{width}x{height} -> {arguments.side}x{arguments.side}, ms (ratio to INTER_AREA)")
        for name, value in medians.items():
            result = functions[name]()  # type: ignore[operator]
            exact = "exact" if np.array_equal(result, rule) else ""
            print(f"  {name:42s} {value:7.2f}  {value / medians['OpenCV INTER_AREA']:5.2f}  {exact}")


if __name__ == "__main__":
    main()
