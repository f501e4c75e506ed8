"""For those who own the camera loop: one call a frame.

    python examples/own_camera_loop.py screw.edgead 0

Only `OK` may pass the part. `NOT_INSPECTED` comes with a reason, and the line must treat it like a reject.
"""

import sys
import time

import cv2

from edgead.runtime import Decision, Frame, Inspector

bundle, device = sys.argv[1], int(sys.argv[2])
camera = cv2.VideoCapture(device)
with Inspector.open(bundle) as inspect:
    print(inspect.why)
    index = 0
    while True:
        grabbed, image = camera.read()
        if not grabbed:
            break
        # OpenCV delivers BGR; saying so is cheaper than converting the frame.
        result = inspect(Frame(image, index, time.monotonic_ns(), f"camera-{device}", "bgr"))
        if result.decision is not Decision.OK:
            print(f"frame {index}: {result.decision} {result.score:.3f} {result.reason or ''}")
        index += 1
camera.release()
