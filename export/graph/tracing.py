"""Scoring module -> ONNX graph with the least arithmetic that gives the same scores."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass
from torch import nn

from edgead.export.ops.nodes import attach_bodies, translations
from edgead.runtime.errors import EdgeadError, ExportError

OPSET = 18
IR_VERSION = 10
BATCH_AXIS = "batch"
OUTPUTS = ("score", "map")


def export_onnx(module: nn.Module, height: int, width: int, outputs: Sequence[str] = OUTPUTS) -> onnx.ModelProto:
    """Export a scoring module, or another that takes images and gives one float32 entry an image and output.

    Args:
        module: ``(N, height, width, 3)`` uint8 -> ``(score (N,), map (N, gh, gw))`` float32, in eval mode.
        height, width: network size in pixels.
        outputs: names of what the module returns.

    Returns:
        A checked model: opset 18, input ``images``, the outputs, the batch axis named ``batch``, all other shapes
        static. Scores are nodes of the domain ``edgead`` with bodies of plain operators; see `inline_nodes`.

    Raises:
        ExportError: torch's exporter could not express the module.
        EdgeadError: what the module itself raises.
    """
    # Two images: torch.export would take an axis of length one as static.
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    return export_part(module, example, ["images"], outputs)


def export_part(
    module: nn.Module, example: torch.Tensor | list[torch.Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Export a module that takes any tensor, or one list of tensors; otherwise as `export_onnx`.

    ``example`` holds two entries along the batch axis, the first of every input.
    """
    batch = {0: torch.export.Dim(BATCH_AXIS, min=1, max=1024)}
    try:
        with _quiet(), torch.no_grad():
            module.eval()(example)  # what the module itself refuses would come out of the exporter in another dress
            with _out_of_place(module, example):
                program = torch.onnx.export(
                    module,
                    (example,),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    dynamic_shapes=([batch] * len(example) if isinstance(example, list) else batch,),
                    custom_translation_table=translations(),
                    verbose=False,
                )
    except EdgeadError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"torch cannot export this module: {reason}") from error
    if program is None:
        raise ExportError("torch's exporter returned nothing")
    # Members of an ensemble read the same features; torch's exporter merges nodes, but sees no large weights as equal.
    DeduplicateInitializersPass(size_limit=sys.maxsize)(program.model)
    CommonSubexpressionEliminationPass()(program.model)
    model: onnx.ModelProto = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    merge_padding(model.graph)
    _strip(model)
    attach_bodies(model)
    _name_batch_axis(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    return model


def join(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """Return one graph of two, where inputs of the second are outputs of the first, by name; what nobody needs goes."""
    used = {name for node in second.graph.node for name in node.input}
    between = [value.name for value in second.graph.input if value.name in used]
    outputs = [value.name for value in second.graph.output]
    needed = onnx.utils.Extractor(first).extract_model(["images"], between)
    renamed = onnx.compose.add_prefix(second, "second_", rename_inputs=False, rename_outputs=False)
    for value in [value for value in renamed.graph.input if value.name not in used]:
        renamed.graph.input.remove(value)
    joined: onnx.ModelProto = onnx.compose.merge_models(
        needed, renamed, [(name, name) for name in between], producer_name="edgead", producer_version=""
    )
    joined.ir_version = first.ir_version
    assert [value.name for value in joined.graph.output] == outputs
    return joined


def merge_padding(graph: onnx.GraphProto) -> int:
    """Move zero padding that a Pad node does into the convolution after it; returns how many Pad nodes went.

    torch has no convolution with uneven padding, ONNX has, and a Pad of its own costs a pass over the tensor.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    removed = []
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        following = users.get(pad.output[0], [])
        mode = next((attribute.s.decode() for attribute in pad.attribute if attribute.name == "mode"), "constant")
        amounts = constants.get(pad.input[1]) if len(pad.input) > 1 else None
        value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
        zero = len(pad.input) < 3 or not pad.input[2] or (value is not None and not numpy_helper.to_array(value).any())
        if len(following) != 1 or following[0].op_type != "Conv" or mode != "constant" or amounts is None or not zero:
            continue
        pads = numpy_helper.to_array(amounts).astype(np.int64)
        if len(pads) != 8 or pads[[0, 1, 4, 5]].any() or (pads < 0).any():
            continue
        conv = following[0]
        own = next((attribute for attribute in conv.attribute if attribute.name == "pads"), None)
        before = np.array(own.ints if own is not None else [0, 0, 0, 0], dtype=np.int64)
        if any(attribute.name == "auto_pad" and attribute.s not in (b"", b"NOTSET") for attribute in conv.attribute):
            continue
        if own is not None:
            conv.attribute.remove(own)
        conv.attribute.append(onnx.helper.make_attribute("pads", (before + pads[[2, 3, 6, 7]]).tolist()))
        conv.input[0] = pad.input[0]
        removed.append(pad)
    for pad in removed:
        graph.node.remove(pad)
    _drop_unused(graph)
    return len(removed)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] not in used]:
        graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    known = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    for info in [v for v in graph.value_info if v.name not in known]:
        graph.value_info.remove(info)


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which hold source paths of the machine that exported, and name nodes plainly."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "edgead", ""
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""
    model.graph.name = "scoring"
    counts: dict[str, int] = {}
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        number = counts.get(node.op_type, 0)
        counts[node.op_type] = number + 1
        node.name = f"{node.op_type}_{number}"
    for values in (model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            del value.metadata_props[:]
            value.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


def _name_batch_axis(model: onnx.ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        axis = value.type.tensor_type.shape.dim[0]
        if axis.dim_param != BATCH_AXIS:
            raise ExportError(
                f"the batch axis of '{value.name}' came out fixed; the module must work for any batch size"
            )


@contextmanager
def _out_of_place(module: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> Iterator[None]:
    """Let activations write beside their input while the exporter runs; it needs a third less time, for the same nodes.

    Not where that changes an output: then the module reads again what an activation has overwritten.
    """
    inplace = [part for part in module.modules() if getattr(part, "inplace", None) is True]
    if not inplace:
        yield
        return
    before = _outputs(module, example)
    try:
        _set_inplace(inplace, False)
        if not all(map(torch.equal, before, _outputs(module, example))):
            _set_inplace(inplace, True)
        yield
    finally:
        _set_inplace(inplace, True)


def _set_inplace(parts: Sequence[nn.Module], value: bool) -> None:
    for part in parts:
        part.inplace = value  # type: ignore[assignment]


def _outputs(module: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What the module makes of noise in the example's shape; the example itself may be all zeros."""
    found = module(_noise(example) if isinstance(example, torch.Tensor) else [_noise(tensor) for tensor in example])
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def _noise(tensor: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    return torch.randint(0, 256, tensor.shape, generator=generator, dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on its own internals."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
