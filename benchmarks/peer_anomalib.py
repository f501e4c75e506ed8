"""anomalib's side of `benchmarks/peers.py`: runs in an environment of its own, without edgead.

Every decision goes through what anomalib offers for deployment: `TorchInferencer`, `OpenVINOInferencer`, and the file
of `to_onnx` in ONNX Runtime (for which it has no inferencer). Exports have a fixed batch of one and a fixed frame size:
the export as it comes is frozen at two images with this version of torch.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from worker import as_frame, serve  # beside this file, which runs as a script

sys.path.pop(0)  # no other module of this folder may be taken for a library's

LAYERS = ["blocks.2", "blocks.4"]  # strides 8 and 16
ROUTES = ("torch", "onnx", "openvino")


class Peer:
    """One model at a time: fitted, exported, opened, timed."""

    def __init__(self) -> None:
        self._opened: dict[str, Any] = {}
        self._prepared: dict[str, Any] = {}
        self._threads = 2

    def fit(
        self, data: str, folder: str, weights: str, detector: str, ratio: float, size: int, threads: int
    ) -> dict[str, Any]:
        """Fit with anomalib's engine and export to all routes; the seconds of fitting leave validation out."""
        import torch
        from anomalib.data import Folder
        from anomalib.engine import Engine
        from lightning.pytorch import Callback, seed_everything

        torch.set_num_threads(threads)
        seed_everything(0)
        model = self._model(weights, detector, ratio, size)
        root = Path(data)
        defects = sorted(str(child) for child in (root / "test").iterdir() if child.is_dir() and child.name != "good")
        module = Folder(
            name="peer",
            normal_dir=str(root / "train" / "good"),
            abnormal_dir=defects,
            normal_test_dir=str(root / "test" / "good"),
            train_batch_size=8,
            eval_batch_size=8,
            num_workers=0,  # more processes than cores only take them from each other
            val_split_mode="same_as_test",
        )
        marks: dict[str, float] = {}

        class Clock(Callback):
            def on_train_start(self, *_: Any) -> None:
                marks["start"] = time.perf_counter()

            def on_validation_batch_start(self, *_: Any) -> None:
                # The memory bank is made when validation starts, so its first batch is where fitting has ended.
                marks.setdefault("end", time.perf_counter())

        engine = Engine(
            default_root_dir=folder, callbacks=[Clock()], logger=False, enable_progress_bar=False, accelerator="cpu"
        )
        engine.fit(model=model, datamodule=module)
        return {"fit_s": marks["end"] - marks["start"], **self._export(model, Path(folder), detector)}

    def fill_bank(self, data: str, folder: str, source: str, coreset: str, rows: int, threads: int) -> dict[str, Any]:
        """Give a fitted PatchCore a bank of another size, selected by another program's greedy algorithm.

        anomalib's own selection of this many takes tens of minutes; what is compared here is the search in it.
        """
        import torch
        from anomalib.data.utils import read_image

        torch.set_num_threads(threads)
        model = self._load(Path(source)).eval()
        patches = []
        with torch.inference_mode():
            for path in sorted((Path(data) / "train" / "good").iterdir()):
                image = model.pre_processor.transform(read_image(path, as_tensor=True)[None])
                taps = model.model.feature_extractor(image)
                pooled = {layer: model.model.feature_pooler(tap) for layer, tap in taps.items()}
                patches.append(model.model.reshape_embedding(model.model.generate_embedding(pooled)))
            everything = torch.cat(patches)
            # The file imports what lies on edgead's lowest floor, which needs nothing that is not here.
            sys.path.insert(0, str(Path(coreset).parents[2]))
            specification = importlib.util.spec_from_file_location("coreset", coreset)
            assert specification is not None
            assert specification.loader is not None
            selection = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(selection)
            started = time.perf_counter()
            chosen = selection.greedy_coreset(everything, rows, seed=0)
            seconds = time.perf_counter() - started
        model.model.memory_bank = everything[chosen].clone()
        return {"coreset_s": seconds, **self._export(model, Path(folder), "patchcore")}

    def open(self, folder: str, frames: str, threads: int, size: int) -> list[str]:
        """Open every route of an exported model; frames are ``(n, H, W, 3)`` uint8 RGB."""
        import torch

        torch.set_num_threads(threads)
        self._threads = threads
        self._frames = np.load(frames)
        self._small = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
        weights = Path(folder, "weights")
        self._opened = {
            "torch": self._open_torch(weights / "torch" / "model.pt"),
            "onnx": self._open_onnx(weights / "onnx" / "frame.onnx"),
            "openvino": self._open_openvino(weights / "openvino" / "frame.xml"),
        }
        tensor = torch.from_numpy(self._small)
        inferencer = self._opened["torch"]

        def network() -> Any:
            with torch.inference_mode():
                return inferencer.model(tensor)

        small = self._open_onnx(weights / "onnx" / "small.onnx")
        compiled = self._open_openvino(weights / "openvino" / "small.xml")
        self._prepared = {
            "torch": network,
            "onnx": lambda: small.run(None, {"input": self._small}),
            "openvino": lambda: compiled.model({compiled.input_blob.any_name: self._small}),
        }
        return list(self._opened)

    def time(self, route: str, what: str, frames: int, settle: int) -> list[float]:
        """Return milliseconds of each of ``frames`` runs, after ``settle`` that do not count."""
        times = []
        for index in range(frames + settle):
            frame = self._frames[index % len(self._frames)]
            started = time.perf_counter()
            if what == "network":
                self._prepared[route]()
            else:
                self._decide(route, frame)
            times.append((time.perf_counter() - started) * 1e3)
        return times[settle:]

    def scores(self, route: str, paths: list[str], frame: list[int]) -> list[float]:
        """Return the image score of every file, resized to the camera's frame ``[width, height]``."""
        return [self._decide(route, as_frame(path, frame))[0] for path in paths]

    def own_scores(self, folder: str, paths: list[str], frame: list[int]) -> list[float]:
        """Return raw scores by the path that anomalib's engine takes: antialiased resize, no clamping."""
        import torch

        model = self._load(Path(folder)).eval()
        found = []
        with torch.inference_mode():
            for path in paths:
                image = torch.from_numpy(as_frame(path, frame)).permute(2, 0, 1)[None].float() / 255.0
                found.append(float(model.model(model.pre_processor.transform(image)).pred_score))
        return found

    def _decide(self, route: str, frame: Any) -> tuple[float, bool]:
        if route == "onnx":
            pixels = np.multiply(frame.transpose(2, 0, 1)[None], np.float32(1 / 255), dtype=np.float32)
            session = self._opened["onnx"]
            names = [output.name for output in session.get_outputs()]
            found = dict(zip(names, session.run(None, {"input": pixels}), strict=True))
            return float(found["pred_score"].ravel()[0]), bool(found["pred_label"].ravel()[0])
        found = self._opened[route].predict(frame)
        return float(np.ravel(found.pred_score)[0]), bool(np.ravel(found.pred_label)[0])

    def _model(self, weights: str, detector: str, ratio: float, size: int) -> Any:
        import torch
        from anomalib.models import Padim, Patchcore
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Normalize, Resize

        transform = Compose([Resize((size, size), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
        common = {
            "backbone": "tf_efficientnet_lite0",
            "layers": list(LAYERS),
            "pre_trained": False,
            "pre_processor": PreProcessor(transform=transform),
            "visualizer": False,
        }
        if detector == "patchcore":
            model = Patchcore(coreset_sampling_ratio=ratio, **common)
        else:
            model = Padim(n_features=100, **common)
        network = model.model.feature_extractor.feature_extractor
        state = torch.load(weights, weights_only=True)
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        return model

    def _export(self, model: Any, folder: Path, detector: str) -> dict[str, Any]:
        model.eval()
        model.to_torch(folder)
        for name, size in (("frame", (1024, 1280)), ("small", None)):
            size = size or model.pre_processor.transform.transforms[0].size
            fixed = {"input_size": tuple(size), "model_file_name": name}
            model.to_onnx(folder, dynamic_axes={}, **fixed)
            model.to_openvino(folder, onnx_kwargs={"dynamic_axes": {}}, **fixed)
        return {"rows": len(model.model.memory_bank)} if detector == "patchcore" else {}

    def _load(self, folder: Path) -> Any:
        import torch

        # A pickle, as anomalib exports it; this benchmark wrote it itself, in the environment that reads it.
        return torch.load(folder / "weights" / "torch" / "model.pt", weights_only=False)["model"]

    def _open_torch(self, path: Path) -> Any:
        from anomalib.deploy import TorchInferencer

        return TorchInferencer(path=path, device="cpu")

    def _open_openvino(self, path: Path) -> Any:
        from anomalib.deploy import OpenVINOInferencer

        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return OpenVINOInferencer(path=path, device="CPU", config=config)

    def _open_onnx(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # Its threads would go on spinning while the other program is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    peer = Peer()
    names = ("fit", "fill_bank", "open", "time", "scores", "own_scores")
    serve({name: getattr(peer, name) for name in names})
