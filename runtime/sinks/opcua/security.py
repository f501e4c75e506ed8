"""Certificates of OPC UA: our own with its key, and the folder of those that are trusted."""

from __future__ import annotations

import datetime
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgead.runtime.errors import ConfigError
from edgead.runtime.files import reason
from edgead.runtime.uri import Parameters

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_LARGEST = 1 << 20  # bytes of a certificate or key file


@dataclass(frozen=True, slots=True)
class Security:
    """What a connection is secured with: always Basic256Sha256, signed and encrypted.

    Attributes:
        certificate, key: DER and PEM of our own.
        uri: our application URI, as the certificate has it.
        trust: folder of the certificates that are trusted.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    uri: str
    trust: Path

    def refuses(self, certificate: bytes | None) -> str | None:
        """Say why a peer's certificate (DER) is not trusted; None where it is.

        It must lie in the folder itself, PEM or DER, and its time must not be over. The folder is read each time, so
        that a certificate can be taken out while the program runs.
        """
        if not certificate:
            return "it sent no certificate"
        try:
            parsed = _parse(certificate)
        except ValueError:
            return "its certificate cannot be read"
        try:
            known = any(_der(file) == _encoded(parsed) for file in self.trust.iterdir() if file.is_file())
        except OSError as error:
            return f"the folder {self.trust} cannot be read: {reason(error)}"
        if not known:
            return f"its certificate is not in {self.trust}"
        return _out_of_date(parsed)


def read_security(parameters: Parameters) -> Security | None:
    """Read ``security``, ``certificate``, ``key`` and ``trust`` of a URI; None where it says ``security=none``.

    Raises:
        ConfigError: something is missing, or cannot be used.
    """
    where = parameters.where
    given = {name: parameters.values.get(name) for name in ("certificate", "key", "trust")}
    if parameters.choice("security", "encrypted", ("encrypted", "none")) == "none":
        if any(given.values()):
            raise ConfigError(
                f"{where}: security=none has no use for certificate, key and trust; keep one or the other"
            )
        return None
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ConfigError(
            f"{where}: {' and '.join(missing)} missing; give certificate=FILE, key=FILE and trust=DIR, "
            "or say security=none where everybody on the network may listen"
        )
    certificate, key, trust = (Path(value) for value in given.values() if value)
    if not trust.is_dir():
        raise ConfigError(f"{where}: trust {trust} is no folder; put the certificates of those you trust into one")
    own = _read(where, "certificate", certificate)
    try:
        parsed = _parse(own)
    except ValueError as error:
        raise ConfigError(f"{where}: {certificate} is no certificate in PEM or DER: {reason(error)}") from error
    if (problem := _out_of_date(parsed)) is not None:
        raise ConfigError(f"{where}: {certificate}: {problem}; make a new one")
    pem = _private_key(where, key, parsed)
    return Security(_encoded(parsed), pem, _application_uri(where, certificate, parsed), trust)


def _private_key(where: str, path: Path, certificate: Certificate) -> bytes:
    """Return the private key as PEM; raises `ConfigError` where it is none, or of another certificate."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    content = _read(where, "key", path)
    load = serialization.load_pem_private_key if b"-----BEGIN" in content else serialization.load_der_private_key
    try:
        key = load(content, None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise ConfigError(f"{where}: {path} is no private key without a password, in PEM or DER") from error
    if not isinstance(key, RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{where}: {path} is not the RSA key of the certificate")
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        raise ConfigError(f"{where}: other users may read {path}; run: chmod 600 {path}")
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def _application_uri(where: str, path: Path, certificate: Certificate) -> str:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found: list[str] = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        found = []
    if not found:
        raise ConfigError(
            f"{where}: {path} names no application; it needs a subjectAltName such as URI:urn:line3:edgead"
        )
    return found[0]


def _out_of_date(certificate: Certificate) -> str | None:
    now = datetime.datetime.now(datetime.timezone.utc)
    if now > certificate.not_valid_after_utc:
        return f"the certificate's time was over on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        return f"the certificate's time begins on {certificate.not_valid_before_utc:%Y-%m-%d}"
    return None


def _read(where: str, name: str, path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{where}: {name} {path} is too large to be one")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {name} {path}: {reason(error)}") from error


def _parse(content: bytes) -> Certificate:
    """Return the first certificate of PEM or DER; raises ValueError where there is none."""
    from asyncua.crypto import uacrypto
    from cryptography import x509

    if b"-----BEGIN" in content:
        return x509.load_pem_x509_certificate(content)
    # As the library reads what a peer sends: others may follow the first.
    parsed: Certificate | None = uacrypto.x509_from_der(content)
    if parsed is None:
        raise ValueError("it is empty")
    return parsed


def _encoded(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.DER))


def _der(path: Path) -> bytes | None:
    """Return the certificate that a file holds; None where it holds none, which is trusted by nobody."""
    try:
        return _encoded(_parse(path.read_bytes())) if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError):
        return None
