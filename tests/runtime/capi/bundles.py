"""Bundles with a network of any size, small enough that preparing a frame is all they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.bundle.align_section import AlignSection
from edgead.runtime.bundle.layout import MASK_NAME, TEMPLATE_NAME
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.manifest_schema import RegionSection
from edgead.runtime.bundle.references import pack_expected
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.imaging.alignment import Alignment, encode_template
from edgead.runtime.imaging.preprocess import RESIZE_RULE
from edgead.runtime.imaging.roi import Box, encode_mask, make_region

THRESHOLD = {"target_false_alarm_rate": 0.01, "n_normals": 9, "low": 0.0, "high": 0.5, "supported": False}


def graph(height: int, width: int, batch: str | int = "batch", nodes: list[Any] | None = None) -> bytes:
    """Images to the brightest channel of cells of 4 x 4 pixels, and to the brightest cell."""
    from onnx import TensorProto, helper, numpy_helper

    own = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("MaxPool", ["planes"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceMax", ["cells", "channel"], ["map"], keepdims=0),
        helper.make_node("ReduceMax", ["map", "both"], ["score"], keepdims=0),
    ]
    made = helper.make_graph(
        own if nodes is None else nodes,
        "brightest",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, height, width, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, height // 4, width // 4]),
        ],
        [numpy_helper.from_array(np.array([1]), "channel"), numpy_helper.from_array(np.array([1, 2]), "both")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


# More than six parameters: each is one thing that a frame may go through.
def write(
    path: Path,
    height: int,
    width: int,
    *,
    frame_size: tuple[int, int] | None = None,
    box: Box | None = None,
    mask: NDArray[np.uint8] | None = None,
    tiles: tuple[int, int, int] | None = None,
    align: Alignment | None = None,
    threshold: float = 100.0,
    files: dict[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """Write a bundle; ``tiles``: rows, columns and overlap; ``files`` and ``changes`` replace members and fields."""
    members = {"model.fp32.onnx": graph(height, width), **(files or {})}
    given: dict[str, Any] = {"height": height, "width": width, "resize": RESIZE_RULE}
    if frame_size is not None:
        region = make_region(frame_size, box, mask)
        assert region is not None
        given["region"] = RegionSection.from_region(region)
        if (png := encode_mask(region)) is not None:
            members[MASK_NAME] = png
    if tiles is not None:
        given["tiles"] = dict(zip(("rows", "columns", "overlap"), tiles, strict=True))
    if align is not None:
        given["align"] = AlignSection.from_alignment(align)
        members[TEMPLATE_NAME] = encode_template(align)
    fields = {
        "name": "brightest",
        "detector": {"name": "patchcore"},
        "input": given,
        "map": {"height": height // 4, "width": width // 4},
        "threshold": {"value": threshold, **THRESHOLD},
        "precisions": {"fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime"]}},
        **changes,
    }
    write_bundle(path, Manifest.model_validate(fields), members)
    return path


def with_references(height: int, width: int, images: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """Return the members that `edgead_check` replays: images of the network's size, and what the graph gives."""
    from tests.runtime.conftest import png

    cells = [image.reshape(height // 4, 4, width // 4, 4, 3).max(axis=(1, 3, 4)) for image in images.values()]
    grids = np.stack(cells).astype(np.float32)
    files = {f"references/{name}": png(image) for name, image in images.items()}
    return {**files, "references/expected.npz": pack_expected(list(images), grids.max(axis=(1, 2)), grids)}
