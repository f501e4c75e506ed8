"""Weights rounded to INT8 by what they do to a layer's output, not one by one.

Rounding every weight to its nearest value ignores what it is multiplied by. A depthwise filter that takes differences
of large values loses its balance by it: the first one of EfficientNet-Lite0 alone moved features by 0.3 of their
spread. Here each rounding error is made up for by the weights of the same filter that are not rounded yet, as the
covariance of the layer's inputs on good images tells (Frantar et al., "GPTQ", ICLR 2023, after "Optimal Brain
Surgeon"), and what is left of it in the mean goes into the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgead.export.graph.partition import array, constants, convolutions
from edgead.export.graph.saturation import (
    LEVELS,
    PAIR_LIMIT,
    bounds_after,
    clip_pairs,
    in_kernel_order,
    largest_pair,
)
from edgead.export.precision.activation_ranges import tensor_values

_POSITIONS = 256  # of a layer's output that are looked at in each image
_DAMPING = 0.01  # added to the covariance's diagonal, as a share of its mean


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights of a convolution in INT8.

    Attributes:
        whole: int8, of the shape of the weights.
        scales: ``(O,)`` float32, one an output channel; weights are ``whole * scales``.
        correction: ``(O,)`` float64, to be added to the bias.
    """

    whole: NDArray[np.int8]
    scales: NDArray[np.float32]
    correction: NDArray[np.float64]

    @property
    def values(self) -> NDArray[np.float32]:
        """The weights that the integers stand for."""
        shape = (-1, *[1] * (self.whole.ndim - 1))
        return np.asarray(self.whole * self.scales.reshape(shape), np.float32)


def round_to_nearest(
    values: NDArray[np.float32], least: NDArray[np.float64] | float = 0.0, *, saturation_free: bool = False
) -> Rounded:
    """Round each weight by itself; a dead channel gets a scale that has no effect.

    Args:
        values: ``(O, C, ...)``.
        least: scales are at least this.
        saturation_free: keep to the limit of `edgead.export.graph.saturation`.
    """
    scales = np.maximum(_scales(values, saturation_free), least).astype(np.float32)
    shape = (-1, *[1] * (values.ndim - 1))
    whole = np.clip(np.rint(values.astype(np.float64) / scales.reshape(shape)), -LEVELS, LEVELS)
    if saturation_free:
        whole = clip_pairs(whole)
    return Rounded(whole.astype(np.int8), scales, np.zeros(len(values)))


def _scales(values: NDArray[np.floating[Any]], saturation_free: bool) -> NDArray[np.float64]:
    """Return the scale of each filter that its largest weight needs, or its largest pair of neighbours."""
    largest = np.abs(values).reshape(len(values), -1).max(1).astype(np.float64) / LEVELS
    if saturation_free:
        largest = np.maximum(largest, largest_pair(values) / PAIR_LIMIT)
    return np.where(largest > 0, largest, 1.0)


def round_weights(
    model: onnx.ModelProto, inputs: Mapping[str, LayerInputs], *, saturation_free: bool = False
) -> dict[str, Rounded]:
    """Return convolution -> its weights in INT8, of all that `layer_inputs` saw.

    Args:
        model: exported FP32 graph.
        inputs: of its layers.
        saturation_free: keep to the limit of `edgead.export.graph.saturation`, as the graph for CPUs needs it.
    """
    known = constants(model.graph)
    found = {}
    for node in model.graph.node:
        if node.name in inputs and node.op_type == "Conv":
            weights = np.asarray(array(known[node.input[1]]), np.float64)
            found[node.name] = _compensate(weights, inputs[node.name], saturation_free)
    return found


