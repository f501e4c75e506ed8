"""Arguments that several commands share, and the forms that users write them in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli.terminal.completion import complete_backend, complete_precision

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.dispatch.workers import Workers

BundleArgument = Annotated[Path, typer.Argument(metavar="NAME.edgead", help="The bundle.", show_default=False)]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="What runs the network; a named one never falls back.",
        autocompletion=complete_backend,
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads.", show_default="the backend's choice")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Graph of the bundle: fp32, int8-cpu, …",
        show_default="fp32",
        autocompletion=complete_precision,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|HxW",
        help="Network size in pixels, multiples of 32 and of a vision transformer's patch.",
        show_default="256, or 128 for the small profile of a detector that trains a network",
    ),
]
TapsOption = Annotated[
    str | None,
    typer.Option(
        metavar="S,S...",
        help="Strides of the backbone's features, finest first; 32 adds context. Of a vision transformer: blocks.",
        show_default="8,16, or the last block",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option("--false-alarm-rate", metavar="X", help="Share of good parts that may be rejected, such as 0.01."),
]
BitsOption = Annotated[
    int | None,
    typer.Option(
        "--bits", metavar="N", help="Bits of 16-bit files that carry the picture, such as 12.", show_default="16"
    ),
]
RoiOption = Annotated[
    str | None,
    typer.Option("--roi", metavar="X,Y,W,H", help="Part of the images that is judged, in pixels.", show_default="all"),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        "--mask", metavar="FILE", help="Image of their size, white where nothing is judged.", show_default=False
    ),
]
AlignOption = Annotated[
    bool, typer.Option("--align", help="Find the part, and undo how it lies and is turned, in every frame.")
]
FalseAlarmCostOption = Annotated[
    float | None,
    typer.Option("--cost-false-alarm", metavar="Y", help="Cost of a good part that is rejected, in the same unit."),
]
RecordOption = Annotated[
    str | None,
    typer.Option(
        "--record",
        metavar="DIR",
        help="A row and an image of each part: DIR?images=rejected&sample=0.05&max_size=20GB&max_age=90d&key=FILE.",
        show_default=False,
    ),
]
ShadowOption = Annotated[
    Path | None,
    typer.Option(
        "--shadow",
        metavar="NEW.edgead",
        help="A second bundle that judges the same frames and decides nothing.",
        show_default=False,
    ),
]
UpdatesOption = Annotated[
    str | None,
    typer.Option(
        "--updates",
        metavar="REPO",
        help="Folder or address that new bundles come from: REPO?root=root.json&station=NAME&every=10min.",
        show_default=False,
    ),
]
ServeTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--serve-token",
        metavar="FILE",
        help="Token that browsers are asked for; an address that others reach needs one.",
        show_default="$EDGEAD_SERVE_TOKEN",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS|local",
        help="Work on the nodes of a Ray cluster: HOST:PORT or auto; local: on this machine, several fits at once.",
        show_default=False,
    ),
]
RayTaskOption = Annotated[
    str | None,
    typer.Option(
        "--ray-task",
        metavar="cpus=N,gpus=N,memory=8GB",
        help="What one fit takes of a node; it computes with so many threads.",
        show_default="the threads of a run without --ray",
    ),
]
DefectRateOption = Annotated[
    float,
    typer.Option("--defect-rate", metavar="P", help="Share of all parts that are defective, for the costs."),
]
# Variables that change how libraries compute. Nodes get them, so that they compute like this process.
_COMPUTING = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HOME", "TORCH_HOME")


def calibration_cache() -> Path | None:
    """Return the folder of calibrated ranges; None, no cache, where the user has no home."""
    from edgead.runtime.files import user_folder

    caches = user_folder("cache")
    return None if caches is None else caches / "edgead" / "calibration"


def word(path: str | Path) -> str:
    """Return a path as it is typed in a command, where a name that begins with a dash would be an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def run_command(bundle: Path, source: str = "0") -> tuple[str, ...]:
    """Return the command that runs a bundle, by default with the first camera; none where it would show a secret."""
    from edgead.runtime.uri import redact

    return ("edgead", "run", word(bundle), "--source", source) if redact(source) == source else ()


