"""What ``edgead tune`` chose for one bundle on one device: a JSON file, and when it no longer holds.

A profile holds whole or not at all. It is bound to the bundle's digest, to the device and to the versions of the
libraries it was measured with; where one of them is another, or the file is damaged, it is omitted with one line that
says why. It names a precision of the bundle's own manifest, whose threshold then holds, and nothing else of a bundle.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError

from edgead.runtime.backends import REGISTRY
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.backends.native.library import find_library
from edgead.runtime.backends.native_step import lacking
from edgead.runtime.bundle.field_types import Section, Text, as_tuple
from edgead.runtime.bundle.manifest import made_by_newer, unknown_field
from edgead.runtime.errors import ConfigError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.machine import describe_machine
from edgead.runtime.version import __version__

if TYPE_CHECKING:
    from edgead.runtime.bundle.bundle import Bundle

SCHEMA: Final = "edgead.profile/1"
SUFFIX: Final = ".json"
MOST_THREADS = 4096
_MAX_BYTES = 64 << 10
# One vendor's library goes by several names in package indexes.
_FLAVOURS = ("", "-gpu", "-cu13", "-cu12", "-cu11")
_WITH_NATIVE = ("onnxruntime", "openvino")

NativeCode = Literal["used", "omitted", "absent"]
_Figure = Annotated[float, Field(ge=0.0)]


class Device(Section):
    """What a choice depends on beside the bundle: the processor, how many cores this process may use, the GPUs."""

    system: str
    machine: str
    cpu: str | None
    cores: Annotated[int, Field(ge=1)] | None
    gpus: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = ()

    @classmethod
    def here(cls) -> Device:
        gpus = tuple(f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in cuda_driver().devices)
        return cls(**describe_machine(), gpus=gpus)

    def describe(self) -> str:
        """Return the device in a few words."""
        return ", ".join([self.cpu or self.machine, f"{self.cores or '?'} cores", *self.gpus])


class Choice(Section):
    """What runs a bundle.

    ``threads`` None leaves their number to the backend. ``native_code`` says whether native code for a part of the
    graph (`edgead.runtime.backends.native`) was there, and whether it was used.
    """

    backend: Text
    precision: Text
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None
    native_code: NativeCode

    def describe(self) -> str:
        """Return the choice in a few words, such as ``onnxruntime int8-cpu, 2 threads``."""
        threads = "auto threads"
        if self.threads is not None:
            threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        native = ", without native code" if self.native_code == "omitted" else ""
        return f"{self.backend} {self.precision}, {threads}{native}"


class Measured(Section):
    """What was measured of the choice.

    Attributes:
        p50_ms, p99_ms: camera to decision; frame_width, frame_height: of the frames.
        peak_mb: 10^6 bytes of memory that its process held at most; None where the system does not tell.
        drift: see `edgead.runtime.device.tuning.evaluation`.
        budget_ms, budget_mb: what was asked for.
        at: date and time (UTC, ISO 8601).
    """

    p50_ms: _Figure
    p99_ms: _Figure
    frame_width: Annotated[int, Field(ge=1)]
    frame_height: Annotated[int, Field(ge=1)]
    peak_mb: _Figure | None
    drift: _Figure
    budget_ms: _Figure | None
    budget_mb: _Figure | None
    at: Text


class DeviceProfile(Section):
    """The content of a profile; ``bundle_sha256`` as `Bundle.sha256`, ``versions`` as `versions_of`."""

    schema_name: Annotated[Literal["edgead.profile/1"], Field(alias="schema")] = SCHEMA
    bundle_name: Text
    bundle_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    device: Device
    versions: dict[Text, Text]
    choice: Choice
    measured: Measured

    def save(self, where: Path) -> Path:
        """Write the profile and return its file; ``where`` as in `profile_file`.

        Raises:
            ConfigError: the place cannot be written; what was there stays.
        """
        file = profile_file(where, self.bundle_sha256)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write the device profile {file}: {reason(error)}; choose another place with --profile"
            ) from error
        with atomic_write(file, ConfigError) as stream:
            stream.write(self.model_dump_json(by_alias=True, indent=2).encode() + b"\n")
        return file

    def mismatch(self, bundle: Bundle) -> str | None:
        """Return why the profile does not hold for a bundle on this device as it is now; None where it does."""
        choice = self.choice
        if self.bundle_sha256 != bundle.sha256:
            return f"it is of another bundle ('{self.bundle_name}', SHA-256 {self.bundle_sha256[:12]}…)"
        outdated = self.outdated()
        if outdated is not None:
            return outdated
        if choice.precision not in bundle.manifest.precisions:
            return f"the bundle has no precision '{choice.precision}'"
        offered = native_offered(bundle, choice.backend, choice.precision)
        if offered != (choice.native_code != "absent"):
            return f"the native code was {'built' if offered else 'removed'} since (edgead build --target cpu)"
        return None

    def outdated(self) -> str | None:
        """Return why the profile holds for no bundle on this device as it is now; None where it may."""
        choice, here = self.choice, Device.here()
        if self.device != here:
            return f"it is of another device ({self.device.describe()}; this one: {here.describe()})"
        if choice.backend not in REGISTRY:
            return f"this edgead has no backend '{choice.backend}'"
        problem = REGISTRY[choice.backend].problem
        if problem is not None:
            return f"{choice.backend} cannot be used here ({problem})"
        now = versions_of(choice.backend)
        for name in sorted({*now, *self.versions}):
            if self.versions.get(name) != now.get(name):
                return f"it was measured with {name} {self.versions.get(name)}, here is {now.get(name)}"
        return None


class Settled(NamedTuple):
    """How a bundle is opened. ``why`` is one line; ``left_out`` says why there is a profile that was not used."""

    choice: Choice
    why: str
    left_out: str | None = None


def settle(bundle: Bundle, profile: str | Path, fallback: str, why: str) -> Settled:
    """Return how to open a bundle for which nothing was asked by name.

    Args:
        bundle: opened.
        profile: as in `profile_file`.
        fallback, why: what `edgead.runtime.backends.choose` gave for ``auto``, taken where no profile holds.
    """
    plain = Choice(backend=fallback, precision="fp32", threads=None, native_code="used")
    file = profile_file(Path(profile), bundle.sha256)
    try:
        found = read_profile(file)
        wrong = None if found is None else found.mismatch(bundle)
    except ConfigError as error:
        found, wrong = None, str(error)
    if wrong is not None:
        return Settled(plain, why, f"the device profile {file} is omitted: {wrong}; run: edgead tune {bundle.path}")
    if found is None:
        return Settled(plain, why, _of_earlier(bundle, file))
    measured = found.measured
    memory = "" if measured.peak_mb is None else f" and {measured.peak_mb:.0f} MB"
    return Settled(
        found.choice,
        f"device profile: {found.choice.describe()} ({measured.p50_ms:.2f} ms, p99 {measured.p99_ms:.2f}{memory} when "
        f"tuned on {measured.at[:10]}; --backend, --precision, --threads or --profile off override it)",
    )


def _of_earlier(bundle: Bundle, missing: Path) -> str | None:
    """Return what to say where a bundle of the same name has a profile here: it was calibrated, taught or made anew."""
    try:
        others = sorted(missing.parent.glob(f"*{SUFFIX}"))
    except OSError:
        return None
    for file in others:
        try:
            other = read_profile(file)
        except ConfigError:
            continue
        if other is not None and (other.bundle_name, other.outdated()) == (bundle.manifest.name, None):
            return (
                f"{bundle.path} runs without a device profile: that of '{other.bundle_name}' "
                f"({other.choice.describe()}) is of the bundle as it was before; run: edgead tune {bundle.path}"
            )
    return None


def profile_file(where: Path, bundle_sha256: str) -> Path:
    """Return the file of a bundle's profile: ``where`` itself if it ends in ``.json``, else the one in that folder."""
    return where if where.suffix == SUFFIX else where / f"{bundle_sha256}{SUFFIX}"


