"""Examples that only a device can run are at least well-formed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

JETSON = Path(__file__).resolve().parent.parent / "examples" / "jetson"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian package systemd)")
def test_systemd_accepts_the_unit_file(tmp_path):
    text = (JETSON / "edgead.service").read_text()
    unit = tmp_path / "edgead.service"
    # Program and user of the station are not here.
    unit.write_text(text.replace("/opt/edgead/venv/bin/edgead", "/bin/true").replace("User=edgead", "User=root"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "edgead.service" not in done.stderr
    unit.write_text(text.replace("KillSignal=SIGTERM", "KillSignal=SIGNONSENSE"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "SIGNONSENSE" in done.stderr


def test_every_command_of_the_unit_file_exists():
    from typer.main import get_command

    from edgead.cli import app

    known = get_command(app).commands
    lines = [line for line in (JETSON / "edgead.service").read_text().splitlines() if line.startswith("ExecStart")]
    verbs = [line.split("bin/edgead ")[1].split()[0] for line in lines]
    assert verbs == ["check", "run"]
    assert set(verbs) <= set(known)
