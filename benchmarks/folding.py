"""What folding saves: network time of the exported graph against a plain export of the same model, same scores.

    python -m benchmarks.folding MODEL_DIR [--rounds 100]

The plain export is what a straightforward program would write: float images normalised on the host, the backbone as
timm builds it (batch normalisation and run-time padding kept), all channels pooled and resized, a full distance matrix
(PatchCore) or inverse covariances (PaDiM). Both run in ONNX Runtime and OpenVINO (f32) with the same options.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from torch import Tensor, nn

from benchmarks.timing import interleave
from edgead.detectors.padim import MahalanobisHead
from edgead.detectors.patchcore import NearestNeighbourHead
from edgead.export.graph.tracing import export_onnx
from edgead.export.ops.nodes import inline_nodes
from edgead.features.backbones import DEFAULT_BACKBONE, BackboneSpec, copy_weights, input_statistics
from edgead.model.model import TrainedModel, load_model
from edgead.runtime.backends.common import openvino_core


class PlainModel(nn.Module):
    """The same detector without folding: ``(N, 3, h, w)`` float32, normalised on the host -> map ``(N, gh, gw)``."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        name = model.card.backbone["name"]
        if name != DEFAULT_BACKBONE:
            raise SystemExit(f"this benchmark is for {DEFAULT_BACKBONE}, the model has {name}")
        spec = BackboneSpec()
        self.network = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
        copy_weights(self.network, spec)
        mean, std = input_statistics(self.network, spec)
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        reductions = self.network.feature_info.reduction()
        self.taps = [reductions.index(stride) for stride in model.card.backbone["strides"]]
        extractor, head = model.module.extractor, model.module.head
        self.smoothing = model.module.smoothing
        self.grid = extractor.grid
        self.kind = type(head)
        offsets = np.concatenate([[0], np.cumsum(extractor.backbone.channels)])[:-1]
        kept = (
            [getattr(extractor, f"selection_{i}") + int(offset) for i, offset in enumerate(offsets)]
            if (extractor.selected)
            else []
        )
        self.register_buffer("kept", torch.cat(kept) if kept else None)
        if isinstance(head, NearestNeighbourHead):
            self.register_buffer("bank", head.bank)
        elif isinstance(head, MahalanobisHead):
            self.register_buffer("center", head.mean)
            whitening = head.whitening.double()
            self.register_buffer("inverse", (whitening.transpose(1, 2) @ whitening).float())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(pixels)
        maps = [
            nn.functional.interpolate(
                nn.functional.avg_pool2d(features[tap], 3, 1, 1), size=self.grid, mode="bilinear", align_corners=False
            )
            for tap in self.taps
        ]
        embedding = torch.cat(maps, 1)
        if self.kept is not None:
            embedding = embedding.index_select(1, self.kept)
        rows = embedding.flatten(2).transpose(1, 2)
        if self.kind is NearestNeighbourHead:
            squared = (rows**2).sum(2, keepdim=True) - 2 * rows @ self.bank.T + (self.bank**2).sum(1)
            distances = squared.clamp(min=0).sqrt().topk(1, largest=False, dim=2).values[:, :, 0]
        else:
            delta = (rows - self.center)[:, :, None, :]
            distances = (delta @ self.inverse @ delta.transpose(2, 3))[:, :, 0, 0].clamp(min=0).sqrt()
        smoothed = self.smoothing(distances.reshape(-1, *self.grid))
        return smoothed.amax((1, 2)), smoothed


def plain_onnx(plain: PlainModel, height: int, width: int) -> onnx.ModelProto:
    """Return the plain export, for one float image a run."""
    buffer = io.BytesIO()
    example = torch.zeros(1, 3, height, width)
    torch.onnx.export(plain, (example,), buffer, dynamo=True, opset_version=18, verbose=False, optimize=False)
    return onnx.load_from_string(buffer.getvalue())


def open_graph(file: Path, runtime: str, threads: int) -> Callable[[np.ndarray], float]:
    """Return images to the score of the first, in ``onnxruntime`` or ``openvino``, with the options edgead gives it."""
    if runtime == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Otherwise the threads of one session spin while the next one is timed, and there are only so many cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        key = session.get_inputs()[0].name
        return lambda images: float(session.run(None, {key: images})[0][0])
    core = openvino_core()
    graph = core.read_model(str(file))
    graph.reshape([1, *graph.inputs[0].get_partial_shape()[1:]])
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(threads),
    }
    request = core.compile_model(graph, "CPU", hints).create_infer_request()
    return lambda images: float(request.infer([images], share_inputs=True)[0][0])


def runners(plain: onnx.ModelProto, folded: onnx.ModelProto, images: np.ndarray, floats: np.ndarray) -> dict[str, Any]:
    """Return name -> callable giving the score, two threads each."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, data in (("plain", plain, floats), ("edgead", folded, images)):
            file = Path(folder, f"{name}.onnx")
            onnx.save(model, file)
            for runtime in ("onnxruntime", "openvino"):
                run = open_graph(file, runtime, 2)
                result[f"{runtime} {name}"] = lambda run=run, data=data: run(data)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    size = (model.card.height, model.card.width)
    plain = PlainModel(model).eval()
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    floats = ((images.astype(np.float32) - plain.mean) / plain.std).transpose(0, 3, 1, 2).copy()
    functions = runners(plain_onnx(plain, *size), inline_nodes(export_onnx(model.module, *size)), images, floats)
    scores = {name: function() for name, function in functions.items()}
    for runtime in ("onnxruntime", "openvino"):
        medians = interleave({n: f for n, f in functions.items() if n.startswith(runtime)}, arguments.rounds)
        before, after = medians[f"{runtime} plain"], medians[f"{runtime} edgead"]
        print(
            f"{model.card.detector} on {runtime}: plain {before:.2f} ms (score {scores[f'{runtime} plain']:.5f}), "
            f"edgead {after:.2f} ms (score {scores[f'{runtime} edgead']:.5f}), {before / after:.2f} times faster"
        )


if __name__ == "__main__":
    main()
