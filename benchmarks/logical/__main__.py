"""``python -m benchmarks.logical make DATA DIR [--seed N]`` and ``… judge MODEL DIR``, which prints JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.logical.category import make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("data", type=Path)
    making.add_argument("folder", type=Path)
    making.add_argument("--seed", type=int, default=0)
    judging = commands.add_parser("judge")
    judging.add_argument("model", type=Path)
    judging.add_argument("folder", type=Path)
    asked = parser.parse_args()
    if asked.command == "make":
        print(make(asked.data, asked.folder, asked.seed))
    else:
        from benchmarks.logical.judging import judge

        print(json.dumps(judge(asked.model, asked.folder), indent=1))


if __name__ == "__main__":
    main()
