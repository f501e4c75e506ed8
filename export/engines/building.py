"""``edgead build``: from a bundle's graph files to engines in the device's cache. Needs neither torch nor onnx."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.export.engines.build_report import BuildReport, EngineRow, Refused
from edgead.export.engines.isolation import ask_library
from edgead.export.engines.native import build_native, stored_package
from edgead.runtime.backends.engine_cache import EngineCache, StoredEngine
from edgead.runtime.backends.engine_key import PORTABLE, EngineKey, graph_digest, graph_precision, plugin_digest
from edgead.runtime.backends.gpu_driver import CudaDevice, cuda_driver, require_gpu
from edgead.runtime.backends.native.library import load_library
from edgead.runtime.backends.native.sources import SOURCES
from edgead.runtime.backends.native_step import lacking
from edgead.runtime.backends.tensorrt_library import TARGETS, Target
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError, suggest
from edgead.runtime.progress import Progress
from edgead.runtime.version import __version__

CPU = "cpu"

_SMALL_BOARD_BYTES = 10 << 30
_DESCRIBE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What can be chosen of a build.

    Attributes:
        precisions: keys of the manifest's precisions; none means those that are meant for the target.
        compute_capabilities: for ``tensorrt-rtx``, such as ``8.6``, or ``portable``; none means that of this machine's
            GPU, and without a GPU all that the library builds for.
        max_batch: largest batch of the engine.
        workspace_mb: limit of a layer's scratch memory in MiB; None means an eighth of the memory on boards of up to
            10 GiB, which CPU and GPU share, and the library's own choice elsewhere.
        plugin: a plugin library; the runtime finds it through the variable ``EDGEAD_TENSORRT_PLUGIN``.
        dla: number of the deep-learning accelerator to use (Jetson).
        timeout_s: seconds after which the library is taken to hang.
        rebuild: build although a fitting engine is in the cache.
    """

    precisions: Sequence[str] = ()
    compute_capabilities: Sequence[str] = ()
    max_batch: int = 1
    workspace_mb: int | None = None
    plugin: Path | None = None
    dla: int | None = None
    timeout_s: float = 1800.0
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"--batch must be at least 1, got {self.max_batch}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConfigError(f"--workspace-mb must be at least 1, got {self.workspace_mb}")
        if self.dla is not None and self.dla < 0:
            raise ConfigError(f"--dla is the number of an accelerator, 0 or 1, got {self.dla}")
        if not self.timeout_s > 0:
            raise ConfigError(f"--timeout must be above 0 seconds, got {self.timeout_s:g}")

    @property
    def workspace_bytes(self) -> int | None:
        if self.workspace_mb is not None:
            return self.workspace_mb << 20
        memory = _memory_bytes()
        return memory // 8 if memory is not None and memory <= _SMALL_BOARD_BYTES else None


