"""``edgead doctor``: what this machine can run, tried out where that is cheap, and the command for what is missing."""

from __future__ import annotations

import base64
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgead.runtime.backends import REGISTRY, open_backend
from edgead.runtime.backends.common import first_line
from edgead.runtime.backends.engine_cache import default_folder
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.backends.native.library import find_library, packaged_library
from edgead.runtime.backends.native_step import describe_native
from edgead.runtime.backends.tensorrt_library import cuda_extra
from edgead.runtime.device.libraries import DISTRIBUTIONS, OPENCV_PACKAGES, PURPOSE, SINKS, TRAINING
from edgead.runtime.errors import BackendError, BackendUnavailable
from edgead.runtime.imaging.preprocess import RESIZE_RULE, self_check
from edgead.runtime.scratch import private_directory

Status = Literal["ok", "missing", "broken"]

# A scoring graph of three nodes (map: mean over the channels; score: largest cell), opset 18; the test suite rebuilds
# it. A library that is installed but cannot run it is broken, whatever its version says.
PROBE_GRAPH = base64.b64decode(
    "CAg6hwIKHAoGaW1hZ2VzEgFmIgRDYXN0KgkKAnRvGAGgAQIKKAoBZgoBYRIDbWFwIgpSZWR1Y2VNZWFuKg8KCGtlZXBkaW1zGACg"
    "AQIKKwoDbWFwCgFiEgVzY29yZSIJUmVkdWNlTWF4Kg8KCGtlZXBkaW1zGACgAQISAXAqEQgBEAdCAWFKCAMAAAAAAAAAKhkIAhAH"
    "QgFiShABAAAAAAAAAAIAAAAAAAAAWiUKBmltYWdlcxIbChkIAhIVCgcSBWJhdGNoCgIIAgoCCAIKAggDYhgKBXNjb3JlEg8KDQgB"
    "EgkKBxIFYmF0Y2hiHgoDbWFwEhcKFQgBEhEKBxIFYmF0Y2gKAggCCgIIAkIECgAQEg=="
)

_LOW_DISK_BYTES = 500 << 20
# Flags of /proc/cpuinfo that change how fast or in which precision networks run (x86, then ARM).
_CPU_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


@dataclass(frozen=True, slots=True)
class Component:
    """One row: ``detail`` is the version or what was found, ``fix`` the exact command that helps, if there is one."""

    name: str
    status: Status
    detail: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(profiles: Path | None = None) -> list[Component]:
    """Return one row a component. Never raises, never imports torch, and changes nothing on the machine.

    ``profiles``: where device profiles lie; None: nowhere.
    """
    probes: list[tuple[str, Callable[[], Component]]] = [
        ("python", _python),
        ("cpu", _cpu),
        ("memory", _memory),
        ("disk", _disk),
        ("jetson", _jetson),
        ("numpy", partial(_package, "numpy", "numpy", None)),
        ("pillow", partial(_package, "pillow", "PIL", None)),
        ("preprocess", _preprocess),
        ("native code", _native_code),
        ("cuda driver", _cuda_driver),
        *((name, partial(_gpu_backend if entry.gpu else _backend, name)) for name, entry in REGISTRY.items()),
        ("opencv", _opencv),
        ("gstreamer", _gstreamer),
        *((row[0], partial(_package, *row)) for row in (*SINKS, *TRAINING)),
        ("device profiles", partial(_profiles, profiles)),
    ]
    rows = []
    for name, probe in probes:
        try:
            row = probe()
        except Exception as error:  # noqa: BLE001 - a probe that fails is a finding, not the end of the diagnosis
            row = Component(name, "broken", first_line(error))
        # Only on a Jetson is there something to say about Jetsons, and of profiles only where something was tuned.
        if row.name not in ("jetson", "device profiles") or row.status != "missing":
            rows.append(row)
    return rows


