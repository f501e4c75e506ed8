"""The league of devices: one measured row as a signed JSON file, so that a table can be made of rows by many people.

A signature says that whoever has the key wrote this row, and that nobody has changed it since; it does not say that the
measurement was honest. What makes a row repeatable is in it: device, power mode, clocks, watts, load, bundle, versions.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.signature import key_id
from edgead.runtime.device.bench_report import BenchReport
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import atomic_write, reason, user_folder
from edgead.runtime.signing import Signer, make_key, signature_holds

SCHEMA: Literal["edgead.league/1"] = "edgead.league/1"
DEFAULT_SECONDS = 600.0
_MOST_BYTES = 1 << 20
_GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
_IDLE_LOAD = 0.25  # of the cores; above that other programs were at work


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LeagueBundle(_Strict):
    """What was measured: its name, the digest of its manifest, detector and network size."""

    name: str = Field(max_length=200)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    detector: str = Field(max_length=100)
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class LeagueLatency(_Strict):
    """Camera to decision, in ms."""

    p50: float = Field(gt=0)
    p95: float = Field(gt=0)
    p99: float = Field(gt=0)
    max: float = Field(gt=0)


class LeagueEntry(_Strict):
    """One row.

    Attributes:
        device: the board's model, else the GPU's name, else the processor's.
        load_before: average number of busy processes in the minute before; idle: whether that is next to none.
        board: as `edgead bench` has it: power mode, clocks, watts, before, during and after.
        accuracy: on the bundle's references, beside the torch model.
    """

    measured_at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    device: str = Field(max_length=200)
    machine: dict[str, Any]
    board: dict[str, Any]
    load_before: float = Field(ge=0)
    idle: bool
    backend: dict[str, Any]
    precision: str = Field(max_length=50)
    duration_s: float = Field(gt=0)
    frames: int = Field(ge=1)
    failed: int = Field(ge=0)
    camera: tuple[int, int]
    rate_fps: float | None
    latency_ms: LeagueLatency
    throughput_fps: float = Field(gt=0)
    accuracy: dict[str, Any]
    bundle: LeagueBundle
    versions: dict[str, str]

    @property
    def watts(self) -> float | None:
        """The most that all rails or GPUs together took in any look at the board; None where it does not tell."""
        during = self.board.get("during")
        looks = [self.board.get("before"), *(during if isinstance(during, list) else []), self.board.get("after")]
        found = [sum(values) for look in looks if isinstance(look, dict) and (values := _watts(look))]
        return max(found, default=None)


class LeagueSignature(_Strict):
    """Who wrote it: an Ed25519 key and its signature of the row."""

    public_key: str = Field(pattern="^[0-9a-f]{64}$")
    signature: str = Field(pattern="^[0-9a-f]{128}$")


class LeagueFile(_Strict):
    """A row with its signature."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    format: Literal["edgead.league/1"] = Field(alias="schema")
    entry: LeagueEntry
    signature: LeagueSignature

    @property
    def key_id(self) -> str:
        """The id of the key that signed, as `edgead keygen` shows it."""
        return key_id(self.signature.public_key)


def make_entry(report: BenchReport, load_before: float) -> LeagueEntry:
    """Return the row of a measurement of one backend and precision for a time.

    Raises:
        ConfigError: it was of several, or of a number of frames.
    """
    if len(report.rows) != 1 or report.duration_s is None:
        raise ConfigError("a row of the league is one backend and one precision, measured for a time")
    (row,) = report.rows
    with Bundle.open(report.bundle, made_here=True) as bundle:
        if bundle.sha256 != report.model_sha256:
            raise ConfigError(f"{report.bundle} was replaced while it was measured; measure again")
        manifest = bundle.manifest
    data, latency = row.to_dict(), row.latency
    cores = int(report.machine.get("cores") or 1)
    return LeagueEntry(
        measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=_device(report),
        machine=report.machine,
        board=report.board,
        load_before=round(load_before, 2),
        idle=load_before <= _IDLE_LOAD * cores,
        backend=data["backend"],
        precision=row.precision,
        duration_s=report.duration_s,
        frames=row.inspected + row.failed,
        failed=row.failed,
        camera=report.frame_size,
        rate_fps=report.rate_fps,
        latency_ms=LeagueLatency(p50=latency.p50, p95=latency.p95, p99=latency.p99, max=latency.max),
        throughput_fps=data["throughput_fps"],
        accuracy=data["accuracy"],
        bundle=LeagueBundle(
            name=manifest.name,
            sha256=report.model_sha256,
            detector=manifest.detector.name,
            width=manifest.input.width,
            height=manifest.input.height,
        ),
        versions=report.versions,
    )


