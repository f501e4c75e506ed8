"""The bundles that judged, kept once each beside the journal, so that a decision can be made again."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import BundleError, DataError
from edgead.runtime.files import atomic_write, reason
from edgead.runtime.journal.schema import bundle_path


def keep_bundle(folder: Path, path: Path, sha256: str) -> Path:
    """Copy a bundle into a journal's folder, unless it is there already; returns where it lies.

    Args:
        folder: of the journal.
        path: where the bundle is on the disk; it must still be the one of this digest.
        sha256: its digest (`Bundle.sha256`).

    Raises:
        DataError: it is another file by now, or cannot be copied; nothing is left then.
    """
    target = bundle_path(folder, sha256)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, atomic_write(target, DataError) as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
    except OSError as error:
        raise DataError(f"cannot keep the bundle {path} in {target.parent}: {reason(error)}") from error
    try:
        with Bundle.open(target, made_here=True) as copied:
            same = copied.sha256 == sha256
    except BundleError:
        same = False
    if not same:
        target.unlink(missing_ok=True)
        raise DataError(f"{path} is not the bundle that judges any more, so the record cannot keep it")
    return target
