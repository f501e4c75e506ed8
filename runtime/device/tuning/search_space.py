"""The combinations that a device offers for a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgead.runtime.backends import REGISTRY, available, choose
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.bench import meant_for
from edgead.runtime.errors import ConfigError, suggest
from edgead.runtime.inspection.device_profile import MOST_THREADS, Choice, NativeCode, native_offered
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.machine import describe_machine

_ALL_COUNTS = 4  # up to so many cores every number of threads is tried, above them powers of two


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run a bundle.

    Attributes:
        bundle: its path.
        plain: what runs it where there is no device profile.
        eligible: whether it may be chosen; False for a plain one that was not asked for, and is there to compare with.
    """

    bundle: Path
    choice: Choice
    plain: bool = False
    eligible: bool = True

    @property
    def name(self) -> str:
        return self.choice.describe()

    @property
    def exact(self) -> bool:
        """Whether it computes in FP32, so that it may change no decision at all."""
        return self.choice.precision == "fp32" and not self.choice.backend.endswith("-bf16")

    def open(self) -> Inspector:
        """Open the bundle so; errors as `Inspector.open`."""
        choice = self.choice
        return Inspector.open(
            self.bundle,
            backend=choice.backend,
            precision=choice.precision,
            threads=choice.threads,
            native_code=choice.native_code != "omitted",
        )


def find_setups(
    bundle: Bundle, backends: Sequence[str] = (), precisions: Sequence[str] = (), threads: Sequence[int] = ()
) -> list[Setup]:
    """Return the combinations for a bundle, the plain one first.

    Args:
        bundle: opened.
        backends: registry names or ``auto``; none means all of full precision that can run here.
        precisions: keys of the bundle's precisions; none means those that are made for each backend.
        threads: numbers of CPU threads; none means the library's own, and up to the cores that this process may use.

    Raises:
        ConfigError: an unknown name, a number out of range, or nothing is left of what was asked for.
        BackendUnavailable: a backend that was asked for is missing, or none is installed.
    """
    manifest = bundle.manifest
    plain = _plain(bundle)
    wanted = list(dict.fromkeys(choose(name)[0] for name in backends))
    # A variant of reduced precision has no threshold of its own, and is taken by those only who ask for it.
    tried = wanted or [name for name in available() if not name.endswith("-bf16")]
    for precision in precisions:
        if precision not in manifest.precisions:
            raise ConfigError(f"{bundle.path} has no precision '{precision}'.{suggest(precision, manifest.precisions)}")
    for count in threads:
        if not 1 <= count <= MOST_THREADS:
            raise ConfigError(f"--threads must lie between 1 and {MOST_THREADS}, got {count}")
    counts: Sequence[int | None] = sorted(set(threads)) or [None, *thread_counts(describe_machine()["cores"] or 1)]
    found = []
    for backend in tried:
        for precision in meant_for(manifest, backend):
            if precisions and precision not in precisions:
                continue
            offered = native_offered(bundle, backend, precision)
            native: NativeCode = "used" if offered else "absent"
            for number in (None,) if REGISTRY[backend].gpu else counts:
                choice = Choice(backend=backend, precision=precision, threads=number, native_code=native)
                found.append(Setup(bundle.path, choice))
                if offered and number is not None:
                    found.append(Setup(bundle.path, choice.model_copy(update={"native_code": "omitted"})))
    if not found:
        made = ", ".join(f"{key} for {', '.join(one.runtimes)}" for key, one in manifest.precisions.items())
        raise ConfigError(f"{bundle.path} holds nothing of what was asked for; it has {made}")
    free = plain.choice.backend in tried and not threads and (not precisions or "fp32" in precisions)
    return [replace(plain, eligible=free), *(one for one in found if one.choice != plain.choice)]


def find_like(bundle: Bundle, choice: Choice) -> list[Setup]:
    """Return the combination that was chosen for another bundle; FP32 comes first where that is something else.

    Raises:
        ConfigError: the bundle has no such precision.
    """
    if choice.precision not in bundle.manifest.precisions:
        raise ConfigError(f"{bundle.path} has no precision '{choice.precision}'")
    offered = native_offered(bundle, choice.backend, choice.precision)
    native: NativeCode = "absent" if not offered else "omitted" if choice.native_code == "omitted" else "used"
    wanted = Setup(bundle.path, choice.model_copy(update={"native_code": native}))
    return [wanted] if wanted.exact else [replace(_plain(bundle), eligible=False), wanted]


def _plain(bundle: Bundle) -> Setup:
    backend = choose("auto")[0]
    native: NativeCode = "used" if native_offered(bundle, backend, "fp32") else "absent"
    choice = Choice(backend=backend, precision="fp32", threads=None, native_code=native)
    return Setup(bundle.path, choice, plain=True)


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads that are tried: each up to 4, then powers of two, and all cores."""
    counts = set(range(1, min(cores, _ALL_COUNTS) + 1))
    count = _ALL_COUNTS
    while count < cores:
        counts.add(count)
        count *= 2
    return sorted({*counts, cores})
