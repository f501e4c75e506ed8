"""The commands to type on the day, in order, each with what it carries; and what is brought home at the end."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.packing import TREE
from benchmarks.gpu_day.results import copy_result
from benchmarks.gpu_day.stages import STAGES

KIT = "/tmp/day"
MOST_CHARACTERS, MOST_SECONDS = 2000, 600
PART_BYTES, MOST_PARTS = 15 << 20, 4  # 16 MiB a file and 64 MiB a command come back
_SPARE_S = 60  # of a command, for unpacking and starting


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it carries, its text, its time limit, and what it is for."""

    carry: str | None
    text: str
    timeout_s: int
    about: str


@dataclass(frozen=True, slots=True)
class _Group:
    """Stages of one command, and the members of the kit that must have arrived: those whose name begins so."""

    stages: tuple[str, ...]
    needs: tuple[str, ...]
    before: str = ""


_START = "python3 -m benchmarks.gpu_day --background $A; "
_GROUPS = (
    _Group(("right", "speed"), (TREE,)),
    _Group(("sanitize",), ("wheels/efficientnet", "images/"), _START),
    _Group(("counters", "half"), ("images/", "bundles/")),
    _Group(("engines",), ("wheels/",)),
    _Group(("training",), ()),
)


def sequence(manifest: dict[str, Any], folder: str) -> list[Command]:
    """Return the commands for a kit whose pieces lie in ``folder`` of the checkout, such as ``.day``."""
    limits = {stage.name: stage.limit_s for stage in STAGES}
    tree = next(entry for entry in manifest["members"] if entry["name"] == TREE)
    parts = " ".join(f"$K/parts/{part['file']}" for part in tree["parts"])
    found: list[Command] = []
    arrived = 0

    def command(text: str, limit_s: float, about: str, carried: bool) -> None:
        piece = f"{folder}/{arrived}" if carried else None
        lines = [f"K={KIT}; set -o pipefail; mkdir -p $K/parts $K/tree $OUT"]
        if carried:
            lines.append(f"cp {piece}/* $K/parts/ || exit 1")
        if not found:
            lines.append(f"cat {parts} | tar xzf - -C $K/tree || exit 1")
        lines.append("cd $K/tree; export PYTHONPATH=$K/tree:$K/site PYTHONUNBUFFERED=1")
        lines.append('A="--kit $K --out $K/results --copy-to $OUT"')
        if carried:
            lines.append("python3 -m benchmarks.gpu_day unpack --kit $K || exit 1")
        if text:
            lines.append(text)
        found.append(Command(piece, "; ".join(lines), min(MOST_SECONDS, int(limit_s) + _SPARE_S), about))

    for group in _GROUPS:
        needed = _last_piece(manifest, group.needs)
        while arrived + 1 < needed:
            arrived += 1
            command("", 60, "only carries", True)
        carried = arrived < manifest["pieces"]
        arrived += carried
        picked = " ".join(f"--stage {name}" for name in group.stages)
        text = f"{group.before}python3 -m benchmarks.gpu_day {picked} $A 2>&1 | tee $OUT/log-{group.stages[0]}.txt"
        command(text, sum(limits[name] for name in group.stages), ", ".join(group.stages), carried)
    bring = "python3 -m benchmarks.gpu_day bring --out $K/results --copy-to $OUT --first 0"
    command(bring, 60, "brings models and logs home; again with --first 4, 8, … while minutes are left", False)
    return found


def show(commands: list[Command]) -> str:
    """Return the commands as they are typed, one after the other within 30 seconds."""
    lines = []
    for number, one in enumerate(commands, 1):
        carry = f'carry ["{one.carry}"]' if one.carry else "carry nothing"
        lines += [f"# {number}. {one.about}: {carry}, timeout_s {one.timeout_s}", one.text, ""]
    lines.append(f"# At most {sum(one.timeout_s for one in commands)} s in all; stages that end early leave theirs.")
    return "\n".join(lines)


def bring(out: Path, to: Path, first: int) -> int:
    """Copy parts ``first`` and on of one archive of models and logs; returns how many parts there are.

    At home: ``cat models.tar.??? | tar xf -``.
    """
    archive = out / "models.tar"
    if first == 0 or not archive.is_file():
        with tarfile.open(archive, "w") as stream:
            # Small things first, so that they come home whatever happens.
            for path in sorted((*out.glob("*.log"), *out.glob("jobs/*.json"), *out.glob("*.csv"), *out.glob("*.npz"))):
                stream.add(path, str(path.relative_to(out)))
            models = [path for path in (out / "models").glob("*") if path.is_dir() and not path.name.startswith(".")]
            for path in sorted(models, key=_size):
                stream.add(path, str(path.relative_to(out)))
    to.mkdir(parents=True, exist_ok=True)
    copy_result(out / "training.json", to)
    total = archive.stat().st_size
    with archive.open("rb") as stream:
        for number in range(first, min(first + MOST_PARTS, -(-total // PART_BYTES))):
            stream.seek(number * PART_BYTES)
            (to / f"models.tar.{number:03d}").write_bytes(stream.read(PART_BYTES))
    return -(-total // PART_BYTES)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _last_piece(manifest: dict[str, Any], names: tuple[str, ...]) -> int:
    wanted = [entry for entry in manifest["members"] if entry["name"].startswith(names)] if names else []
    return max((part["piece"] for entry in wanted for part in entry["parts"]), default=0)