def describe_profiles(place: Path) -> list[str]:
    """Return one line for each profile in a folder, or for the one file: of which bundle, and whether it holds here."""
    try:
        files = [place] if place.suffix == SUFFIX else sorted(place.glob(f"*{SUFFIX}"))
    except OSError:
        return []
    lines = []
    for file in files:
        try:
            found = read_profile(file)
        except ConfigError as error:
            lines.append(f"{file.name} is omitted: {error}")
            continue
        if found is not None:
            outdated = found.outdated()
            lines.append(f"{found.bundle_name}: {found.choice.describe() if outdated is None else outdated}")
    return lines


def read_profile(file: Path) -> DeviceProfile | None:
    """Return the profile in a file, None where there is no such file.

    Raises:
        ConfigError: unreadable, damaged, or of a newer edgead; one line.
    """
    try:
        if not file.is_file():
            return None
    except OSError:
        return None  # a service whose user's home is hidden from it has no profile there
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 10} KiB")
        content = json.loads(data)
        named = content.get("schema") if isinstance(content, dict) else None
        if not isinstance(named, str) or not named.startswith("edgead.profile/"):
            raise ValueError("no device profile")
        if named != SCHEMA:
            raise ConfigError(f"it has the form {named[:40]}, this edgead reads {SCHEMA}")
        return DeviceProfile.model_validate_json(data)
    except ValidationError as error:
        if (unknown := unknown_field(error)) is not None:
            raise ConfigError(f"{made_by_newer(unknown)}; upgrade edgead, or tune again") from error
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, problem["loc"]))[:100]
        raise ConfigError(f"it is damaged (field '{field}': {problem['msg'][:150]})") from error
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"it cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is damaged ({reason(error)})") from error


def versions_of(backend: str) -> dict[str, str]:
    """Return the versions that a backend's speed depends on: edgead's and its library's, as installed."""
    package = REGISTRY[backend].package
    return {"edgead": __version__, package: _installed(REGISTRY[backend].distribution or package)}


def native_offered(bundle: Bundle, backend: str, precision: str) -> bool:
    """Return whether a backend would compute a part of a bundle's graph by native code on this device.

    Raises:
        BackendError: see `edgead.runtime.backends.native.library.find_library`.
    """
    library = find_library() if backend in _WITH_NATIVE else None
    return library is not None and any(lacking(library, kind) is None for kind in bundle.native_kinds(precision))


def _installed(name: str) -> str:
    for flavour in _FLAVOURS:
        try:
            return version(name.replace("_", "-") + flavour)
        except PackageNotFoundError:
            continue
    return "unknown"
