"""``python -m benchmarks.gpu_day``: runs stages; ``pack``, ``unpack``, ``plan`` and ``bring`` are around the day."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.gpu_day as package
from benchmarks.gpu_day.machine import ROOT
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.stages import STAGES, run_child, run_stages, this_program
from edgead.runtime.errors import ConfigError, EdgeadError

DETECTORS = ("patchcore", "padim")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 3 where an item is not done; 2 where something is missing."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {"pack": _pack, "unpack": _unpack, "plan": _plan, "bring": _bring}
    try:
        if given[:1] and given[0] in verbs:
            return verbs[given[0]](given[1:])
        return _run(given)
    except EdgeadError as error:
        print(error, file=sys.stderr)
        return 2


def parse_options(given: Sequence[str]) -> Options:
    """Return the options of a run, of a job or of the trainings' supervisor."""
    parser = _parser()
    return _options(parser.parse_args(given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_day",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stage", action="append", choices=names, help="repeat it; all stages without")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--copy-to", type=Path, help="folder that gets each result file too, such as $OUT")
    parser.add_argument("--kit", type=Path, help="folder that `unpack` filled")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a GPU that is none")
    parser.add_argument("--job-seconds", type=float, default=240.0, help="of one training")
    parser.add_argument("--at-once", type=int, default=3, help="trainings side by side")
    parser.add_argument("--limit", type=float, help="seconds of a stage, in place of its own limit")
    parser.add_argument("--background", action="store_true", help="only start the trainings")
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    return parser


def _options(found: argparse.Namespace) -> Options:
    def whole(path: Path | None) -> Path | None:
        return None if path is None else path.absolute()

    out = whole(found.out)
    assert out is not None
    copy_to, kit = whole(found.copy_to), whole(found.kit)
    return Options(out, copy_to, kit, found.dry_run, found.job_seconds, found.at_once)


def _run(given: list[str]) -> int:
    found = _parser().parse_args(given)
    options = _options(found)
    if found.child is not None:
        run_child(found.child, options)
        return 0
    if found.background:
        from benchmarks.gpu_day import training

        training.start(options)
        return 0
    chosen = [stage for stage in STAGES if found.stage is None or stage.name in found.stage]
    return 0 if run_stages(chosen, options, [*this_program(), *_kept(options)], found.limit) else 3


def _kept(options: Options) -> list[str]:
    """Return the options as arguments of a child, whose working directory is another one."""
    from benchmarks.gpu_day.training import as_arguments

    return as_arguments(options)


def _pack(given: list[str]) -> int:
    from benchmarks.gpu_day import packing

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day pack", description=packing.__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, metavar="CATEGORY_DIR", help="repeat it")
    parser.add_argument("--out", type=Path, required=True, help="a folder of the checkout that git ignores")
    parser.add_argument(
        "--detector", action="append", help=f"of the bundles; repeat it; {', '.join(DETECTORS)} without"
    )
    parser.add_argument("--size", type=int, default=packing.SIZE)
    parser.add_argument("--no-wheels", action="store_true")
    found = parser.parse_args(given)
    manifest = packing.pack(
        found.data, found.out, detectors=found.detector or DETECTORS, size=found.size, wheels=not found.no_wheels
    )
    return _plan(["--kit", str(found.out)]) if manifest else 2


def _unpack(given: list[str]) -> int:
    from benchmarks.gpu_day import packing

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day unpack")
    parser.add_argument("--kit", type=Path, required=True, help="folder whose `parts` has what arrived")
    missing = packing.unpack(parser.parse_args(given).kit.absolute())
    print(f"unpacked; not here yet: {', '.join(missing) or 'nothing'}", flush=True)
    return 0


def _plan(given: list[str]) -> int:
    from benchmarks.gpu_day import commands, packing

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day plan", description="Print the day's commands.")
    parser.add_argument("--kit", type=Path, required=True, help="folder that `pack` wrote")
    kit = parser.parse_args(given).kit.absolute()
    # As the tool that carries takes it: relative to the checkout.
    folder = kit.relative_to(ROOT) if kit.is_relative_to(ROOT) else kit
    try:
        manifest = json.loads((kit / packing.MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{kit} holds no kit; write one with: python -m benchmarks.gpu_day pack") from error
    print(commands.show(commands.sequence(manifest, str(folder))))
    return 0


def _bring(given: list[str]) -> int:
    from benchmarks.gpu_day import commands

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day bring")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copy-to", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    found = parser.parse_args(given)
    total = commands.bring(found.out, found.copy_to, found.first)
    print(f"parts {found.first} to {min(found.first + commands.MOST_PARTS, total) - 1} of {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
