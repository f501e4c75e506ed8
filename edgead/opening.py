"""One door to what can judge images: a model directory (on torch) or a bundle (on a backend)."""

from __future__ import annotations

from pathlib import Path

from edgead.runtime.errors import BackendUnavailable, ConfigError, missing_extra
from edgead.runtime.inspection.inspector import Inspector


def open_inspector(
    path: str | Path, *, backend: str = "auto", precision: str | None = None, threads: int | None = None
) -> Inspector:
    """Open a model directory or a bundle for judging images.

    Args:
        path: what ``edgead fit -o`` or ``edgead export -o`` wrote.
        backend: for a bundle a backend name or ``auto``; a model directory runs on ``torch`` only.
        precision: of a bundle, a key of its precisions; None means ``fp32``, and all that a model directory has.
        threads: CPU threads; None leaves the choice to the backend.

    Raises:
        BundleError: damaged, or from another version.
        ConfigError: a model directory with another backend than torch or another precision than fp32.
        BackendUnavailable: a missing library.
    """
    path = Path(path)
    if not path.is_dir():
        return Inspector.open(path, backend=backend, precision=precision, threads=threads)
    if backend not in ("auto", "torch"):
        raise ConfigError(f"{path} is a model directory and runs on torch; export it to run it on '{backend}'")
    if precision not in (None, "fp32"):
        raise ConfigError(f"{path} is a model directory and runs in fp32; export it with --{precision.split('-')[0]}")
    try:
        from torch import set_num_threads as set_threads

        from edgead.model.model import load_model
    except ImportError as error:
        raise BackendUnavailable(missing_extra(str(error.name), "export")) from error
    model = load_model(path)
    if threads is not None:
        set_threads(threads)
    return model.inspector(path.name)
