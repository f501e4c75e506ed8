"""The network of a bundle as a model of Triton, for plants that have Triton: files, configuration, and a check.

    python examples/triton_repository.py mono.edgead models      # then: tritonserver --model-repository models

Needs ``pip install 'edgead[cpu,serve]'``. Takes 1.2 s of one core's time.

Triton serves the network alone: images at network size in, score and map out. What makes a decision of that stays with
you: resize as ``edgead.runtime`` does, and compare with the threshold, which stands in the configuration. Look at the
two columns of scores: the copied files, run by ONNX Runtime as Triton's backend does, and the bundle.

**Triton's own server was not run**; it is no Python package. Its configuration was parsed by tritonclient's classes.
Where there is no Triton yet, ``edgead serve`` speaks its protocol, and decides, too: ask_server.py, docs/serving.md.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from edgead.runtime import Bundle, DataError, EdgeadError, Inspector
from edgead.runtime.bundle.layout import WEIGHTS

GRAPH = "model.fp32.onnx"
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


def configuration(bundle: Bundle, session: onnxruntime.InferenceSession) -> ModelConfig:
    """Return what Triton must know of the graph."""
    manifest = bundle.manifest
    config = ModelConfig(name=manifest.name, backend="onnxruntime", default_model_filename=GRAPH)
    config.max_batch_size = 8  # Triton adds the first axis itself
    for tensors, described in ((session.get_inputs(), config.input), (session.get_outputs(), config.output)):
        for tensor in tensors:
            entry = described.add(name=tensor.name, data_type=TYPES[tensor.type], dims=tensor.shape[1:] or [1])
            if not tensor.shape[1:]:
                entry.reshape.SetInParent()  # one number an image
    for key, value in {"threshold": manifest.threshold.value, "bundle_sha256": bundle.sha256}.items():
        config.parameters[key].string_value = str(value)
    return config


def write(bundle: Bundle, folder: Path) -> None:
    """Write the model below ``folder``, and compare its scores with those of the bundle."""
    version = folder / "1"
    bundle.extract(version, [GRAPH, *(name for name in bundle.manifest.members if name.startswith(WEIGHTS))])
    session = onnxruntime.InferenceSession(version / GRAPH, providers=["CPUExecutionProvider"])
    (folder / "config.pbtxt").write_text(text_format.MessageToString(configuration(bundle, session)))
    with Inspector.open(bundle.path, backend="onnxruntime") as inspect:
        for name, content in bundle.references():
            frame = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            image = inspect.view.prepare(frame)  # to network size, to the bit as the camera loop does
            copied = session.run(["score"], {session.get_inputs()[0].name: image[None]})[0][0]
            own = inspect(frame).score
            print(f"{name}: score {copied:.4f} by the copied graph, {own:.4f} by the bundle")
            if not np.isclose(copied, own, rtol=1e-3):
                raise DataError(f"the copied graph does not score as the bundle does: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("repository", type=Path, help="Triton's folder of models")
    asked = parser.parse_args()
    with Bundle.open(asked.bundle) as bundle:
        manifest = bundle.manifest
        if manifest.graph != "single" or manifest.threshold is None or manifest.input.tiles is not None:
            sys.exit("only a bundle of one product, without tiles, is one network; serve others by edgead serve")
        folder = asked.repository / manifest.name
        if folder.exists():
            sys.exit(f"{folder} is there already; remove it, or name another folder")
        try:
            write(bundle, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # Triton would load what is half written
            raise
        print(f"wrote {folder}; an image with a score above {manifest.threshold.value:.4f} is an anomaly")


if __name__ == "__main__":
    try:
        main()
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
