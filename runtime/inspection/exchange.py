"""A bundle takes the place of the one that judges, on the disk and in memory, or nothing changes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from edgead.runtime.errors import DataError, EdgeadError
from edgead.runtime.files import reason
from edgead.runtime.inspection.inspector import Inspector

# A person and an update may want it at the same time.
_ONE_AT_A_TIME = threading.Lock()


def previous_path(bundle: Path) -> Path:
    """Return where the bundle goes that was replaced: ``plate.previous.edgead``."""
    return bundle.with_name(f"{bundle.stem}.previous.edgead")


def exchange(inspector: Inspector, waiting: Path, path: Path) -> None:
    """Check a bundle on this device, let it judge, and move it to ``path``, whose old one stays as ``previous``.

    Raises:
        BundleError, BackendError, ConfigError: it cannot be used on this device (`Inspector.swap`).
        DataError: the files could not be moved. Whatever fails, the old one goes on.
    """
    previous = previous_path(path)
    with _ONE_AT_A_TIME:
        inspector.swap(waiting)
        try:
            shutil.copyfile(path, previous)
            waiting.replace(path)
            # The same bundle by its final name, which self-tests and reloads read.
            inspector.swap(path)
        except (OSError, EdgeadError) as error:
            if not waiting.exists():
                path.replace(waiting)
                previous.replace(path)
            inspector.swap(path)
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise DataError(f"cannot put {waiting} in the place of {path}: {why}; the old one goes on") from error
