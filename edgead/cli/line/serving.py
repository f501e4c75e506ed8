"""``edgead serve``: a bundle that answers requests for inference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli._options import BackendOption, BundleArgument, PrecisionOption, ThreadsOption, require
from edgead.cli._profiles import ProfileOption, profile_place
from edgead.cli.device import PANEL
from edgead.cli.line._ending import until_asked

if TYPE_CHECKING:
    from edgead.cli._output import Output


@command("serve", panel=PANEL, trusts=True, example="edgead serve plate.edgead --rest 127.0.0.1:8000")
# More than six parameters: typer reads the options from them, one each.
def serve(
    out: Output,
    bundle: BundleArgument,
    rest: Annotated[str, typer.Option(metavar="ADDRESS", help="Where REST listens.")] = "127.0.0.1:8000",
    grpc: Annotated[str, typer.Option(metavar="ADDRESS", help="Where gRPC listens.")] = "127.0.0.1:8001",
    token: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Token that requests must carry; an address that others reach needs one.",
            show_default=False,
        ),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    profile: ProfileOption = None,
) -> None:
    """Answer the Open Inference Protocol (KServe v2) over REST and gRPC until Ctrl-C.

    Images in, the decision of edgead run out, with score, threshold and map. Ready once the self-test passed; where it
    fails, exits with 3.
    """
    require("serve", "grpc", "tritonclient")
    from edgead.runtime.dashboard.access import read_token
    from edgead.runtime.errors import ParityError
    from edgead.runtime.inspection.inspector import Inspector
    from edgead.runtime.inspection.run_config import RunConfig
    from edgead.runtime.serving.server import InferenceServer

    asked = RunConfig(backend, precision, threads, profile=profile_place(profile))
    word = None if token is None else read_token(token)
    with (
        until_asked() as wait,
        Inspector.open(bundle, asked) as inspector,
        InferenceServer(inspector, rest, grpc, word) as server,
    ):
        out.note(f"backend: {inspector.why}")
        if inspector.left_out:
            out.warn(inspector.left_out)
        problems = server.self_test()
        if problems:
            raise ParityError(f"the self-test of {bundle} failed, nothing is served: {problems[0]}")
        out.note(f"ready: {server.url}v2/models/{server.model.name} and gRPC {server.target}")
        wait()
        judged = server.model.judged
    from edgead.cli._output import listing

    rows = {name: str(count) for name, count in judged.items()}
    out.finish({"schema": "edgead.serve-end/1", "decisions": judged}, listing("Decisions", rows))
