"""The state of the board that a figure was taken on: power mode, clocks, temperatures, watts, throttling.

The same network on the same Jetson differs by a factor of two between power modes, so a latency without them cannot be
repeated. Everything here is read, nothing set; what a board does not tell is omitted. The Jetson and NVML parts are
written after NVIDIA's documentation and have not been executed on such a board.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_TIMEOUT_S = 5.0
_NVML_NAME_BYTES = 96
# nvmlTemperatureSensors_t and nvmlClockType_t of nvml.h
_GPU_DIE = 0
_CLOCKS = {"sm_mhz": 1, "memory_mhz": 2}
# nvmlClocksEventReasons of nvml.h; idle clocks (0x1) and clocks that somebody set (0x2) are no throttling
_REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def describe_board(root: Path = Path("/")) -> dict[str, Any]:
    """Return what this machine tells of itself at this moment, ready for JSON; about half a second on a Jetson.

    Keys, each only where it is known: ``model``, ``l4t`` (NVIDIA's release), ``power_mode``, ``governor``, ``cpu_mhz``
    and ``cpu_max_mhz`` (highest over the cores), ``temperatures_c``, ``watts`` (by rail), ``throttle_events``
    (over-current events since boot), ``gpus`` (name, clocks, temperature, watts, reasons for throttling).

    Args:
        root: where ``/proc``, ``/sys`` and ``/etc`` are.
    """
    found = {
        "model": _read(root / "proc/device-tree/model"),
        "l4t": _l4t(_read(root / "etc/nv_tegra_release")),
        "power_mode": _power_mode(),
        "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cpu_mhz": _highest_mhz(root, "scaling_cur_freq"),
        "cpu_max_mhz": _highest_mhz(root, "cpuinfo_max_freq"),
        "temperatures_c": _temperatures(root),
        "watts": _rails(),
        "throttle_events": _over_current_events(root),
        "gpus": _gpus(),
    }
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").replace("\0", "").strip() or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _read(path)
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _l4t(text: str | None) -> str | None:
    """``# R36 (release), REVISION: 4.3, GCID: …`` -> ``36.4.3``."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    return f"{match[1]}.{match[2]}" if match else None


def _highest_mhz(root: Path, name: str) -> float | None:
    values = [_number(path) for path in (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")]
    known = [value for value in values if value is not None]
    return max(known) / 1000.0 if known else None


def _temperatures(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _read(zone / "type"), _number(zone / "temp")
        # A zone that is switched off reads as far below freezing.
        if name is not None and value is not None and value > -40_000:
            found[name] = value / 1000.0
    return found


def _over_current_events(root: Path) -> int | None:
    values = [_number(path) for path in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")]
    known = [int(value) for value in values if value is not None]
    return sum(known) if known else None


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None


def _power_mode() -> str | None:
    """``NV Power Mode: MAXN`` -> ``MAXN``."""
    match = re.search(r"NV Power Mode:\s*(\S+)", _output("nvpmodel", "-q") or "")
    return match[1] if match else None


def _rails() -> dict[str, float]:
    """``VDD_IN 4860mW/4821mW`` (now/average) -> ``{"VDD_IN": 4.86}``; older releases print no unit."""
    if shutil.which("tegrastats") is None:
        return {}
    # It prints a line in every interval and never ends.
    with (
        contextlib.suppress(OSError),
        subprocess.Popen(
            ["tegrastats", "--interval", "500"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process,
    ):
        try:
            line = _first_line(process)
        finally:
            process.kill()
        return {name: int(value) / 1000.0 for name, value in re.findall(r"\b(V\w+) (\d+)(?:mW)?/\d+", line)}
    return {}


def _first_line(process: subprocess.Popen[str]) -> str:
    timer = threading.Timer(_TIMEOUT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        return process.stdout.readline()
    finally:
        timer.cancel()


def _gpus() -> list[dict[str, Any]]:
    """Ask NVML, the management library of NVIDIA's desktop and server drivers (JetPack 7 has it too)."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2():
        return []
    try:
        return list(_each_gpu(nvml))
    finally:
        nvml.nvmlShutdown()


def _each_gpu(nvml: ctypes.CDLL) -> Iterator[dict[str, Any]]:
    count = _ask(nvml.nvmlDeviceGetCount_v2, ctypes.c_uint)
    for index in range(int(count or 0)):
        device = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
            continue
        name = ctypes.create_string_buffer(_NVML_NAME_BYTES)
        nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(_NVML_NAME_BYTES))
        found: dict[str, Any] = {"name": name.value.decode(errors="replace")}
        for key, clock in _CLOCKS.items():
            found[key] = _ask(nvml.nvmlDeviceGetClockInfo, ctypes.c_uint, device, ctypes.c_int(clock))
        found["temperature_c"] = _ask(nvml.nvmlDeviceGetTemperature, ctypes.c_uint, device, ctypes.c_int(_GPU_DIE))
        for key, function in (
            ("watts", nvml.nvmlDeviceGetPowerUsage),
            ("power_limit_watts", nvml.nvmlDeviceGetEnforcedPowerLimit),
        ):
            milliwatts = _ask(function, ctypes.c_uint, device)
            found[key] = None if milliwatts is None else milliwatts / 1000.0
        # Its newer name (…EventReasons) came with driver 535; this one is still there.
        reasons = _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, ctypes.c_ulonglong, device)
        if reasons is not None:
            found["throttled"] = [text for bit, text in _REASONS.items() if reasons & bit]
        yield {key: value for key, value in found.items() if value is not None}


def _ask(function: Callable[..., int], kind: Any, *arguments: Any) -> int | None:
    """Return the number that an NVML function writes to its last argument, None where it refuses."""
    value = kind()
    return int(value.value) if function(*arguments, ctypes.byref(value)) == 0 else None
