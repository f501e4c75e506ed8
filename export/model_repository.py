"""A model repository for the Triton Inference Server: a folder for each graph, with its ``config.pbtxt``.

Written after NVIDIA's description of the format; no server has loaded one of these here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import onnx

from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import ALL_BITS

_MOST_IMAGES = 16  # of one batch that the server may gather
_TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}
# Only on a GPU: a CPU computes half in FP32, and slower.
_GPU_ONLY = ("fp16",)


def triton_files(manifest: Manifest, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, bytes]:
    """Return the files of a model repository, path -> content.

    The server's ONNX Runtime executes the graphs; resize, threshold and decision are the client's, and the file
    ``README.md`` says how. Weights are inside the graphs.

    Args:
        manifest: of the model.
        graphs: precision -> graph that does the whole scoring.

    Raises:
        ConfigError: the model's name cannot be that of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", manifest.name):
        raise ConfigError(f"Triton needs a plain model name, not '{manifest.name}'; choose another -o")
    files: dict[str, bytes] = {}
    names = {
        precision: manifest.name if precision == "fp32" else f"{manifest.name}-{precision}" for precision in graphs
    }
    for precision, graph in graphs.items():
        files[f"{names[precision]}/1/model.onnx"] = graph.SerializeToString(deterministic=True)
        files[f"{names[precision]}/config.pbtxt"] = _config(names[precision], precision, graph, manifest).encode()
    files["README.md"] = _readme(manifest, names).encode()
    return files


def _config(name: str, precision: str, model: onnx.ModelProto, manifest: Manifest) -> str:
    where = "KIND_GPU" if precision in _GPU_ONLY else "KIND_AUTO"
    parameters = {
        "threshold": repr(manifest.limits(precision).value),
        "resize": manifest.input.resize,
        "color": manifest.input.color,
        **({} if manifest.input.bits == ALL_BITS else {"bits": str(manifest.input.bits)}),
        **{f"threshold.{name}": repr(value) for name, value in manifest.limits(precision).categories.items()},
        **{f"minimum_similarity.{name}": repr(value) for name, value in manifest.minimum_similarity().items()},
    }
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {_MOST_IMAGES}",
        f"input [ {_tensors(model.graph.input)} ]",
        f"output [ {_tensors(model.graph.output)} ]",
        f"instance_group [ {{ kind: {where} }} ]",
        "dynamic_batching { }",
        *(
            f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensors(values: Sequence[onnx.ValueInfoProto]) -> str:
    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim][1:]  # the batch axis is the server's
        dims = f"dims: [ {', '.join(map(str, shape))} ]" if shape else "dims: [ 1 ] reshape { shape: [ ] }"
        found.append(f"{{ name: {json.dumps(value.name)} data_type: {_TYPES[tensor.elem_type]} {dims} }}")
    return ", ".join(found)


def _readme(manifest: Manifest, names: Mapping[str, str]) -> str:
    size = manifest.input
    rows = [f"| `{name}` | {precision} | {_limits(manifest.limits(precision))} |" for precision, name in names.items()]
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            "    tritonserver --model-repository=.",
            "",
            f"Input `images`: `(N, {size.height}, {size.width}, 3)` uint8, {size.color}, resized by the rule "
            f"`{size.resize}`, which is `edgead.runtime.imaging.preprocess.resize`; another resize gives other scores.",
            "Output `score`: higher is more anomalous; a part is bad where it lies above its threshold. "
            "`map`: the same for each cell.",
            "",
            "| model | precision | threshold |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _limits(limits: Limits) -> str:
    if not limits.categories:
        return repr(limits.value)
    return ", ".join(f"{name}: {value!r}" for name, value in limits.categories.items())
