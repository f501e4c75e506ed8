"""A scoring model small enough to be stated twice, as an ONNX graph and in numpy, and bundles made of it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.references import pack_expected
from edgead.runtime.bundle.writing import write_bundle
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.imaging.preprocess import RESIZE_RULE, resize_reference

HEIGHT, WIDTH = 8, 10

# FFmpeg reads it once a process, and tests that use OpenCV themselves may be the first to load it.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `edgead build --target cpu` compiles, loaded; skips without a compiler."""
    from edgead.export.engines.native import build_native
    from edgead.runtime.backends.engine_cache import EngineCache
    from edgead.runtime.backends.native.library import find_library, load_library
    from edgead.runtime.errors import BackendUnavailable

    cache = EngineCache(tmp_path_factory.mktemp("engines"))
    try:
        stored, reused = build_native(cache)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert not reused
    found = find_library(cache)
    assert found is load_library(stored.path)
    return found


class TinyModel:
    """Convolution 3x3, stride 2, zero padding; map: largest of 4 channels; score: largest cell of the map."""

    height, width = HEIGHT, WIDTH

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self.weights = weights

    def graph(self, batch: str | int = "batch") -> Any:
        from onnx import TensorProto, checker, helper, numpy_helper

        nodes = [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "weights"], ["features"], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("ReduceMax", ["features", "channel"], ["map"], keepdims=0),
            helper.make_node("ReduceMax", ["map", "cells"], ["score"], keepdims=0),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, HEIGHT, WIDTH, 3])],
            [
                helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch]),
                helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, HEIGHT // 2, WIDTH // 2]),
            ],
            [
                numpy_helper.from_array(self.weights, "weights"),
                numpy_helper.from_array(np.array([1]), "channel"),
                numpy_helper.from_array(np.array([1, 2]), "cells"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        checker.check_model(model)
        return model

    def files(self) -> dict[str, bytes]:
        """The graph with its weights outside, as a bundle stores it."""
        pytest.importorskip("onnx")
        from onnx import TensorProto

        model = self.graph()
        data = self.weights.tobytes()
        name = f"weights/{hashlib.sha256(data).hexdigest()}.bin"
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(len(data)))):
            tensor.external_data.add(key=key, value=value)
        return {"model.fp32.onnx": model.SerializeToString(), name: data}

    def save(self, path: Path, batch: str | int = "batch") -> Path:
        path.write_bytes(self.graph(batch).SerializeToString())
        return path

    def numpy(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same in float64, one output cell at a time."""
        padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        grid = np.empty((len(images), HEIGHT // 2, WIDTH // 2))
        for y in range(grid.shape[1]):
            for x in range(grid.shape[2]):
                patch = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3, :]
                grid[:, y, x] = np.einsum("nhwc,ochw->no", patch, self.weights.astype(np.float64)).max(axis=1)
        return grid.max(axis=(1, 2)), grid


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32) / 50
    return TinyModel(weights)


@pytest.fixture(scope="session")
def tiny_threshold() -> Threshold:
    return Threshold(20.0, 0.01, 120, 0.0002, 0.03, True)


@pytest.fixture(scope="session")
def make_manifest(tiny_threshold: Threshold) -> Callable[..., Manifest]:
    """A factory of valid manifests; keyword arguments replace top-level keys."""

    def make(**changes: Any) -> Manifest:
        fields: dict[str, Any] = {
            "name": "tiny",
            "detector": {"name": "patchcore", "settings": {"coreset": 0.1, "taps": ["a", "b"]}},
            "input": {"height": HEIGHT, "width": WIDTH, "resize": RESIZE_RULE},
            "map": {"height": HEIGHT // 2, "width": WIDTH // 2},
            "threshold": tiny_threshold.to_dict(),
            "categories": {"plate": {"n_train": 54}},
            "precisions": {"fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime", "openvino"]}},
            "provenance": {"random_weights": True, "versions": {"numpy": np.__version__}},
        }
        return Manifest.model_validate({**fields, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_references() -> dict[str, bytes]:
    """Two even parts and one with a bright spot, larger than the network's input and of odd size."""
    generator = np.random.default_rng(1)
    files = {}
    for name in ("good_0.png", "good_1.png", "spot.png"):
        image = generator.integers(90, 110, (31, 45, 3), dtype=np.uint8)
        if name == "spot.png":
            image[8:24, 10:30] = generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)
            image[12:20, 14:24] = (255, 0, 255)
        files[name] = png(image)
    return files


def png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def tiny_expected(tiny_model: TinyModel) -> Callable[[dict[str, bytes]], tuple[list[str], Any, Any]]:
    """A function from reference files to names, scores and maps, by the slow numpy twins all the way."""
    from PIL import Image

    def expected(references: dict[str, bytes]) -> tuple[list[str], Any, Any]:
        names: Sequence[str] = sorted(references)
        images = [np.asarray(Image.open(io.BytesIO(references[name]))) for name in names]
        score, grid = tiny_model.numpy(np.stack([resize_reference(image, HEIGHT, WIDTH) for image in images]))
        return list(names), score.astype(np.float32), grid.astype(np.float32)

    return expected


@pytest.fixture
def make_bundle(
    tmp_path: Path,
    tiny_model: TinyModel,
    tiny_references: dict[str, bytes],
    tiny_expected: Callable[[dict[str, bytes]], tuple[list[str], Any, Any]],
    make_manifest: Callable[..., Manifest],
) -> Callable[..., Path]:
    """A factory of whole bundles; ``files`` adds or replaces members (None removes), keywords change the manifest."""

    def make(
        name: str = "tiny.edgead",
        *,
        model: TinyModel | None = None,
        files: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        content: dict[str, Any] = {
            **(model or tiny_model).files(),
            **{f"references/{key}": data for key, data in tiny_references.items()},
            "references/expected.npz": pack_expected(*tiny_expected(tiny_references)),
            **(files or {}),
        }
        path = tmp_path / name
        kept = {key: data for key, data in content.items() if data is not None}
        write_bundle(path, make_manifest(**changes), kept)
        return path

    return make
