"""A camera loop of your own, in Python: one call a frame, for those who grab frames themselves.

    python examples/own_camera_loop.py screw.edgead 0             # or a video file, or rtsp://…

Needs ``pip install 'edgead[cpu,camera]'``. Takes 2 s of one core's time for 40 frames of a file.

Only `OK` may pass the part. `NOT_INSPECTED` comes with a reason, and the line must treat it like a reject. Look at the
frames that are printed: they are those that must not pass. Reconnecting, part ids, counters and sinks are what
``inspect.stream("0")`` adds (docs/camera.md).
"""

import sys
import time

import cv2

from edgead.runtime import Decision, EdgeadError, Frame, Inspector


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python own_camera_loop.py BUNDLE CAMERA", file=sys.stderr)
        return 2
    bundle, name = sys.argv[1:]
    camera = cv2.VideoCapture(int(name) if name.isdecimal() else name)
    if not camera.isOpened():
        print(f"error: {name} cannot be opened: no such camera or file, or another program has it", file=sys.stderr)
        return 2
    index = 0
    try:
        with Inspector.open(bundle) as inspect:
            print(inspect.why)
            while True:
                grabbed, image = camera.read()
                if not grabbed:
                    break  # the end of a file, or a lost camera: no frame, so nothing passes
                # OpenCV delivers BGR; saying so is cheaper than converting the frame.
                result = inspect(Frame(image, index, time.monotonic_ns(), f"camera-{name}", "bgr"))
                if result.decision is not Decision.OK:
                    print(f"frame {index}: {result.decision} {result.score:.3f} {result.reason or ''}")
                index += 1
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        camera.release()
    print(f"{index} frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