def layer_inputs(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, LayerInputs]:
    """Return convolution -> mean and covariance of what it sees, of all two-dimensional ones of the network.

    Args:
        model: exported FP32 graph.
        images: ``(N, h, w, 3)`` uint8, normal ones.

    Raises:
        ConfigError: there is no image.
        ExportError: ONNX Runtime cannot execute the graph.
    """
    known = constants(model.graph)
    found = [node for node in convolutions(model.graph) if node.op_type == "Conv"]
    convs = [node for node in found if len(known[node.input[1]].dims) == 4 and set(_ints(node, "dilations")) <= {1}]
    sums: dict[str, LayerInputs] = {}
    generator = np.random.default_rng(0)
    sources = list(dict.fromkeys(node.input[0] for node in convs))
    for tensors in tensor_values(model, sources, images):
        for node in convs:
            weights = known[node.input[1]].dims
            patches = _patches(tensors[node.input[0]], node, tuple(weights[2:]), generator)
            group = next(iter(_ints(node, "group")), 1)
            sums.setdefault(node.name, LayerInputs.empty(group, patches.shape[0] // group * weights[2] * weights[3]))
            sums[node.name].add(patches)
    return sums


@dataclass(slots=True)
class LayerInputs:
    """Sums over the patches that the filters of each group saw, ``(G, K)`` and ``(G, K, K)``; K in kernel order."""

    count: int
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @classmethod
    def empty(cls, groups: int, size: int) -> LayerInputs:
        return cls(0, np.zeros((groups, size)), np.zeros((groups, size, size)))

    def add(self, patches: NDArray[np.float32]) -> None:
        """Add patches ``(C, n, kh, kw)``."""
        groups, size = self.first.shape
        number = patches.shape[1]
        rows = patches.reshape(groups, -1, number, patches.shape[2] * patches.shape[3])
        rows = rows.transpose(0, 2, 3, 1).reshape(groups, number, size).astype(np.float64)
        self.count += number
        self.first += rows.sum(1)
        self.second += rows.transpose(0, 2, 1) @ rows

    def mean_and_covariance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self.first / self.count
        return mean, self.second / self.count - mean[:, :, None] * mean[:, None, :]


def _compensate(weights: NDArray[np.float64], inputs: LayerInputs, saturation_free: bool) -> Rounded:
    mean, covariance = inputs.mean_and_covariance()
    groups, size = mean.shape
    filters = np.asarray(in_kernel_order(weights), np.float64).reshape(groups, -1, size)
    # As they are stored: what is compensated for is the error of these very numbers.
    stored = _scales(weights, saturation_free).astype(np.float32)
    scales = stored.astype(np.float64).reshape(groups, -1)
    spread = np.einsum("gkk->gk", covariance).mean(1)
    # Inputs that never vary say nothing; then each weight is rounded by itself.
    damping = np.where(spread > 0, _DAMPING * spread, 1.0)
    inverse = np.linalg.inv(covariance + damping[:, None, None] * np.eye(size))
    factor = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    rest, whole = filters.copy(), np.empty_like(filters)
    for place in range(size):
        before = whole[:, :, place - 1] if saturation_free and place else None
        whole[:, :, place] = np.clip(np.rint(rest[:, :, place] / scales), *bounds_after(before))
        missed = (rest[:, :, place] - whole[:, :, place] * scales) / factor[:, None, place, place]
        rest[:, :, place:] -= missed[:, :, None] * factor[:, None, place, place:]
    error = filters - whole * scales[:, :, None]
    correction = np.einsum("gok,gk->go", error, mean).reshape(-1)
    kernel = (len(weights), *weights.shape[2:], weights.shape[1])
    return Rounded(np.moveaxis(whole.reshape(kernel), -1, 1).astype(np.int8), stored, correction)


def _patches(
    tensor: NDArray[np.float32], node: onnx.NodeProto, kernel: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return what a convolution sees at some positions of an image: ``(C, n, kh, kw)``."""
    top, left, bottom, right = _ints(node, "pads") or [0, 0, 0, 0]
    down, across = _ints(node, "strides") or [1, 1]
    padded = np.pad(tensor[0], ((0, 0), (top, bottom), (left, right)))
    height = (padded.shape[1] - kernel[0]) // down + 1
    width = (padded.shape[2] - kernel[1]) // across + 1
    chosen = generator.choice(height * width, min(height * width, _POSITIONS), replace=False)
    rows = (chosen // width * down)[:, None, None] + np.arange(kernel[0])[None, :, None]
    columns = (chosen % width * across)[:, None, None] + np.arange(kernel[1])[None, None, :]
    found: NDArray[np.float32] = padded[:, rows, columns]
    return found


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or [int(attribute.i)]
    return []