def cpu_features(cpuinfo: str) -> list[str]:
    """Return the flags in the text of ``/proc/cpuinfo`` (x86 ``flags``, ARM ``Features``) that matter to networks."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(match.group(1).split()) if match else set()
    return [flag for flag in _CPU_FLAGS if flag in flags]


def jetson_release(text: str) -> str:
    """Return e.g. ``L4T 36.4.3 (JetPack 6)`` for the text of ``/etc/nv_tegra_release``."""
    match = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    if not match:
        return "unknown release: " + " ".join(text.split())[:80]
    jetpack = {"32": 4, "34": 5, "35": 5, "36": 6, "38": 7}.get(match.group(1))  # only the known ones are named
    return f"L4T {match.group(1)}.{match.group(2)}" + (f" (JetPack {jetpack})" if jetpack else "")


def opencv_video(build_information: str) -> dict[str, bool]:
    """Return which of ``FFMPEG``, ``GStreamer`` and ``v4l/v4l2`` the text of ``cv2.getBuildInformation()`` has."""
    found = {}
    for name in ("FFMPEG", "GStreamer", "v4l/v4l2"):
        match = re.search(rf"^\s*{re.escape(name)}:\s*(\w+)", build_information, re.MULTILINE)
        found[name] = bool(match and match.group(1).upper() == "YES")
    return found


def _cuda_driver() -> Component:
    """Return the row of the NVIDIA driver, asked through the driver library itself (no CUDA toolkit needed)."""
    name = "cuda driver"
    driver = cuda_driver()
    if not driver.found:
        detail = "no NVIDIA driver; only tensorrt and the CUDA backends need one"
        return Component(name, "missing", detail, "sudo ubuntu-drivers install" if sys.platform == "linux" else None)
    if driver.problem is not None:
        return Component(name, "broken", driver.problem, "nvidia-smi")
    devices = [f"{device.name} (compute capability {device.compute_capability})" for device in driver.devices]
    return Component(name, "ok", f"CUDA {driver.release}; {', '.join(devices)}")


def _python() -> Component:
    return Component("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _cpu() -> Component:
    text = _read("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    name = match.group(1).strip() if match else platform.processor() or platform.machine() or "unknown"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    features = " ".join(cpu_features(text)) or ("none of note" if text else f"not known on {platform.system()}")
    return Component("cpu", "ok", f"{name}; {usable} cores for this process; features: {features}")


def _native_code() -> Component:
    """Return the row of the code that searches memory banks and computes Gaussians on the CPU."""
    name = "native code"
    library = find_library()
    if library is None:
        detail = "not compiled for this machine: memory banks and Gaussians run as matrix products, slower"
        return Component(name, "missing", detail, "edgead build BUNDLE --target cpu")
    origin = "from the cache" if packaged_library() is None else "came with the package"
    return Component(name, "ok", f"{', '.join(describe_native(library))}; {origin}")


def _memory() -> Component:
    sizes = {key: int(kib) << 10 for key, kib in re.findall(r"^(\w+):\s*(\d+) kB$", _read("/proc/meminfo"), re.M)}
    if "MemTotal" not in sizes:
        return Component("memory", "ok", f"not known on {platform.system()}")
    detail = f"{_gib(sizes['MemTotal'])} in all, {_gib(sizes.get('MemAvailable', 0))} free"
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        detail += f"; this container may use {_gib(int(limit))}"
    return Component("memory", "ok", detail)


def _disk() -> Component:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    detail = f"{_gib(free)} free in {folder}, where graphs are unpacked"
    if free < _LOW_DISK_BYTES:
        return Component("disk", "broken", f"only {detail}", f"du -xsh {folder}/* | sort -h")
    return Component("disk", "ok", detail)


def _jetson() -> Component:
    text = _read("/etc/nv_tegra_release")
    return Component("jetson", "ok" if text else "missing", jetson_release(text) if text else "no Jetson")


def _preprocess() -> Component:
    try:
        self_check()
    except BackendError as error:
        return Component("preprocess", "broken", str(error), "pip install --force-reinstall pillow")
    return Component("preprocess", "ok", f"{RESIZE_RULE} is exact on this machine")


def _backend(name: str) -> Component:
    entry = REGISTRY[name]
    fix = f"pip install 'edgead[{entry.extra}]'"
    if find_spec(entry.package) is None:
        return Component(name, "missing", f"{entry.package} is not installed", fix)
    images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    with private_directory() as folder:
        model = folder / "probe.onnx"
        model.write_bytes(PROBE_GRAPH)
        try:
            backend = open_backend(name, model, threads=1)
        except BackendUnavailable as error:
            # Installed, yet not to be used here: its library cannot be loaded, or the processor lacks something.
            lacks = "cannot be loaded" not in str(error)
            return Component(name, "missing" if lacks else "broken", str(error), None if lacks else fix)
        try:
            score, grid, *_ = backend.run(images)
            info = backend.describe()
        finally:
            backend.close()
    if score.tolist() != [10.0] or grid.tolist() != [[[1.0, 4.0], [7.0, 10.0]]]:
        return Component(name, "broken", f"{info.version} computes a wrong result", f"{fix} --force-reinstall")
    return Component(name, "ok", f"{info.version}, {info.provider}, {info.precision}")


def _gpu_backend(name: str) -> Component:
    """Return the row of a backend that needs a GPU; nothing of it is loaded or run.

    A vendor's runtime initialises CUDA, takes hundreds of megabytes on a board, and can end a process without driver.
    """
    entry = REGISTRY[name]
    fix = f"pip install 'edgead[{entry.extra}]'"
    if name == "tensorrt" and (jetson := _read("/etc/nv_tegra_release")):
        fix = "sudo apt-get install python3-libnvinfer"  # JetPack's own; PyPI has none for it
    if not entry.installed:
        return Component(name, "missing", f"{entry.distribution or entry.package} is not installed", fix)
    found = _first_version((entry.distribution or entry.package, *DISTRIBUTIONS.get(name, ()))) or "version not known"
    problem = cuda_driver().problem
    if problem is not None:
        builds = "; it builds engines here for other machines" if name == "tensorrt-rtx" else ""
        return Component(name, "missing", f"{found}, but {problem}{builds}")
    if name == "onnxruntime-cuda":
        return Component(name, "ok", f"{found}; not tried out")
    if find_spec("cuda") is None:
        return Component(name, "missing", f"{found}, but cuda-bindings is not", f"pip install 'edgead[{cuda_extra()}]'")
    if name == "tensorrt" and found.startswith("11.") and "(JetPack 6)" in jetson_release(jetson or ""):
        return Component(name, "broken", f"{found}, but JetPack 6 supports TensorRT 10.x only", fix)  # NVIDIA, 11.4.1
    return Component(name, "ok", f"{found}; engines in {default_folder()}; to try one: edgead check --backend {name}")


def _opencv() -> Component:
    name, fix = "opencv", "pip install 'edgead[camera]'"
    if find_spec("cv2") is None:
        return Component(name, "missing", "OpenCV is not installed; cameras, streams and videos need it", fix)
    try:
        import cv2
    except ImportError as error:
        # Mostly libGL.so.1, which only the package with windows needs.
        fix = "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
        return Component(name, "broken", f"OpenCV cannot be loaded: {first_line(error)}", fix)
    video = opencv_video(cv2.getBuildInformation())
    parts = [f"{'with' if there else 'without'} {library}" for library, there in video.items()]
    packages = [p for p in OPENCV_PACKAGES if _first_version((p,))]
    if len(packages) > 1:
        parts.append(f"{' and '.join(packages)} overwrite each other: keep one")
    return Component(name, "ok", f"{cv2.__version__}, {', '.join(parts)}")


def _gstreamer() -> Component:
    name = "gstreamer"
    if find_spec("cv2") is not None:
        try:
            import cv2

            if opencv_video(cv2.getBuildInformation())["GStreamer"]:
                return Component(name, "ok", "through OpenCV")
        except ImportError:
            pass  # the row of OpenCV says so
    if find_spec("gi") is not None:
        return Component(name, "ok", "through PyGObject")
    detail = "neither OpenCV nor PyGObject brings it; only csi:// cameras need it (OpenCV from PyPI never has it)"
    fix = "sudo apt-get install python3-opencv gstreamer1.0-plugins-good" if sys.platform == "linux" else None
    return Component(name, "missing", detail, fix)


def _package(name: str, module: str, extra: str | None) -> Component:
    """Return the row of a package without importing it."""
    if find_spec(module) is None:
        fix = f"pip install 'edgead[{extra}]'" if extra else f"pip install {name}"
        purpose = f"; {PURPOSE[extra]}" if extra in PURPOSE else ""
        return Component(name, "missing", f"{name} is not installed{purpose}", fix)
    return Component(name, "ok", _first_version((name,)) or "installed, version not known")


def _profiles(place: Path | None) -> Component:
    from edgead.runtime.inspection.device_profile import describe_profiles

    lines = [] if place is None else describe_profiles(place)
    return Component("device profiles", "ok" if lines else "missing", f"in {place}: {'; '.join(lines)}")


def _first_version(packages: Iterable[str]) -> str | None:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
