"""What `benchmarks/peers.py` found, as one document and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Full precision first; what the ratios are taken of is the fastest of these.
FULL_PRECISION = ("onnxruntime", "onnxruntime-native", "openvino", "openvino-native")
RUNTIMES = ("onnxruntime", "openvino")
ROUTES = ("openvino", "onnx", "torch")


def summary(rows: Sequence[dict[str, Any]], footprint: dict[str, Any]) -> dict[str, Any]:
    """Return ``rows``, ``footprint`` and ``ratios``.

    ``ratios`` is flat: how many times faster edgead is, or smaller, or how much better its AUROC. Of several categories
    each ratio is that of the category where it is worst. Keys of PatchCore's larger bank (10 % of the patches) end in
    ``_large_bank``, those of INT8 in ``_int8``.
    """
    ratios: dict[str, float] = {}

    def note(key: str, value: float) -> None:
        ratios[key] = min(value, ratios.get(key, value))

    smallest = min((row["bank_rows"] / row["training_images"] for row in rows if row["bank_rows"]), default=0.0)
    for row in rows:
        large = bool(row["bank_rows"]) and row["bank_rows"] / row["training_images"] > 2 * smallest
        suffix = "_large_bank" if large else ""
        detector, ours, theirs = row["detector"], row["edgead"], row["anomalib"]
        full = fastest(ours, FULL_PRECISION)
        int8 = fastest(ours, [name for name in ours if name.endswith("-int8-cpu")])
        for what, text in (("decision", "camera_to_decision"), ("network", "network")):
            for route in ROUTES:
                note(f"{detector}_{text}_vs_anomalib_{route}{suffix}", theirs[route][what] / ours[full][what])
                if int8:
                    note(f"{detector}_{text}_vs_anomalib_{route}{suffix}_int8", theirs[route][what] / ours[int8][what])
            for runtime in (name for name in RUNTIMES if f"plain-{name}" in ours):
                own = fastest(ours, (runtime, f"{runtime}-native"))
                plain = ours[f"plain-{runtime}"][what]
                note(f"{detector}_{text}_vs_plain_{runtime}{suffix}", plain / ours[own][what])
        best = max(row["anomalib_raw_image_auroc"], *(theirs[route]["image_auroc"] for route in ROUTES))
        note(f"{detector}_image_auroc_minus_anomalib{suffix}", ours[full]["image_auroc"] - best)
        if "fit_s" in row["fit"]["anomalib"]:
            note(f"{detector}_fit_vs_anomalib{suffix}", row["fit"]["anomalib"]["fit_s"] / row["fit"]["edgead"]["fit_s"])
    for name in ("import_s", "first_decision_s", "peak_mb", "installed_mb"):
        note(f"{name}_vs_anomalib", footprint["anomalib"][name] / footprint["edgead"][name])
    without_cuda = footprint["anomalib"]["installed_mb"] - footprint["anomalib"]["of_it_cuda_mb"]
    note("installed_mb_vs_anomalib_without_cuda", without_cuda / footprint["edgead"]["installed_mb"])
    return {"ratios": ratios, "rows": list(rows), "footprint": footprint}


def fastest(routes: dict[str, Any], names: Sequence[str]) -> str:
    """Return the route among ``names`` that decides fastest, or nothing where there is none of them."""
    return min((name for name in names if name in routes), key=lambda name: routes[name]["decision"], default="")


def print_report(document: dict[str, Any]) -> None:
    """Print Markdown tables: one of latencies with AUROC, one of fits, one of footprints, and the ratios."""
    print("| model | route | network ms | camera to decision ms | image AUROC |\n|---|---|---|---|---|")
    for row in document["rows"]:
        bank = f", bank {row['bank_rows']}" if row["bank_rows"] else ""
        for side in ("anomalib", "edgead"):
            for route, found in row[side].items():
                print(
                    f"| {row['category']}, {row['detector']}{bank} | {side} {route} | {found['network']:.1f} "
                    f"| {found['decision']:.1f} | {found['image_auroc']:.3f} |"
                )
        print(f"| | anomalib, own engine, raw score | | | {row['anomalib_raw_image_auroc']:.3f} |")
    print("\n| fit | images | anomalib s | edgead s, with thresholds |\n|---|---|---|---|")
    for row in document["rows"]:
        seconds = row["fit"]["anomalib"].get("fit_s")
        theirs = f"{seconds:.1f}" if seconds is not None else "not run"
        print(f"| {row['part']} | {row['training_images']} | {theirs} | {row['fit']['edgead']['fit_s']:.1f} |")
    print(
        "\n| inference | import s | first decision s | peak MB | installed MB | of it CUDA |\n|---|---|---|---|---|---|"
    )
    for side, found in document["footprint"].items():
        print(
            f"| {side} | {found['import_s']:.2f} | {found['first_decision_s']:.2f} | {found['peak_mb']:.0f} "
            f"| {found['installed_mb']:.0f} | {found['of_it_cuda_mb']:.0f} |"
        )
    print()
    for key, value in sorted(document["ratios"].items()):
        print(f"{key}: {value:.3g}")
