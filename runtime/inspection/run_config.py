"""How a bundle is opened on this device: by what was asked for, or by what ``edgead tune`` found best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from edgead.runtime.errors import ConfigError, suggest

if TYPE_CHECKING:
    from edgead.runtime.bundle.bundle import Bundle
    from edgead.runtime.bundle.manifest import Manifest


class RunOptions(TypedDict, total=False):
    """The fields of `RunConfig`, as keywords."""

    backend: str
    precision: str | None
    threads: int | None
    batch: int
    native_code: bool
    profile: str | Path | None
    made_here: bool


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What is asked for when a bundle is opened; shared by the API and the command line.

    Attributes:
        backend: registry name or ``auto``; a named backend never falls back to another.
        precision: a key of the manifest's ``precisions``; None means ``fp32``.
        threads: CPU threads of the backend; None leaves the choice to it.
        batch: batch size the backend is compiled for; 0 keeps it open.
        native_code: False: the graph computes all, though native code for a part of it is there.
        profile: what ``edgead tune`` wrote, a file or the folder that holds the bundle's. It is used where it was made
            for this bundle on this device, and where neither a backend nor a precision nor a number of threads is asked
            for. None: there is none.
        made_here: this process wrote the bundle, so that no signature is asked for (`Bundle.open`).
    """

    backend: str = "auto"
    precision: str | None = None
    threads: int | None = None
    batch: int = 1
    native_code: bool = True
    profile: str | Path | None = None
    made_here: bool = False

    def settle(self, bundle: Bundle, chosen: tuple[str, str]) -> Opening:
        """Return what to open a bundle with.

        Args:
            bundle: opened.
            chosen: what `edgead.runtime.backends.choose` gave for ``backend``, before the bundle was read.

        Raises:
            ConfigError: unknown precision.
        """
        (backend, why), left_out = chosen, None
        precision, threads, native_code = self.precision, self.threads, self.native_code
        if self.profile is not None and (self.backend, precision, threads) == ("auto", None, None):
            from edgead.runtime.inspection.device_profile import settle

            choice, why, left_out = settle(bundle, self.profile, backend, why)
            backend, precision, threads = choice.backend, choice.precision, choice.threads
            native_code = native_code and choice.native_code != "omitted"
        precision = precision or "fp32"
        if precision not in bundle.manifest.precisions:
            known = suggest(precision, bundle.manifest.precisions)
            raise ConfigError(f"{bundle.path} has no precision '{precision}'.{known}")
        settled = RunConfig(backend, precision, threads, self.batch, native_code)
        return Opening(settled, precision, why, left_out)


@dataclass(frozen=True, slots=True)
class Opening:
    """What a bundle is opened with.

    Attributes:
        config: settled: a registry name, a precision of the bundle, and no profile; ``precision`` is its own.
        why: one line on how the backend was chosen; left_out: why a device profile that is there was not used.
    """

    config: RunConfig
    precision: str
    why: str
    left_out: str | None = None


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
