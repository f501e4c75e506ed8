"""``edgead publish`` and ``edgead renew``: a repository that stations fetch their bundles from."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli._options import BundleArgument
from edgead.cli.release.signing import PANEL

if TYPE_CHECKING:
    from edgead.cli._output import Output

_RepositoryArgument = Annotated[Path, typer.Argument(metavar="REPO", help="Folder of the repository.")]
_KeysOption = Annotated[
    Path, typer.Option("--keys", metavar="DIR", help="Private keys of the repository.", show_default=False)
]
_DaysOption = Annotated[
    float,
    typer.Option("--days", min=0.001, max=365, metavar="D", help="How long 'nothing newer' holds; renew before."),
]


class _Owner(str, Enum):
    root = "root"
    targets = "targets"
    online = "online"


@command(
    "publish",
    panel=PANEL,
    trusts=True,
    example="edgead publish plate.edgead repo --keys keys --share 0.1 --shadow-parts 500",
)
# More than six parameters: typer reads the options from them, one each.
def publish(
    out: Output,
    bundle: BundleArgument,
    repository: _RepositoryArgument,
    keys: _KeysOption,
    station: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only for this one; repeat it.", show_default="all")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="S", help="Share of the other stations.", show_default="all, or none"),
    ] = None,
    shadow_parts: Annotated[
        int, typer.Option(min=0, metavar="N", help="Parts to judge beside the old bundle first.")
    ] = 0,
    max_different: Annotated[
        float, typer.Option(min=0, max=1, metavar="S", help="Share of them that it may decide otherwise.")
    ] = 0.0,
    days: _DaysOption = 7.0,
) -> None:
    """Publish a bundle for the stations that run a bundle of this file name with --updates.

    The first time, the repository and its keys are made. Any web server serves the folder REPO; the keys stay here.
    """
    from edgead.cli._output import listing
    from edgead.runtime.updates.repository import Repository, Wanted

    stations = tuple(station or ())
    if share is None:
        share = 0.0 if stations else 1.0
    wanted = Wanted(stations, share, shadow_parts, max_different)
    rollout = Repository(repository, keys, days).publish(bundle, wanted)
    root = repository / "metadata" / "root.json"
    rows = {
        "release": str(rollout.release),
        "manifest": f"SHA-256 {rollout.bundle}",
        "stations": ", ".join(stations) or "-",
        "share of the others": f"{share:g}",
        "shadow": f"{shadow_parts} parts, of which {max_different:.2%} may be decided otherwise",
        "holds": f"{days:g} days; sign again before: edgead renew {repository} --keys {keys}",
        "root": f"{root}: bring it to each station once (--updates 'REPO?root=root.json')",
    }
    payload = {
        "schema": "edgead.publish/1",
        "repository": str(repository),
        "root": str(root),
        "rollout": rollout.model_dump(by_alias=True, mode="json"),
    }
    out.finish(payload, listing(f"Published {bundle.name}", rows))


@command("renew", panel=PANEL, example="edgead renew repo --keys keys")
def renew(
    out: Output,
    repository: _RepositoryArgument,
    keys: _KeysOption,
    replace: Annotated[
        list[_Owner] | None, typer.Option(metavar="KEY", help="Exchange root, targets or online for a new key.")
    ] = None,
    days: _DaysOption = 7.0,
) -> None:
    """Sign a repository again before its metadata expire, daily for example; needs only the key online.pem for that."""
    from edgead.cli._output import listing
    from edgead.runtime.updates.repository import Repository

    signed = Repository(repository, keys, days).renew([one.value for one in replace or ()])
    payload = {"schema": "edgead.renew/1", "repository": str(repository), "signed": signed, "days": days}
    out.finish(payload, listing(f"Signed {repository} again", {"roles": ", ".join(signed), "holds": f"{days:g} days"}))
