"""anomalib's ONNX export, taken apart: its weights, its bank or Gaussians, and its threshold.

The export resizes without antialiasing, which is not what the model was fitted on, and puts threshold and min-max into
the graph. So its parts are rebuilt as those of a checkpoint are, and the rebuilt model is compared with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from edgead.features.folding import fold_body
from edgead.importing.checkpoint import check_preparation
from edgead.importing.model import ONLY_TWO, PADIM, PATCHCORE, AnomalibModel, Decision, Preparation, blur_line
from edgead.importing.onnx_network import Constants, attributes, torch_network
from edgead.importing.scoring import scoring_module
from edgead.runtime.errors import DataError, EdgeadError

_BANK, _BLUR = "model.memory_bank", "model.anomaly_map_generator.blur.kernel"
_MEAN, _INVERSE = "model.gaussian.mean", "model.gaussian.inv_covariance"
_SAME = 1e-3  # of a score: what is rebuilt may differ by rounding only, which was seen to be 1e-5


def read_onnx(path: Path) -> AnomalibModel:
    """Read the ONNX export of anomalib's PatchCore or PaDiM.

    Raises:
        DataError: damaged, another model, or not laid out as anomalib 2.7 writes it.
        ConfigError: a backbone or preparation that edgead cannot repeat.
    """
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise DataError(
            f"{path} is damaged or no ONNX file, or {path.name}.data with its weights is not beside it; export it "
            "again, or import the checkpoint (.ckpt)"
        ) from error
    reader = _Reader(model, path)
    try:
        found = reader.read()
    except EdgeadError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        # A valid graph of anyone's may omit or shape what anomalib's never does.
        raise DataError(f"{path} is not laid out as anomalib 2.7 does; import the checkpoint (.ckpt)") from error
    _compare(model, reader, found, path)
    return found


class _Reader:
    """Walks the graph from what is known of it: the names of the bank or the Gaussians, and of the outputs."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.graph, self.path = model.graph, path
        self.known = Constants(model.graph)
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.normalised = ""  # the tensor that the network begins with
        self.raw = ""  # the score before it is normalised

    def read(self) -> AnomalibModel:
        outputs = {value.name for value in self.graph.output}
        kind = PATCHCORE if _BANK in self.known else PADIM if _INVERSE in self.known and _MEAN in self.known else None
        if kind is None or "pred_score" not in outputs or len(self.graph.input) != 1:
            raise DataError(f"{self.path} holds another model than anomalib's PatchCore or PaDiM; {ONLY_TWO}")
        preparation = self._preparation()
        taps, chosen = self._pooled_taps() if kind == PATCHCORE else self._chosen_taps()
        body: fx.GraphModule = torch_network(self.graph, self.known, self.normalised, taps)
        mean, std = ([255.0 * value for value in values] for values in (preparation.mean, preparation.std))
        names = (_BANK,) if kind == PATCHCORE else (_MEAN, _INVERSE)
        tensors = {name.rpartition(".")[2]: self.known[name].float() for name in names}
        if chosen is not None:
            tensors["idx"] = chosen
        return AnomalibModel(
            kind=kind,
            preparation=preparation,
            backbone=fold_body(body, preparation.inner, mean, std),
            backbone_name="",
            layers=(),
            tensors=tensors,
            neighbours=self._neighbours() if kind == PATCHCORE else 1,
            blur=blur_line(self.known.get(_BLUR)),
            decision=self._decision(),
            about={"file": "onnx", "precision": "float32"},
        )

    def _preparation(self) -> Preparation:
        """Follow the input to the first convolution."""
        value = self.graph.input[0]
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        size = (shape[2], shape[3]) if len(shape) == 4 and all(shape[2:]) else None
        crop: tuple[int, int] | None = None
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        name = value.name
        while True:
            following = [node for node in self.users.get(name, []) if node.op_type not in ("Shape", "Size")]
            if len(following) != 1:
                raise self._strange("images")
            node = following[0]
            if node.op_type == "Conv":
                break
            if node.op_type == "Resize" and len(node.input) > 3:
                size = self._pixels(node.input[3])
            elif node.op_type == "Slice" and size is not None:
                crop = self._cut(node, crop or size)
            elif node.op_type == "Sub" and node.input[1] in self.known:
                mean = self._three(node.input[1])
            elif node.op_type == "Div" and node.input[1] in self.known:
                std = self._three(node.input[1])
            elif node.op_type not in ("Reshape", "Identity", "Cast"):
                raise self._strange("images")
            name = node.output[0]
        self.normalised = name
        if size is None:
            raise DataError(f"{self.path} takes images of any size and does not resize them; import the checkpoint")
        found = Preparation(*size, None if crop == size else crop, mean, std)
        return check_preparation(found, str(self.path))

    def _cut(self, node: onnx.NodeProto, size: tuple[int, int]) -> tuple[int, int]:
        """Return what is left of a size behind a Slice, which must take the centre."""
        if any(name not in self.known for name in node.input[1:4]):
            raise self._strange("crop")
        starts, ends, axes = (self.known[name].reshape(-1).tolist() for name in node.input[1:4])
        left = list(size)
        for start, end, axis in zip(starts, ends, axes, strict=True):
            if axis in (2, 3):
                whole = left[axis - 2]
                left[axis - 2] = min(end, whole) - start
                if start != round((whole - left[axis - 2]) / 2.0):
                    raise self._strange("crop")
        return left[0], left[1]

    def _pixels(self, name: str) -> tuple[int, int]:
        """Return height and width of a Resize; where the batch is open they are joined to its size."""
        maker = self.makers.get(name)
        if name not in self.known and maker is not None and maker.op_type == "Concat":
            name = maker.input[-1]
        values = self.known[name].reshape(-1).tolist() if name in self.known else []
        if len(values) < 2:
            raise self._strange("images")
        return int(values[-2]), int(values[-1])

    def _three(self, name: str) -> tuple[float, float, float]:
        values = self.known[name].double().reshape(-1)
        if len(values) not in (1, 3):
            raise self._strange("mean and standard deviation")
        one, two, three = values.expand(3).tolist() if len(values) == 1 else values.tolist()
        return one, two, three

    def _pooled_taps(self) -> tuple[list[str], None]:
        """Return PatchCore's taps: what is averaged over 3x3 cells, resized where it must be, and joined."""
        pools = [node for node in self.graph.node if node.op_type == "AveragePool" and self._averages(node)]
        if not pools:
            raise self._strange("features")
        pooled = {node.output[0] for node in pools}
        for node in reversed(self.graph.node):
            before = self._joined(node.output[0])
            if len(before) > 1 and pooled.issuperset(before):
                return [self.makers[name].input[0] for name in before], None
        return [pools[-1].input[0]], None

    def _averages(self, node: onnx.NodeProto) -> bool:
        given = attributes(node)
        shape = (given.get("kernel_shape"), given.get("strides", [1, 1]), given.get("pads", [0, 0, 0, 0]))
        return shape == ([3, 3], [1, 1], [1, 1, 1, 1]) and bool(given.get("count_include_pad", 0))

    def _chosen_taps(self) -> tuple[list[str], Tensor]:
        """Return PaDiM's taps and the channels of them that its Gaussians are over."""
        for node in reversed(self.graph.node):
            if node.op_type == "Gather" and attributes(node).get("axis") == 1 and node.input[1] in self.known:
                chosen = self.known[node.input[1]]
                if chosen.dim() != 1:
                    continue
                return self._joined(node.input[0]), chosen.long()
        raise self._strange("features")

    def _joined(self, name: str) -> list[str]:
        """Return what was resized where it must be and joined, one after the other, to a tensor."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Concat" or attributes(maker).get("axis") != 1:
            return [name]
        last = self.makers.get(maker.input[-1])
        if last is None or last.op_type not in ("Resize", "AveragePool"):
            return [name]  # a network that joins its own features
        found: list[str] = []
        for one in maker.input:
            before = self.makers.get(one)
            resized = before is not None and before.op_type == "Resize"
            found += [before.input[0]] if resized and before is not None else self._joined(one)
        return found

    def _neighbours(self) -> int:
        """Return how many rows weigh the score: of the one TopK; without, the score is not weighed."""
        found = [node for node in self.graph.node if node.op_type == "TopK"]
        if not found:
            return 1
        if len(found) > 1 or found[0].input[1] not in self.known:
            raise self._strange("weight of the score")
        return int(self.known[found[0].input[1]].reshape(-1)[0])

    def _decision(self) -> Decision:
        """Read ``Where(valid, …Clip((raw - threshold) / spread + 0.5)…, raw) > 1 - sensitivity``."""
        unknown = Decision(float("nan"), float("nan"))
        self.raw = "pred_score"
        compared = [
            float(self.known[node.input[1]])
            for node in self.users.get("pred_score", [])
            if node.op_type == "Greater" and node.input[1] in self.known
        ]
        choice = self.makers["pred_score"]
        if choice.op_type != "Where":
            # Not normalised: the raw score itself is compared.
            return Decision(float("nan"), float("nan"), 1.0 - compared[0], False) if compared else unknown
        self.raw = choice.input[2]
        if choice.input[0] not in self.known or not bool(self.known[choice.input[0]]) or not compared:
            return unknown
        for sub in self._of("Sub", self.raw):
            for div in self._of("Div", sub.output[0]):
                threshold, spread = (float(self.known[node.input[1]]) for node in (sub, div))
                return Decision(threshold, spread, 1.0 - compared[0])
        return unknown

    def _of(self, kind: str, name: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of a kind that take a tensor and a constant number."""
        for node in self.users.get(name, []):
            single = node.input[1] in self.known and self.known[node.input[1]].numel() == 1
            if node.op_type == kind and node.input[0] == name and single:
                yield node

    def _strange(self, what: str) -> DataError:
        return DataError(
            f"{self.path} does not lay out its {what} as anomalib 2.7 does; import the checkpoint (.ckpt) instead"
        )


