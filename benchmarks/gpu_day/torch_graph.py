"""An ONNX graph of this project executed by torch, every operator in the type that the graph gives its tensors.

On a GPU a half tensor is computed there in half, by the same tensor cores that an engine uses: the arithmetic that
`edgead.export.precision.simulate_fp16` simulates. Only operators that exported graphs have; others are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from edgead.export.ops.nodes import inline_nodes
from edgead.runtime.errors import ConfigError

# By their numbers in ONNX.
_KINDS = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.half,
}
_BATCH = 8
Attributes = dict[str, Any]


class TorchGraph:
    """Runs a scoring graph.

    Args:
        model: graph file, its ``weights/`` beside it.
        place: ``cuda`` or ``cpu``.

    Raises:
        ConfigError: an operator that is not known here.
    """

    def __init__(self, model: Path, place: str) -> None:
        loaded = inline_nodes(onnx.load(str(model)))
        unknown = sorted({node.op_type for node in loaded.graph.node} - OPERATORS.keys() - {"Constant"})
        if unknown:
            raise ConfigError(f"{model.name} has operators that benchmarks/gpu_day/torch_graph.py lacks: {unknown}")
        self._nodes, self._place = list(loaded.graph.node), place
        self._constants = {one.name: self._tensor(numpy_helper.to_array(one)) for one in loaded.graph.initializer}
        self._input = loaded.graph.input[0].name
        self._outputs = [value.name for value in loaded.graph.output]
        # What is not needed any more is freed at once: maps of large batches are.
        self._last = {name: number for number, node in enumerate(self._nodes) for name in node.input}

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores ``(N,)`` and maps ``(N, gh, gw)`` of images ``(N, h, w, 3)`` uint8."""
        parts = [self._run(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        scores, maps = (np.concatenate(part) for part in zip(*parts, strict=True))
        return scores, maps

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        values: dict[str, Any] = {**self._constants, self._input: self._tensor(images), "": None}
        for number, node in enumerate(self._nodes):
            attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant":
                values[node.output[0]] = self._tensor(numpy_helper.to_array(attributes["value"]))
                continue
            values[node.output[0]] = OPERATORS[node.op_type]([values[name] for name in node.input], attributes)
            for name in node.input:
                if self._last[name] == number and name not in self._constants and name not in self._outputs:
                    values[name] = None
        score, anomaly_map = (values[name].float().cpu().numpy() for name in self._outputs)
        return score, anomaly_map

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self._place)


def _list(tensor: Tensor | None) -> list[int]:
    return [] if tensor is None else [int(value) for value in tensor.flatten().tolist()]


def _conv(inputs: Sequence[Any], given: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    pads = given.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0]
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    return F.conv2d(x, weight, bias, tuple(strides), tuple(pads[:2]), tuple(dilations), given.get("group", 1))


def _pool(inputs: Sequence[Any], given: Attributes) -> Tensor:
    pads = given.get("pads", [0, 0, 0, 0])
    kernel, stride = tuple(given["kernel_shape"]), tuple(given.get("strides", [1, 1]))
    if pads[:2] != pads[2:] or given.get("ceil_mode"):
        raise ConfigError(f"an uneven pooling: {given}")
    return F.avg_pool2d(
        inputs[0], kernel, stride, tuple(pads[:2]), count_include_pad=bool(given.get("count_include_pad"))
    )


def _resize(inputs: Sequence[Any], given: Attributes) -> Tensor:
    x, _, scales, sizes = (*inputs, None, None, None)[:4]
    mode = given.get("coordinate_transformation_mode", b"half_pixel")
    if given.get("mode") != b"linear" or mode not in (b"half_pixel", b"pytorch_half_pixel") or given.get("antialias"):
        raise ConfigError(f"a resize that is not bilinear: {given}")
    if sizes is not None:
        target = _list(sizes)[2:]
    else:
        target = [int(side * scale) for side, scale in zip(x.shape, scales.tolist(), strict=True)][2:]
    return F.interpolate(x, size=target, mode="bilinear", align_corners=False)


def _pad(inputs: Sequence[Any], given: Attributes) -> Tensor:
    x, pads, value = (*inputs, None)[:3]
    numbers = _list(pads)
    half, order = len(numbers) // 2, []
    for axis in reversed(range(half)):
        order += [numbers[axis], numbers[half + axis]]
    mode = given.get("mode", b"constant").decode()
    if mode == "constant":
        return F.pad(x, order, value=0.0 if value is None else float(value))
    return F.pad(x, order[:4], mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _reduce(kind: Callable[..., Tensor]) -> Callable[[Sequence[Any], Attributes], Tensor]:
    def reduce(inputs: Sequence[Any], given: Attributes) -> Tensor:
        axes = _list(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else list(range(inputs[0].dim()))
        return kind(inputs[0], dim=tuple(axes), keepdim=bool(given.get("keepdims", 1)))

    return reduce


def _slice(inputs: Sequence[Any], _: Attributes) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    first, last = _list(starts), _list(ends)
    places, strides = _list(axes) or list(range(len(first))), _list(steps) or [1] * len(first)
    if min(strides) < 1:
        raise ConfigError("a slice that goes backwards")
    picked = [slice(None)] * x.dim()
    for axis, begin, end, step in zip(places, first, last, strides, strict=True):
        picked[axis] = slice(begin, end, step)
    return x[tuple(picked)]


def _reshape(inputs: Sequence[Any], given: Attributes) -> Tensor:
    wanted = _list(inputs[1])
    if not given.get("allowzero"):
        wanted = [inputs[0].shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return inputs[0].reshape(wanted)


def _squeeze(inputs: Sequence[Any], _: Attributes) -> Tensor:
    return inputs[0].squeeze(tuple(_list(inputs[1]))) if len(inputs) > 1 else inputs[0].squeeze()


def _unsqueeze(inputs: Sequence[Any], _: Attributes) -> Tensor:
    x, axes = inputs[0], _list(inputs[1])
    for axis in sorted(axis if axis >= 0 else axis + x.dim() + len(axes) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _clip(inputs: Sequence[Any], _: Attributes) -> Tensor:
    x, low, high = (*inputs, None, None)[:3]
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _gather(inputs: Sequence[Any], given: Attributes) -> Tensor:
    x, index, axis = inputs[0], inputs[1].long(), given.get("axis", 0)
    picked = x.index_select(axis, torch.where(index < 0, index + x.shape[axis], index).flatten())
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _normalise(inputs: Sequence[Any], given: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    axis = given.get("axis", -1) % x.dim()
    return F.layer_norm(x, x.shape[axis:], weight, bias, given.get("epsilon", 1e-5))


def _with(function: Callable[..., Any]) -> Callable[[Sequence[Any], Attributes], Any]:
    return lambda inputs, _: function(*inputs)


OPERATORS: dict[str, Callable[[Sequence[Any], Attributes], Any]] = {
    "Abs": _with(torch.abs),
    "Add": _with(torch.add),
    "AveragePool": _pool,
    "Cast": lambda inputs, given: inputs[0].to(_KINDS[given["to"]]),
    "Clip": _clip,
    "Concat": lambda inputs, given: torch.cat(list(inputs), given["axis"]),
    "Conv": _conv,
    "Div": _with(torch.div),
    "Erf": _with(torch.erf),
    "Exp": _with(torch.exp),
    "Gather": _gather,
    "LayerNormalization": _normalise,
    "Log": _with(torch.log),
    "MatMul": _with(torch.matmul),
    "Max": _with(torch.maximum),
    "Min": _with(torch.minimum),
    "Mul": _with(torch.mul),
    "Neg": _with(torch.neg),
    "Pad": _pad,
    "Pow": _with(torch.pow),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _with(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _with(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, given: torch.softmax(inputs[0], given.get("axis", -1)),
    "Sqrt": _with(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _with(torch.sub),
    "Transpose": lambda inputs, given: inputs[0].permute(given["perm"]),
    "Unsqueeze": _unsqueeze,
}
