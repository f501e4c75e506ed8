"""Ed25519 keys and signatures, of a bundle or a journal's head, where ``cryptography`` is installed (extra `sign`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgead.runtime.errors import ConfigError, missing_extra
from edgead.runtime.files import reason


class Signer:
    """Signs with a private key.

    Args:
        path: PEM file of an Ed25519 key without a password (``openssl genpkey -algorithm ed25519 -out FILE``).

    Raises:
        ConfigError: the file cannot be read or is no such key, or ``cryptography`` is missing (the message has the
            pip command).
    """

    def __init__(self, path: Path) -> None:
        serialization, _ = _library()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        data = _content(path)
        try:
            key = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is no private key in PEM without a password; {_MAKE}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is no Ed25519 key; {_MAKE}")
        self._key = key
        self.public: str = key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """Return the signature of a message in hexadecimal."""
        signature: bytes = self._key.sign(message)
        return signature.hex()


_MAKE = "make one: edgead keygen FILE"


def make_key(path: Path) -> str:
    """Write a new private key, as PEM that only its owner may read, and return its public key in hexadecimal.

    Raises:
        ConfigError: the file is there already (a key that is lost cannot be made again), or cannot be written.
    """
    serialization, _ = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        # Made with its mode: it is never readable by others, not even for a moment.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(handle)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already, and a key is never replaced; choose another name") from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the key {path}: {reason(error)}") from error
    return str(key.public_key().public_bytes_raw().hex())


def read_public_key(path: Path) -> str:
    """Return a public key in hexadecimal from a PEM file, of the public or of the private key.

    Raises:
        ConfigError: it is none, or ``cryptography`` is missing.
    """
    serialization, _ = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _content(path)
    try:
        if b"PRIVATE" in data:
            return Signer(path).public
        key: Any = serialization.load_pem_public_key(data)
    except ValueError as error:
        raise ConfigError(f"{path} is no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is no Ed25519 key; {_MAKE}")
    return str(key.public_bytes_raw().hex())


def signature_holds(public: str, signature: str, message: bytes) -> bool:
    """Say whether a signature belongs to a key and a message; `ConfigError` where ``cryptography`` is missing."""
    _, invalid = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (invalid, ValueError):
        return False
    return True


def _library() -> tuple[Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise ConfigError(f"a signature needs it: {missing_extra('cryptography', 'sign')}") from error
    return serialization, InvalidSignature


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {reason(error)}") from error