def build_engines(
    path: Path,
    *,
    target: str = "tensorrt",
    cache: EngineCache | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> BuildReport:
    """Build every graph file of a bundle, and put the engines into the cache.

    Args:
        path: a ``.edgead`` file.
        target: ``tensorrt`` builds on and for this machine's GPU; ``tensorrt-rtx`` also for others, without one;
            ``cpu`` compiles the native code for this machine's processor, once for all bundles.
        cache: where the engines go.
        options: see `BuildOptions`.
        progress: called with ``(stage, done, total)``.
        on_wait: called where another builder must be waited for.

    Raises:
        ConfigError: unknown target, precision or compute capability.
        BackendUnavailable: library, driver or GPU is missing.
        BackendError: the library refuses a graph, crashes or hangs, or the cache cannot be written.
        ParityError: an FP16 or INT8 graph came out in FP32.
        BundleError: the bundle is damaged.
    """
    options = options or BuildOptions()
    cache = cache or EngineCache()
    if target == CPU:
        return _build_cpu(path, cache, options, on_wait)
    chosen = next((name for name in TARGETS if name == target), None)
    if chosen is None:
        raise ConfigError(f"unknown target '{target}'.{suggest(target, [*TARGETS, CPU])}")
    device = _device(chosen, options)
    plugin = plugin_digest(options.plugin)
    with Bundle.open(path) as bundle:
        keys = _precisions(bundle, chosen, options.precisions)
        found = ask_library({"action": "describe", "target": chosen}, doing="starting", timeout_s=_DESCRIBE_SECONDS)
        version = found["version"]
        wanted = _capabilities(chosen, version, found["compute_capabilities"], options.compute_capabilities, device)
        # "All GPUs" means those that can: Turing, for one, has no FP32 matrix product in RTX.
        may_refuse = not options.compute_capabilities and device is None
        builder = _Builder(chosen, version, plugin, cache, options, on_wait)
        rows: list[EngineRow] = []
        refused: list[Refused] = []
        for precision in keys:
            for made in builder.build_precision(bundle, precision, wanted, may_refuse, progress):
                if isinstance(made, EngineRow):
                    rows.append(made)
                else:
                    refused.append(made)
        if refused and not rows:
            raise BackendError(refused[0].reason)
        return BuildReport(
            bundle=path,
            model_sha256=bundle.sha256,
            target=chosen,
            version=version,
            device=device.name if device is not None else None,
            cache=cache.folder,
            engines=tuple(rows),
            refused=tuple(refused),
        )


def _build_cpu(
    path: Path, cache: EngineCache, options: BuildOptions, on_wait: Callable[[], None] | None
) -> BuildReport:
    with Bundle.open(path) as bundle:
        kinds = {kind for precision in bundle.manifest.precisions for kind in bundle.native_kinds(precision)}
        if not kinds:
            raise ConfigError(
                f"{path} has no large memory bank and no large Gaussians; --target cpu has nothing to build for it"
            )
        packaged = stored_package()
        if packaged is not None:
            stored, reused = packaged, True
        else:
            stored, reused = build_native(cache, rebuild=options.rebuild, on_wait=on_wait)
        library = load_library(stored.path)
        missing = [reason for kind in sorted(kinds) if (reason := lacking(library, kind)) is not None]
        if len(missing) == len(kinds):
            raise BackendUnavailable(f"this processor lacks {missing[0]}; the bundle runs as it is")
        return BuildReport(
            bundle=path,
            model_sha256=bundle.sha256,
            target=CPU,
            version=stored.key.version,
            device=None,
            cache=cache.folder,
            engines=(EngineRow(", ".join(source.name for source in SOURCES), stored, reused),),
            refused=(),
        )


def _device(target: Target, options: BuildOptions) -> CudaDevice | None:
    if target == "tensorrt":
        if options.compute_capabilities:
            raise ConfigError("TensorRT builds for this machine's GPU only; omit --compute-capability")
        if cuda_driver().problem is not None:
            hint = "; without a GPU only --target tensorrt-rtx builds" if not cuda_driver().found else ""
            require_gpu(f"--target tensorrt (build on the device itself{hint})")
        return cuda_driver().devices[0]
    if options.plugin is not None:
        # Seen with 1.7: the parser takes the plugin, then the process ends.
        raise ConfigError("TensorRT-RTX has no plugins; omit --plugin, the graph holds plain layers too")
    if options.dla is not None:
        raise ConfigError("TensorRT-RTX has no DLA; omit --dla")
    driver = cuda_driver()
    return driver.devices[0] if driver.problem is None else None


def _precisions(bundle: Bundle, target: Target, asked: Sequence[str]) -> list[str]:
    known = bundle.manifest.precisions
    for name in asked:
        if name not in known:
            raise ConfigError(f"{bundle.path} has no precision '{name}'.{suggest(name, known)}")
        if name.endswith("-cpu"):
            raise ConfigError(f"'{name}' is quantised for CPUs and would give wrong scores on {target}; use 'int8-trt'")
    meant = [name for name, entry in known.items() if target in entry.runtimes and not name.endswith("-cpu")]
    # A bundle of an edgead that did not know the target yet.
    return list(dict.fromkeys(asked)) or meant or ["fp32"]


def _capabilities(
    target: Target, version: str, known: Sequence[str], asked: Sequence[str], device: CudaDevice | None
) -> list[str]:
    if target == "tensorrt":
        assert device is not None
        return [device.compute_capability]
    for name in asked:
        if name not in (*known, PORTABLE):
            raise ConfigError(
                f"TensorRT-RTX {version} builds for compute capability {', '.join(known)} or '{PORTABLE}', "
                f"not '{name}'; for a Jetson run 'edgead build' on the device"
            )
    if asked:
        return list(dict.fromkeys(asked))
    if device is None:
        return list(known)
    # A GPU that the library has no target for, such as Hopper, can at most run the portable engine.
    return [device.compute_capability if device.compute_capability in known else PORTABLE]


@dataclass(frozen=True, slots=True)
class _Builder:
    """What all engines of one call of `build_engines` are built with."""

    target: Target
    version: str
    plugin: str
    cache: EngineCache
    options: BuildOptions
    on_wait: Callable[[], None] | None

    def build_precision(
        self,
        bundle: Bundle,
        precision: str,
        capabilities: Sequence[str],
        may_refuse: bool,
        progress: Progress | None,
    ) -> Iterator[EngineRow | Refused]:
        """Build each graph file of a precision for each GPU; with ``may_refuse`` a failure is told, not raised."""
        with bundle.model_files(precision) as model:
            graphs = [model.with_name(name) for name in bundle.graph_files(precision)]
            total = len(graphs) * len(capabilities)
            for number, (graph, capability) in enumerate((g, c) for g in graphs for c in capabilities):
                if progress is not None:
                    progress(f"build {precision}", number, total)
                digest = graph_digest(graph)
                key = EngineKey(digest, self.target, self.version, capability, graph_precision(graph), self.plugin)
                try:
                    yield self._build(graph, key)
                except BackendError as error:
                    if not may_refuse:
                        raise
                    yield Refused(graph.name, capability, str(error))
            if progress is not None:
                progress(f"build {precision}", total, total)

    def _build(self, graph: Path, key: EngineKey) -> EngineRow:
        settings = {
            "max_batch": self.options.max_batch,
            "workspace_bytes": self.options.workspace_bytes,
            "dla": self.options.dla,
        }
        with self.cache.building(self.on_wait):
            # Inside the lock: another builder may just have made it.
            stored = None if self.options.rebuild else _fitting(self.cache, key, settings)
            if stored is not None:
                return EngineRow(graph.name, stored, reused=True)
            # RTX asks the GPU for a timing cache, which it else does without.
            timing = self.cache.folder / f"timing-{key.version}-{key.compute_capability}.cache"
            with self.cache.scratch() as engine:
                answer = ask_library(
                    {
                        "action": "build",
                        "target": key.library,
                        "graph": str(graph),
                        "engine": str(engine),
                        "precision": key.precision,
                        "compute_capability": key.compute_capability if key.library == "tensorrt-rtx" else None,
                        "plugin": None if self.options.plugin is None else str(self.options.plugin.resolve()),
                        "timing_file": str(timing) if key.library == "tensorrt" else None,
                        **settings,
                    },
                    doing=f"building {graph.name} for {key.compute_capability}",
                    timeout_s=self.options.timeout_s,
                )
                info = {"edgead": __version__, "graph": graph.name, "host": platform.machine(), **settings, **answer}
                stored = self.cache.store(key, engine, info)
        return EngineRow(graph.name, stored, reused=False)


def _fitting(cache: EngineCache, key: EngineKey, settings: Mapping[str, Any]) -> StoredEngine | None:
    """Return a whole engine of the same settings; one that is damaged is built again, for its owner asks for it."""
    with suppress(BackendError):
        stored = cache.find(key)
        if stored is not None and all(stored.info.get(name) == value for name, value in settings.items()):
            cache.read(stored)
            return stored
    return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
