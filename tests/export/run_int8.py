"""Run by test_processors.py, on this processor and on emulated ones: what each runtime makes of an INT8 bundle.

python run_int8.py BUNDLE IMAGES.npy OUT.npz: scores, maps and decisions of each runtime on images at network size, and
every 8-bit tensor of the graph as ONNX Runtime's integer kernels give it.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime

from edgead.runtime.backends import open_backend
from edgead.runtime.backends.saturation_probe import saturates
from edgead.runtime.bundle.bundle import Bundle

PRECISION = "int8-cpu"


def eight_bit_tensors(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return each tensor that a QuantizeLinear gives: what one integer kernel hands to the next."""
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def main(path: str, images_file: str, out: str, *backends: str) -> None:
    images = np.load(images_file)
    found: dict[str, np.ndarray] = {}
    with Bundle.open(path) as bundle, bundle.model_files(PRECISION) as model:
        limits = bundle.manifest.limits(PRECISION)
        for name in backends:
            opened = open_backend(name, model, threads=1)
            inference = opened.run(images)
            opened.close()
            decisions = [str(limits.judge(inference, index).decision) for index in range(len(images))]
            found |= {f"{name}/score": inference.score, f"{name}/map": inference.map}
            found |= {f"{name}/decisions": np.array(decisions), f"{name}/saturates": np.array(saturates(name))}
        for name, values in eight_bit_tensors(onnx.load(str(model)), images).items():
            found[f"tensor/{name}"] = values
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
