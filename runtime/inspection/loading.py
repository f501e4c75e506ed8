"""What judges, read from a bundle: an open backend with its thresholds, what frames it takes, what may replace it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from edgead.runtime.backends import Backend, BackendInfo, choose
from edgead.runtime.backends.routed_backend import open_model
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.baseline import Normals
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.run_config import Opening, RunConfig, require_parity


@dataclass(frozen=True, slots=True)
class ServingModel:
    """What judges; a hot swap replaces all of it at once.

    Attributes:
        cleanup: releases the backend and the files that it maps.
        precision: what the graph computes in, where the runtime cannot tell.
        normals: what normal parts looked like, by category; empty where nobody measured it.
        promised: the bundle's own thresholds with their meaning, by category; empty without a bundle.
        sha256: digest of the bundle it was read from; config: what that was opened with, settled.
    """

    backend: Backend
    limits: Limits
    name: str
    cleanup: ExitStack
    precision: str | None = None
    normals: Mapping[str | None, Normals] = field(default_factory=dict)
    promised: Mapping[str | None, Threshold] = field(default_factory=dict)
    sha256: str | None = None
    config: RunConfig | None = None

    @property
    def serving(self) -> tuple[str, RunConfig, BackendInfo] | None:
        """Digest of the bundle, what it was opened with, and what runs; None where it came from no bundle."""
        return None if self.sha256 is None or self.config is None else (self.sha256, self.config, self.describe())

    def describe(self) -> BackendInfo:
        """Return what really runs."""
        info = self.backend.describe()
        return info if self.precision is None else replace(info, precision=self.precision)


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle opened on this device.

    Attributes:
        asked: what to open another bundle with in its place.
        view: what it sees of a frame; bits: of a 16-bit image file's values, those that carry the picture.
        source: path and digest of the bundle.
    """

    model: ServingModel
    view: View
    bits: int
    opening: Opening
    asked: RunConfig
    source: tuple[Path, str]


def load_bundle(path: str | Path, config: RunConfig) -> LoadedBundle:
    """Open a bundle; every check of `edgead.runtime.bundle` runs before anything of it is used.

    Raises:
        BundleError, BackendUnavailable, ConfigError: as `Inspector.open`.
    """
    chosen = choose(config.backend)
    with Bundle.open(Path(path), made_here=config.made_here) as bundle, ExitStack() as stack:
        manifest, view = bundle.manifest, bundle.view()
        opening = config.settle(bundle, chosen)
        settled, precision = opening.config, opening.precision
        require_parity(manifest, manifest.precisions[precision].file, settled.backend)
        graph = stack.enter_context(bundle.model_files(precision, native_code=settled.native_code))
        backend = open_model(
            settled.backend,
            manifest,
            graph,
            precision,
            threads=settled.threads,
            batch=settled.batch,
            bundle=bundle.path,
        )
        # Closed first: the backend maps the extracted weights.
        stack.callback(backend.close)
        # A runtime cannot tell what is in a graph; it only knows what it computes the rest in.
        told = "int8" if precision.startswith("int8") else None
        model = ServingModel(
            backend,
            manifest.limits(precision),
            manifest.name,
            stack.pop_all(),
            told,
            manifest.normals(),
            manifest.promised(precision),
            bundle.sha256,
            replace(settled, precision=precision),
        )
        # Another bundle may have a profile of its own; without profiles it continues with this very backend.
        asked = config if config.profile is not None else replace(config, backend=settled.backend)
        return LoadedBundle(
            model,
            view,
            manifest.input.bits,
            opening,
            asked,
            (bundle.path, bundle.sha256),
        )


class TakesFrames(Protocol):
    """What the frames of an inspector must look like."""

    view: View
    bits: int


def require_same_input(path: str | Path, running: TakesFrames, fresh: TakesFrames) -> None:
    """Refuse a bundle that cannot take over in the middle of a stream.

    Raises:
        ConfigError: it takes images of another size, another region or other tiles of a frame, aligned otherwise, or
            other bits of 16-bit files.
    """
    old, new = running.view, fresh.view
    if (new.height, new.width) != (old.height, old.width):
        raise ConfigError(
            f"{path} takes images of {new.width}x{new.height}, this model {old.width}x{old.height}; "
            "stop the stream and start it with the new bundle"
        )
    regions_differ = not old.region.same(new.region) if old.region is not None else new.region is not None
    aligned_otherwise = not old.align.same(new.align) if old.align is not None else new.align is not None
    if regions_differ or aligned_otherwise or old.tiles != new.tiles:
        raise ConfigError(
            f"{path} judges another region or other tiles of the frame, or aligns it otherwise; "
            "stop the stream and start it with the new bundle"
        )
    if fresh.bits != running.bits:
        raise ConfigError(
            f"{path} takes {fresh.bits} bits of 16-bit image files, this model {running.bits}; "
            "stop the stream and start it with the new bundle"
        )


def require_same_decisions(path: str | Path, backend: Backend, precision: str) -> None:
    """Replay a bundle's references on a backend.

    Raises:
        BundleError: it does not decide here as it did when it was exported.
    """
    from edgead.runtime.inspection.replay import problems, replay

    with Bundle.open(Path(path)) as bundle:
        found = list(problems(replay(backend, bundle, precision)))
    if found:
        raise BundleError(f"{path} does not decide here as it did when it was exported: {found[0]}")
