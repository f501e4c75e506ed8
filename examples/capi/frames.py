"""Image files as the raw frames that the camera loops of this folder read: what a camera would deliver.

    make capi                                        # libedgead in dist/capi; half a minute
    cmake -S examples/capi -B build -DCMAKE_PREFIX_PATH=$PWD/dist/capi && cmake --build build
    python examples/capi/frames.py parts/mono/test | build/camera_cpp mono.edgead ONNXRUNTIME

ONNXRUNTIME is the library, such as ``onnxruntime/capi/libonnxruntime.so.*`` of the wheel. Each frame gives one line:
decision, and score in hexadecimal, so that it can be compared to the bit with Python's ``float.hex()``.
Building the loops and 40 frames took a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python frames.py FOLDER | camera BUNDLE ONNXRUNTIME")
    files = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        sys.exit(f"{sys.argv[1]} holds no .png or .jpg")
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        sys.stdout.buffer.write(b"%d %d\n" % image.size + image.tobytes())


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit("the camera loop has ended; it says why")