def page_token(file: Path | None) -> str | None:
    """Return the token that a page asks for: of ``--serve-token``, else of ``$EDGEAD_SERVE_TOKEN``, else None."""
    from edgead.runtime.dashboard.access import read_token

    return read_token(file) if file is not None else os.environ.get("EDGEAD_SERVE_TOKEN") or None


def require(extra: str, *modules: str) -> None:
    """Raise `BackendUnavailable` with the exact pip command where a module is missing, before any work is done."""
    from edgead.runtime.errors import BackendUnavailable, missing_extra

    for module in modules:
        if find_spec(module) is None:
            raise BackendUnavailable(missing_extra(module, extra))


@contextmanager
def cluster_workers(
    out: Output, address: str, task: str | None, what: str, folders: Sequence[Path]
) -> Iterator[Workers]:
    """Yield the workers at ``--ray ADDRESS``, and say what must be shared among the nodes.

    Args:
        what: of the command lies in the folders, such as ``the categories``.
    """
    from edgead.dispatch.workers import parse_needs

    needs = parse_needs(task)
    require("ray", "ray")
    from torch import get_num_threads

    from edgead.dispatch.cluster import Cluster, open_cluster

    environment = {name: os.environ[name] for name in _COMPUTING if name in os.environ}
    cluster = Cluster(address, needs, get_num_threads(), environment)
    with open_cluster(cluster, out.warn) as workers:
        if address != "local":
            places = ", ".join(dict.fromkeys(str(path.parent) for path in folders[:100]))
            out.note(f"every node must have {what} at the same path, such as on a shared folder: {places}")
        yield workers


def refuse_task_alone(address: str | None, task: str | None) -> None:
    """Raise `ConfigError` for ``--ray-task`` without ``--ray``."""
    from edgead.runtime.errors import ConfigError

    if address is None and task is not None:
        raise ConfigError("--ray-task belongs to --ray ADDRESS|local")


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Return ``--set key=value`` options as a mapping; the detector converts and checks the values."""
    from edgead.runtime.errors import ConfigError

    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ConfigError(f"--set takes key=value, such as --set bank_size=1024, not '{pair}'")
        if name.strip() in settings:
            raise ConfigError(f"--set {name.strip()}=… is given twice; keep one")
        settings[name.strip()] = value.strip()
    return settings


def parse_size(text: str) -> tuple[int, int]:
    """Return ``(height, width)`` of ``256`` or ``256x320`` (height first)."""
    from edgead.runtime.errors import ConfigError

    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip())
    if match is None:
        raise ConfigError(f"--size takes a side in pixels or HEIGHTxWIDTH, such as 256 or 256x320, not '{text}'")
    return int(match[1]), int(match[2] or match[1])


def parse_taps(text: str) -> tuple[int, ...]:
    """Return the strides, or block numbers, of ``8,16``: whole numbers from 1 up, rising."""
    from edgead.runtime.errors import ConfigError

    parts = [part.strip() for part in text.split(",")]
    strides = tuple(int(part) for part in parts if part.isdecimal() and len(part) < 4)
    if len(strides) != len(parts) or not all(strides) or list(strides) != sorted(set(strides)):
        raise ConfigError(
            "--taps takes strides, finest first, such as 8,16 or 8,16,32, or of a vision transformer block numbers, "
            f"not '{text}'"
        )
    return strides


def parse_frame_size(text: str) -> tuple[int, int]:
    """Return ``(width, height)`` of ``1280x1024``, the way cameras are described."""
    from edgead.runtime.errors import ConfigError

    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.strip())
    if match is None:
        raise ConfigError(f"--frame-size takes WIDTHxHEIGHT, such as 1280x1024, not '{text}'")
    return int(match[1]), int(match[2])
