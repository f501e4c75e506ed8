"""The signature member of a bundle: who signed the manifest, which has the digests of everything else."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from edgead.runtime.bundle.field_types import Section, as_tuple, unique_keys
from edgead.runtime.errors import BundleError
from edgead.runtime.signing import Signer

FORMAT: Final = "edgead.signature/1"
MAX_SIGNATURE_BYTES: Final = 16 << 10
MAX_SIGNATURES: Final = 8
_PREFIX: Final = b"edgead.bundle-manifest/1\n"

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Signature(Section):
    """One signature: ``key_id`` is the SHA-256 of the public key's 32 bytes."""

    algorithm: Literal["ed25519"]
    key_id: Hex32
    signature: Hex64


def _each_key_once(found: tuple[Signature, ...]) -> tuple[Signature, ...]:
    if len({one.key_id for one in found}) != len(found):
        raise ValueError("a key has signed twice")
    return found


class SignatureFile(Section):
    """The content of the member ``signature.ed25519``."""

    format: Literal["edgead.signature/1"]
    signatures: Annotated[
        tuple[Signature, ...],
        BeforeValidator(as_tuple),
        Field(min_length=1, max_length=MAX_SIGNATURES),
        AfterValidator(_each_key_once),
    ]

    def to_json(self) -> bytes:
        """Return the bytes of the member."""
        return json.dumps(self.model_dump(), indent=1, sort_keys=True).encode() + b"\n"


def signed_message(manifest: bytes) -> bytes:
    """Return what is signed: a fixed first line, so that no signature of something else fits, and the manifest."""
    return _PREFIX + manifest


def key_id(public: str) -> str:
    """Return the id of a public key that is given in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def parse_signature(data: bytes, label: str) -> SignatureFile:
    """Read a signature member.

    Raises:
        BundleError: it is none, or of a version that this one does not know.
    """
    try:
        return SignatureFile.model_validate(json.loads(data.decode(), object_pairs_hook=unique_keys))
    except (ValidationError, ValueError, RecursionError) as error:
        raise BundleError(
            f"the signature of {label} is damaged or of a newer edgead; sign it again: edgead sign {label} --key FILE"
        ) from error


def add_signature(signer: Signer, manifest: bytes, before: SignatureFile | None) -> SignatureFile:
    """Return the signatures of a manifest with one more; an older one by the same key is replaced.

    Raises:
        BundleError: as many keys as a bundle may have signed it already.
    """
    own = Signature(algorithm="ed25519", key_id=key_id(signer.public), signature=signer.sign(signed_message(manifest)))
    others = [] if before is None else [one for one in before.signatures if one.key_id != own.key_id]
    if len(others) >= MAX_SIGNATURES:
        raise BundleError(f"{MAX_SIGNATURES} keys have signed it, which is as many as a bundle may have")
    return SignatureFile(format=FORMAT, signatures=(*others, own))
