"""``edgead keygen`` and ``edgead sign``: who answers for a bundle, so that stations open no other one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgead.cli._app import command
from edgead.cli._options import BundleArgument

if TYPE_CHECKING:
    from edgead.cli._output import Output

PANEL = "Release"


@command("keygen", panel=PANEL, example="edgead keygen plant1.key --name 'plant 1' --add-to trust.json")
# More than six parameters: typer reads the options from them, one each.
def keygen(
    out: Output,
    key: Annotated[Path, typer.Argument(metavar="FILE", help="The new private key.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose key it is.", show_default="the file's name")
    ] = None,
    add_to: Annotated[
        Path | None,
        typer.Option(metavar="TRUST.json", help="Trust file that the public key is added to.", show_default=False),
    ] = None,
    valid_from: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="First instant, UTC.", show_default="always")
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="End, such as 2028-01-01.", show_default="never")
    ] = None,
) -> None:
    """Make an Ed25519 key that signs bundles, and add its public part to a trust file.

    The private key stays where bundles are released; stations get the trust file. To rotate: add the next key to it,
    distribute it, sign with the new key, and take the old key out when no bundle needs it any more.
    """
    from pydantic import ValidationError

    from edgead.cli._output import listing
    from edgead.runtime.bundle.signature import key_id
    from edgead.runtime.bundle.trust import TrustedKey, add_key
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.signing import make_key

    def entry(public: str) -> TrustedKey:
        try:
            return TrustedKey(name=name or key.stem, public_key=public, valid_from=valid_from, valid_until=valid_until)
        except ValidationError as error:
            raise ConfigError(str(error.errors(include_url=False)[0]["msg"])) from error

    entry("0" * 64)  # a mistake in a time is said before there is a key
    public = make_key(key)
    trusted = entry(public)
    if add_to is not None:
        try:
            add_key(add_to, trusted)
        except ConfigError:
            key.unlink()
            raise
    payload = {
        "schema": "edgead.keygen/1",
        "key": str(key),
        "key_id": key_id(public),
        "trust": None if add_to is None else str(add_to),
        "trusted": trusted.model_dump(),
    }
    rows = {
        "private key": f"{key}; whoever has it can sign, keep it off the stations",
        "public key": public,
        "key id": key_id(public),
        "valid": f"from {valid_from or 'always'} until {valid_until or 'ever'}",
        "trusted by": str(add_to or "no file yet: --add-to TRUST.json"),
    }
    out.finish(payload, listing(f"Made the key of '{trusted.name}'", rows))


@command("sign", panel=PANEL, example="edgead sign plate.edgead --key plant1.key")
def sign(
    out: Output,
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private key (edgead keygen).", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="NEW.edgead", help="Where to write.", show_default="the bundle itself"),
    ] = None,
) -> None:
    """Sign a bundle: its manifest, which has the digests of all else in it.

    Signatures by other keys stay. calibrate, teach and export write another manifest, so that what they wrote must be
    signed again.
    """
    from edgead.cli._output import listing
    from edgead.runtime.bundle.bundle import Bundle
    from edgead.runtime.bundle.signature import key_id
    from edgead.runtime.bundle.writing import sign_bundle
    from edgead.runtime.signing import Signer

    signer, target = Signer(key), output or bundle
    made = sign_bundle(bundle, target, signer)
    with Bundle.open(target, made_here=True) as opened:
        sha256 = opened.sha256
    payload = {
        "schema": "edgead.sign/1",
        "bundle": str(target),
        "sha256": sha256,
        "key_id": key_id(signer.public),
        "signatures": [one.key_id for one in made.signatures],
    }
    rows = {"manifest": f"SHA-256 {sha256}", "key id": key_id(signer.public), "signatures": str(len(made.signatures))}
    out.finish(payload, listing(f"Signed {target}", rows))