def _compare(model: onnx.ModelProto, reader: _Reader, found: AnomalibModel, path: Path) -> None:
    """Hold the rebuilt model against the file, on one picture behind resize and normalisation.

    Nothing is compared where ONNX Runtime is not installed; the export's own proof then begins with the rebuilt model.
    """
    if find_spec("onnxruntime") is None:
        return
    size, inner = (found.preparation.height, found.preparation.width), found.preparation.inner
    picture = _picture(size)
    top, left = found.preparation.corner
    pixels = picture[top : top + inner[0], left : left + inner[1]].transpose(2, 0, 1) / np.float32(255.0)
    mean, std = (np.array(one, np.float32).reshape(3, 1, 1) for one in (found.preparation.mean, found.preparation.std))
    try:
        expected = _run(model, reader.normalised, reader.raw, ((pixels - mean) / std)[None])
    except Exception as error:
        raise DataError(f"{path} cannot be run for comparison; import the checkpoint (.ckpt) instead") from error
    module, _ = scoring_module(found)
    with torch.inference_mode():
        score = float(module(torch.from_numpy(picture[None]))[0])
    if not abs(score - expected) <= _SAME * abs(expected):
        raise DataError(
            f"{path} gives {expected:.6g} where its rebuilt parts give {score:.6g}, so edgead did not understand it; "
            "import the checkpoint (.ckpt) instead"
        )


def _picture(size: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a picture ``(h, w, 3)`` uint8 with coarse and fine structure."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(rows / (5 + 3 * c)) + np.cos(columns / (7 + 2 * c)) for c in range(3)]
    noise = np.random.default_rng(0).integers(-40, 41, (*size, 3))
    return np.clip(128 + 45 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


def _run(
    model: onnx.ModelProto, source: str, target: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> float:
    import onnxruntime

    typed = onnx.shape_inference.infer_shapes(model)
    part = onnx.utils.Extractor(typed).extract_model([source], [target])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    repeated = np.repeat(values.astype(np.float32), batch if isinstance(batch, int) else 1, axis=0)
    return float(np.ravel(session.run(None, {source: repeated})[0])[0])
