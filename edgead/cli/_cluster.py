"""``--ray``: work on the nodes of a cluster, its options and what a person has to know of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._options import require

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.dispatch.workers import Workers

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
# Variables that change how libraries compute. Nodes get them, so that they compute like this process.
_COMPUTING = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HOME", "TORCH_HOME")


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
