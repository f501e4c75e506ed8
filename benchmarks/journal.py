"""What a record costs: a million rows written, asked for and verified; and the latency of a line that is recorded.

    python -m benchmarks.journal rows FOLDER [--rows 1000000]
    python -m benchmarks.journal latency BUNDLE IMAGE FOLDER [--shadow NEW.edgead] [--frames 200] [--rate 10]

``latency`` pushes the same image, scaled to 1280x1024, at a fixed rate, once for each way to run, in turn and three
times over, and prints camera to decision in ms. FOLDER must be empty and lie on the disk that is meant.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgead.runtime import Inspector, PushSource
from edgead.runtime.frame import Decision, Result
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.inspection.shadow import ShadowSink
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import part_row
from edgead.runtime.journal.schema import FILE
from edgead.runtime.journal.sink import RecordOptions, RecordSink
from edgead.runtime.journal.verify import verify
from edgead.runtime.journal.writer import Journal, now_ms

_STEP_MS = 100  # between two parts: a million of them are 28 hours of a fast line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    rows = verbs.add_parser("rows")
    rows.add_argument("folder", type=Path)
    rows.add_argument("--rows", type=int, default=1_000_000)
    latency = verbs.add_parser("latency")
    latency.add_argument("bundle", type=Path)
    latency.add_argument("image", type=Path)
    latency.add_argument("folder", type=Path)
    latency.add_argument("--shadow", type=Path)
    latency.add_argument("--frames", type=int, default=200)
    latency.add_argument("--rate", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.verb == "rows":
        measure_rows(arguments.folder, arguments.rows)
    else:
        measure_latency(arguments)


def measure_rows(folder: Path, count: int) -> None:
    """Write rows as fast as they are taken, one in 50 rejected and one in 1,000 labelled, then ask for some."""
    timings = {"wait": 0.412, "preprocess": 1.634, "network": 6.281, "decide": 0.021, "end_to_end": 8.412}
    first_ms = now_ms() - count * _STEP_MS
    began = time.perf_counter()
    with Journal(folder) as journal:
        setup = journal.setup({"bundle": "0" * 64, "model": "made", "backend": {"name": "onnxruntime"}})
        for number in range(count):
            decision = Decision.ANOMALY if number % 50 == 0 else Decision.OK
            result = Result(
                np.float32(number % 977 / 31).item(), 30.5, decision, number, number, "rtsp://line1/camera",
                timings=timings, part_id=f"SN{number:09d}",
            )  # fmt: skip
            row = part_row(result, None, setup, first_ms + number * _STEP_MS, keep=False)
            # Digests as a camera's frames have them.
            body = {
                **row.body,
                "pixels": f"{number:064x}",
                "layout": "bgr",
                "shape": [1024, 1280, 3],
                "map": f"{number:032x}",
            }
            journal.add(type(row)(row.kind, row.time_ms, row.part, None, row.decision, row.score, body))
            if number % 1000 == 999 and number > 20_000:
                with JournalReader(folder) as reader:
                    part = next(reader.parts(part=f"SN{number // 2:09d}"))
                journal.label(part.seq, "good", "Ann")  # waits until it is on the disk
    wrote = time.perf_counter() - began
    size = (folder / FILE).stat().st_size
    print(
        f"{count} rows: {wrote:.1f} s, {count / wrote:.0f} rows/s, {size / 1e6:.0f} MB, {size / count:.0f} bytes a row"
    )
    with JournalReader(folder) as reader:
        asked: dict[str, Callable[[], Any]] = {
            "one part by its id": lambda: list(reader.rows(part=f"SN{count // 2:09d}")),
            "the last 20 rows": lambda: reader.last(20),
            "the last 100 rejected of all": lambda: reader.rejected(100),
            "all labels": lambda: reader.labels(),
            "parts of one hour, in the middle": lambda: list(
                reader.parts(
                    since_ms=first_ms + count // 2 * _STEP_MS, until_ms=first_ms + count // 2 * _STEP_MS + 3_600_000
                )
            ),
            "counts of each kind": lambda: reader.counts(),
        }
        for what, ask in asked.items():
            began = time.perf_counter()
            found = ask()
            print(f"{what}: {(time.perf_counter() - began) * 1e3:.1f} ms, {len(found)} rows")
    began = time.perf_counter()
    report = verify(folder, images=False)
    bundle_missing = [problem for problem in report.problems if "bundle" not in problem]
    print(f"verify without images: {time.perf_counter() - began:.1f} s, problems: {bundle_missing}")


def measure_latency(arguments: argparse.Namespace) -> None:
    """Push frames at a fixed rate, without a sink, with those of before, with a record, and with a shadow."""
    pixels = np.asarray(Image.fromarray(read_image(arguments.image)).resize((1280, 1024)))[:, :, ::-1].copy()
    ways = ["no sink", "images:all", "record images=rejected", "record images=all"]
    ways += ["shadow"] if arguments.shadow is not None else []
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(3):
        for way in ways:
            found[way].append(_run(arguments, way, pixels, arguments.folder / f"{turn}-{ways.index(way)}"))
    for way, runs in found.items():
        best = {name: float(np.median([run["latency"][name] for run in runs])) for name in ("p50", "p95", "p99")}
        print(f"{way}: " + json.dumps({**{k: round(v, 2) for k, v in best.items()}, "sinks": runs[-1]["sinks"]}))


def _run(arguments: argparse.Namespace, way: str, pixels: Any, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    source = PushSource(policy="every", layout="bgr")
    with Inspector.open(arguments.bundle, backend="onnxruntime") as inspector:
        sinks: list[Any] = []
        if way == "images:all":
            sinks.append(f"images:{folder}?only=all")
        elif way.startswith("record"):
            sinks.append(RecordSink(RecordOptions(folder, images=way.split("=")[1]), inspector))
        elif way == "shadow":
            sinks.append(ShadowSink(arguments.shadow, RunConfig(backend="onnxruntime"), inspector.bits))
        stream = inspector.stream(source, sinks=sinks)
        results = iter(stream)
        due = time.perf_counter()
        for number in range(arguments.frames):
            time.sleep(max(0.0, due - time.perf_counter()))
            due += 1 / arguments.rate
            pixels[0, 0, 0] = number % 256
            source.push(pixels)
            next(results)
        source.end()
        list(results)
        summary = stream.summary
    latency = summary.latency
    assert latency is not None
    sinks_said = {
        r.name.split()[0]: f"written {r.written}, missed {r.missed}, failed {r.failed}" for r in summary.sinks
    }
    return {"latency": {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}, "sinks": sinks_said}


if __name__ == "__main__":
    main()
