"""The exported graph: valid, minimal, the same scores, any batch size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgead.export.graph.external_weights import LARGE_BYTES, split_weights
from edgead.export.graph.tracing import export_onnx
from edgead.runtime.errors import ExportError

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_scores_and_maps_equal_torch_for_any_batch(exportable):
    model = export_onnx(exportable.module, 64, 64)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        with torch.inference_mode():
            score, grid = exportable.module(torch.from_numpy(IMAGES[:count]))
        got_score, got_grid = session.run(["score", "map"], {"images": IMAGES[:count]})
        assert np.abs(got_score - score.numpy()).max() < 1e-4
        assert np.abs(got_grid - grid.numpy()).max() < 1e-4


def test_contract_of_the_graph(exportable):
    model = export_onnx(exportable.module, 64, 64)
    assert model.ir_version <= 10
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 18)]
    assert [node.op_type for node in model.graph.node[:2]] == ["Cast", "Transpose"]
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 64, 64, 3]


def test_padding_is_merged_into_the_convolution(exportable):
    nodes = export_onnx(exportable.module, 64, 64).graph.node
    assert not [node for node in nodes if node.op_type == "Pad"]
    conv = next(node for node in nodes if node.op_type == "Conv")
    assert next(list(a.ints) for a in conv.attribute if a.name == "pads") == [0, 0, 1, 1]


def test_nothing_of_this_machine_is_in_the_file(exportable):
    data = export_onnx(exportable.module, 64, 64).SerializeToString()
    assert b"/work" not in data
    assert b".py" not in data


def test_same_module_gives_the_same_bytes(exportable):
    first, second = (split_weights(export_onnx(exportable.module, 64, 64)) for _ in range(2))
    assert first == second


class Overwriting(nn.Module):
    """Scores what an activation that writes over its input leaves there."""

    def __init__(self, reads_again: bool) -> None:
        super().__init__()
        self.activation = nn.ReLU6(inplace=True)
        self.reads_again = reads_again

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = images.float().mean(3) - 128
        clipped = self.activation(grid)
        grid = grid + clipped if self.reads_again else clipped
        return grid.amax(dim=(1, 2)), grid


@pytest.mark.parametrize("reads_again", [False, True])
def test_an_activation_in_place_keeps_its_meaning_and_its_setting(reads_again):
    module = Overwriting(reads_again).eval()
    model = export_onnx(module, 64, 64)
    assert module.activation.inplace
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    score, grid = session.run(["score", "map"], {"images": IMAGES})
    expected_score, expected_grid = (tensor.numpy() for tensor in module(torch.from_numpy(IMAGES)))
    np.testing.assert_allclose(score, expected_score, atol=1e-4)
    np.testing.assert_allclose(grid, expected_grid, atol=1e-4)


class Branches(nn.Module):
    """Two convolutions of more weights than the exporter compares itself, which are alike or not."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 64, 5, stride=4) for _ in range(2))
        if alike:
            self.second.load_state_dict(self.first.state_dict())
        for convolution in (self.first, self.second):  # weights do not lie in memory as they are counted
            turned = convolution.weight.data.transpose(0, 3).contiguous().transpose(0, 3)
            convolution.weight = nn.Parameter(turned)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = images.permute(0, 3, 1, 2).float() / 255
        return self.first(pixels).mean(1), self.second(pixels).mean(1)


@pytest.mark.parametrize("alike", [False, True])
def test_what_is_computed_twice_is_computed_once_and_each_output_stays(alike):
    module = Branches(alike).eval().requires_grad_(False)
    model = export_onnx(module, 64, 64, ("first", "second"))
    assert sum(node.op_type == "Conv" for node in model.graph.node) == (1 if alike else 2)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["first", "second"], {"images": IMAGES})
    for one, expected in zip(found, module(torch.from_numpy(IMAGES)), strict=True):
        np.testing.assert_allclose(one, expected.numpy(), atol=1e-4)
    assert np.array_equal(*found) == alike


def test_large_weights_move_out_and_back(exportable, tmp_path):
    model = export_onnx(exportable.module, 64, 64)
    data, files = split_weights(model)
    assert len(files) == 1
    assert len(data) < LARGE_BYTES
    (tmp_path / "weights").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.onnx").write_bytes(data)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    whole = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    split = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert np.array_equal(whole.run(None, {"images": IMAGES})[0], split.run(None, {"images": IMAGES})[0])


class DataDependent(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = images.float().mean(3)
        if float(grid.max()) > 3.0:
            grid = grid + 1
        return grid.amax((1, 2)), grid


def test_a_module_that_cannot_be_exported_is_one_line(exportable):
    with pytest.raises(ExportError) as caught:
        export_onnx(replace(exportable, module=DataDependent()).module, 64, 64)
    assert "\n" not in str(caught.value)
