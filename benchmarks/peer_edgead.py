"""edgead's side of `benchmarks/peers.py`: the same requests as anomalib's, through edgead's public doors.

``plain-…`` are the second baseline: a straightforward export of the same model (`benchmarks.folding.PlainModel`), fed
with float images that the host normalises, in the same runtimes with the same options.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.folding import PlainModel, open_graph, plain_onnx
from benchmarks.worker import as_frame, serve
from edgead.export.engines.native import build_native
from edgead.export.exporting import export_bundle
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.runtime.backends import available
from edgead.runtime.backends.engine_cache import CACHE_VARIABLE, EngineCache
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BackendUnavailable, ParityError
from edgead.runtime.frame import Frame
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector

BACKENDS = ("onnxruntime", "openvino")


class Peer:
    """One model at a time: fitted, exported, opened, timed."""

    def __init__(self) -> None:
        self._routes: dict[str, tuple[Callable[[NDArray[np.uint8]], float], Callable[[], float] | None]] = {}
        self._inspectors: dict[str, Inspector] = {}

    def fit(
        self, data: str, folder: str, detector: str, settings: dict[str, Any], size: int, threads: int, int8: bool
    ) -> Any:
        """Fit with thresholds from held-out normals, as `edgead fit` does, and export with proof of parity."""
        torch.set_num_threads(threads)
        started = time.perf_counter()
        model = fit([data], detector=detector, settings=settings, size=size)
        seconds = time.perf_counter() - started
        out = Path(folder)
        model.save(out / "model")
        exportable, bundle = model.exportable("peer"), out / "peer.edgead"
        refused = None
        try:
            report = export_bundle(exportable, bundle, precisions=("fp32", "int8-cpu") if int8 else ("fp32",))
        except ParityError as error:
            refused = str(error)
            report = export_bundle(exportable, bundle)
        parity = report.to_dict()["parity"]
        return {"fit_s": seconds, "bundle_bytes": report.size, "parity": parity, "int8_refused": refused}

    def open(self, folder: str, frames: str, threads: int, plain: bool) -> list[str]:
        """Open a fitted model with every CPU backend, each precision that the bundle has, and the plain export.

        Routes of backends that use native code (`edgead build --target cpu`) end in ``-native``.
        """
        self.close()
        torch.set_num_threads(threads)
        self._frames = np.load(frames)
        bundle = Path(folder, "peer.edgead")
        with Bundle.open(bundle) as opened:
            precisions = [name for name in ("fp32", "int8-cpu") if name in opened.manifest.precisions]
        empty = tempfile.mkdtemp(prefix="edgead-peers-")
        built = Path(folder, "engines")
        with suppress(BackendUnavailable):
            build_native(EngineCache(built))
        for precision in precisions:
            for backend in (name for name in BACKENDS if name in available()):
                for suffix, engines in (("", empty), ("-native", str(built))):
                    os.environ[CACHE_VARIABLE] = engines
                    inspector = Inspector.open(bundle, backend=backend, precision=precision, threads=threads)
                    if suffix and "with native" not in inspector.describe().provider:
                        inspector.close()
                        continue
                    name = f"{backend}{suffix}" + ("" if precision == "fp32" else f"-{precision}")
                    self._inspectors[name] = inspector
                    self._routes[name] = (lambda frame, one=inspector: one(_frame(frame)).score, None)
        if plain:
            self._open_plain(Path(folder), threads)
        return list(self._routes)

    def time(self, route: str, what: str, frames: int, settle: int) -> list[float]:
        """Return milliseconds of each of ``frames`` runs, after ``settle`` that do not count."""
        times = []
        for index in range(frames + settle):
            frame = self._frames[index % len(self._frames)]
            started = time.perf_counter()
            if what == "decision":
                self._routes[route][0](frame)
                times.append((time.perf_counter() - started) * 1e3)
            elif route in self._inspectors:
                times.append(self._inspectors[route](_frame(frame)).timings["network"])
            else:
                network = self._routes[route][1]
                assert network is not None
                network()
                times.append((time.perf_counter() - started) * 1e3)
        return times[settle:]

    def scores(self, route: str, paths: list[str], frame: list[int]) -> list[float]:
        """Return the image score of every file, resized to the camera's frame ``[width, height]``."""
        return [self._routes[route][0](as_frame(path, frame)) for path in paths]

    def close(self) -> None:
        """Release what is open."""
        for inspector in self._inspectors.values():
            inspector.close()
        self._inspectors, self._routes = {}, {}

    def _open_plain(self, folder: Path, threads: int) -> None:
        model = load_model(folder / "model")
        height, width = model.card.height, model.card.width
        plain = PlainModel(model).eval()
        threshold = model.card.threshold.value
        prepared = np.zeros((1, 3, height, width), np.float32)
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary, "plain.onnx")
            onnx.save(plain_onnx(plain, height, width), file)
            for backend in (name for name in BACKENDS if name in available()):
                run = open_graph(file, backend, threads)

                def decide(frame: NDArray[np.uint8], run: Any = run) -> float:
                    small = resize(frame, height, width).astype(np.float32)
                    score: float = run(
                        np.ascontiguousarray(((small - plain.mean) / plain.std).transpose(2, 0, 1)[None])
                    )
                    self._anomalous = score > threshold
                    return score

                self._routes[f"plain-{backend}"] = (decide, lambda run=run, images=prepared: run(images))


def _frame(image: NDArray[np.uint8]) -> Frame:
    return Frame(image, 0, time.monotonic_ns(), "peers", "rgb")


if __name__ == "__main__":
    peer = Peer()
    serve({name: getattr(peer, name) for name in ("fit", "open", "time", "scores")})
