"""What a board tells of itself, on made ones: no Jetson and no NVIDIA driver is here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgead.runtime.device.board_status import describe_board

FAKE = Path(__file__).parent / "fake_gpu"
posix = pytest.mark.skipif(os.name == "nt", reason="the commands of a Jetson are shell scripts here")


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files and commands as on an Orin with JetPack 6."""
    root = tmp_path / "root"
    put(root, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    put(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    for core, now in enumerate((729600, 1510400)):
        put(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{now}\n")
        put(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", "1728000\n")
        put(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "schedutil\n")
    for zone, (name, value) in enumerate((("cpu-thermal", 48531), ("cv0-thermal", -256000), ("tj-thermal", 49250))):
        put(root, f"sys/class/thermal/thermal_zone{zone}/type", f"{name}\n")
        put(root, f"sys/class/thermal/thermal_zone{zone}/temp", f"{value}\n")
    put(root, "sys/class/hwmon/hwmon3/oc1_event_cnt", "0\n")
    put(root, "sys/class/hwmon/hwmon3/oc3_event_cnt", "7\n")
    commands = tmp_path / "bin"
    put(commands, "nvpmodel", "#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    line = (
        "11-22-2026 06:00:00 RAM 2448/7620MB (lfb 3x4MB) SWAP 0/3810MB CPU [12%@1510,0%@729] GR3D_FREQ 98% "
        "cpu@48.5C tj@49.25C VDD_IN 9860mW/9821mW VDD_CPU_GPU_CV 4120mW/4098mW VDD_SOC 1480mW/1480mW"
    )
    put(commands, "tegrastats", f"#!/bin/sh\necho '{line}'\nexec sleep 60\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return root


@posix
def test_a_jetson_tells_its_power_mode_clocks_temperatures_watts_and_throttling(jetson):
    board = describe_board(jetson)
    board.pop("gpus", None)
    assert board == {
        "model": "NVIDIA Jetson Orin Nano Developer Kit",
        "l4t": "36.4.3",
        "power_mode": "15W",
        "governor": "schedutil",
        "cpu_mhz": 1510.4,
        "cpu_max_mhz": 1728.0,
        "temperatures_c": {"cpu-thermal": 48.531, "tj-thermal": 49.25},
        "watts": {"VDD_IN": 9.86, "VDD_CPU_GPU_CV": 4.12, "VDD_SOC": 1.48},
        "throttle_events": 7,
    }


@posix
def test_commands_that_fail_or_say_something_else_leave_their_part_out(jetson, tmp_path):
    put(
        tmp_path / "bin",
        "nvpmodel",
        "#!/bin/sh\necho 'NVPM ERROR: Error opening /var/lib/nvpmodel/status' >&2\nexit 1\n",
    )
    put(tmp_path / "bin", "tegrastats", "#!/bin/sh\nexit 1\n")
    board = describe_board(jetson)
    assert "power_mode" not in board
    assert "watts" not in board


def test_a_machine_that_tells_nothing_gives_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {"gpus"} >= set(describe_board(tmp_path))


@pytest.mark.skipif(not shutil.which("gcc") or sys.platform != "linux", reason="builds a stand-in for the driver")
def test_nvml_tells_clocks_watts_and_why_a_gpu_is_held_back(tmp_path):
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(FAKE / "libnvidia-ml.c")], check=True)
    program = (
        "import json; from edgead.runtime.device.board_status import describe_board; "
        "print(json.dumps(describe_board()['gpus']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert json.loads(done.stdout) == [
        {
            "name": "Busy",
            "sm_mhz": 1300,
            "memory_mhz": 7001,
            "temperature_c": 71,
            "watts": 68.5,
            "power_limit_watts": 70.0,
            "throttled": ["software power cap", "hardware thermal slowdown"],
        },
        {"name": "Quiet"},
    ]
