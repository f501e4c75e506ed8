"""edgead beside anomalib 2.7.0 on this machine: same backbone, weights, images, bank size and threads, in one run.

    python -m benchmarks.peers DATA/magnetic_tile/tile [CATEGORY…] [--json FILE]

The first run builds two environments below ``--work``: anomalib with what it needs (6.6 GB), and edgead's runtime
alone, whose size, start and memory stand beside it. Two programs, one in each environment, then answer in turn over
pipes, so that whatever else the machine does meets both. A frame is 1280x1024 RGB; a decision is what the library's own
inferencer returns for it. Every finished part is kept in ``--work``: a run that was cut off goes on where it stopped,
``--fresh`` starts anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.peer_report import print_report, summary
from benchmarks.worker import Worker, as_frame
from edgead.data import Sample, open_category
from edgead.metrics.metrics import image_auroc
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.machine import describe_machine

PINNED = (
    "anomalib==2.7.0",
    "torch==2.14.1",
    "torchvision==0.29.1",
    "timm==1.0.31",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "onnxruntime==1.31.1",
    "openvino==2026.4.1",
)
FRAME = (1280, 1024)
SIZE = 256
SEED_FRAMES = 8
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Part:
    """One comparison: a category, a detector, and for PatchCore the share of all patches that the bank keeps."""

    category: Path
    detector: str
    ratio: float
    images: int

    @property
    def name(self) -> str:
        bank = f"-{self.ratio:g}" if self.detector == "patchcore" else ""
        return f"{self.category.name}-{self.images}-{self.detector}{bank}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+", help="folders in MVTec layout")
    parser.add_argument("--detectors", default="patchcore,padim")
    parser.add_argument("--ratios", default="0.01,0.1", help="shares of the patches that PatchCore's bank keeps")
    parser.add_argument("--images", type=int, default=209, help="training images at most")
    parser.add_argument("--test-images", type=int, default=10_000, help="test images scored at most, evenly taken")
    parser.add_argument("--frames", type=int, default=100, help="counted frames a route")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "edgead" / "peers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run measured")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    results = work / "results"
    if arguments.fresh:
        shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True, exist_ok=True)
    peer = build_environment(work / "anomalib-2.7.0", PINNED)
    light = build_environment(work / "edgead-light", (f"{ROOT}[cpu]",), key=sources_digest())
    parts = [
        Part(prepare(path.resolve(), work / "data", arguments.images), detector, float(ratio), arguments.images)
        for path in arguments.categories
        for detector in arguments.detectors.split(",")
        for ratio in (arguments.ratios.split(",") if detector == "patchcore" else ["0"])
    ]
    write_weights(work / "lite0.pt")
    rows = []
    with (
        Worker(
            [str(peer), str(ROOT / "benchmarks" / "peer_anomalib.py")],
            work / "anomalib.log",
            environment={"TRUST_REMOTE_CODE": "1", "OMP_NUM_THREADS": str(arguments.threads)},
            folder=work,
        ) as theirs,
        Worker([sys.executable, "-m", "benchmarks.peer_edgead"], work / "edgead.log", folder=ROOT) as ours,
    ):
        for part in parts:
            kept = results / f"{part.name}.json"
            rows.append(
                resumed(kept, lambda part=part: compare(part, theirs, ours, work, arguments))  # type: ignore[misc]
            )
    first = work / "models" / parts[0].name
    weight = resumed(results / "footprint.json", lambda: footprints(peer, light, first, work))
    document = {"schema": "edgead.peers/1", "machine": describe_machine(), **summary(rows, weight)}
    print_report(document)
    if arguments.json:
        write_json(arguments.json, document)


def sources_digest() -> str:
    """Return a digest of the runtime, which the environment of edgead holds a copy of."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "runtime").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def build_environment(folder: Path, packages: Sequence[str], key: str = "") -> Path:
    """Return the Python of an environment with these packages; it is built once and whole, anew for another ``key``."""
    python, done = folder / "bin" / "python", folder / "complete"
    wanted = "\n".join([*packages, *([key] if key else [])])
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"building {folder} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True, stdout=sys.stderr)
    done.write_text(wanted)
    return python


def prepare(category: Path, folder: Path, images: int) -> Path:
    """Return a category of links with at most ``images`` training images, evenly taken."""
    target = folder / f"{images}" / category.name
    if not target.exists():
        good = target / "train" / "good"
        good.mkdir(parents=True)
        samples = open_category(category, train_only=True).train
        for sample in evenly(samples, images):
            (good / sample.path.name).symlink_to(sample.path.resolve())
        for name in ("test", "ground_truth"):
            if (category / name).is_dir():
                (target / name).symlink_to(category / name)
    return target


def evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many samples, evenly taken, in order."""
    chosen = np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int)
    return [samples[index] for index in np.unique(chosen)]


def write_weights(path: Path) -> None:
    """Write the backbone's weights under timm's names, for both programs to start from."""
    if path.exists():
        return
    import timm
    import torch

    from edgead.features.backbones import BackboneSpec, copy_weights

    network = timm.create_model("tf_efficientnet_lite0", features_only=True)
    copy_weights(network, BackboneSpec())
    torch.save(network.state_dict(), path)


def resumed(path: Path, measure: Callable[[], Any]) -> Any:
    """Return what a file holds, or measure and write it."""
    if not path.exists():
        write_json(path, measure())
    return json.loads(path.read_text())


def write_json(path: Path, document: Any) -> None:
    """Write a file that is there whole or not at all."""
    with atomic_write(path, DataError) as stream:
        stream.write((json.dumps(document, indent=2) + "\n").encode())


def compare(part: Part, theirs: Worker, ours: Worker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit both, then time their routes in turn and score the test images through each."""
    print(f"{part.name} ...", flush=True)
    category = open_category(part.category)
    threads = arguments.threads
    folder = work / "models" / part.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    patches = len(category.train) * (SIZE // 8) ** 2
    rows = int(patches * part.ratio)
    frames = folder / "frames.npy"
    samples = evenly(category.test, arguments.test_images)
    paths = [str(sample.path) for sample in samples]
    step = max(1, len(paths) // SEED_FRAMES)
    np.save(frames, np.stack([as_frame(path, list(FRAME)) for path in paths[::step][:SEED_FRAMES]]))

    fits = {"anomalib": fit_anomalib(part, theirs, work, folder, threads, rows)}
    settings = {"bank_size": rows, "max_patches": patches} if part.detector == "patchcore" else {}
    fits["edgead"] = ours.ask(
        "fit",
        data=str(part.category),
        folder=str(folder),
        detector=part.detector,
        settings=settings,
        size=SIZE,
        threads=threads,
        int8=part.ratio <= 0.01,  # of the large bank what matters is the search, which is the same
    )
    opening: dict[str, Any] = {"folder": str(folder), "frames": str(frames), "threads": threads}
    routes = {("anomalib", name): theirs for name in theirs.ask("open", size=SIZE, **opening)}
    routes |= {("edgead", name): ours for name in ours.ask("open", plain=True, **opening)}
    measured = take_turns(routes, arguments.frames)
    labels = [sample.anomalous for sample in samples]
    scored: dict[str, dict[str, Any]] = {}
    for (side, route), worker in routes.items():
        scores = worker.ask("scores", route=route, paths=paths, frame=list(FRAME))
        scored.setdefault(side, {})[route] = {
            **{what: median(times) for what, times in measured[side, route].items()},
            "image_auroc": image_auroc(scores, labels, bootstrap=0).value,
        }
    raw = theirs.ask("own_scores", folder=str(folder), paths=paths, frame=list(FRAME))
    return {
        "part": part.name,
        "category": part.category.name,
        "detector": part.detector,
        "bank_rows": rows if part.detector == "patchcore" else None,
        "training_images": len(category.train),
        "test_images": len(paths),
        "threads": threads,
        "frames": arguments.frames,
        "fit": fits,
        "anomalib_raw_image_auroc": image_auroc(raw, labels, bootstrap=0).value,
        **scored,
    }


def fit_anomalib(part: Part, theirs: Worker, work: Path, folder: Path, threads: int, rows: int) -> dict[str, Any]:
    """Fit; a bank above 1 % is selected by edgead's algorithm from anomalib's own patches (its own takes too long)."""
    data = {"data": str(part.category), "folder": str(folder), "threads": threads}
    if part.detector == "patchcore" and part.ratio > 0.01:
        source = work / "models" / Part(part.category, part.detector, 0.01, part.images).name
        coreset = str(ROOT / "edgead" / "features" / "coreset.py")
        found: dict[str, Any] = theirs.ask("fill_bank", source=str(source), coreset=coreset, rows=rows, **data)
    else:
        weights = str(work / "lite0.pt")
        found = theirs.ask("fit", weights=weights, detector=part.detector, ratio=part.ratio, size=SIZE, **data)
        assert found.get("rows", rows) == rows, f"anomalib kept {found['rows']} rows, edgead {rows}"
    return found


def take_turns(
    routes: Mapping[tuple[str, str], Worker], frames: int, turn: int = 10
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Return milliseconds by route and ``network`` or ``decision``: a turn a route, then the next one."""
    times: dict[tuple[str, str], dict[str, list[float]]] = {route: {"network": [], "decision": []} for route in routes}
    for start in range(0, frames, turn):
        for route, worker in routes.items():
            for what, found in times[route].items():
                time.sleep(0.02)  # threads that spin after the last turn come to rest
                found += worker.ask("time", route=route[1], what=what, frames=min(turn, frames - start), settle=3)
    return times


def footprints(peer: Path, light: Path, folder: Path, work: Path) -> dict[str, Any]:
    """Return size, import, first decision and memory of inference on both sides; medians of three cold processes."""
    script = str(ROOT / "benchmarks" / "footprint.py")
    frames = str(folder / "frames.npy")
    models = {
        "anomalib": (peer, str(folder / "weights" / "openvino" / "frame.xml")),
        "edgead": (light, str(folder / "peer.edgead")),
    }
    found: dict[str, Any] = {}
    for side, (python, model) in models.items():
        runs = []
        for _ in range(4):
            command = [str(python), script, side, model, frames]
            environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=work, env=environment)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        # The first one also reads the files from disk for the first time.
        found[side] = {name: median(run[name] for run in runs[1:]) for name in runs[0]} | installed(python.parents[1])
    return found


def installed(environment: Path) -> dict[str, float]:
    """Return the megabytes of an environment's packages without pip and setuptools, and those of CUDA among them."""
    total = cuda = 0
    for packages in environment.glob("lib/python*/site-packages"):
        for entry in packages.iterdir():
            if entry.name.startswith(("pip", "setuptools", "_distutils_hack", "distutils-precedence")):
                continue
            files = [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]
            size = sum(file.lstat().st_size for file in files)
            total += size
            cuda += size if entry.name.startswith(("nvidia", "triton", "cuda")) else 0
    return {"installed_mb": total / 1e6, "of_it_cuda_mb": cuda / 1e6}


if __name__ == "__main__":
    main()
