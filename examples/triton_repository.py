"""The network of a model as a model of Triton, for plants that have Triton: exported, then asked as a client would.

    edgead fit parts/mono --size 128 -o mono.model
    python examples/triton_repository.py mono.model models parts/mono/test
    tritonserver --model-repository models

Needs ``pip install 'edgead[train,export,cpu,serve]'``. Takes 10 s on two cores with 40 images.

Triton serves the network alone: images at network size in, score and map out. Resize, threshold and decision stay with
the client, and this is one, without a server. Look at the two columns of scores: the file that Triton loads, run by
ONNX Runtime as Triton's backend does, and the model. By a command:
``edgead export mono.model -o models --target triton --images parts/mono/test``.

**Triton's own server was not run**; it is no Python package. Its configuration was parsed by tritonclient's classes.
Where there is no Triton yet, ``edgead serve`` speaks its protocol, and decides, too: ask_server.py, docs/serving.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import edgead
from edgead.export import export_graphs
from edgead.runtime import DataError, EdgeadError, read_image
from edgead.runtime.imaging.decode import find_images
from edgead.runtime.imaging.preprocess import resize

SHOWN = 4  # images that are compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what edgead fit wrote")
    parser.add_argument("repository", type=Path, help="Triton's folder of models, which is made")
    parser.add_argument("images", type=Path, help="real images, for the proof that the export changes no decision")
    asked = parser.parse_args()
    model = edgead.load_model(asked.model)
    name = asked.model.stem
    export_graphs(model.exportable(name), asked.repository, images=[asked.images], triton=True)

    # From here on as a client: what the repository says, and nothing else.
    config = text_format.Parse((asked.repository / name / "config.pbtxt").read_text(), ModelConfig())
    threshold = float(config.parameters["threshold"].string_value)
    height, width, _ = config.input[0].dims
    session = onnxruntime.InferenceSession(asked.repository / name / "1" / "model.onnx")
    with model.inspector() as inspect:
        for file in find_images([asked.images])[:SHOWN]:
            image = read_image(file)
            pixels = resize(image, height, width)  # this resize and no other: another gives other scores
            score = float(session.run(["score"], {config.input[0].name: pixels[None]})[0][0])
            own = inspect(image)
            decision = "ANOMALY" if score > threshold else "OK"
            print(f"{file.name}: {decision}, score {score:.4f} by the exported graph, {own.score:.4f} by the model")
            if decision != own.decision:
                raise DataError(f"the exported graph does not decide as the model does: {file}")
    print(f"wrote {asked.repository}; an image with a score above {threshold:.4f} is an anomaly")


if __name__ == "__main__":
    try:
        main()
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
