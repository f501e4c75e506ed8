"""How a bundle is opened on this device: by what was asked for, or by what ``edgead tune`` found best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgead.runtime.errors import ConfigError, suggest

if TYPE_CHECKING:
    from edgead.runtime.bundle.bundle import Bundle
    from edgead.runtime.bundle.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Opening:
    """What a bundle is opened with.

    Attributes:
        backend: registry name; precision: a key of the manifest's ``precisions``.
        threads: CPU threads, None leaves their number to the backend.
        native_code: whether native code for a part of the graph is used where it is there.
        why: one line on how the backend was chosen; left_out: why a device profile that is there was not used.
    """

    backend: str
    precision: str
    threads: int | None
    native_code: bool
    why: str
    left_out: str | None = None


def settle_opening(
    bundle: Bundle,
    chosen: tuple[str, str],
    *,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    native_code: bool = True,
    profile: str | Path | None = None,
) -> Opening:
    """Return what to open a bundle with.

    A device profile counts only where neither a backend nor a precision nor a number of threads is asked for.

    Args:
        bundle: opened.
        chosen: what `edgead.runtime.backends.choose` gave for ``backend``, before the bundle was read.
        backend, precision, threads, native_code, profile: as of `edgead.runtime.inspection.inspector.Inspector.open`.

    Raises:
        ConfigError: unknown precision.
    """
    name, why = chosen
    left_out = None
    if profile is not None and (backend, precision, threads) == ("auto", None, None):
        from edgead.runtime.inspection.device_profile import settle

        choice, why, left_out = settle(bundle, profile, name, why)
        name, precision, threads = choice.backend, choice.precision, choice.threads
        native_code = native_code and choice.native_code != "left out"
    precision = precision or "fp32"
    if precision not in bundle.manifest.precisions:
        known = suggest(precision, bundle.manifest.precisions)
        raise ConfigError(f"{bundle.path} has no precision '{precision}'.{known}")
    return Opening(name, precision, threads, native_code, why, left_out)


def require_parity(manifest: Manifest, file: str, backend: str) -> None:
    """Refuse a backend of reduced precision unless the bundle proves that it changed no decision.

    Raises:
        ConfigError: there is no such evidence for this graph file, or it says otherwise.
    """
    if not backend.endswith("-bf16"):
        return
    record = manifest.parity.get(file, {}).get(backend)
    fallback = backend.removesuffix("-bf16")
    if record is None:
        raise ConfigError(
            f"{manifest.name} holds no parity evidence for '{backend}'; use '{fallback}' or export it again"
        )
    changed = record.flips + record.borderline
    if changed:
        raise ConfigError(
            f"'{backend}' changed {changed} of {record.images} decisions when {manifest.name} was exported; "
            f"use '{fallback}'"
        )
