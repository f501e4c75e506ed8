"""Accuracy and parity of every detector on every category: fit, evaluate, export, evaluate the bundle.

    python -m benchmarks.accuracy ../shared/data/mpdd/metal_plate … --detectors patchcore,padim --seeds 3 -o results/

One JSON file a row; rows that are there are skipped, so the run can be resumed. ``--table`` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

METRICS = ("image_auroc", "pixel_auroc", "aupro", "f1_max", "false_alarm_rate_at_zero_escapes")


def measure(category: Path, detector: str, seed: int, settings: dict[str, str]) -> dict[str, Any]:
    """Fit, evaluate, export with parity on every test image, evaluate the bundle on each runtime."""
    from edgead.data import open_category
    from edgead.evaluation import evaluate
    from edgead.export.exporting import export_bundle
    from edgead.fitting import fit
    from edgead.opening import open_inspector

    started = time.perf_counter()
    model = fit([category], detector=detector, settings=settings, seed=seed)
    seconds = time.perf_counter() - started
    data = open_category(category, need_test=True)
    row: dict[str, Any] = {"category": category.name, "detector": detector, "seed": seed, "fit_seconds": seconds}
    with TemporaryDirectory() as folder:
        directory, bundle = Path(folder, "model"), Path(folder, "model.edgead")
        model.save(directory)
        with open_inspector(directory) as inspector:
            trained = evaluate(inspector, data)
        # Drift is allowed here so that a change is counted in the table instead of ending the run.
        exported = export_bundle(model.exportable("model"), bundle, images=[category / "test"], allow_drift=True)
        row["bytes"] = exported.size
        row["parity"] = exported.to_dict()["parity"]["model.fp32.onnx"]
        row["metrics"] = {name: _value(trained.metric(name)) for name in METRICS}
        row["decisions"] = trained.to_dict()["decisions"]
        row["bundle_difference"] = {}
        for backend in ("onnxruntime", "openvino"):
            with open_inspector(bundle, backend=backend) as inspector:
                report = evaluate(inspector, data)
            differences = [
                abs(_value(report.metric(name)) - row["metrics"][name])
                for name in METRICS
                if row["metrics"][name] is not None
            ]
            row["bundle_difference"][backend] = max(differences)
    return row


def _value(metric: Any) -> Any:
    return None if metric is None else metric.value


def table(folder: Path) -> str:
    """Return a Markdown table of the rows in ``folder``, averaged over seeds."""
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = [
        "| category | detector | seeds | image AUROC | pixel AUROC | AUPRO | FAR at 0 escapes | changed decisions "
        "(ORT / OpenVINO) | worst score difference | MB | fit s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted({(row["category"], row["detector"]) for row in rows}):
        group = [row for row in rows if (row["category"], row["detector"]) == key]

        def average(name: str, group: list[dict[str, Any]] = group) -> str:
            values = [row["metrics"][name] for row in group]
            return "–" if None in values else f"{mean(values):.4f}"

        def changed(runtime: str, group: list[dict[str, Any]] = group) -> str:
            records = [row["parity"][runtime] for row in group]
            return f"{sum(r['flips'] + r['borderline'] for r in records)} of {sum(r['images'] for r in records)}"

        worst = max(row["parity"][r]["max_score_difference"] for row in group for r in ("onnxruntime", "openvino"))
        lines.append(
            f"| {key[0]} | {key[1]} | {len(group)} | {average('image_auroc')} | {average('pixel_auroc')} "
            f"| {average('aupro')} | {average('false_alarm_rate_at_zero_escapes')} "
            f"| {changed('onnxruntime')} / {changed('openvino')} | {worst:.1e} "
            f"| {mean(row['bytes'] for row in group) / 1e6:.1f} | {mean(row['fit_seconds'] for row in group):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", nargs="*", type=Path)
    parser.add_argument("--detectors", default="patchcore,padim")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = dict(item.split("=", 1) for item in arguments.set)
    for category in () if arguments.table else arguments.categories:
        for detector in arguments.detectors.split(","):
            for seed in range(arguments.seeds):
                file = arguments.output / f"{category.name}-{detector}-{seed}.json"
                if file.exists():
                    continue
                row = measure(category, detector, seed, settings)
                temporary = file.with_suffix(".tmp")
                temporary.write_text(json.dumps(row, indent=1))
                temporary.replace(file)
                print(file.stem, {k: row[k] for k in ("metrics", "fit_seconds", "bundle_difference")}, flush=True)
    print(table(arguments.output))


if __name__ == "__main__":
    main()
