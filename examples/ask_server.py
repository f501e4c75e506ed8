"""Images from a program of yours: it asks a server in the protocol of Triton and KServe, by NVIDIA's own client.

    edgead serve mono.edgead                                     # in another terminal
    python examples/ask_server.py 127.0.0.1:8001 mono parts/mono/test

Needs ``pip install 'edgead[cpu,serve]'``. Takes 0.4 s of one core's time for 40 images, without the server's.

Look at the decision, and at the milliseconds from request to answer, with the picture's way over gRPC. What ran:
``edgead serve`` and tritonclient 2.69, on one machine. For Triton's own server see triton_repository.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="HOST:PORT of gRPC")
    parser.add_argument("model", help="its name on the server; of edgead serve, the bundle's")
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--token", type=Path, help="the file that edgead serve was given")
    asked = parser.parse_args()
    headers = {"authorization": f"Bearer {asked.token.read_text().strip()}"} if asked.token else None
    files = sorted(path for path in asked.images.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        sys.exit(f"{asked.images} holds no .png or .jpg")

    client = triton.InferenceServerClient(asked.server)
    if not client.is_server_ready():
        sys.exit(f"{asked.server} is there, but not ready: its self-test has not passed yet")
    for file in files:
        with Image.open(file) as opened:
            image = np.asarray(opened.convert("RGB"))
        given = triton.InferInput("image", list(image.shape), "UINT8")
        given.set_data_from_numpy(image)
        wanted = [triton.InferRequestedOutput(name) for name in ("decision", "score", "threshold", "reason")]
        started = time.perf_counter()
        answer = client.infer(asked.model, [given], outputs=wanted, headers=headers)
        milliseconds = 1000 * (time.perf_counter() - started)
        decision, reason = (answer.as_numpy(name)[0].decode() for name in ("decision", "reason"))
        score, threshold = (answer.as_numpy(name)[0] for name in ("score", "threshold"))
        # Only OK may pass a part; NOT_INSPECTED comes with a reason, and is a reject.
        print(f"{file.name}: {decision} {score:.2f} (threshold {threshold:.2f}) {milliseconds:.0f} ms {reason}")


if __name__ == "__main__":
    try:
        main()
    except InferenceServerException as error:
        sys.exit(f"the server says: {error.message()}")
    except OSError as error:  # an image or the token cannot be read
        sys.exit(f"error: {error}")
