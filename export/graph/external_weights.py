"""Large weights beside the graph: stored once under their digest, shared by all precisions, memory-mapped."""

from __future__ import annotations

import hashlib

import onnx
from onnx import numpy_helper

from edgead.runtime.bundle.layout import WEIGHTS

# Smaller tensors stay in the graph file; above this a copy per precision or in memory starts to hurt.
LARGE_BYTES = 1 << 20


def split_weights(model: onnx.ModelProto, large: int = LARGE_BYTES) -> tuple[bytes, dict[str, bytes]]:
    """Move every initialiser of more than ``large`` bytes out of the graph.

    Returns:
        The graph's bytes, and member name ``weights/<sha256>.bin`` -> raw little-endian content.
    """
    split = onnx.ModelProto()
    split.CopyFrom(model)
    files: dict[str, bytes] = {}
    for tensor in split.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        array = numpy_helper.to_array(tensor)
        if array.nbytes <= large:
            continue
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        member = f"{WEIGHTS}{hashlib.sha256(data).hexdigest()}.bin"
        files[member] = data
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", member), ("offset", "0"), ("length", str(len(data)))):
            tensor.external_data.add(key=key, value=value)
    return split.SerializeToString(deterministic=True), files