def league_signer(path: Path | None) -> Signer:
    """Return who signs: the key of a file, or this user's own for the league, made where there is none yet.

    Raises:
        ConfigError: no such key, ``cryptography`` is missing, or this user has no folder for one.
    """
    if path is not None:
        return Signer(path)
    folder = user_folder("config")
    if folder is None:
        raise ConfigError("this user has no home folder for a key; make one with: edgead keygen FILE, and give --key")
    own = folder / "edgead" / "league.key"
    if not own.exists():
        try:
            own.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {own.parent}: {reason(error)}") from error
        make_key(own)
    return Signer(own)


def check_place(out: Path) -> None:
    """Raise `ConfigError` where the file of a row could not be written."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name the file to write, such as {out / 'row.json'}")
    if not out.parent.is_dir():
        raise ConfigError(f"the folder of {out} does not exist; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"no right to write into {out.parent}; name another file")


def busy_processes() -> float:
    """Return how many processes were busy on average in the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def write_entry(entry: LeagueEntry, signer: Signer, out: Path) -> LeagueFile:
    """Sign a row and write its file, whole or not at all; raises `ConfigError` where it cannot be written."""
    signed = LeagueSignature(public_key=signer.public, signature=signer.sign(_message(entry)))
    made = LeagueFile(schema=SCHEMA, entry=entry, signature=signed)
    text = json.dumps(made.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"
    with atomic_write(out, ConfigError) as stream:
        stream.write(text.encode())
    return made


def read_entry(path: Path) -> LeagueFile:
    """Read a row and verify its signature.

    Raises:
        DataError: unreadable, no such file, or altered after it was signed. ConfigError: ``cryptography`` is missing.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is larger than a row of the league can be")
        found = LeagueFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:120] or "(whole)"
        raise DataError(f"{path} is no row of the league: field {where!r}: {first['msg'][:200]}") from error
    signed = found.signature
    try:
        holds = signature_holds(signed.public_key, signed.signature, _message(found.entry))
    except ValueError as error:
        raise DataError(f"{path} is no row of the league: it holds a number that is none") from error
    if not holds:
        raise DataError(f"{path} was altered after it was signed; it is refused")
    return found


def _message(entry: LeagueEntry) -> bytes:
    """What is signed: the row in one form, behind a word that keeps the signature from counting for anything else."""
    text = json.dumps(entry.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{SCHEMA}\n{text}".encode()


def _device(report: BenchReport) -> str:
    before = report.board["before"]
    gpus = [str(gpu["name"]) for gpu in before.get("gpus", []) if gpu.get("name")]
    cpu = report.machine.get("cpu") or report.machine.get("machine") or "unknown"
    on_gpu = report.rows[0].backend.name in _GPU_BACKENDS
    return str(before.get("model") or (gpus[0] if gpus and on_gpu else cpu))


def _watts(look: dict[str, Any]) -> list[float]:
    rails, gpus = look.get("watts"), look.get("gpus")
    if isinstance(rails, dict):
        # VDD_IN is a board's whole intake, of which the other rails are parts.
        found = [rails["VDD_IN"]] if "VDD_IN" in rails else list(rails.values())
    else:
        found = [gpu.get("watts") for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    return [float(value) for value in found if isinstance(value, int | float)]
