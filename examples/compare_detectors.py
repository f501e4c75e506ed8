"""Which detector for these parts: several are fitted, measured, exported and timed, side by side.

    python examples/images.py parts
    python examples/compare_detectors.py parts/mono -o compared

Takes 33 s on two cores.

Look at the table: a higher AUROC counts only where the intervals do not overlap, and milliseconds only where they count
on your line. ``compared/`` keeps a page with plots, and a row a fit: the same command goes on where it stopped. It is
``edgead compare`` with its JSON read, as in a nightly job. For one answer in plain words: ``edgead recommend``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("category", type=Path, help="a folder with train/good, test/good and test/DEFECT")
    parser.add_argument("--detectors", default="patchcore,padim,fre", help="(%(default)s)")
    parser.add_argument("--seeds", default="1", help="fits of each; take 3 or more before you decide (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("compared"))
    asked = parser.parse_args()

    command = [sys.executable, "-m", "edgead", "compare", str(asked.category), "--detectors", asked.detectors]
    command += ["--seeds", asked.seeds, "--output", str(asked.output), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # the command has said why
    rows = json.loads(done.stdout)["summary"]
    print(f"{'detector':12} {'image AUROC':>11} {'95 % interval':>16} {'defects that pass':>18} {'ms':>6} {'MB':>6}")
    for row in rows:
        auroc, decided, timed = row["metrics"]["image_auroc"], row["decisions"], row["latency_ms"] or {}
        interval = f"{auroc['low']:.3f} to {auroc['high']:.3f}"
        passed = f"{decided['escapes']} of {decided['anomalous']}"
        fastest = min((one["end_to_end_p50"] for one in timed.values()), default=float("nan"))
        print(
            f"{row['label']:12} {auroc['mean']:11.3f} {interval:>16} {passed:>18} "
            f"{fastest:6.1f} {row['bytes'] / 1e6:6.1f}"
        )
    print(f"the page with plots: {asked.output / 'compare.html'}")


if __name__ == "__main__":
    main()
