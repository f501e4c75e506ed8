"""What the tests of ``--ray`` have done by workers of a real Ray, and the program that has it done.

``python -m tests.edgead.ray_errands CHECK FOLDER`` starts a Ray on this machine and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.dispatch.cluster import Cluster, open_cluster
from edgead.dispatch.workers import Answer, Needs, Workers

ANSWER = 50_000  # bytes


@dataclass(frozen=True)
class Errand:
    number: int
    folder: Path
    who: str = ""

    @property
    def name(self) -> str:
        return f"errand {self.number}"


def answer(errand: Errand) -> tuple[int, bytes]:
    return errand.number, bytes(ANSWER)


def die_once(errand: Errand) -> str:
    """The first worker of errand 1 dies as where memory is short; so does each worker of errand 2."""
    tries = errand.folder / f"{errand.number}"
    with tries.open("a") as file:
        file.write("x")
    if errand.number == 2 or (errand.number == 1 and tries.stat().st_size == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"answer {errand.number}"


def fail(errand: Errand) -> None:
    raise KeyError(f"a defect in {errand.name}")


def surroundings(_: Errand) -> dict[str, Any]:
    import torch

    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN")
    return {"threads": torch.get_num_threads(), **{name: os.environ.get(name) for name in names}}


def sleep(errand: Errand) -> None:
    (errand.folder / "asleep").touch()
    time.sleep(600)


def listeners() -> list[str]:
    """Every TCP address on which a process of this one's session listens, from /proc."""
    inodes: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A":
                inodes[cells[9]] = cells[1].partition(":")[0]
    found = []
    for process in family(os.getpid()):
        try:
            handles = list(Path(f"/proc/{process}/fd").iterdir())
        except OSError:
            continue
        for handle in handles:
            try:
                target = str(handle.readlink())
            except OSError:
                continue
            inode = target.removeprefix("socket:[").removesuffix("]")
            if inode in inodes:
                found.append(_address(inodes[inode]))
    return found


def family(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _address(digits: str) -> str:
    """``0100007F`` -> ``127.0.0.1``; the kernel writes words of four bytes, each the wrong way round."""
    data = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    if len(data) == 16 and data.startswith(bytes(10) + b"\xff\xff"):
        data = data[12:]
    return ".".join(map(str, data)) if len(data) == 4 else data.hex(":", 2)


def _look_around(workers: Workers, folder: Path, said: list[str]) -> dict[str, Any]:
    (seen,) = workers.work(surroundings, [Errand(0, folder)])
    dying = {one.index: [one.value, one.lost] for one in workers.work(die_once, (Errand(n, folder) for n in range(4)))}
    try:
        list(workers.work(fail, [Errand(0, folder)]))
        failure = None
    except KeyError as error:
        failure = f"{type(error).__name__}: {error}"
    return {
        "listeners": listeners(),
        "surroundings": seen.value,
        "dying": dying,
        "tries": {n: (folder / f"{n}").stat().st_size for n in range(4)},
        "failure": failure,
        "said": said,
    }


def _many(workers: Workers, folder: Path, _: list[str]) -> dict[str, Any]:
    given, done, most, numbers = 0, 0, 0, set()

    def errands() -> Iterator[Errand]:
        nonlocal given, most
        for number in range(10_000):
            given += 1
            most = max(most, given - done)
            yield Errand(number, folder)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one: Answer[tuple[int, bytes]]
    for one in workers.work(answer, errands()):
        assert one.value is not None
        assert len(one.value[1]) == ANSWER
        assert one.value[0] == one.index
        numbers.add(one.index)
        done += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"given": given, "answered": len(numbers), "in_flight": most, "grown": grown}


def _interrupted(workers: Workers, folder: Path, _: list[str]) -> dict[str, Any]:
    list(workers.work(sleep, [Errand(0, folder)]))
    return {}


CHECKS: dict[str, Callable[[Workers, Path, list[str]], dict[str, Any]]] = {
    "look": _look_around,
    "many": _many,
    "sleep": _interrupted,
}


def main(check: str, folder: Path) -> None:
    said: list[str] = []
    with open_cluster(Cluster("local", Needs(cpus=1), 1, {}), said.append) as workers:
        found = CHECKS[check](workers, folder, said)
    print(json.dumps(found))


if __name__ == "__main__":
    # Workers must know the functions by the module's own name.
    from tests.edgead import ray_errands

    ray_errands.main(sys.argv[1], Path(sys.argv[2]))
